"""Reconciler: lost runs, entries that nobody claims, workers and declarations that are gone. Works while leading."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, assert_never, final

from actors.messages import (
    CatalogAsked,
    CatalogRead,
    LeadershipEnded,
    LeadershipTaken,
    LeaseRenewed,
    Look,
    ReconcilerInbox,
    Term,
    TermAsked,
    WriteRefused,
)
from actors.timer import Timer
from actors.watch import Watch
from engine.errors import RedisUnavailable
from engine.runtime import Actor
from engine.store.leases import Reclaimed
from engine.store.session import Broken, Deposed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.messages import CatalogInbox, LeaderInbox
    from engine.config import Config
    from engine.runtime import Mailbox
    from engine.store.leases import Lease, Presence
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.reconciler")

CLOCK_JUMP_S = 0.25
"""A step of Redis's clock, against ours, after which what was seen before proves nothing."""

BURY_AFTER_LEASES = 3
"""A worker that has not beaten for so many leases, and owns nothing, is forgotten."""


@final
class Reconciler(Actor[ReconcilerInbox]):
    """Watches leases, and every ``reconciliation_interval`` what else is left over.

    Owns observations only: a restart, or another leader, begins them anew, which delays a reclaim and never hastens it.
    """

    def __init__(
        self, *, config: Config, store: Store, leader: Mailbox[LeaderInbox], catalog: Mailbox[CatalogInbox]
    ) -> None:
        self._config, self._store, self._leader, self._catalog = config, store, leader, catalog
        self._lease_s = config.run_lease_s
        self._watch = Watch(self._lease_s)
        self._term: Term | None = None
        self._renewed_at_s = 0.0
        self._steady_since_s = 0.0
        self._swept_at_s = 0.0
        self._sets: Mapping[str, frozenset[str]] = {}
        self._tasks: frozenset[str] = frozenset()
        self._forgotten: tuple[str, ...] = ()
        self._unused_since_s: dict[str, float] = {}
        """Digests of declared sets that no live worker has, and since when this was seen."""

    async def started(self) -> None:
        """Wait for a term."""
        self._timer = Timer[ReconcilerInbox](self.context, Look())
        self._leader.tell(TermAsked())
        self._catalog.tell(CatalogAsked())
        self.context.doing("following")

    async def receive(self, message: ReconcilerInbox) -> None:
        """Look when it is time, while leading."""
        match message:
            case LeadershipTaken() if message.term == self._term:
                pass  # somebody else asked
            case LeadershipTaken():
                self._term, self._renewed_at_s = message.term, message.renewed_at_s
                self._steady_since_s = self._swept_at_s = self.context.clock.monotonic()
                self._unused_since_s.clear()
                self._watch.forget()
                self._timer.after(0)
                self.context.doing("watching leases")
            case LeadershipEnded():
                self._stop()
            case LeaseRenewed():
                if message.term == self._term:
                    self._renewed_at_s = max(self._renewed_at_s, message.renewed_at_s)
            case CatalogRead():
                self._sets, self._tasks = message.sets, frozenset(message.tasks)
                self._forgotten = message.forgotten
            case Look():
                if self._term is not None:
                    await self._look(self._term)
            case _:
                assert_never(message)

    def _stop(self) -> None:
        self._term = None
        self._timer.stop()
        self._watch.forget()
        self.context.doing("following")

    async def _look(self, term: Term) -> None:
        delay_s = self._lease_s / 2
        try:
            delay_s = await self._look_at_leases(term)
            if self.context.clock.monotonic() - self._swept_at_s >= self._config.reconciliation_interval:
                self._swept_at_s = self.context.clock.monotonic()
                await self._sweep(term)
        except RedisUnavailable:
            self._steady_since_s = self.context.clock.monotonic()
        except Deposed:
            self._stop()
            self._leader.tell(WriteRefused(term))
            return
        self._timer.after(delay_s)

    async def _look_at_leases(self, term: Term) -> float:
        """Reclaim what is lost; seconds until the next look."""
        clock, store = self.context.clock, self._store
        now_s = clock.monotonic()
        self._notice_jump(await store.leases.redis_ms(), now_s)
        redis_ms = clock.redis_ms()
        half_a_lease_ms = round(self._lease_s * 1000 / 2)
        leases = await store.leases.expiring(redis_ms + half_a_lease_ms)
        steady_since_s = max(self._steady_since_s, store.transport.steady_since_s(slower_than_s=self._lease_s / 4))
        lost = self._watch.look(leases, now_s=now_s, redis_ms=redis_ms, steady_since_s=steady_since_s)
        if lost and clock.monotonic() - self._renewed_at_s < term.lease_s * 2 / 3:
            await self._reclaim(term, lost)
        return self._watch.next_look_s(now_s=clock.monotonic(), redis_ms=clock.redis_ms())

    def _notice_jump(self, redis_ms: int, sent_at_s: float) -> None:
        clock = self.context.clock
        jump_s = clock.saw_redis_ms(redis_ms, sent=sent_at_s, received=clock.monotonic())
        if abs(jump_s) > CLOCK_JUMP_S:
            log.warning("The clock of Redis stepped by %.3f s: leases are watched anew", jump_s)
            self._steady_since_s = clock.monotonic()

    async def _reclaim(self, term: Term, lost: list[Lease]) -> None:
        story = json.dumps({"outcome": "lost", "seen_ms": self.context.clock.redis_ms()})
        replies = await self._store.leases.reclaim(
            term.value, lost, max_deliveries=self._config.max_deliveries, story=story
        )
        for lease, reply in zip(lost, replies, strict=True):
            match reply:
                case Reclaimed("queued", worker):
                    log.warning("Reclaimed pending message: run %s of lost worker %s", lease.run_id, worker)
                case Reclaimed("dead", worker):
                    log.error("Run %s is dead: its workers were lost too often, %s the last", lease.run_id, worker)
                case Broken(why):
                    log.error("Run %s cannot be reclaimed: a key of it is broken: %s", lease.run_id, why)
                case _:
                    pass

    # -- what else is left over -----------------------------------------------------------------------------------

    async def _sweep(self, term: Term) -> None:
        store, idle_ms = self._store, round(self._lease_s * 1000)
        await store.runs.make_groups()
        pending = await store.leases.pending(min_idle_ms=idle_ms)
        if pending:
            await store.runs.release([item.entry for item in pending])
        now_ms = await store.leases.redis_ms()
        workers = await store.leases.workers()
        gone = [w for w in workers if now_ms - w.seen_ms > BURY_AFTER_LEASES * idle_ms]
        for worker in gone:
            if await store.leases.bury(worker.worker, seen_ms=worker.seen_ms) == "buried":
                log.info("Worker %s is gone", worker.name)
        await self._retire(term, [w for w in workers if w not in gone])
        for task_id in self._forgotten:
            match await store.operations.finish_forgetting(task_id):
                case Broken(why):
                    log.error("Task %s cannot be forgotten: a key of it is broken: %s", task_id, why)
                case None:
                    pass  # somebody else finished it
                case ended:
                    log.info("Finished forgetting task %s: %d runs ended", task_id, ended)

    async def _retire(self, term: Term, live: list[Presence]) -> None:
        """Forget sets that no live worker has had for ``retire_after``, and the tasks that only they had."""
        used, now_s = {worker.digest for worker in live}, self.context.clock.monotonic()
        self._unused_since_s = {
            digest: self._unused_since_s.get(digest, now_s) for digest in self._sets if digest not in used
        }
        left = dict(self._sets)
        for digest, since_s in self._unused_since_s.items():
            if now_s - since_s >= self._config.retire_after:
                tasks = tasks_of_only(digest, left)
                gone = await self._store.catalog.retire(term.value, digest, sorted(tasks))
                del left[digest]  # or the next set that goes would leave it the tasks that both have
                log.info("Retired a declaration that no live worker has, and %d task(s)", gone)


def tasks_of_only(digest: str, sets: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The tasks that no other declared set has."""
    others = [tasks for other, tasks in sets.items() if other != digest]
    return sets[digest].difference(*others)
