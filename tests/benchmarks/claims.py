"""What Troupe claims of its speed, as ratios and bounds that one sitting can confirm or refute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

from tests.benchmarks.scenarios import FLOOR, OURS, REPLACED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.figures import Sitting

Figured: TypeAlias = "Callable[[Sitting], float | None]"
"""A value that figures give, or None: they were not taken in this sitting."""

AT_50 = "async, concurrency 50"
IN_UVICORN = f"{OURS} in uvicorn"
TASKIQ = "taskiq, streams"


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A number that is at least or at most so large."""

    says: str
    bound: float
    value: Figured
    at_least: bool

    def holds(self, value: float) -> bool:
        """With this value?"""
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(says: str, bound: float, value: Figured) -> Claim:
    """It is not smaller."""
    return Claim(says, bound, value, at_least=True)


def at_most(says: str, bound: float, value: Figured) -> Claim:
    """It is not larger."""
    return Claim(says, bound, value, at_least=False)


def median(scenario: str, case: str, system: str, measure: str) -> Figured:
    """A figure by itself."""
    return lambda sitting: sitting.median(scenario, case, system, measure)


def ratio(above: Figured, below: Figured) -> Figured:
    """Of two figures."""

    def value(sitting: Sitting) -> float | None:
        high, low = above(sitting), below(sitting)
        return None if high is None or low is None else high / low

    return value


def beyond(one: Figured, other: Figured) -> Figured:
    """How much one figure is above the other."""

    def value(sitting: Sitting) -> float | None:
        high, low = one(sitting), other(sitting)
        return None if high is None or low is None else high - low

    return value


def runs(system: str) -> Figured:
    """A second, at concurrency 50."""
    return median("drain", AT_50, system, "runs_per_s")


def predicted(sitting: Sitting) -> float | None:
    """How many times as long 10,000 slots of one instant take as the drain rate says."""
    took, rate = median("lateness", "10,000 tasks at once", OURS, "all_started_s")(sitting), runs(OURS)(sitting)
    return None if took is None or rate is None else took * rate / 10_000


FLOOR_P99 = median("lateness", "one slot a second", FLOOR, "p99_ms")

CLAIMS = (
    at_least("drain, times the floor", 0.6, ratio(runs(OURS), runs(FLOOR))),
    at_least("drain, times taskiq with streams", 3, ratio(runs(OURS), runs(TASKIQ))),
    at_least(f"drain, times {REPLACED}", 20, ratio(runs(OURS), runs(REPLACED))),
    at_least(f"drain inside uvicorn, times {REPLACED}", 10, ratio(runs(IN_UVICORN), runs(REPLACED))),
    at_most(
        "lateness among 10,000 tasks, 99th percentile above the floor, ms",
        3,
        beyond(median("lateness", "one slot a second, 10,000 tasks", OURS, "p99_ms"), FLOOR_P99),
    ),
    at_most("10,000 slots at once, times what the drain rate says", 1.5, predicted),
    at_most(
        "high priority on an idle worker, 99th percentile above the floor, ms",
        3,
        beyond(median("trigger", "idle worker, high priority", OURS, "p99_ms"), FLOOR_P99),
    ),
    at_most(
        "high priority on a full worker, 99th percentile after a slot is free, above the floor, ms",
        3,
        beyond(median("trigger", "full worker, high priority", OURS, "p99_ms"), FLOOR_P99),
    ),
    at_most("idle with 100,000 tasks, requests a second", 5, median("idle", "100,000 tasks", OURS, "commands_per_s")),
    at_most("idle with 100,000 tasks, % of a core", 1, median("idle", "100,000 tasks", OURS, "cpu_percent")),
    at_most(
        "cold start with 100,000 tasks, s",
        10,
        median("schedule", "100,000 tasks, one expression", OURS, "cold_start_s"),
    ),
    at_most(
        "takeover with 100,000 tasks, s",
        2,
        median("schedule", "100,000 tasks, takeover", OURS, "takeover_s"),
    ),
    at_most(
        "memory of the leader for a task, bytes",
        1_536,
        median("schedule", "100,000 tasks, one expression", OURS, "leader_bytes"),
    ),
    at_most(
        "a leader that stops in order: the latest slot, ms",
        100,
        median("failover", "stopped in order", OURS, "latest_ms"),
    ),
    at_most(
        "a leader that is killed: the latest slot, ms",
        2_000,
        median("failover", "killed, lease 1.5 s", OURS, "latest_ms"),
    ),
)
