"""Heartbeat: the leases of the runs in progress, and this worker's presence."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never, final

import trio

from actors.messages import (
    Beat,
    CountsAsked,
    Drain,
    HeartbeatInbox,
    HistoryDoubted,
    LeasesInDanger,
    Refresh,
    RunsAsked,
    SeatVacated,
    StopRuns,
)
from actors.outage import PAUSE_S
from actors.retelling import Known, Reteller
from actors.running import SAFE_SHARE
from actors.timer import Timer
from engine.errors import AskTimeout, RedisUnavailable
from engine.runtime import Actor
from engine.store.presence import Account
from engine.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.declared import Declared
    from actors.identity import Identity
    from actors.messages import CatalogInbox, ConsumerInbox, LeaderInbox, StatsInbox
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

    When Redis goes on with another history than before, it first tells it what this worker remembers. A restart forgets
    who was present then, so that nobody is waited for but those whom Redis remembers.
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
        leader: Mailbox[LeaderInbox] | None,
        draining: bool = False,
    ) -> None:
        self._config, self._store, self._identity, self._declared = config, store, identity, declared
        self._snapshot, self._started_ms = snapshot, started_ms
        self._consumer, self._catalog, self._stats, self._leader = consumer, catalog, stats, leader
        self._lease_s = config.run_lease_s
        self._held: list[tuple[str, int]] = []
        self._told = False
        self._counts: Mapping[str, int] = {}
        self._draining = draining
        self._safe_until_s = float("inf")
        self._version: int | None = None
        self._known = Known(sure_until_s=float("-inf"), seen_ms=0)
        self._roster = -1
        self._unheard = trio.Event()
        """A beat was not answered, for want of a connection."""

        self._recovering_until_s = float("-inf")
        """Until then others may not have told yet, and Redis may not know them."""

        self._reteller = Reteller(
            store=store, identity=identity, lease_s=self._lease_s, consumer=consumer, catalog=catalog
        )

    async def started(self) -> None:
        """Beat at once. A former life may have beaten last a third of a lease before its end, and this one came a sixth
        after it at most.
        """
        self._safe_until_s = self.context.clock.monotonic() + self._lease_s * (SAFE_SHARE - 1 / 3 - 1 / 6)
        self._timer = Timer[HeartbeatInbox](self.context, Beat())
        self._timer.after(0)
        self.context.nursery.start_soon(self._watch_history)
        self.context.nursery.start_soon(self._watch_link)

    async def receive(self, message: HeartbeatInbox) -> None:
        """Beat when it is time; from a drain on, say that this worker takes no more work."""
        match message:
            case Beat() | HistoryDoubted():
                await self._beat()
            case Drain():
                self._draining = True
                await self._beat()
                message.reply.send(None)
            case _:
                assert_never(message)

    async def stopping(self) -> None:
        """Leave no presence behind, if nothing of this worker is left."""
        if self._known.seen_ms and self._store.transport.is_up():
            try:
                await self._store.leases.bury(self._identity.key, seen_ms=self._known.seen_ms)
            except RedisUnavailable:
                log.debug("Redis is gone; the leader will bury this worker")

    async def _beat(self) -> None:
        interval_s = self._lease_s / 3
        started_s = self.context.clock.monotonic()
        await self._ask_for_runs()
        details = await self._details()
        sent_at_s = self.context.clock.monotonic()
        answer = await self._tell(details, until_s=max(self._safe_until_s, sent_at_s + self._lease_s / 12))
        if answer is not None and (not answer.history or answer.history != self._store.history.told):
            told = await self._retell()
            self._cut_off()
            self._timer.after(0 if told else min(interval_s, PAUSE_S))
            return
        if answer is None:
            self._cut_off()
            self._timer.after(min(interval_s, PAUSE_S))
            if not self._store.transport.is_up():
                self._unheard.set()
            return
        self._safe_until_s = sent_at_s + self._lease_s * SAFE_SHARE
        self._note(answer, sent_at_s)
        if answer.roster != self._roster:
            await self._read_roster(answer.roster)
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
                    history=self._store.history.told,
                )
            except RedisUnavailable:
                pass
        return None

    # -- another history ------------------------------------------------------------------------------------------

    async def _watch_history(self) -> None:
        """A new connection found another history: do not wait for the next beat."""
        while True:
            await self._store.history.doubt()
            self._timer.after(0)
            await self._store.history.certainty()

    async def _watch_link(self) -> None:
        """A new connection: who came meanwhile, and which slots were passed, is to be known before more is lost."""
        while True:
            await self._unheard.wait()
            await self._store.transport.wait_up()
            self._unheard = trio.Event()
            self._timer.after(0)

    async def _retell(self) -> bool:
        """Tell Redis what this worker remembers; True when it goes on in that history."""
        try:
            history_id = await self._store.retelling.enter()
            told = await self._reteller.tell(
                history_id, self._known, self.context.clock, patience_s=self._lease_s / ASKS_IN_A_LEASE
            )
        except (RedisUnavailable, AskTimeout):
            return False
        if told:
            self._version, self._roster = None, -1
            if self._known.workers:
                self._recovering_until_s = self.context.clock.monotonic() + self._lease_s
            if self._leader is not None:
                self._leader.tell(SeatVacated())
        return told

    async def _read_roster(self, roster: int) -> None:
        """Somebody came or went: know who is there, for when Redis forgets it."""
        try:
            workers = await self._store.leases.workers()
        except RedisUnavailable:
            return
        present = frozenset(worker.worker for worker in workers)
        if self.context.clock.monotonic() < self._recovering_until_s:
            present |= self._known.workers  # if all is forgotten once more they are waited for still
        else:
            self._roster = roster
        self._known = replace(self._known, workers=present)

    # -- runs and presence ----------------------------------------------------------------------------------------

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
        self._known = replace(
            self._known,
            sure_until_s=sent_at_s,
            seen_ms=answer.redis_ms,
            beats=answer.beats,
            passed_ms=answer.passed_ms,
        )
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
