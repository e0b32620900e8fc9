"""Stretches of time in which nobody in a cluster does more than renew what it has, on a server in this program."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

from engine.store.inprocess import InProcess
from engine.store.keys import PRIORITIES, Keys

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.store.inprocess import InProcessServer

__all__ = ["IdleTime"]


@final
class IdleTime:
    """Knows how long nothing will happen, and lets that time pass unnoticed.

    For a cluster all of whose processes are well: then a thousand renewals of leases change nothing.
    """

    def __init__(self, server: InProcessServer, *, prefix: str) -> None:
        self._spy, self._keys = InProcess(server), Keys(prefix)

    def next_due_ms(self, workers: Collection[str]) -> float:
        """The instant of the next slot or retry; infinite if there is none, 0 while somebody is looked for.

        ``workers`` are those that live: others that are still present are to be found lost.
        """
        look, keys = self._spy.look, self._keys
        present = look("ZRANGE", keys.workers_seen, 0, -1)
        if set(present) != set(workers) or (workers and self.leader() not in workers):
            return 0
        first = look("ZRANGE", keys.due, 0, 0, "WITHSCORES") if workers else None
        return float(first[1]) if first else math.inf

    def has_runs(self) -> bool:
        """Is a run queued or running? One that waits for a retry, or is put aside, is neither."""
        return any(self._spy.look("XLEN", self._keys.stream(priority)) for priority in PRIORITIES)

    def leader(self) -> str:
        """Which worker leads; empty if nobody does."""
        value: str = self._spy.look("GET", self._keys.leader) or ""
        return value.partition(":")[0]

    def pass_unnoticed(self, ms: int) -> None:
        """Have every lease and presence end so much later. The caller moves the clocks, before anybody has a turn."""
        look, keys = self._spy.look, self._keys
        left_ms = look("PTTL", keys.leader)
        if left_ms > 0:
            look("PEXPIRE", keys.leader, left_ms + ms)
        for key in (keys.workers_seen, keys.leases):
            for member in look("ZRANGE", key, 0, -1):
                look("ZINCRBY", key, ms, member)
