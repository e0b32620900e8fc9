"""What is measured, of whom, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final

from tests.benchmarks.trials import Trial

OURS: Final = "Troupe"
FLOOR: Final = "floor"
REPLACED: Final = "fastapi-task-manager"


@final
@dataclass(frozen=True, slots=True)
class Scenario:
    """Some trials that belong together."""

    name: str
    title: str
    says: str
    """What is done, for whoever reads the figures."""

    trials: Callable[[bool], list[Trial]]
    """With True: smaller ones, for a first look."""

    rounds: int | None = None
    """None: as many as were asked for."""


def ours(case: str, driver: str, way: str, **options: Any) -> Trial:
    """A trial of Troupe."""
    return Trial(case, OURS, driver, {"way": way, **options})


def drain(quick: bool) -> list[Trial]:
    """Troupe, its floor and the peers on a full queue."""
    size = 5_000 if quick else 20_000
    trials = []
    for concurrency in (10, 50, 500):
        case, load = f"async, concurrency {concurrency}", {"runs": size, "concurrency": concurrency}
        trials += [
            Trial(case, FLOOR, "drain", {"way": "floor", **load}),
            ours(case, "drain", "standalone", **load),
            replace(ours(case, "drain", "in_uvicorn", **load), system=f"{OURS} in uvicorn"),
            replace(
                ours(case, "drain", "standalone", plain=True, **load | {"runs": size // 4}), system=f"{OURS}, sync"
            ),
        ]
    case = "async, concurrency 50"

    def peer(system: str, driver: str, runs: int, **options: Any) -> Trial:
        runs = runs // 4 if quick else runs
        return Trial(case, system, driver, {"runs": runs, "concurrency": 50, **options}, peer=True)

    return [
        *trials,
        peer("taskiq, streams", "taskiq_worker", 20_000, kind="stream"),
        peer("taskiq, list", "taskiq_worker", 8_000, kind="list"),
        peer("arq", "arq_worker", 4_000),
        peer("streaq, trio", "streaq_worker", 4_000, loop="trio"),
        peer("streaq, asyncio", "streaq_worker", 4_000, loop="asyncio"),
        peer("docket", "docket_worker", 800),
        peer(REPLACED, "task_manager_worker", 1_000, mode="drain"),
    ]


def lateness(quick: bool) -> list[Trial]:
    """Sparse slots, and many at once."""
    samples = 8 if quick else 15
    sizes = (10, 10_000) if quick else (10, 1_000, 10_000, 100_000)
    return [
        Trial("one slot a second", FLOOR, "lateness", {"way": "bare", "samples": samples}),
        *(ours(f"one slot a second, {n:,} tasks", "lateness", "sparse", tasks=n, samples=samples) for n in sizes),
        *(ours(f"{n:,} tasks at once", "lateness", "at_once", tasks=n) for n in (1_000, 10_000)),
    ]


def trigger(quick: bool) -> list[Trial]:
    """From a wish to the start of the body."""
    samples = 50 if quick else 200
    both = ((True, "high priority"), (False, "normal priority"))
    return [
        *(
            ours(f"{where}, {what}", "trigger", way, samples=samples, high_priority=high)
            for where, way in (("idle worker", "idle"), ("HTTP, idle worker", "over_http"))
            for high, what in both
        ),
        # One of normal priority waits there behind all that was queued before it.
        ours("full worker, high priority", "trigger", "full", samples=samples, high_priority=True),
        Trial(
            "idle worker, high priority",
            REPLACED,
            "task_manager_worker",
            {"mode": "trigger", "samples": 10 if quick else 20},
            peer=True,
        ),
    ]


def idle(quick: bool) -> list[Trial]:
    """Nothing to do, for nobody."""
    for_s = 5 if quick else 10
    sizes = (10, 10_000) if quick else (10, 1_000, 100_000)
    return [
        *(ours(f"{n:,} tasks", "idle", "workers", tasks=n, count=1, for_s=for_s) for n in sizes),
        *(
            ours(f"10 tasks, {n} workers", "idle", "workers", tasks=10, count=n, for_s=for_s)
            for n in ((4,) if quick else (4, 32))
        ),
        *(
            Trial(f"{n:,} tasks", REPLACED, "task_manager_worker", {"mode": "idle", "tasks": n, "for_s": 5}, peer=True)
            for n in ((10,) if quick else (10, 1_000))
        ),
    ]


def schedule(quick: bool) -> list[Trial]:
    """A schedule of a hundred thousand tasks."""
    size = 10_000 if quick else 100_000
    return [
        ours(f"{size:,} tasks, one expression", "schedule", "cold", tasks=size),
        ours("10,000 tasks, one expression", "schedule", "cold", tasks=10_000),
        ours("10,000 tasks, 1,000 expressions", "schedule", "cold", tasks=10_000, expressions=1_000),
        ours(f"{size:,} tasks, takeover", "schedule", "takeover", tasks=size),
    ]


def scale_out(quick: bool) -> list[Trial]:
    """More processes."""
    load = {"runs": 5_000 if quick else 20_000, "concurrency": 50}
    return [
        ours(f"{n} processes", "processes", "scale_out", workers=n, **load) for n in ((1, 2) if quick else (1, 2, 4))
    ]


def failover(quick: bool) -> list[Trial]:
    """The leader goes."""
    return [
        ours("stopped in order", "processes", "failover", crash=False),
        ours("killed, lease 1.5 s", "processes", "failover", crash=True),
    ]


SCENARIOS: Final = (
    Scenario(
        "drain",
        "Runs a second",
        "A queue that is full already, bodies that do nothing; from the first start until Redis knows of the last end "
        "(peers: until the last start). `cpu_us`: processor time of the worker for each run. `redis_alone_per_s`: what "
        "Redis itself would get through, by the time that it spends on the floor's commands.",
        drain,
    ),
    Scenario(
        "lateness",
        "How late a slot starts",
        "From the instant of the slot to the start of the body: one task of every second among many that are not due, "
        "and many tasks due at the same instant. The floor sleeps until the second and makes one round trip.",
        lateness,
        rounds=3,
    ),
    Scenario(
        "trigger",
        "From a trigger to the start",
        "The full worker executes low-priority runs of 20 ms, ten at a time, with more of them queued; it is counted "
        "from the first end of a run after the trigger was queued.",
        trigger,
        rounds=3,
    ),
    Scenario(
        "idle",
        "The cost of doing nothing",
        "Requests to Redis, bytes both ways and processor time, for each worker. Of fastapi-task-manager Redis counts "
        "the commands.",
        idle,
        rounds=2,
    ),
    Scenario(
        "schedule",
        "A large schedule",
        "Tasks of one function. `cold_start_s`: from the start of an engine until Redis has all of them; `takeover_s`: "
        "from the end of a lost leader's lease to the first slot of its follower. Bytes for each task.",
        schedule,
        rounds=2,
    ),
    Scenario(
        "scale_out", "More processes", "The drain at concurrency 50, on the cores of this one machine.", scale_out, 3
    ),
    Scenario(
        "failover",
        "The leader goes",
        "Three workers, a task of every second; the leader ends in the middle of a second.",
        failover,
    ),
)
