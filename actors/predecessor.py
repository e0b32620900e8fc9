"""Predecessor: is a leader of the system that Troupe replaces at work under the same prefix?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, final

from engine.store.predecessor import PredecessorStore, PredecessorUnreadable

if TYPE_CHECKING:
    from engine.config import Config
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.leader")

SURELY_GONE = 1.5
"""Times ``leader_retry_interval``. When a leader of that system stops, another of its workers leads after one such
interval at most: a lock that has been free for less may only be passing from one to the other."""


@final
class Predecessor:
    """Looks for that leader when this worker begins, and says so once: restarts of the actor share it.

    With ``Config(wait_for_predecessor=True)`` it looks until that leader has gone, and never again after that.
    """

    def __init__(self, *, config: Config, store: Store, name: str) -> None:
        self._old = PredecessorStore(store.transport, config.redis_key_prefix)
        self._prefix, self._waits = config.redis_key_prefix, config.wait_for_predecessor
        self._interval_s, self._name = config.leader_retry_interval, name
        self._clear = False
        self._said = False
        self._free_since_s: float | None = None
        """When the lock that was held before was first seen free."""

    async def wait_s(self, now_s: float) -> float:
        """Seconds until this should be asked again; 0 when nothing keeps this worker from standing for election.

        Raises:
            RedisUnavailable: nobody knows; ask again.
        """
        if self._clear:
            return 0.0
        holder = await self._holder()
        if holder is not None:
            self._free_since_s = None
            self._say(holder)
            self._clear = not self._waits
            return self._interval_s if self._waits else 0.0
        if self._said:
            self._free_since_s = now_s if self._free_since_s is None else self._free_since_s
            left_s = self._free_since_s + SURELY_GONE * self._interval_s - now_s
            if left_s > 0:
                return left_s
            log.info(
                "The leader of fastapi-task-manager under the prefix %r has gone: worker %s stands for election",
                self._prefix,
                self._name,
            )
        self._clear = True
        return 0.0

    async def _holder(self) -> str | None:
        try:
            return await self._old.leader()
        except PredecessorUnreadable as error:  # a user of Redis who may only touch our own keys, say
            log.log(
                logging.WARNING if self._waits else logging.DEBUG,
                "Whether fastapi-task-manager schedules under the prefix %r cannot be seen: %s",
                self._prefix,
                error,
            )
            return None

    def _say(self, holder: str) -> None:
        if self._said:
            return
        self._said = True
        log.error(
            "Worker %s of fastapi-task-manager leads under the prefix %r: %s",
            holder,
            self._prefix,
            f"worker {self._name} executes, and will schedule when that one has gone"
            if self._waits
            else "it and Troupe both schedule now, so tasks that both know run twice; stop its processes, or give "
            "Config(wait_for_predecessor=True)",
        )
