"""The application that tests use: an effect log as in system tests, tasks of every kind, and ways to look inside."""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import trio
from fastapi import FastAPI, Request

from engine import RunContext
from integrations.fastapi import Config, TaskGroup, TaskManager
from tests.integrations.fastapi.children import fork_child
from tests.system.cluster import ONCE
from tests.system.worker import EffectLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

POOL: contextvars.ContextVar[str] = contextvars.ContextVar("pool")


def where() -> dict[str, Any]:
    """The thread, and the loop if there is one, that this is called in, and what it sees of the lifespan."""
    loop = None
    if trio.lowlevel.in_trio_run():
        loop = "trio"
    elif (running := asyncio._get_running_loop()) is not None:
        loop = running.__class__.__module__.partition(".")[0]
    return {"thread": threading.current_thread().name, "loop": loop, "pool": POOL.get(None)}


def compute(seconds: float) -> None:
    """In Python, which lets other threads have their share."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def hold_gil(seconds: float) -> None:
    """In one regular expression, which keeps every other thread from running for at least so long."""
    pattern, length = re.compile("a*a*a*b"), 600

    def takes_s() -> float:
        began_s = time.thread_time()
        pattern.match("a" * length)
        return time.thread_time() - began_s

    held_s, unit_s = 0.0, min(takes_s() for _ in range(4))
    while held_s < seconds:  # again where the machine got faster meanwhile
        began_s, longer = time.monotonic(), 1.05 * (seconds / unit_s) ** (1 / 3)  # time grows with its cube
        pattern.match("a" * int(length * longer))
        held_s = time.monotonic() - began_s
        unit_s *= min(1.0, held_s / seconds)


BLOCKS: dict[str, Callable[[float], None]] = {"sleep": time.sleep, "compute": compute, "regex": hold_gil}


class Bodies:
    """What tasks do. Each writes ``start`` first, then ``end`` or ``cancelled``."""

    def __init__(self, log: EffectLog, gate: Path, fork: Callable[[], object]) -> None:
        self._log, self._gate, self._fork = log, gate, fork

    def make(self, name: str, kind: str, seconds: float) -> Callable[[], Any]:
        """A function of this kind: loop, gated, asyncio, thread, gated thread or fork."""
        waits: dict[str, Callable[[], Awaitable[object]]] = {
            "loop": lambda: anyio.sleep(seconds),
            "gated": self._wait_for_gate,
            "asyncio": lambda: asyncio.sleep(0.01),
        }

        async def in_loop() -> None:
            self._write("start", name)
            outcome = "cancelled"
            try:
                await waits[kind]()
                outcome = "end"
            finally:
                self._write(outcome, name)

        def in_thread() -> None:
            self._write("start", name)
            if kind == "fork":
                self._fork()
            elif kind == "gated thread":
                while not self._gate.exists():
                    time.sleep(0.02)
            else:
                time.sleep(seconds)
            self._write("end", name)

        return in_loop if kind in waits else in_thread

    def _write(self, event: str, name: str) -> None:
        run = RunContext.current()
        facts = {"run": run.run_id, "slot_ms": run.slot_ms, "fence": run.fence, "attempt": run.attempt}
        self._log.write(event, task=name, **facts, **where())

    async def _wait_for_gate(self) -> None:
        while not self._gate.exists():  # noqa: ASYNC110  # another process opens it
            await anyio.sleep(0.02)


def make_app(spec: dict[str, Any]) -> FastAPI:
    """An application with a TaskManager in ``app.state.manager``.

    Its ``tasks`` have a ``kind`` and take ``seconds``. By default one runs on the loop and one in a thread, at once.
    """
    log = EffectLog(Path(spec["effects"]))
    gate = Path(spec["effects"]).with_suffix(".gate")
    bodies = Bodies(log, gate, lambda: fork_child(app.state.manager, log, gate))
    released = threading.Event()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        POOL.set("open")
        log.write("entered", **where())
        try:
            yield {"pool": "open"}
        finally:
            log.write("left")

    group = TaskGroup("work")
    by_default = [
        {"name": "loop", "kind": "loop", "seconds": spec.get("seconds", 0), **ONCE},
        {"name": "thread", "kind": "thread", **ONCE},
    ]
    for given in spec.get("tasks", by_default):
        options = dict(given)
        body = bodies.make(options["name"], options.pop("kind"), options.pop("seconds", 0))
        group.add_task(options.pop("expression"), **options)(body)

    app = FastAPI(lifespan=lifespan)
    manager = app.state.manager = TaskManager(app, Config(**spec["config"]))
    manager.add_task_group(group)
    app.include_router(manager.get_manager_router(), prefix="/manage")

    @app.get("/state")
    async def state(request: Request) -> dict[str, Any]:
        return {"pool": request.state.pool, "pid": os.getpid()}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return (await manager.health_check()).model_dump()

    @app.get("/block")
    async def block(seconds: float, how: str = "sleep") -> None:
        BLOCKS[how](seconds)  # the line that blocks

    @app.get("/hold")
    def hold() -> None:
        log.write("held", **where())
        assert released.wait(60)

    @app.get("/endless")
    async def endless() -> None:
        log.write("waits", **where())
        await anyio.sleep_forever()

    @app.get("/release")
    async def release() -> None:
        released.set()

    @app.get("/fork")
    async def fork() -> dict[str, Any]:
        return {"child": fork_child(manager, log, gate)}

    return app
