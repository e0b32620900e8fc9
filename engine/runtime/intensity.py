"""Restart intensity: how many restarts a supervisor grants in a sliding window of time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Intensity:
    """The restarts of the last ``within_s`` seconds. A value: ``add`` returns the next one."""

    max_restarts: int
    within_s: float
    at_s: tuple[float, ...] = ()
    """When, by the monotonic clock, oldest first. A restart exactly ``within_s`` ago still counts."""

    def add(self, now_s: float) -> Intensity:
        """One more restart, and those that left the window forgotten."""
        recent = tuple(at_s for at_s in self.at_s if now_s - at_s <= self.within_s)
        return replace(self, at_s=(*recent, now_s))

    @property
    def exceeded(self) -> bool:
        """Whether the last restart added is one too many."""
        return len(self.at_s) > self.max_restarts

    @property
    def left(self) -> int:
        """Restarts that the window still grants, as of the last one added."""
        return max(0, self.max_restarts - len(self.at_s))
