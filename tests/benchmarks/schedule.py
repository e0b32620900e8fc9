"""A large schedule: declaring it, a cold start with it, taking it over, and the memory of whoever leads."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import redis
import trio

from engine import TaskGroup
from tests.benchmarks import subject
from tests.benchmarks.subject import GROUP, KEYS


async def report(customer: int) -> None:
    """Not due for years."""


def declared(tasks: int, *, expressions: int) -> TaskGroup:
    """Tasks of one function that share so many expressions, none of which is due soon."""
    group = TaskGroup(GROUP)
    for number in range(tasks):
        which = number % expressions
        cron = f"{which % 60} {which // 60 % 24} 29 2 *"
        group.add_task(cron, {"customer": number}, name=f"t{number}", register=False)(report)
    return group


def cold(url: str, *, tasks: int, expressions: int = 1) -> dict[str, float]:
    """From nothing until all is scheduled, then another worker takes over from one that ends without a farewell."""
    client, found = redis.Redis.from_url(url), dict[str, float]()

    async def start() -> None:
        first = subject.engine_of(url, [declared(0, expressions=1)])
        async with subject.serving(first):
            await subject.until(lambda: first.leads)
            await trio.sleep(1)
        gc.collect()
        empty = subject.resident_bytes()
        began_s = time.perf_counter()
        group = declared(tasks, expressions=expressions)
        found["declare_s"] = time.perf_counter() - began_s
        engine = subject.engine_of(url, [group])
        began_s = time.perf_counter()
        async with subject.serving(engine):
            await subject.until(lambda: client.zcard(KEYS.due) == tasks, every_s=0.02)
            found["cold_start_s"] = time.perf_counter() - began_s
            await trio.sleep(3)
            gc.collect()
            found["leader_bytes"] = (subject.resident_bytes() - empty) / tasks
        found["redis_bytes"] = client.info("memory")["used_memory"] / tasks

    trio.run(start)
    return found


def with_probe(tasks: int, body: Callable[[], Awaitable[None]]) -> TaskGroup:
    """The same, and a task of every second."""
    group = declared(tasks, expressions=1)
    subject.add_tasks(group, 1, body, cron="* * * * * *", name="probe")
    return group


def lead(url: str, *, tasks: int) -> dict[str, float]:
    """Lead until killed."""

    async def never_here() -> None:
        raise AssertionError("this worker executes nothing")

    subject.engine_of(url, [with_probe(tasks, never_here)], concurrent_tasks=0).run()
    return {}


def takeover(url: str, *, tasks: int) -> dict[str, float]:
    """From the end of the lease of a leader that was killed to the first slot that its follower publishes."""
    client, started_s, found = redis.Redis.from_url(url), list[float](), dict[str, float]()

    async def probe() -> None:
        started_s.append(time.time())

    async def main() -> None:
        told = json.dumps({"url": url, "way": "lead", "tasks": tasks})
        command = [sys.executable, "-m", "tests.benchmarks.schedule", told]
        leader = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            await subject.until(lambda: client.zcard(KEYS.due) == tasks + 1, every_s=0.1)
            follower = subject.engine_of(url, [with_probe(tasks, probe)], concurrent_tasks=10)
            async with subject.serving(follower):
                await subject.until(lambda: started_s)
                await trio.sleep(3)
                assert not follower.leads
                leader.kill()
                free_s = time.time() + int(client.pttl(KEYS.leader)) / 1_000
                await subject.until(lambda: follower.leads and started_s[-1] > free_s)
                found["takeover_s"] = next(at_s for at_s in started_s if at_s > free_s) - free_s
        finally:
            leader.kill()
            leader.wait()

    trio.run(main)
    return found


if __name__ == "__main__":
    subject.main({"cold": cold, "takeover": takeover, "lead": lead})
