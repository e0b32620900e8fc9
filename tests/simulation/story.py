"""What happens to the cluster in one run: a list of steps, each of which means something without the others."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, final

STEPS_AT_MOST: Final = 200
LONGEST_S: Final = 60.0
"""The faults end here at the latest; the rest of two minutes is for the quiet afterwards."""

ACTORS: Final = ("leader", "coordinator", "reconciler", "consumer", "catalog", "heartbeat", "stats")

WEIGHTS: Final = {
    "kill": 2,
    "crash": 3,
    "stall": 3,
    "cut": 4,
    "slow": 2,
    "lossy": 4,
    "redis restart": 1,
    "redis stall": 1,
    "redis clock": 1,
    "skew": 1,
    "pause": 3,
    "resume": 3,
    "trigger": 3,
    "cancel": 2,
    "reset_retry": 1,
    "create": 2,
    "remove": 2,
    "join": 3,
    "stop": 2,
    "memory full": 1,
    "flushall": 1,
    "lost tail": 1,
    "failover": 1,
}
"""Kinds of steps, and how often each is drawn if it is."""

SAVED: Final = frozenset({"lost tail", "failover"})
"""After which Redis holds what it held some time before."""

LOSSES: Final = SAVED | {"flushall"}
"""Rare, since the rules are looser for what Redis forgot."""


@final
@dataclass(frozen=True, slots=True)
class Step:
    """Something is done to somebody. ``who`` and ``what`` are numbers that are taken modulo what there is."""

    at_s: float
    kind: str
    who: int
    what: int
    amount: float
    """Between 0 and 1; what it means depends on the kind."""

    def __str__(self) -> str:
        return f"{self.at_s:8.3f} s  {self.kind:13s} who={self.who} what={self.what} amount={self.amount:.3f}"


@final
@dataclass(frozen=True, slots=True)
class Story:
    """A seed, and the steps that it is taken to mean."""

    seed: int
    steps: tuple[Step, ...]
    ends_s: float


def story_of(seed: int) -> Story:
    """The story of a seed. Each has some kinds of steps only, so that rare combinations come about."""
    chance = random.Random(f"story {seed}")
    kinds = [kind for kind in WEIGHTS if chance.random() < (0.08 if kind in LOSSES else 0.55)] or ["kill", "join"]
    weights = [WEIGHTS[kind] for kind in kinds]
    ends_s = chance.uniform(20.0, LONGEST_S) if chance.random() < 0.1 else chance.uniform(8.0, 22.0)
    count = min(STEPS_AT_MOST, round(ends_s * chance.choice((0.4, 0.8, 1.5, 3.0))))
    steps = [
        Step(
            at_s=round(chance.uniform(1.0, ends_s), 3),
            kind=chance.choices(kinds, weights)[0],
            who=chance.randrange(1_000),
            what=chance.randrange(1_000),
            amount=round(chance.random(), 3),
        )
        for _ in range(count)
    ]
    return Story(seed, tuple(sorted(steps, key=lambda step: step.at_s)), round(ends_s, 3))
