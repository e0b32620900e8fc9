"""How patient the link is: deadlines, limits, and the delay before the next try to connect."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Final, final

TOLD_AT_ONCE: Final = 5
"""Failures for one reason that are each told to the log; after that one in a while."""

TOLD_AGAIN_S: Final = 60.0
"""That while; and the time without a failure after which the next one is news again."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Doubling delays with a ceiling, each shortened at random by up to half so that processes spread out."""

    first_s: float = 0.05
    ceiling_s: float = 2.0
    """At most a quarter of the shortest lease, or a lease could end while the link only waits."""

    def delay_s(self, failures: int, chance: float) -> float:
        """The delay after ``failures`` (1 or more) tries in a row, for a ``chance`` in [0, 1)."""
        doublings = min(failures - 1, 30)  # beyond that every ceiling is reached, and floats stay small
        return min(self.first_s * 2.0**doublings, self.ceiling_s) * (1 - chance / 2)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """How patient a link is, and how much it holds back for a Redis that is down."""

    command_timeout_s: float = 5.0
    """For a reply, beyond the time that the command blocks. A connection that takes longer is given up."""

    connect_timeout_s: float = 5.0
    """For one try: name lookup, socket, TLS and login together."""

    backoff: Backoff = field(default_factory=Backoff)
    """Between two tries."""

    queue_limit: int = 20_000
    """Commands that wait on one connection while it is down; one more is refused at once."""

    queue_limit_bytes: int = 64 * 1024 * 1024


@final
class Telling:
    """How loudly the failures of a connection are told, which may be lost as often as it is made."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._count = 0
        self._failed_s = self._told_s = -math.inf

    def level(self, reason: str, now_s: float) -> int:
        """The level of the line about a failure: WARNING for the first ones, then for one in a minute; else DEBUG."""
        if reason != self._reason or now_s - self._failed_s >= TOLD_AGAIN_S:
            self._reason, self._count = reason, 0
        self._count, self._failed_s = self._count + 1, now_s
        if self._count > TOLD_AT_ONCE and now_s - self._told_s < TOLD_AGAIN_S:
            return logging.DEBUG
        self._told_s = now_s
        return logging.WARNING
