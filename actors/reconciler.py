"""Reconciler: lost runs, entries that nobody claims, workers and declarations that are gone. Works while leading."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, assert_never, final

from actors.messages import (
    CatalogAsked,
    CatalogRead,
    LeadershipEnded,
    LeadershipTaken,
    LeaseRenewed,
    Look,
    ReconcilerInbox,
    Refresh,
    Term,
    TermAsked,
    WriteRefused,
)
from actors.timer import Timer
from actors.watch import Watch
from engine.domain.names import task_of
from engine.errors import KeyMalformed, RedisUnavailable
from engine.runtime import Actor
from engine.store.leases import DEAD_LENGTH, Reclaimed
from engine.store.session import Broken, Deposed
from engine.store.timetable import FOREVER_MS

if TYPE_CHECKING:
    from actors.messages import CatalogInbox, LeaderInbox
    from engine.config import Config
    from engine.runtime import Mailbox
    from engine.store.leases import Lease, Presence
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.reconciler")

BURY_AFTER_LEASES = 3
"""A worker that has not beaten for so many leases, and owns nothing, is forgotten."""

DEAD_ALARM = DEAD_LENGTH * 8 // 10
"""So many dead runs that somebody should decide about them, before the oldest go."""


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
        self._broken: frozenset[str] = frozenset()
        """Leases that cannot be reclaimed and entries that cannot be released, of which the log was told."""

        self._many_dead = False
        self._news: CatalogRead | None = None
        self._retired: set[str] = set()
        """Tasks of sets that this leader retired: if the catalog has them no longer, they have had their time."""

        self._gone_since_s: dict[str, float] = {}
        """Tasks in the timetable that the catalog does not have, and since when this was seen."""

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
                self._retired.clear()
                self._gone_since_s.clear()
                self._watch.forget()
                self._timer.after(0)
                self.context.doing("watching leases")
            case LeadershipEnded():
                self._stop()
            case LeaseRenewed():
                if message.term == self._term:
                    self._renewed_at_s = max(self._renewed_at_s, message.renewed_at_s)
            case CatalogRead():
                self._news = message
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
        clock.saw_redis_ms(await store.leases.redis_ms(), sent=now_s, received=clock.monotonic())
        if clock.redis_stepped_at_s > self._steady_since_s:
            log.warning("The clock of Redis has stepped: leases are watched anew")
            self._steady_since_s = clock.redis_stepped_at_s
        redis_ms = clock.redis_ms()
        half_a_lease_ms = round(self._lease_s * 1000 / 2)
        leases = await store.leases.expiring(redis_ms + half_a_lease_ms)
        steady_since_s = max(self._steady_since_s, store.transport.steady_since_s(slower_than_s=self._lease_s / 4))
        lost = self._watch.look(leases, now_s=now_s, redis_ms=redis_ms, steady_since_s=steady_since_s)
        if lost and clock.monotonic() - self._renewed_at_s < term.lease_s * 2 / 3:
            await self._reclaim(term, lost)
        return self._watch.next_look_s(now_s=clock.monotonic(), redis_ms=clock.redis_ms())

    async def _reclaim(self, term: Term, lost: list[Lease]) -> None:
        story = json.dumps({"outcome": "lost", "seen_ms": self.context.clock.redis_ms()})
        names = {presence.worker: presence.name for presence in await self._store.leases.workers()}
        replies = await self._store.leases.reclaim(
            term.value, lost, max_deliveries=self._config.max_deliveries, story=story
        )
        for lease, reply in zip(lost, replies, strict=True):
            match reply:
                case Reclaimed("queued", worker):
                    name = names.get(worker, worker)
                    log.warning("Reclaimed pending message: run %s of lost worker %s", lease.run_id, name)
                case Reclaimed("dead", worker):
                    name = names.get(worker, worker)
                    log.error("Run %s is dead: its workers were lost too often, %s the last", lease.run_id, name)
                case Broken(why):
                    self._watch.observe_anew(lease, now_s=self.context.clock.monotonic())
                    if lease.member not in self._broken:
                        log.error("Run %s cannot be reclaimed: a key of it is broken: %s", lease.run_id, why)
                        self._broken |= {lease.member}
                case _:
                    self._broken -= {lease.member}

    # -- what else is left over -----------------------------------------------------------------------------------

    async def _sweep(self, term: Term) -> None:
        """Each step for itself: a key that one of them cannot use (the log was told) stops no other."""
        steps = (
            self._store.runs.make_groups,
            self._store.leases.tidy,
            self._release,
            self._store.catalog.drop_ended_pauses,
            self._count_dead,
            partial(self._bury_and_retire, term),
            self._finish_forgetting,
        )
        for step in steps:
            with suppress(KeyMalformed):
                await step()

    async def _bury_and_retire(self, term: Term) -> None:
        store, idle_ms = self._store, round(self._lease_s * 1000)
        now_ms = await store.leases.redis_ms()
        workers = await store.leases.workers()
        gone = [w for w in workers if now_ms - w.seen_ms > BURY_AFTER_LEASES * idle_ms]
        for worker in gone:
            if await store.leases.bury(worker.worker, seen_ms=worker.seen_ms) == "buried":
                log.info("Worker %s is gone", worker.name)
        await self._retire(term, [w for w in workers if w not in gone])

    async def _finish_forgetting(self) -> None:
        for task_id in self._news.forgotten if self._news is not None else ():
            match await self._store.operations.finish_forgetting(task_id):
                case Broken(why):
                    log.error("Task %s cannot be forgotten: a key of it is broken: %s", task_id, why)
                case None:
                    pass  # somebody else finished it
                case ended:
                    log.info("Finished forgetting task %s: %d runs ended", task_id, ended)

    async def _release(self) -> None:
        """Give back what was read and never claimed."""
        idle_ms = round(self._lease_s * 1000)
        pending = await self._store.leases.pending(min_idle_ms=idle_ms)
        entries = [item.entry for item in pending.entries]
        for entry, reply in zip(entries, await self._store.runs.release(entries), strict=True):
            match reply:
                case Broken(why) if entry.entry_id not in self._broken:
                    log.error("Run %s cannot be released: a key of it is broken: %s", entry.run_id, why)
                    self._broken |= {entry.entry_id}
                case Broken():
                    pass
                case _:
                    self._broken -= {entry.entry_id}
        await self._store.leases.acknowledge_deleted(pending.deleted)

    async def _count_dead(self) -> None:
        """Tell the log, once while it lasts, that somebody should decide about dead runs before the oldest go."""
        count = await self._store.leases.dead()
        if count >= DEAD_ALARM and not self._many_dead:
            log.error(
                "%d runs are dead, and of more than %d the oldest are lost: revive or discard some", count, DEAD_LENGTH
            )
        self._many_dead = count >= DEAD_ALARM

    async def _retire(self, term: Term, live: list[Presence]) -> None:
        """Forget sets that no worker has had for ``retire_after``; at the next sweep, the tasks that only they had.

        Tasks that the catalog lost otherwise (or never had: a run came before its declaration) have as
        long. While a live worker's declaration is not in the catalog, nothing is taken for gone.
        """
        news = self._news
        if news is None:
            return
        if news.complete and all(worker.digest in news.sets for worker in live):
            await self._dismiss(term, news)
            await self._drop_withdrawn(term, news)
        digests = list(news.sets)
        after_ms = round(self._config.retire_after * 1000)
        for digest, word in zip(
            digests, await self._store.catalog.retire(term.value, digests, after_ms=after_ms), strict=True
        ):
            if word == "retired":
                log.info("Retired the declaration %.8s, which no live worker has", digest)
                self._retired |= news.sets[digest]
            elif word == "gone":
                self._catalog.tell(Refresh(None))  # it went unheard: those who have it declare it again

    async def _drop_withdrawn(self, term: Term, news: CatalogRead) -> None:
        """Tasks that were removed while processes declared them need no mark when none declares them any longer."""
        over = sorted(set(news.withdrawn).difference(*news.sets.values()))
        replies = await self._store.catalog.drop_withdrawn(term.value, news.version, over)
        for task_id, word in zip(over, replies, strict=True):
            if word == "dropped":
                log.info("Task %s, which was removed, is declared by nobody any longer", task_id)

    async def _dismiss(self, term: Term, news: CatalogRead) -> None:
        now_s = self.context.clock.monotonic()
        due = await self._store.timetable.window(FOREVER_MS)
        found = {task_of(item.id) if item.is_run else item.id for item in due}
        gone = found.difference(news.tasks, news.others, news.forgotten)
        self._retired &= gone
        self._gone_since_s = {task_id: self._gone_since_s.get(task_id, now_s) for task_id in gone}
        over = sorted(
            task_id
            for task_id, since_s in self._gone_since_s.items()
            if task_id in self._retired or now_s - since_s >= self._config.retire_after
        )
        for task_id, ended in zip(over, await self._store.catalog.dismiss(term.value, news.version, over), strict=True):
            match ended:
                case Broken(why):
                    log.error("Task %s cannot be dismissed: a key of it is broken: %s", task_id, why)
                case None:
                    pass  # the catalog has changed: at the next sweep
                case runs:
                    log.info("Task %s is scheduled no longer: nobody declares it; %d runs ended", task_id, runs)
