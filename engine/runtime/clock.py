"""The three times of the engine: monotonic, wall and Redis."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, final

import trio

STEP_S: Final = 0.25
"""By how much Redis's clock must move against ours, beyond what the round trips leave open, to have stepped."""


@final
class Clock:
    """Monotonic time for durations, wall time for people and cron, Redis time for what processes agree on.

    Reached through the actor's context and never through the time module, so that a test moves all three
    together.
    """

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._redis_offset_s: float | None = None  # Redis TIME minus monotonic time
        self._largest_offset_s: float | None = None
        self._bounds_s = -math.inf, math.inf  # in which that lies, by all that was seen since it last moved
        self.redis_stepped_at_s = -math.inf
        """The monotonic instant at which Redis's clock was last seen to have stepped, whoever asked it for the time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary instant; never goes back. Only inside ``trio.run``."""
        return trio.current_time()

    def wall(self) -> float:
        """Seconds since the epoch, as this host believes. May jump."""
        return self._wall()

    def redis_ms(self) -> int:
        """The best estimate of Redis TIME, in milliseconds; wall time until Redis was heard once."""
        return self._at_offset_ms(self._redis_offset_s, self.monotonic())

    def redis_ms_at(self, instant_s: float) -> int:
        """The same at an instant of a moment ago, which ``monotonic`` told."""
        return self._at_offset_ms(self._redis_offset_s, instant_s)

    def highest_redis_ms(self) -> int:
        """As ``redis_ms``, had the clock of Redis never stepped back: no server of it has told a later instant."""
        return self._at_offset_ms(self._largest_offset_s, self.monotonic())

    def saw_redis_ms(self, ms: int, *, sent: float, received: float) -> None:
        """Take in a reply that carried Redis TIME, read between ``sent`` and ``received`` (monotonic).

        The middle is assumed, so the estimate is off by half the round trip at most. A slow reply alone shows no step,
        and hides none from the next.
        """
        self._redis_offset_s = ms / 1000 - (sent + received) / 2
        self._largest_offset_s = max(
            -math.inf if self._largest_offset_s is None else self._largest_offset_s, self._redis_offset_s
        )
        low_s, high_s = ms / 1000 - received, ms / 1000 - sent
        least_s, most_s = self._bounds_s
        moved_s = max(low_s - most_s, least_s - high_s)
        if moved_s > 0:
            self._bounds_s = low_s, high_s
        else:
            self._bounds_s = max(low_s, least_s), min(high_s, most_s)
        if moved_s > STEP_S:
            self.redis_stepped_at_s = self.monotonic()

    def _at_offset_ms(self, offset_s: float | None, instant_s: float) -> int:
        seconds = self._wall() if offset_s is None else instant_s + offset_s
        return round(seconds * 1000)


def virtual_clock(start_s: float) -> Clock:
    """For tests: wall time is ``start_s`` at 0 on trio's clock, where MockClock begins, and moves with it."""
    return Clock(wall=lambda: start_s + trio.current_time())
