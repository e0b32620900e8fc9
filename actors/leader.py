"""Leader: the election, the epoch and its lease."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, assert_never, final

from actors.messages import (
    Campaign,
    Drain,
    HistoryDoubted,
    LeaderInbox,
    LeadershipEnded,
    LeadershipTaken,
    LeaseRenewed,
    SeatVacated,
    Term,
    TermAsked,
    WriteRefused,
)
from actors.outage import PAUSE_S
from actors.timer import Timer
from engine.errors import RedisUnavailable
from engine.runtime import Actor
from engine.store.election import Elected, Held, Lost, OtherHistory

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.identity import Identity
    from actors.messages import CatalogInbox, CoordinatorInbox, HeartbeatInbox, ReconcilerInbox
    from actors.predecessor import Predecessor
    from engine.config import Config
    from engine.runtime import Mailbox
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.leader")


@final
class Leader(Actor[LeaderInbox]):
    """Leads when nobody does, and says so to those who act on it.

    Owns the term. A restart starts a new candidacy of the same worker, which takes over from its former one at once.
    """

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        identity: Identity,
        coordinator: Mailbox[CoordinatorInbox],
        reconciler: Mailbox[ReconcilerInbox],
        catalog: Mailbox[CatalogInbox],
        heartbeat: Mailbox[HeartbeatInbox],
        on_change: Callable[[bool], None],
        predecessor: Predecessor,
        draining: bool = False,
    ) -> None:
        self._config, self._store, self._identity = config, store, identity
        self._coordinator, self._reconciler, self._catalog = coordinator, reconciler, catalog
        self._heartbeat = heartbeat
        self._on_change, self._predecessor = on_change, predecessor
        self._lease_s = config.leader_lease_s
        self._term: Term | None = None
        self._in_doubt = False
        """It stood for election and does not know whether it was elected."""

        self._renewed_at_s = 0.0
        self._draining = draining

    async def started(self) -> None:
        """Begin the campaign at once. The term of a former life, if there was one, is over."""
        self._tell_all(LeadershipEnded())
        self._nonce = self.context.new_id()
        self._timer = Timer[LeaderInbox](self.context, Campaign())
        self._timer.after(0)
        self.context.doing("standing for election")

    async def receive(self, message: LeaderInbox) -> None:
        """Elect or renew when it is time; follow what the others have seen."""
        match message:
            case Campaign() | SeatVacated():
                await self._campaign()
            case LeaseRenewed():
                if message.term == self._term:
                    self._renewed_at_s = message.renewed_at_s
                    self._timer.after(self._config.leader_heartbeat_interval)
            case TermAsked():
                if self._term is not None:
                    self._tell_all(LeadershipTaken(self._term, self._renewed_at_s))
            case WriteRefused():
                if message.term == self._term:
                    self._step_down("another worker leads, or the lease ended")
                    self._timer.after(0)
            case Drain():
                await self._resign()
                message.reply.send(None)
            case _:
                assert_never(message)

    async def stopping(self) -> None:
        """Leave no lease behind."""
        await self._resign()

    async def _campaign(self) -> None:
        if self._draining:
            return
        try:
            delay_s = await (self._elect() if self._term is None else self._renew(self._term))
        except RedisUnavailable:  # the link says so in the log; the lease may hold until it is back
            if self._term is not None and self.context.clock.monotonic() - self._renewed_at_s > self._lease_s:
                self._step_down("Redis has not answered for longer than the lease")
            delay_s = PAUSE_S
        self._timer.after(delay_s)

    async def _elect(self) -> float:
        """Stand for election; seconds until the next campaign."""
        if wait_s := await self._predecessor.wait_s(self.context.clock.monotonic()):
            self.context.doing("waiting until fastapi-task-manager schedules no longer")
            return wait_s
        sent_at_s = self.context.clock.monotonic()
        lease_ms, history, self._in_doubt = round(self._lease_s * 1000), self._store.history.told, True
        answer = await self._store.election.elect(self._identity.key, self._nonce, lease_ms=lease_ms, history=history)
        self._in_doubt = False
        match answer:
            case Elected() as won:
                self._saw(won.redis_ms, sent_at_s)
                self._term, self._renewed_at_s = Term(value=won.value, lease_s=self._lease_s), sent_at_s
                log.info("Worker %s became LEADER", self._identity.worker_id, extra={"epoch": won.epoch})
                self.context.doing(f"leading, epoch {won.epoch}")
                self._tell_all(LeadershipTaken(self._term, sent_at_s))
                return self._config.leader_heartbeat_interval
            case Held() as held:
                self.context.doing(f"following {held.worker}")
                return min(self._config.leader_retry_interval, held.left_ms / 1000 + 0.001)
            case OtherHistory():
                self.context.doing("waiting until Redis knows what this worker remembers")
                self._heartbeat.tell(HistoryDoubted())
                return PAUSE_S

    async def _renew(self, term: Term) -> float:
        sent_at_s = self.context.clock.monotonic()
        match await self._store.election.renew(term.value, lease_ms=round(self._lease_s * 1000)):
            case Lost() as lost:
                self._step_down(f"{lost.worker or 'nobody'} leads now")
                return 0.0
            case answer:
                self._saw(answer.redis_ms, sent_at_s)
                self._renewed_at_s = sent_at_s
                for mailbox in (self._coordinator, self._reconciler):
                    mailbox.tell(LeaseRenewed(term, sent_at_s, answer))
                return self._config.leader_heartbeat_interval

    def _step_down(self, why: str) -> None:
        self._term = None
        log.warning("Worker %s lost leadership: %s", self._identity.worker_id, why)
        self.context.doing("standing for election")
        self._tell_all(LeadershipEnded())

    async def _resign(self) -> None:
        """Give up the term in one round trip; if Redis does not answer, the lease ends it."""
        self._draining = True
        self._timer.stop()
        if self._term is not None:
            value, self._term = self._term.value, None
            self._tell_all(LeadershipEnded())
        elif self._in_doubt:
            value, self._in_doubt = f"{self._identity.key}::{self._nonce}", False
        else:
            return
        try:
            await self._store.election.resign(value)
        except RedisUnavailable as lost:
            log.warning("Worker %s could not release leadership: %s", self._identity.worker_id, lost.reason)
        else:
            log.info("Worker %s released leadership", self._identity.worker_id)
        self.context.doing("resigned")

    def _tell_all(self, news: LeadershipTaken | LeadershipEnded) -> None:
        self._on_change(isinstance(news, LeadershipTaken))
        for mailbox in (self._coordinator, self._reconciler, self._catalog):
            mailbox.tell(news)

    def _saw(self, redis_ms: int, sent_at_s: float) -> None:
        clock = self.context.clock
        clock.saw_redis_ms(redis_ms, sent=sent_at_s, received=clock.monotonic())
