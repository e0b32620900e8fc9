"""Shorter stories that end as badly."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.play import Outcome
    from tests.simulation.story import Story


def shortest(failing: Outcome, play: Callable[[Story], Outcome], *, within_s: float) -> Outcome:
    """Drop steps while the same guarantee is violated: halves first, then ever smaller parts, then one by one.

    Stops after ``within_s`` of real time with the shortest story found so far.
    """
    until = time.monotonic() + within_s
    assert failing.violation is not None
    broken = failing.violation.guarantee

    def try_without(best: Outcome, begin: int, end: int) -> Outcome | None:
        steps = best.story.steps[:begin] + best.story.steps[end:]
        outcome = play(replace(best.story, steps=steps))
        return outcome if outcome.violation is not None and outcome.violation.guarantee == broken else None

    best, size = failing, max(1, len(failing.story.steps) // 2)
    while True:
        begin, dropped = 0, False
        while begin < len(best.story.steps):
            if time.monotonic() > until:
                return best
            shorter = try_without(best, begin, begin + size)
            if shorter is None:
                begin += size
            else:
                best, dropped = shorter, True
        if size == 1 and not dropped:
            return best
        size = max(1, size // 2)


def told(outcome: Outcome) -> str:
    """The story and what became of it, for people."""
    steps = "\n".join(f"  {step}" for step in outcome.story.steps) or "  (no step at all)"
    return f"seed {outcome.story.seed}: {outcome.violation}\n{steps}"
