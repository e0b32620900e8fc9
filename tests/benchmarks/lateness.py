"""How late bodies start, from the instant of their slot: with few slots among many tasks, and with all at once."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Final

import trio

from engine import RunContext, TaskGroup
from tests.benchmarks import floor, subject
from tests.benchmarks.subject import GROUP

WARM_UP: Final = 2
"""So many slots are not counted: the first ones load scripts and modules."""


def sparse(url: str, *, tasks: int, samples: int) -> dict[str, float]:
    """One task of every second among so many that are not due."""
    late_s: list[float] = []

    async def sleeper() -> None:
        """Not due for years."""

    async def probe() -> None:
        now_s = time.time()
        slot_ms = RunContext.current().slot_ms
        assert slot_ms is not None
        late_s.append(now_s - slot_ms / 1_000)

    group = TaskGroup(GROUP)
    subject.add_tasks(group, tasks - 1, sleeper)
    subject.add_tasks(group, 1, probe, cron="* * * * * *", name="probe")
    engine = subject.engine_of(url, [group], concurrent_tasks=50)

    async def main() -> None:
        async with subject.serving(engine):
            await subject.until(lambda: len(late_s) >= WARM_UP + samples)

    trio.run(main)
    return subject.in_ms(late_s[WARM_UP:])


def bare(url: str, *, samples: int) -> dict[str, float]:
    """The floor: a bare sleep until the second, and one round trip."""
    late_s: list[float] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            wire = await floor.connected(url, nursery)
            for _ in range(WARM_UP + samples):
                instant_s = math.floor(time.time()) + 1
                await trio.sleep(instant_s - time.time())
                await wire.command("SET", "floor", instant_s)
                late_s.append(time.time() - instant_s)
            nursery.cancel_scope.cancel()

    trio.run(main)
    return subject.in_ms(late_s[WARM_UP:])


def at_once(url: str, *, tasks: int, concurrency: int = 50) -> dict[str, float]:
    """So many tasks with one slot, at the same instant: how long until the last of them has started."""
    started_s: list[float] = []

    async def body() -> None:
        started_s.append(time.time())

    async def main() -> None:
        link_s = 5 + tasks / 2_000
        instant_s = math.floor(time.time() + link_s) + 1
        at = datetime.fromtimestamp(instant_s, UTC)
        group = TaskGroup(GROUP)
        subject.add_tasks(group, tasks, body, cron=f"{at.second} {at.minute} {at.hour} {at.day} {at.month} *")
        async with subject.serving(subject.engine_of(url, [group], concurrent_tasks=concurrency)):
            await subject.until(lambda: len(started_s) == tasks)
        late_s.extend(start_s - instant_s for start_s in started_s)

    late_s: list[float] = []
    trio.run(main)
    return {"all_started_s": max(late_s), "per_s": tasks / max(late_s)}


if __name__ == "__main__":
    subject.main({"sparse": sparse, "bare": bare, "at_once": at_once})
