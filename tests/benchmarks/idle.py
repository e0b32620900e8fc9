"""What workers cost that have nothing to do."""

from __future__ import annotations

import time
from typing import Any

import redis
import trio

from engine import TaskGroup
from tests.benchmarks import subject
from tests.benchmarks.subject import GROUP, KEYS


async def nothing() -> None:
    """Not due for years."""


def workers(url: str, *, tasks: int, count: int, for_s: float) -> dict[str, float]:
    """So many workers, in one process to spare memory, that know so many tasks. Per worker."""
    group = TaskGroup(GROUP)
    subject.add_tasks(group, tasks, nothing)
    engines = [subject.engine_of(url, [group], concurrent_tasks=50) for _ in range(count)]
    client = redis.Redis.from_url(url)
    found: dict[str, float] = {}

    async def main() -> None:
        async with subject.serving(*engines):
            await subject.until(lambda: client.zcard(KEYS.due) == tasks, every_s=0.1)
            await trio.sleep(4)  # until the last of them has told what it declares
            before: Any = client.info("stats")
            sent = sum(engine.link_statistics().commands_sent for engine in engines)
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            await trio.sleep(for_s)
            took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
            after: Any = client.info("stats")
            moved = ("total_net_input_bytes", "total_net_output_bytes")
            per = took_s * count
            found["commands_per_s"] = (sum(e.link_statistics().commands_sent for e in engines) - sent) / per
            found["bytes_per_s"] = sum(after[name] - before[name] for name in moved) / per
            found["cpu_percent"] = 100 * cpu_s / per

    trio.run(main)
    return found


if __name__ == "__main__":
    subject.main({"workers": workers})
