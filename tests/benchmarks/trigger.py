"""From somebody's wish to the start of the body: in process and over HTTP, on an idle worker and on a full one."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from typing import Final

import httpx
import trio
import uvicorn
from fastapi import FastAPI

from engine import TaskGroup
from engine.management import Management, Match, Triggered
from integrations.fastapi import TaskManager
from tests.benchmarks import subject
from tests.benchmarks.subject import GROUP

PAUSE_S: Final = 0.023
"""Between two of them; not a multiple of anything."""

LOW_S: Final = 0.02
"""What a run of the full load takes."""


PROBE: Final = {"task_group_name": "probe", "task_name": "probe"}
ASKED: Final = {"X-Requested-With": "benchmark"}


class Probe:
    """A task whose starts are noted."""

    def __init__(self, *, high_priority: bool) -> None:
        self.started_s: list[float] = []
        self.group = TaskGroup("probe")

        async def probe() -> None:
            self.started_s.append(time.perf_counter())

        self.group.add_task(subject.NEVER, name="probe", high_priority=high_priority)(probe)

    async def trigger(self, management: Management) -> Triggered:
        """Once, now."""
        return await management.trigger(Match(group="probe", name="probe"), who="benchmark")


def idle(url: str, *, samples: int, high_priority: bool) -> dict[str, float]:
    """In process, on a worker that does nothing else."""
    probe, waited_s = Probe(high_priority=high_priority), list[float]()
    engine = subject.engine_of(url, [probe.group], concurrent_tasks=50)

    async def main() -> None:
        async with subject.serving(engine):
            for number in range(samples + 5):
                await trio.sleep(PAUSE_S)
                asked_s = time.perf_counter()
                await engine.perform(probe.trigger)
                await subject.until(lambda: len(probe.started_s) > number, every_s=0.001)  # noqa: B023
                waited_s.append(probe.started_s[-1] - asked_s)

    trio.run(main)
    return subject.in_ms(waited_s[5:])


def full(url: str, *, samples: int, high_priority: bool, concurrency: int = 10) -> dict[str, float]:
    """In process, on a worker that has more low-priority runs than it can take.

    Counted from the first end of a run after it was queued, which is when a slot gets free.
    """
    probe, after_s, ended_s = Probe(high_priority=high_priority), list[float](), list[float]()

    async def busy() -> None:
        await trio.sleep(LOW_S)
        ended_s.append(time.perf_counter())

    group = TaskGroup(GROUP)
    subject.add_tasks(group, 100, busy)
    engine = subject.engine_of(url, [group, probe.group], concurrent_tasks=concurrency)

    async def main() -> None:
        seconds = (samples + 20) * 2.5 * PAUSE_S + 1
        runs = int(seconds * concurrency / LOW_S)
        await subject.fill(url, runs, tasks=100)
        async with subject.serving(engine):
            await subject.until(lambda: len(ended_s) > 5 * concurrency)
            for number in range(samples):
                await trio.sleep(PAUSE_S)
                await engine.perform(probe.trigger)
                queued_s = time.perf_counter()
                await subject.until(lambda: len(probe.started_s) > number, every_s=0.001)  # noqa: B023
                free = bisect_right(ended_s, queued_s)
                after_s.append(max(0.0, probe.started_s[-1] - ended_s[free]) if free < len(ended_s) else 0.0)
            assert len(ended_s) < runs, "the worker was not full to the end"

    trio.run(main)
    return subject.in_ms(after_s)


def over_http(url: str, *, samples: int, high_priority: bool) -> dict[str, float]:
    """A POST to an application under uvicorn, from another thread on a kept connection."""
    probe, app = Probe(high_priority=high_priority), FastAPI()
    manager = TaskManager(app, subject.fastapi_config(url, concurrent_tasks=50))
    manager.add_task_group(probe.group)
    app.include_router(manager.get_manager_router(), prefix="/manage")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    waited_s: list[float] = []

    def ask(port: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for number in range(samples + 5):
                time.sleep(PAUSE_S)
                asked_s = time.perf_counter()
                answer = client.post("/manage/tasks/trigger", params=PROBE, headers=ASKED)
                answer.raise_for_status()
                while len(probe.started_s) <= number:
                    time.sleep(0.001)
                waited_s.append(probe.started_s[-1] - asked_s)

    async def main() -> None:
        serving = asyncio.create_task(server.serve())
        while not (server.started and manager.is_running):
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        [listening] = server.servers
        await asyncio.to_thread(ask, listening.sockets[0].getsockname()[1])
        server.should_exit = True
        await serving

    asyncio.run(main())
    return subject.in_ms(waited_s[5:])


if __name__ == "__main__":
    subject.main({"idle": idle, "full": full, "over_http": over_http})
