"""The three times of the engine: monotonic, wall and Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

import trio


@final
class Clock:
    """Monotonic time for durations, wall time for people and cron, Redis time for what processes agree on.

    Reached through the actor's context and never through the time module, so that a test moves all three
    together.
    """

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._redis_offset_s: float | None = None  # Redis TIME minus monotonic time

    def monotonic(self) -> float:
        """Seconds since an arbitrary instant; never goes back. Only inside ``trio.run``."""
        return trio.current_time()

    def wall(self) -> float:
        """Seconds since the epoch, as this host believes. May jump."""
        return self._wall()

    def redis_ms(self) -> int:
        """The best estimate of Redis TIME, in milliseconds; wall time until Redis was heard once."""
        if self._redis_offset_s is None:
            return round(self._wall() * 1000)
        return round((self.monotonic() + self._redis_offset_s) * 1000)

    def saw_redis_ms(self, ms: int, *, sent: float, received: float) -> float:
        """Take in a reply that carried Redis TIME, read between ``sent`` and ``received`` (monotonic).

        The middle is assumed, so the estimate is off by half the round trip at most.

        Returns:
            By how many seconds the estimate jumped; 0.0 for the first observation.
        """
        former = self._redis_offset_s
        self._redis_offset_s = ms / 1000 - (sent + received) / 2
        return 0.0 if former is None else self._redis_offset_s - former


def virtual_clock(start_s: float) -> Clock:
    """For tests: wall time is ``start_s`` at 0 on trio's clock, where MockClock begins, and moves with it."""
    return Clock(wall=lambda: start_s + trio.current_time())
