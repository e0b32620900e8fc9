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
    LeadershipEnded,
    LeadershipTaken,
    Refresh,
    SeatVacated,
    TermAsked,
    Woken,
)
from actors.outage import PAUSE_S, insist
from actors.timer import Timer
from engine.domain.catalog import digest, merge, pages, parse_pages
from engine.domain.task import Definition
from engine.errors import MalformedDefinition, RedisUnavailable
from engine.runtime import Actor
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.identity import Identity
    from actors.messages import ConsumerInbox, CoordinatorInbox, LeaderInbox, ReconcilerInbox
    from engine.config import Config
    from engine.domain.catalog import Declaration
    from engine.runtime import Mailbox
    from engine.store.catalog import Contents, DeclaredSet, Event
    from engine.store.leases import Presence
    from engine.store.store import Store
    from engine.store.timetable import Due

log = logging.getLogger("fastapi.task-manager")

MAX_WAKES = 100
"""As many wake-ups are kept in their stream: of so many at once, some may have been trimmed before they were heard."""

CHANGES = frozenset({"declared", "retired", "defined", "forgotten", "paused", "resumed"})
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
        declaration: Declaration,
        started_ms: int,
        consumer: Mailbox[ConsumerInbox],
        scheduling: Scheduling | None,
    ) -> None:
        self._config, self._store, self._identity, self._declaration = config, store, identity, declaration
        self._started_ms, self._consumer, self._scheduling = started_ms, consumer, scheduling
        self._digest = digest(declaration.definitions, declaration.functions)
        self._declaring = False
        self._version = -1
        self._news: CatalogRead | None = None
        self._sets: Mapping[str, DeclaredSet] = {}
        self._leading = False
        self._strangers: set[str] = set()

    async def started(self) -> None:
        """Declare and listen."""
        self._again = Timer[CatalogInbox](self.context, Refresh(None))
        self._start_declaring()
        self.context.nursery.start_soon(self._listen)
        if self._scheduling is not None:
            self._scheduling.leader.tell(TermAsked())

    async def receive(self, message: CatalogInbox) -> None:
        """Read the catalog when it changed."""
        match message:
            case Refresh():
                if message.version is None or message.version != self._version:
                    await self._refresh()
            case CatalogAsked():
                if self._news is not None:
                    self._tell_all(self._news)
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
        store, texts = self._store, pages(self._declaration.definitions, self._declaration.functions)
        await insist(store.transport, lambda: store.catalog.declare(self._digest, texts))
        self._declaring = False
        await self.context.mailbox.send(Refresh(None))

    async def _refresh(self) -> None:
        try:
            contents = await self._store.catalog.contents(self._sets)
            workers = await self._store.leases.workers()
        except RedisUnavailable:
            self._again.after(PAUSE_S)
            return
        self._version = contents.version
        if all(found.digest != self._digest for found in contents.sets):
            self._start_declaring()  # retired while this worker was cut off, or forgotten by Redis
        self._sets = {found.digest: found for found in contents.sets}
        news = self._news = read_catalog(contents)
        self.context.doing(f"{len(news.tasks)} tasks, version {news.version}")
        self._tell_all(news)
        self._warn_of_strangers(news, workers)

    def _tell_all(self, news: CatalogRead) -> None:
        self._consumer.tell(news)
        if self._scheduling is not None:
            self._scheduling.coordinator.tell(news)
            self._scheduling.reconciler.tell(news)

    def _warn_of_strangers(self, news: CatalogRead, workers: list[Presence]) -> None:
        """Two live workers on one prefix with no task in common are two applications: both run all of theirs."""
        mine = news.sets.get(self._digest, frozenset())
        for other in workers:
            theirs = news.sets.get(other.digest, frozenset())
            came_later = (other.started_ms, other.worker) >= (self._started_ms, self._identity.key)
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
        if names & CHANGES:
            await self.context.mailbox.send(Refresh(None))

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


def read_catalog(contents: Contents) -> CatalogRead:
    """What Redis holds, parsed and merged: of a task in several sets, the set first seen latest wins.

    A definition that this version cannot read is left out, with a warning: a newer version, which wrote it, runs it.
    """
    sets: dict[str, tuple[int, tuple[Definition, ...]]] = {}
    dynamic: list[Definition] = []
    for found in contents.sets:
        try:
            sets[found.digest] = found.first_seen_ms, parse_pages(found.pages).definitions
        except MalformedDefinition as error:
            log.warning("The declaration %.8s is not understood by this version: %s", found.digest, error)
    for task_id, text in contents.dynamic.items():
        try:
            dynamic.append(Definition.from_json(text))
        except MalformedDefinition as error:
            log.warning("The dynamic task %s is not understood by this version: %s", task_id, error)
    return CatalogRead(
        version=contents.version,
        tasks=merge(sets, dynamic),
        sets={digest: frozenset(one.id for one in definitions) for digest, (_, definitions) in sets.items()},
        forgotten=contents.forgotten,
    )
