"""How patient the link is: deadlines, limits, and the delay before the next try to connect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final


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
