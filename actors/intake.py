"""Which stream is read next, and how many entries are asked for."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, final

import trio

from engine.errors import RedisUnavailable
from engine.store.transport import Lane

if TYPE_CHECKING:
    from engine.store.runs import Entry
    from engine.store.store import Store

LOOKED_WITHIN_S = 0.005
"""So long it counts that Redis said of the high stream that nothing was there, when it was told of the end of runs."""

LOW_FIRST_EVERY = 8
"""Every eighth freed slot is offered to the low stream first, so that neither stream starves."""


@final
class Intake:
    """Reads the high stream first, then the low one, then waits for both.

    XREADGROUP is never cancelled: entries would be pending for a reader that does not know of them. ``stop_reading``
    ends the wait and lets the reader take what came.
    """

    def __init__(self, *, store: Store, worker: str, block_ms: int, capacity: int) -> None:
        self._store, self._worker, self._block_ms = store, worker, block_ms
        self._at_once = max(1, capacity // 2)
        """As many are read at once at most: while bodies of one half run, Redis works for the other."""
        self._offered = 0
        self.quiet = False
        """The last read brought nothing."""

        self._high_flows = True
        """There were entries of the high stream at the last look, or may have been before the first."""
        self._high_was_empty_s = -math.inf
        """When Redis was asked something that it answered so."""

        self._hastened = False
        self.closed = False
        """No more reading; what is still read is to be released."""
        self.finished = trio.Event()
        """Set by the reader when it has taken its last reply."""

    async def read(self, room: int) -> list[Entry]:
        """Up to ``room`` entries, or a few more when both streams answer a wait; none after ``block_ms``."""
        if room <= 0:
            return []
        self._hastened = False
        entries = [] if self.quiet else await self._look(room, ahead=False)
        if not entries and not self.closed and not self._hastened:
            # COUNT is for each stream: half of the room, so that both together exceed it by one at most.
            entries = await self._store.runs.read(
                self._worker, priorities=("high", "low"), count=max(1, room // 2), block_ms=self._block_ms
            )
        return self._noted(entries)

    async def read_ahead(self, count: int) -> list[Entry]:
        """Up to ``count`` entries that are there already, and no more than half of what this worker can take."""
        if count <= 0:
            return []
        return self._noted(await self._look(count, ahead=True))

    def _noted(self, entries: list[Entry]) -> list[Entry]:
        self.quiet = not entries
        self._offered += len(entries)
        return entries

    def note_high(self, unread: int, *, asked_s: float) -> None:
        """So many runs of high priority were unread, after that instant, when this worker got room for more."""
        self._high_was_empty_s = -math.inf if unread else asked_s

    async def _look(self, room: int, *, ahead: bool) -> list[Entry]:
        room = min(room, self._at_once)
        entries: list[Entry] = []
        for priority, count in self._order(room, ahead=ahead):
            if count > 0 and len(entries) < room:
                found = await self._store.runs.read(
                    self._worker, priorities=(priority,), count=min(count, room - len(entries)), block_ms=None
                )
                entries += found
                if priority == "high":
                    self._high_flows = bool(found)
        return entries

    def _order(self, room: int, *, ahead: bool) -> tuple[tuple[str, int], ...]:
        """Streams, and how many of their entries are taken at most, until there is no more room."""
        looked_s = self._high_was_empty_s
        if not ahead:
            self._high_was_empty_s = -math.inf  # it is worth one look, and any number where runs end in milliseconds
        if not self._high_flows and trio.current_time() - looked_s < LOOKED_WITHIN_S:
            return ("low", room), ("high", room)
        eighths = (self._offered + room) // LOW_FIRST_EVERY - self._offered // LOW_FIRST_EVERY
        low_first = eighths if self._high_flows else 0  # or the low stream gets all of it anyway
        return ("low", low_first), ("high", room), ("low", room)

    async def hasten(self) -> None:
        """Have the read in progress, if there is one, wait for nothing any more."""
        self._hastened = True
        with suppress(RedisUnavailable):  # then it ends too
            await self._store.transport.unblock(Lane.RUNS)

    def close(self) -> None:
        """Ask for nothing more."""
        self.closed = True

    async def stop_reading(self) -> None:
        """End the wait in progress, and return when the reader has taken its reply, or Redis has gone away."""
        while not self.finished.is_set() and self._store.transport.is_up():
            try:
                await self._store.transport.unblock(Lane.RUNS)
            except RedisUnavailable:
                return
            with trio.move_on_after(self._block_ms / 1000):
                await self.finished.wait()
