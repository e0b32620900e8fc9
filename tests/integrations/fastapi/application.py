"""The application that tests use: an effect log as in system tests, tasks of both kinds, and ways to look inside."""

from __future__ import annotations

import asyncio
import contextvars
import os
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
from tests.system.cluster import ONCE
from tests.system.worker import EffectLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POOL: contextvars.ContextVar[str] = contextvars.ContextVar("pool")


def where() -> dict[str, Any]:
    """The loop or thread that this is called in, and what it sees of the lifespan."""
    in_trio = trio.lowlevel.in_trio_run()
    return {
        "thread": threading.current_thread().name,
        "loop": "trio" if in_trio else asyncio.get_running_loop().__class__.__module__.partition(".")[0],
        "pool": POOL.get(None),
    }


def make_app(spec: dict[str, Any]) -> FastAPI:
    """An application with a TaskManager in ``app.state.manager``.

    Its asynchronous task takes ``seconds``, none by default.
    """
    log = EffectLog(Path(spec["effects"]))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        POOL.set("open")
        log.write("entered", **where())
        try:
            yield {"pool": "open"}
        finally:
            log.write("left")

    group = TaskGroup("work")

    @group.add_task(ONCE["expression"], name="loop", run_on_first_start=True)
    async def in_loop() -> None:
        run = RunContext.current()
        log.write("start", task="loop", run=run.run_id, **where())
        outcome = "cancelled"
        try:
            await anyio.sleep(spec.get("seconds", 0))
            outcome = "end"
        finally:
            log.write(outcome, task="loop", run=run.run_id)

    @group.add_task(ONCE["expression"], name="thread", run_on_first_start=True)
    def in_thread() -> None:
        log.write("start", task="thread", thread=threading.current_thread().name)

    app = FastAPI(lifespan=lifespan)
    manager = app.state.manager = TaskManager(app, Config(**spec["config"]))
    manager.add_task_group(group)

    @app.get("/state")
    async def state(request: Request) -> dict[str, Any]:
        return {"pool": request.state.pool, "pid": os.getpid()}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return (await manager.health_check()).model_dump()

    @app.get("/block")
    async def block(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # this is what it is for

    return app
