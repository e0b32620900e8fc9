"""streaq: streams, on trio or asyncio."""

from __future__ import annotations

import json
import os
import sys
import time

import anyio
from streaq import Worker

told = json.loads(sys.argv[1])
starts: list[float] = []
worker = Worker(redis_url=told["url"], concurrency=told["concurrency"], anyio_backend=told["loop"])


@worker.task
async def nothing(number: int) -> None:
    """Does nothing but say when."""
    starts.append(time.perf_counter())


async def drain() -> None:
    """Print runs a second, from the first body to the last, and end: the worker waits for a signal otherwise."""
    async with anyio.create_task_group() as group:
        group.start_soon(worker.run_async)
        with anyio.fail_after(200):
            while len(starts) < told["runs"]:
                await anyio.sleep(0.01)
        print(json.dumps({"runs_per_s": told["runs"] / (max(starts) - min(starts))}), flush=True)
        os._exit(0)


async def main() -> None:
    """Queue them, then drain."""
    async with worker:
        await worker.enqueue_many([nothing.enqueue(number) for number in range(told["runs"])])
    await drain()


if __name__ == "__main__":
    anyio.run(main, backend=told["loop"])
