"""Catalog: which tasks exist, and the ear for every change made anywhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, assert_never, final

import trio

from actors.messages import (
    CatalogAsked,
    CatalogInbox,
    CatalogRead,
    CatalogRemembered,
    HistoryDoubted,
    LeadershipEnded,
    LeadershipTaken,
    Refresh,
    Remembered,
    SeatVacated,
    TermAsked,
    Woken,
)
from actors.outage import PAUSE_S, insist
from actors.reading import Reading
from actors.timer import Timer
from engine.domain.catalog import digest, pages
from engine.domain.dynamic import Made, Redeclared, Removed, task_of_change
from engine.errors import KeyMalformed, RedisUnavailable
from engine.runtime import Actor
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.declared import Declared, Outbox, Posted
    from actors.identity import Identity
    from actors.messages import ConsumerInbox, CoordinatorInbox, HeartbeatInbox, LeaderInbox, ReconcilerInbox
    from engine.config import Config
    from engine.runtime import Mailbox
    from engine.store.catalog import Event
    from engine.store.leases import Presence
    from engine.store.store import Store
    from engine.store.timetable import Due

log = logging.getLogger("fastapi.task-manager")

MAX_WAKES = 100
"""As many wake-ups are kept in their stream: of so many at once, some may have been trimmed before they were heard."""

CHANGES = frozenset({"declared", "retired", "defined", "forgotten", "paused", "resumed", "restored"})
"""Events after which the catalog is read again. A trigger, say, is none of them."""


@final
@dataclass(frozen=True, slots=True)
class Scheduling:
    """The mailboxes of a worker that can lead."""

    leader: Mailbox[LeaderInbox]
    coordinator: Mailbox[CoordinatorInbox]
    reconciler: Mailbox[ReconcilerInbox]


@final
class Catalog(Actor[CatalogInbox]):
    """Declares this process's tasks, reads everybody's, and tells the others when they change.

    Owns nothing: all of it is read from Redis again after a restart. One reader listens to events, and while this
    worker leads to wake-ups of the coordinator too; XREAD takes nothing away, so it may be given up at any time.
    """

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        identity: Identity,
        declared: Declared,
        outbox: Outbox,
        carry_out: Callable[[Posted], Awaitable[None]],
        started_ms: int,
        consumer: Mailbox[ConsumerInbox],
        heartbeat: Mailbox[HeartbeatInbox],
        scheduling: Scheduling | None,
    ) -> None:
        self._config, self._store, self._identity, self._declared = config, store, identity, declared
        self._outbox, self._carry_out = outbox, carry_out
        self._started_ms, self._scheduling = started_ms, scheduling
        self._consumer, self._heartbeat = consumer, heartbeat
        self._digest = declared.code_digest
        self._declaring = False
        self._version = -1
        self._asked = False
        """A `Refresh` of this actor's own waits in its mailbox: another would find nothing new."""

        self._reading = Reading(declared.own)
        self._news: CatalogRead | None = None
        self._remembered: Remembered | None = None
        self._leading = False
        self._strangers: set[str] = set()
        self._at_odds: set[str] = set()
        """Dynamic tasks that are declared otherwise elsewhere, of which the log was told."""

        self._extras_in_turn = trio.Lock()
        self._as_of: dict[str, int] = {}
        """Of what is declared anew after it was removed: the version of the catalog at the first try.

        So a repeat brings back nothing that was removed since.
        """

    async def started(self) -> None:
        """Declare, listen, and send what was asked for."""
        self._again = Timer[CatalogInbox](self.context, Refresh(None))
        self._start_declaring()
        self.context.nursery.start_soon(self._listen)
        self.context.nursery.start_soon(self._send_changes)
        if self._scheduling is not None:
            self._scheduling.leader.tell(TermAsked())

    async def receive(self, message: CatalogInbox) -> None:
        """Read the catalog when it changed."""
        match message:
            case Refresh():
                self._asked = False
                if message.version is None or message.version != self._version:
                    await self._refresh(in_any_case=message.version is None)
            case CatalogAsked():
                if self._news is not None:
                    self._tell_all(self._news)
            case CatalogRemembered():
                message.reply.send(self._remembered)
            case LeadershipTaken():
                if not self._leading:
                    self._leading = True
                    await self._listen_anew()
            case LeadershipEnded():
                self._leading = False
            case _:
                assert_never(message)

    # -- reading the catalog ------------------------------------------------------------------------------------

    def _start_declaring(self) -> None:
        if not self._declaring:
            self._declaring = True
            self.context.nursery.start_soon(self._declare)

    async def _declare(self) -> None:
        code, store = self._declared.code, self._store
        texts = pages(code.definitions, code.functions)
        await insist(store.transport, lambda: store.catalog.declare(self._digest, texts))
        await insist(store.transport, partial(self._declare_extras, in_any_case=True))
        self._declaring = False
        await self.context.mailbox.send(Refresh(None))

    async def _declare_extras(
        self, *, in_any_case: bool = False, readmit: Sequence[str] = (), as_of: int | None = None
    ) -> None:
        """Dynamic tasks that are kept nowhere; with those that are declared anew after they were removed.

        Raises:
            RedisUnavailable: repeat it, with the same ``as_of``.
        """
        async with self._extras_in_turn:
            extras, before = self._declared.extras(), self._declared.extras_digest
            wanted = digest(extras.definitions, ()) if extras.definitions else ""
            if wanted and (wanted != before or readmit or in_any_case):
                await self._store.catalog.declare(
                    wanted,
                    pages(extras.definitions, ()),
                    readmit=readmit,
                    as_of=as_of,
                    replaces=before,
                    worker=self._identity.key,
                )
            self._declared.extras_digest = wanted

    async def _send_changes(self) -> None:
        """What was asked for without waiting: in order for each task, and as far as Redis takes it.

        When its memory is full it takes removals, and nothing that grows.
        """
        while True:
            await self._outbox.filled()
            held_up: set[str] = set()
            for posted in self._outbox.waiting():
                task_id = task_of_change(posted.change)
                if task_id in held_up:
                    continue
                try:
                    await self._send_change(posted)
                except RedisUnavailable:
                    held_up.add(task_id)
                else:
                    self._outbox.done(posted)
            if held_up:
                await trio.sleep(PAUSE_S)
                await self._store.transport.wait_up()

    async def _send_change(self, posted: Posted) -> None:
        await self._carry_out(posted)
        match posted.change:
            case Redeclared(task):
                as_of = self._as_of.get(posted.operation_id)
                if as_of is None:
                    as_of = self._as_of[posted.operation_id] = await self._store.catalog.version()
                await self._declare_extras(readmit=[task.id], as_of=as_of)
                del self._as_of[posted.operation_id]
            case Removed():
                await self._declare_extras()  # it may have been one of them
            case Made():
                pass
            case _:
                assert_never(posted.change)

    async def _refresh(self, *, in_any_case: bool) -> None:
        try:
            if not in_any_case and await self._store.catalog.version() == self._version:
                return  # read since it was asked for
            extras_before = self._declared.extras_digest
            contents = await self._store.catalog.contents(self._reading.known)
            workers = await self._workers()
        except RedisUnavailable:
            self._again.after(PAUSE_S)
            return
        if contents.history != self._store.history.told:
            # What is not there may only be forgotten: it counts when Redis knows what this worker remembers.
            self._heartbeat.tell(HistoryDoubted())
            self._again.after(PAUSE_S)
            return
        if self._version == -1 and contents.dynamic:
            log.info("Loaded %d dynamic task(s) from Redis", len(contents.dynamic))
        self._version = contents.version
        ours = {self._digest}
        if extras_before == self._declared.extras_digest and not self._extras_in_turn.locked():
            ours |= {extras_before} - {""}  # or one set is just taking the place of the other
        if not ours <= {found.digest for found in contents.sets}:
            # Retired while this worker was cut off, or forgotten by Redis. What was removed by then stays removed.
            self._undeclare_removed()
            self._start_declaring()
            if self._news is not None:
                return  # it is read again when they are there: until then nothing of theirs is taken for gone
        news = self._news = await self._reading.read(contents)
        self._remembered = Remembered(contents.tables, news.tasks)
        self.context.doing(f"{len(news.tasks)} tasks, version {news.version}")
        self._declared.hear(news)
        self._tell_all(news)
        self._warn_of_strangers(news, workers)
        if not self._declaring:  # until then the others' tasks stand where this process's own will
            self._tell_of_odds(news)

    def _undeclare_removed(self) -> None:
        """All that was removed by the last news, but for what was declared anew since."""
        removed = frozenset(self._news.withdrawn if self._news is not None else ())
        anew = (posted.change for posted in self._outbox.waiting())
        self._declared.undeclare(removed - {change.task.id for change in anew if isinstance(change, Redeclared)})

    async def _workers(self) -> list[Presence]:
        """For a warning alone: where they cannot be read, the catalog is all the same."""
        try:
            return await self._store.leases.workers()
        except KeyMalformed:
            return []

    def _tell_all(self, news: CatalogRead) -> None:
        self._consumer.tell(news)
        if self._scheduling is not None:
            self._scheduling.coordinator.tell(news)
            self._scheduling.reconciler.tell(news)

    def _warn_of_strangers(self, news: CatalogRead, workers: list[Presence]) -> None:
        """Two live workers on one prefix with no task in common are two applications: both run all of theirs."""
        mine = news.sets.get(self._digest, frozenset())
        for other in workers:
            if other.worker == self._identity.key:
                continue
            said = other.account()
            theirs = news.sets.get(said.digest, frozenset())
            came_later = (said.started_ms, other.worker) >= (self._started_ms, self._identity.key)
            if came_later or other.worker in self._strangers or not mine or not theirs:
                continue  # of two strangers the later one warns, so that it is said once
            if mine.isdisjoint(theirs):
                self._strangers.add(other.worker)
                log.warning(
                    "Workers %s and %s use the prefix %r and declare no task in common: are these two applications? "
                    "Give each its own redis_key_prefix",
                    self._identity.worker_id,
                    other.name,
                    self._config.redis_key_prefix,
                )

    def _tell_of_odds(self, news: CatalogRead) -> None:
        """Of two tasks of one name the cluster has one. Whoever declares the other must hear of it, once."""
        at_odds = list(self._declared.at_odds(news))
        for definition in at_odds:
            if definition.id not in self._at_odds:
                log.error(
                    "Dynamic task '%s' of group '%s' is another one elsewhere, which runs in its place: give it "
                    "another name, or declare the same everywhere",
                    *(definition.name, definition.group),
                )
        self._at_odds = {definition.id for definition in at_odds}

    # -- listening ------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear events, and wake-ups while leading. After an outage the streams are read from where they are."""
        store = self._store
        while True:
            leading = self._leading
            ids = await insist(store.transport, partial(store.catalog.start, wake=leading))
            # Whatever happened before this reader began:
            await self.context.mailbox.send(Refresh(None))
            await self._wake(())
            await self._say_vacated()
            try:
                while leading == self._leading:
                    events, ids = await store.catalog.news(ids, block_ms=self._config.stream_block_ms)
                    await self._pass_on(events)
            except RedisUnavailable:
                await trio.sleep(PAUSE_S)

    async def _pass_on(self, events: list[Event]) -> None:
        names = {event.name for event in events}
        if "wake" in names:
            due = tuple(event.due for event in events if event.due is not None)
            await self._wake(due if len(due) < MAX_WAKES else ())
        if "resigned" in names:
            await self._say_vacated()
        if "recovering" in names:
            await self._heartbeat.send(HistoryDoubted())
        if names & CHANGES and not self._asked:
            version = await self._store.catalog.version()
            if version != self._version:
                self._asked = True
                await self.context.mailbox.send(Refresh(version))

    async def _wake(self, due: tuple[Due, ...]) -> None:
        if self._scheduling is not None and self._leading:
            await self._scheduling.coordinator.send(Woken(due))

    async def _say_vacated(self) -> None:
        if self._scheduling is not None and not self._leading:
            await self._scheduling.leader.send(SeatVacated())

    async def _listen_anew(self) -> None:
        try:
            await self._store.transport.unblock(Lane.EVENTS)
        except RedisUnavailable:
            log.debug("The reader of events begins anew by itself when Redis is back")
