"""docket: streams, one asyncio loop."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time

from docket import Docket, Worker

starts: list[float] = []


async def nothing(number: int) -> None:
    """Does nothing but say when."""
    starts.append(time.perf_counter())


async def drain(url: str, runs: int, concurrency: int) -> float:
    """Runs a second, from the first body to the last."""
    async with Docket(name="bench", url=url) as docket:
        docket.register(nothing)
        for number in range(runs):
            await docket.add(nothing)(number)
        async with Worker(docket, concurrency=concurrency) as worker:
            await worker.run_until_finished()
    assert len(starts) == runs
    return runs / (max(starts) - min(starts))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    told = json.loads(sys.argv[1])
    print(json.dumps({"runs_per_s": asyncio.run(drain(told["url"], told["runs"], told["concurrency"]))}))
