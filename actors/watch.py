"""When a lease counts as lost: a decision about what was seen and when, without any clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.store.leases import Lease


@final
@dataclass(frozen=True, slots=True)
class Sighting:
    """A lease as it was first seen with this expiry."""

    lease: Lease
    since_s: float


@final
@dataclass(slots=True)
class Watch:
    """Observes leases that are about to end.

    Redis that stalls, restarts or steps its clock expires every live lease before the beats arrive. So expiry alone
    proves nothing: a lease is lost when it has expired by Redis time *and* the same member with the same expiry was
    seen over half a lease in which nothing disturbed the view.
    """

    lease_s: float
    _seen: dict[str, Sighting] = field(default_factory=dict)

    def look(self, leases: Iterable[Lease], *, now_s: float, redis_ms: int, steady_since_s: float) -> list[Lease]:
        """The leases that are lost, of those with less than half a lease left. Others are watched from now on.

        Args:
            now_s: the monotonic instant before Redis was asked for ``leases``.
            steady_since_s: the monotonic instant since when nothing disturbed the view; what was seen before is void.
        """
        seen: dict[str, Sighting] = {}
        lost = []
        for lease in leases:
            old = self._seen.get(lease.member)
            fresh = old is None or old.lease.expiry_ms != lease.expiry_ms or old.since_s < steady_since_s
            sighting = Sighting(lease, now_s) if old is None or fresh else old
            seen[lease.member] = sighting
            if lease.expiry_ms <= redis_ms and now_s - sighting.since_s >= self.lease_s / 2:
                lost.append(lease)
        self._seen = seen
        return lost

    def next_look_s(self, *, now_s: float, redis_ms: int) -> float:
        """Seconds until something can have changed: half a lease when nothing is watched."""
        waits = [
            max(
                sighting.since_s + self.lease_s / 2 - now_s,
                (sighting.lease.expiry_ms - redis_ms) / 1000,
                self.lease_s / 20,
            )
            for sighting in self._seen.values()
        ]
        return min([self.lease_s / 2, *waits])

    def observe_anew(self, lease: Lease, *, now_s: float) -> None:
        """It could not be taken: it is lost again, if it still is, after another half of a lease."""
        self._seen[lease.member] = Sighting(lease, now_s)

    def forget(self) -> None:
        """Begin anew."""
        self._seen.clear()
