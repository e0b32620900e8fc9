"""Heartbeat: the leases of the runs in progress, and this worker's presence."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, assert_never, final

import trio

from actors.messages import (
    Beat,
    CountsAsked,
    Drain,
    HeartbeatInbox,
    LeasesInDanger,
    Refresh,
    RunsAsked,
    StopRuns,
)
from actors.outage import PAUSE_S
from actors.timer import Timer
from engine.errors import AskTimeout, RedisUnavailable
from engine.runtime import Actor
from engine.store.presence import Account
from engine.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.declared import Declared
    from actors.identity import Identity
    from actors.messages import CatalogInbox, ConsumerInbox, StatsInbox
    from engine.config import Config
    from engine.runtime import Mailbox
    from engine.store.leases import Beat as Answer
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.consumer")

MAX_RUNS_SHOWN = 100

ASKS_IN_A_LEASE = 12
"""An actor that has not answered within a twelfth of a lease has crashed, or is too slow to be waited for."""


@final
class Heartbeat(Actor[HeartbeatInbox]):
    """Beats three times in a lease: one command for all runs of this worker.

    Owns nothing: it asks the Consumer for its runs before each beat, so a restart loses nothing. While the Consumer is
    being restarted the runs last heard of are kept; a lease that should not be there ends by itself. Before its first
    beat it asks until it is told, for a lease at most: a beat without them would let the leases of a former life end.
    """

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        identity: Identity,
        declared: Declared,
        snapshot: Callable[[], Mapping[str, Any]],
        started_ms: int,
        consumer: Mailbox[ConsumerInbox],
        catalog: Mailbox[CatalogInbox],
        stats: Mailbox[StatsInbox],
        draining: bool = False,
    ) -> None:
        self._config, self._store, self._identity, self._declared = config, store, identity, declared
        self._snapshot, self._started_ms = snapshot, started_ms
        self._consumer, self._catalog, self._stats = consumer, catalog, stats
        self._lease_s = config.run_lease_s
        self._held: list[tuple[str, int]] = []
        self._told = False
        self._counts: Mapping[str, int] = {}
        self._draining = draining
        self._safe_until_s = float("inf")
        self._seen_ms = 0
        self._version: int | None = None

    async def started(self) -> None:
        """Beat at once."""
        self._timer = Timer[HeartbeatInbox](self.context, Beat())
        self._timer.after(0)

    async def receive(self, message: HeartbeatInbox) -> None:
        """Beat when it is time; from a drain on, say that this worker takes no more work."""
        match message:
            case Beat():
                await self._beat()
            case Drain():
                self._draining = True
                await self._beat()
                message.reply.send(None)
            case _:
                assert_never(message)

    async def stopping(self) -> None:
        """Leave no presence behind, if nothing of this worker is left."""
        if self._seen_ms and self._store.transport.is_up():
            try:
                await self._store.leases.bury(self._identity.key, seen_ms=self._seen_ms)
            except RedisUnavailable:
                log.debug("Redis is gone; the leader will bury this worker")

    async def _beat(self) -> None:
        interval_s = self._lease_s / 3
        started_s = self.context.clock.monotonic()
        await self._ask_for_runs()
        details = await self._details()
        sent_at_s = self.context.clock.monotonic()
        answer = await self._tell(details, until_s=max(self._safe_until_s, sent_at_s + self._lease_s / 12))
        if answer is None:
            self._cut_off()
            self._timer.after(min(interval_s, PAUSE_S))
            return
        self._safe_until_s = sent_at_s + self._lease_s * 5 / 6
        self._note(answer, sent_at_s)
        self.context.doing(f"keeping {len(self._held)} leases")
        self._timer.after(interval_s - (self.context.clock.monotonic() - started_s))

    async def _tell(self, details: str, *, until_s: float) -> Answer | None:
        """One beat; None if Redis does not answer, or not until then while leases are at stake.

        A connection through which nothing comes looks open for longer than a lease may last.
        """
        with trio.CancelScope(deadline=until_s if self._held else float("inf")):
            try:
                return await self._store.leases.beat(
                    self._identity.key,
                    self._held,
                    lease_ms=round(self._lease_s * 1000),
                    details=details,
                    draining=self._draining,
                )
            except RedisUnavailable:
                pass
        return None

    async def _ask_for_runs(self) -> None:
        for _ in range(1 if self._told else ASKS_IN_A_LEASE):
            try:
                self._held = await self._consumer.ask(RunsAsked, timeout_s=self._lease_s / ASKS_IN_A_LEASE)
            except AskTimeout:
                continue
            self._told = True
            return
        log.warning("The consumer did not say which runs it holds; the last known leases are kept")

    def _note(self, answer: Answer, sent_at_s: float) -> None:
        clock = self.context.clock
        clock.saw_redis_ms(answer.redis_ms, sent=sent_at_s, received=clock.monotonic())
        self._seen_ms = answer.redis_ms
        if self._version is None:
            self._catalog.tell(Refresh(None))  # now that this worker is present, strangers see each other
        elif answer.version != self._version:
            self._catalog.tell(Refresh(answer.version))
        self._version = answer.version
        if answer.lost or answer.stop:
            self._consumer.tell(StopRuns(lost=answer.lost, cancelled=answer.stop))

    def _cut_off(self) -> None:
        """Has no beat got through for most of a lease? Then stop what can be stopped, once."""
        if self._held and self.context.clock.monotonic() >= self._safe_until_s:
            self._safe_until_s = float("inf")
            log.error("Cut off from Redis for most of a lease: runs in progress are stopped and handed back later")
            self._consumer.tell(LeasesInDanger())

    async def _details(self) -> str:
        """What others may know of this worker, as JSON."""
        try:
            self._counts = await self._stats.ask(CountsAsked, timeout_s=self._lease_s / ASKS_IN_A_LEASE)
        except AskTimeout:
            log.debug("The counts of this worker are those of an earlier beat")
        return Account(
            worker_id=self._identity.worker_id,
            host=self._identity.host,
            pid=self._identity.pid,
            started_ms=self._started_ms,
            version=VERSION,
            digest=self._declared.code_digest,
            extras=self._declared.extras_digest,
            draining=self._draining,
            executes=self._config.concurrent_tasks > 0,
            can_lead=self._config.can_lead,
            concurrent_tasks=self._config.concurrent_tasks,
            running=len(self._held),
            runs=[run_id for run_id, _ in self._held[:MAX_RUNS_SHOWN]],
            counts=self._counts,
            tree=self._snapshot(),
        ).to_json()
