"""The engine that is measured, and what its drivers share."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, final

import redis
import trio

from engine import Config, Engine, TaskGroup
from engine.config import address_of
from engine.domain.names import trigger_run_id
from engine.store.keys import Keys
from engine.store.link import Link
from engine.store.operations import Accepted, Trigger
from engine.store.store import Store
from integrations.fastapi import Config as FastAPIConfig

PREFIX: Final = "bench"
KEYS: Final = Keys(PREFIX)
GROUP: Final = "g"

NEVER: Final = "0 0 29 2 *"
"""But for a day in four years."""

LIMIT_S: Final = 120.0


def settings(url: str, **more: Any) -> dict[str, Any]:
    """Of every engine here."""
    return {"redis_url": url, "redis_key_prefix": PREFIX, "queue_cap": 200_000, **more}


def engine_of(url: str, groups: list[TaskGroup], **more: Any) -> Engine:
    """An engine on that Redis."""
    return Engine(Config(**settings(url, **more)), groups)


def fastapi_config(url: str, **more: Any) -> FastAPIConfig:
    """The same for an application."""
    return FastAPIConfig(**settings(url, **more))


def add_tasks(group: TaskGroup, count: int, body: Callable[..., Any], *, cron: str = NEVER, name: str = "t") -> None:
    """So many tasks with one function, ``t0`` and so on."""
    for number in range(count):
        group.add_task(cron, name=f"{name}{number}", register=False)(body)


@asynccontextmanager
async def serving(*engines: Engine) -> AsyncIterator[None]:
    """These engines run, and are stopped as a deployment stops them."""
    async with trio.open_nursery() as nursery:
        for engine in engines:
            await nursery.start(engine.serve)
        yield
        for engine in engines:
            engine.stop()


async def until(condition: Callable[[], Any], *, every_s: float = 0.005, limit_s: float = LIMIT_S) -> None:
    """Wait for it, with a limit."""
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(every_s)


async def fill(url: str, runs: int, *, tasks: int, priority: str = "low") -> None:
    """Queue so many runs of the tasks in turn, as operators do."""
    link = Link(address_of(Config(redis_url=url)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await link.wait_up()
        operations = Store.over(link, prefix=PREFIX).operations
        ids = [trigger_run_id(f"{GROUP}/t{number % tasks}", str(number)) for number in range(runs)]
        triggers = [Trigger(run_id, priority, "allow") for run_id in ids]
        replies = await operations.trigger(triggers, who="benchmark", queue_cap=runs)
        assert all(reply == Accepted() for reply in replies)
        nursery.cancel_scope.cancel()


@final
class Starts:
    """When bodies began, seen from a thread of its own, which costs whoever is measured next to nothing."""

    def __init__(self, url: str, runs: int) -> None:
        self._redis, self._runs = redis.Redis.from_url(url), runs
        self.seen_s: list[float] = []
        self._cpu_s = 0.0

    async def body(self) -> None:
        """An asynchronous body that does nothing but say when."""
        self.plain()

    def plain(self) -> None:
        """One for a thread."""
        if not self.seen_s:
            self._cpu_s = time.process_time()
        self.seen_s.append(time.perf_counter())

    def rate(self) -> dict[str, float]:
        """Runs a second, from the first start of a body until Redis knows of the last end, and what each costs here.

        Blocks until then.
        """
        deadline_s = time.monotonic() + LIMIT_S
        while len(self.seen_s) < self._runs:
            assert time.monotonic() < deadline_s, f"{len(self.seen_s)} of {self._runs} runs began"
            time.sleep(0.005)
        while self._redis.zcard(KEYS.leases):
            assert time.monotonic() < deadline_s, "runs do not end"
            time.sleep(0.001)
        took_s, cpu_s = time.perf_counter() - self.seen_s[0], time.process_time() - self._cpu_s
        return {"runs_per_s": self._runs / took_s, "cpu_us": 1e6 * cpu_s / self._runs}


def percentile(values: list[float], share: float) -> float:
    """The least of them that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def in_ms(values_s: list[float]) -> dict[str, float]:
    """Their distribution."""
    found = {"p50_ms": 0.5, "p99_ms": 0.99}
    return {name: 1_000 * percentile(values_s, share) for name, share in found.items()} | {
        "worst_ms": 1_000 * max(values_s)
    }


def resident_bytes() -> int:
    """Of this process, now."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * resource.getpagesize()


def main(ways: dict[str, Callable[..., dict[str, float]]]) -> None:
    """The command of a driver: one JSON object in, ``way`` in it, and one out."""
    told = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(ways[told.pop("way")](**told)) + "\n")
    sys.stdout.flush()


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    """Started."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread
