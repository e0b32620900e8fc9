"""fastapi-task-manager, the system that Troupe replaces: ``mode`` is drain, idle or trigger."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any

import redis.asyncio
from fastapi import FastAPI
from fastapi_task_manager import Config, TaskGroup, TaskManager  # type: ignore[attr-defined]
from fastapi_task_manager.task_router_services import trigger_tasks

told: dict[str, Any] = json.loads(sys.argv[1])
starts: list[float] = []


def manager_of(tasks: int, concurrency: int, *, high_priority: bool = False) -> tuple[TaskManager, TaskGroup]:
    """With so many tasks that are due once a year."""
    host, _, port = told["url"].removeprefix("redis://").removesuffix("/0").partition(":")
    config = Config(redis_host=host, redis_port=int(port), redis_key_prefix="bench", concurrent_tasks=concurrency)
    manager = TaskManager(FastAPI(), config)
    group = TaskGroup("g")
    manager.add_task_group(group)
    for number in range(tasks):

        async def nothing() -> None:
            starts.append(time.perf_counter())

        nothing.__name__ = f"t{number}"
        group.add_task("0 0 1 1 *", high_priority=high_priority)(nothing)
    return manager, group


async def until(count: int) -> None:
    """Wait for so many bodies."""
    async with asyncio.timeout(200):
        while len(starts) < count:
            await asyncio.sleep(0.001)


async def drain(runs: int, concurrency: int) -> dict[str, float]:
    """Each task runs once when it is first seen, all of them at once: its own way to a full queue."""
    manager, _ = manager_of(runs, concurrency)
    await manager.start()
    await until(runs)
    return {"runs_per_s": runs / (max(starts) - min(starts))}


async def idle(tasks: int, for_s: float) -> dict[str, float]:
    """Requests to Redis, bytes and processor time, when nothing is due."""
    manager, _ = manager_of(tasks, 50)
    await manager.start()
    await until(tasks)
    await asyncio.sleep(1)
    client = redis.asyncio.Redis.from_url(told["url"])
    before: Any = await client.info("stats")
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.sleep(for_s)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    after: Any = await client.info("stats")
    moved = ("total_net_input_bytes", "total_net_output_bytes")
    return {
        "commands_per_s": (after["total_commands_processed"] - before["total_commands_processed"]) / took_s,
        "bytes_per_s": sum(after[name] - before[name] for name in moved) / took_s,
        "cpu_percent": 100 * cpu_s / took_s,
    }


async def trigger(samples: int) -> dict[str, float]:
    """From the call to the start of the body, on an idle worker."""
    manager, group = manager_of(1, 50, high_priority=True)
    await manager.start()
    await until(1)
    waited_ms = []
    for _ in range(samples):
        await asyncio.sleep(0.137)
        count, asked_s = len(starts), time.perf_counter()
        await trigger_tasks(manager, task_group_name="g", task_name=group.tasks[0].name)
        await until(count + 1)
        waited_ms.append(1_000 * (starts[-1] - asked_s))
    waited_ms.sort()
    return {"p50_ms": waited_ms[len(waited_ms) // 2], "worst_ms": waited_ms[-1]}


async def main() -> None:
    """Print what was asked for."""
    ways: dict[str, Any] = {"drain": drain, "idle": idle, "trigger": trigger}
    options = {name: value for name, value in told.items() if name not in {"url", "mode"}}
    print(json.dumps(await ways[told["mode"]](**options)), flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(asyncio.wait_for(main(), 250))
