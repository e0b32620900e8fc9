"""How many bytes of Redis a task takes, a run that is queued, and a row of a task's history.

Run it with ``python -m tests.benchmarks.memory``. Engines do what they do in production, on a Redis of its own. Each
figure is what that server's ``used_memory`` grows by, for each of many things. docs/deployment.md shows the figures,
and a test compares them.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import redis
import trio

from engine import Config, Engine, TaskGroup
from engine.management import Management, Match
from tests.store.servers import RedisServer, newest_binary
from tests.system.cluster import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.management import Triggered

TASKS = 5_000
OFTEN, ROUNDS = 20, 200
"""So many tasks run so many times, for the history."""

LIMIT_S = 60.0


@final
@dataclass(frozen=True, slots=True)
class Bytes:
    """The figures, rounded."""

    task: int
    """With a schedule, one small argument, and no runs."""

    queued_run: int
    first_row: int
    """Redis makes room for more when a history begins."""

    row: int
    """Each further one, of a run that succeeded."""


class Bench:
    """A Redis, and engines on it that come and go."""

    def __init__(self, server: RedisServer) -> None:
        self._url = f"unix://{server.path}"
        self.client = redis.Redis(unix_socket_path=server.path, decode_responses=True)

    def used(self) -> int:
        """What all the data takes, as the server counts it."""
        self._forget_what_expires()
        info: Any = self.client.info("memory")
        return int(info["used_memory"])

    def _forget_what_expires(self) -> None:
        """Answers to operators, kept for ten minutes, and events, which are never more than about 1,000."""
        for key in self.client.scan_iter(match="*}:once:*", count=1_000):
            self.client.delete(key)
        self.client.delete("{memory}:events")

    def count(self, pattern: str) -> int:
        """How many keys have such a name."""
        return sum(1 for _ in self.client.scan_iter(match=pattern, count=1_000))

    @asynccontextmanager
    async def engine(self, tasks: int, *, runs_at_once: int, first_run: bool = False) -> AsyncIterator[Engine]:
        """An engine with so many tasks, all of which are scheduled, and which has left when this ends."""
        group = TaskGroup("reports")
        for number in range(tasks):
            group.add_task(
                "0 0 1 1 *", {"customer": number}, name=f"report-{number}", register=False, run_on_first_start=first_run
            )(report)
        settings: Any = {"redis_url": self._url, "redis_key_prefix": "memory", "queue_cap": 10 * TASKS}
        engine = Engine(Config(**settings, concurrent_tasks=runs_at_once), [group])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.serve)
            await eventually(self._scheduled(tasks), "all tasks are scheduled", limit_s=LIMIT_S)
            yield engine
            engine.stop()

    def _scheduled(self, tasks: int) -> Any:
        async def scheduled() -> bool:
            return bool(self.client.zcard("{memory}:due") == tasks)

        return scheduled

    async def idle(self) -> None:
        """Wait until nothing is queued or running."""

        async def done() -> bool:
            return self.client.xlen("{memory}:stream:low") == 0 == self.count("{memory}:live:*")

        await eventually(done, "all runs have ended", limit_s=LIMIT_S)


async def report(customer: int) -> None:
    """A task that does nothing."""


async def trigger_all(management: Management) -> Triggered:
    """Every task, now."""
    return await management.trigger(Match(), who="the benchmark")


async def measure(server: RedisServer) -> Bytes:
    """On this server, whose data is lost."""
    bench = Bench(server)
    async with bench.engine(1, runs_at_once=1, first_run=True):  # it loads the scripts, which stay
        await bench.idle()
    bench.client.flushall()
    nothing = bench.used()
    async with bench.engine(TASKS, runs_at_once=0):
        pass
    declared = bench.used()

    bench.client.flushall()
    async with bench.engine(TASKS, runs_at_once=0, first_run=True):
        await eventually(queued_all(bench), "all runs are queued", limit_s=LIMIT_S)
    queued = bench.used()
    async with bench.engine(TASKS, runs_at_once=100, first_run=True):
        await bench.idle()
    ran_once = bench.used()

    bench.client.flushall()
    async with bench.engine(OFTEN, runs_at_once=100) as engine:
        await engine.perform(trigger_all)
        await bench.idle()
        begun = bench.used()
        for _ in range(ROUNDS):
            await engine.perform(trigger_all)
        await bench.idle()
        rows = bench.used() - begun
    bench.client.close()
    return Bytes(
        task=round((declared - nothing) / TASKS),
        queued_run=round((queued - declared) / TASKS),
        first_row=round((ran_once - declared) / TASKS),
        row=round(rows / (OFTEN * ROUNDS)),
    )


def queued_all(bench: Bench) -> Any:
    """Is there a run of each task?"""

    async def queued() -> bool:
        return bool(bench.client.xlen("{memory}:stream:low") == TASKS)

    return queued


def main() -> int:
    """Measure on a server of our own, and print."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(newest_binary(), Path(directory)).start()
        try:
            found = trio.run(measure, server)
        finally:
            server.kill()
    sys.stdout.write(f"Redis {'.'.join(map(str, server.binary.version))}, bytes for each\n")
    for field in fields(found):
        sys.stdout.write(f"{field.name.replace('_', ' '):12} {getattr(found, field.name):6,}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
