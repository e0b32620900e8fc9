"""arq: jobs in a sorted set, one asyncio loop."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker


async def drain(url: str, runs: int, concurrency: int) -> float:
    """Runs a second, from the first body to the last."""
    starts: list[float] = []

    async def nothing(_context: dict[str, object], _number: int) -> None:
        starts.append(time.perf_counter())

    pool = await create_pool(RedisSettings.from_dsn(url))
    for number in range(runs):
        await pool.enqueue_job("nothing", number)
    settings = {"max_jobs": concurrency, "queue_read_limit": 5 * concurrency, "poll_delay": 0.01}
    nothing.__qualname__ = "nothing"
    worker = Worker([nothing], redis_pool=pool, burst=True, handle_signals=False, **settings)
    await worker.main()
    assert len(starts) == runs
    return runs / (max(starts) - min(starts))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    print(json.dumps({"runs_per_s": asyncio.run(drain(told["url"], told["runs"], told["concurrency"]))}))
