"""taskiq with Redis streams or lists: one asyncio loop."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from taskiq.receiver import Receiver
from taskiq_redis import ListQueueBroker, RedisStreamBroker

KINDS = {"stream": RedisStreamBroker, "list": ListQueueBroker}


async def drain(url: str, runs: int, concurrency: int, kind: str) -> float:
    """Runs a second, from the first body to the last."""
    starts: list[float] = []
    broker = KINDS[kind](url)

    @broker.task
    async def nothing(_number: int) -> None:
        starts.append(time.perf_counter())

    await broker.startup()
    for number in range(runs):
        await nothing.kiq(number)
    broker.is_worker_process = True
    receiver = Receiver(broker, executor=ThreadPoolExecutor(2), max_async_tasks=concurrency, run_startup=False)
    listening = asyncio.create_task(receiver.listen(asyncio.Event()))
    async with asyncio.timeout(200):
        while len(starts) < runs:
            await asyncio.sleep(0.01)
    assert not listening.done()
    return runs / (max(starts) - min(starts))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])

    async def main() -> None:
        """Print, and end: the receiver has no other end."""
        rate = await drain(told["url"], told["runs"], told["concurrency"], told["kind"])
        print(json.dumps({"runs_per_s": rate}), flush=True)
        os._exit(0)

    asyncio.run(main())
