"""Members of ``due`` and of the leases that are none, or that say no instant: set aside, or mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from engine.store.script import MAX_ITEMS, Script

if TYPE_CHECKING:
    from engine.store.session import Session

__all__ = ["tidy"]

_TIDY = Script.load("tidy")

_LONGEST_LEASE_MS: Final = 86_400_000
"""No lease is given for as long as a day (``running_heartbeat_interval`` is an hour at most)."""

_DONE: Final = {
    "aside": "which is now in {aside}",
    "unscheduled": "for its score, which is no instant: the task is scheduled anew",
    "now": "for its score, which is no instant: it is taken to be now",
}


async def tidy(session: Session, which: Literal["due", "leases"], *, page: int = MAX_ITEMS) -> frozenset[str]:
    """Look at all members, some at a time; the members that were set aside or mended. Raises RedisUnavailable."""
    keys = session.keys
    key = keys.due if which == "due" else keys.leases
    rank, found = 0, set[str]()
    while True:
        left, done = await session.call(_TIDY, [key, keys.aside, keys.runs], which, rank, page, _LONGEST_LEASE_MS)
        for member, score, word in zip(done[::3], done[1::3], done[2::3], strict=True):
            found.add(member)
            session.oddities.tell(key, f"{member} {score}", _DONE[word].format(aside=keys.aside))
        rank += left
        if left + len(done) // 3 < page:
            return frozenset(found)
