"""How many runs a second one process gets through that are queued already, with bodies that do nothing."""

from __future__ import annotations

import asyncio
from typing import Final

import trio
import uvicorn
from fastapi import FastAPI

from engine import TaskGroup
from integrations.fastapi import TaskManager
from tests.benchmarks import floor, subject
from tests.benchmarks.subject import GROUP, Starts

TASKS: Final = 100
"""The runs are those of so many tasks, in turn."""


def standalone(url: str, *, runs: int, concurrency: int, plain: bool = False) -> dict[str, float]:
    """Troupe by itself, on trio."""
    starts, group = Starts(url, runs), TaskGroup(GROUP)
    subject.add_tasks(group, TASKS, starts.plain if plain else starts.body)
    engine = subject.engine_of(url, [group], concurrent_tasks=concurrency)

    async def drained() -> dict[str, float]:
        await subject.fill(url, runs, tasks=TASKS)
        async with subject.serving(engine):
            return await trio.to_thread.run_sync(starts.rate)

    return trio.run(drained)


def in_uvicorn(url: str, *, runs: int, concurrency: int) -> dict[str, float]:
    """Troupe in an application under uvicorn, whose asyncio loop executes the bodies."""
    starts, group, app = Starts(url, runs), TaskGroup(GROUP), FastAPI()
    subject.add_tasks(group, TASKS, starts.body)
    manager = TaskManager(app, subject.fastapi_config(url, concurrent_tasks=concurrency))
    manager.add_task_group(group)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", loop="asyncio"))

    async def drained() -> dict[str, float]:
        serving = asyncio.create_task(server.serve())
        rate = await asyncio.to_thread(starts.rate)
        server.should_exit = True
        await serving
        return rate

    trio.run(lambda: subject.fill(url, runs, tasks=TASKS))
    return asyncio.run(drained())


def least(url: str, *, runs: int, concurrency: int) -> dict[str, float]:
    """The floor, and what Redis alone would allow: the time that it spends on reads, claims and completions."""
    trio.run(lambda: subject.fill(url, runs, tasks=TASKS))
    return floor.drain(url, subject.PREFIX, runs=runs, concurrency=concurrency)


if __name__ == "__main__":
    subject.main({"standalone": standalone, "in_uvicorn": in_uvicorn, "floor": least})
