"""How fast a worker's runs end: whether it pays to read the next before there is room for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Sequence

SWIFT_S: Final = 0.002
"""A body that took less is swift."""

BATCHES_WITHIN_S: Final = 0.02
"""One batch of ends must follow another so soon."""

PATIENCE_S: Final = 0.05
"""So long what was read ahead waits for room, and is kept from other workers."""

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Nothing is read ahead for so long when no room came; twice as long each time, until it goes well again."""


@final
class Pace:
    """While bodies are swift, as many runs are read ahead as ended together last.

    They are claimed when such a batch ends again, in the same turns of the loop in which Redis is told of it, and Redis
    works for them while the bodies of the other half run. Behind bodies that take longer, other workers would wait for
    nothing, and so would runs of high priority; and what was read in vain loses its place in the queue.
    """

    def __init__(self) -> None:
        self.ahead = 0
        """How many may be read before there is room for them."""

        self._last_s = self._resume_s = -math.inf
        self._pause_s = PAUSE_S

    def note(self, durations_s: Sequence[float], *, now_s: float) -> None:
        """These bodies ended together."""
        since_s, self._last_s = now_s - self._last_s, now_s
        swift = since_s < BATCHES_WITHIN_S and max(durations_s) < SWIFT_S
        self.ahead = len(durations_s) if swift and now_s >= self._resume_s else 0
        if now_s >= self._resume_s + self._pause_s:
            self._pause_s = PAUSE_S

    def lag(self, *, now_s: float) -> None:
        """No room came for what was read ahead."""
        self.ahead, self._resume_s = 0, now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
