"""When was the last reply slower than so much? Answered for any "so much", in little memory."""

from __future__ import annotations

import math
from collections import deque
from typing import final


@final
class SlowReplies:
    """Remembers of the past only what no later, slower reply has made irrelevant.

    Times are rounded up to whole milliseconds, so the memory is bounded by the slowest reply in milliseconds; in
    practice it holds a handful. Replies within a millisecond are not remembered.
    """

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()  # (when, took ms): later is quicker, strictly

    def record(self, at_s: float, took_s: float) -> None:
        """A reply came at ``at_s``, not before any recorded earlier, and had taken ``took_s``."""
        took_ms = math.ceil(took_s * 1000)
        if took_ms <= 1:
            return
        steps = self._steps
        while steps and steps[-1][1] <= took_ms:
            steps.pop()
        steps.append((at_s, took_ms))

    def last_s(self, *, slower_than_s: float) -> float:
        """When the last reply came that had taken longer than ``slower_than_s``; minus infinity if none did."""
        limit_ms = slower_than_s * 1000
        for at_s, took_ms in reversed(self._steps):
            if took_ms > limit_ms:
                return at_s
        return -math.inf
