"""Catalog: which tasks exist, and the ear for every change made anywhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
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
from engine.domain.catalog import merge, pages, parse_page
from engine.domain.dynamic import Made, Redeclared, Removed
from engine.domain.task import Definition
from engine.errors import MalformedDefinition, RedisUnavailable
from engine.runtime import Actor
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from actors.declared import Declared, Outbox, Posted
    from actors.identity import Identity
    from actors.messages import ConsumerInbox, CoordinatorInbox, LeaderInbox, ReconcilerInbox
    from engine.config import Config
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
        declared: Declared,
        outbox: Outbox,
        carry_out: Callable[[Posted], Awaitable[None]],
        started_ms: int,
        consumer: Mailbox[ConsumerInbox],
        scheduling: Scheduling | None,
    ) -> None:
        self._config, self._store, self._identity, self._declared = config, store, identity, declared
        self._outbox, self._carry_out = outbox, carry_out
        self._started_ms, self._consumer, self._scheduling = started_ms, consumer, scheduling
        self._digest = declared.code_digest
        self._declaring = False
        self._version = -1
        self._asked = False
        """A `Refresh` of this actor's own waits in its mailbox: another would find nothing new."""

        self._reading = Reading()
        self._news: CatalogRead | None = None
        self._sets: Mapping[str, DeclaredSet] = {}
        self._leading = False
        self._strangers: set[str] = set()
        self._at_odds: set[str] = set()
        """Dynamic tasks that are declared otherwise elsewhere, of which the log was told."""

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
        await self._declare_extras()
        self._declaring = False
        await self.context.mailbox.send(Refresh(None))

    async def _declare_extras(self, *readmitted: str) -> None:
        """Dynamic tasks that are kept nowhere; with those that are declared anew after they were removed."""
        extras, store = self._declared.extras(), self._store
        if extras.definitions:
            found, texts = self._declared.extras_digest, pages(extras.definitions, ())
            as_of = await insist(store.transport, store.catalog.version)  # a repeat brings back nothing removed since
            await insist(store.transport, lambda: store.catalog.declare(found, texts, readmit=readmitted, as_of=as_of))

    async def _send_changes(self) -> None:
        """What was asked for without waiting, in order."""
        while True:
            posted = await self._outbox.first()
            match posted.change:
                case Redeclared(task):
                    await self._declare_extras(task.id)
                case Made() | Removed():
                    before = self._declared.extras_digest
                    await insist(self._store.transport, partial(self._carry_out, posted))
                    self._declared.extras()
                    if self._declared.extras_digest != before:
                        await self._declare_extras()
                case _:
                    assert_never(posted.change)
            self._outbox.done()

    async def _refresh(self, *, in_any_case: bool) -> None:
        try:
            if not in_any_case and await self._store.catalog.version() == self._version:
                return  # read since it was asked for
            contents = await self._store.catalog.contents(self._sets)
            workers = await self._store.leases.workers()
        except RedisUnavailable:
            self._again.after(PAUSE_S)
            return
        if self._version == -1 and contents.dynamic:
            log.info("Loaded %d dynamic task(s) from Redis", len(contents.dynamic))
        self._version = contents.version
        ours = {self._digest, self._declared.extras_digest} - {""}
        if not ours <= {found.digest for found in contents.sets}:
            self._start_declaring()  # retired while this worker was cut off, or forgotten by Redis
        self._sets = {found.digest: found for found in contents.sets}
        news = self._news = await self._reading.read(contents)
        self.context.doing(f"{len(news.tasks)} tasks, version {news.version}")
        self._declared.hear(news)
        self._tell_all(news)
        self._warn_of_strangers(news, workers)
        self._tell_of_odds(news)

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


@final
@dataclass(frozen=True, slots=True)
class _Set:
    """A declared set, parsed."""

    definitions: Mapping[str, Definition]
    ids: frozenset[str]
    """Of all its tasks, those that this version does not understand included."""

    functions: frozenset[str]
    nameless: bool
    """Something in it does not even say which task it is."""


@final
class Reading:
    """Makes a `CatalogRead` of what Redis holds. What was parsed is kept while it is there: it never changes.

    A definition that this version cannot read is left out, with one warning for its set: a newer version, which wrote
    it, or a host that knows its time zone, runs it. Its task exists all the same.
    """

    def __init__(self) -> None:
        self._sets: dict[str, _Set] = {}
        self._dynamic: dict[str, tuple[str, Definition | None]] = {}
        """Task id -> the text, and what it says if this version understands it."""

        self._latest: tuple[object, CatalogRead] | None = None

    async def read(self, contents: Contents) -> CatalogRead:
        """Parsed and merged: of a task in several sets, the set first seen latest wins."""
        first_seen_ms = {found.digest: found.first_seen_ms for found in contents.sets}
        shape = (first_seen_ms, contents.dynamic, contents.forgotten, contents.withdrawn)
        if self._latest is not None and self._latest[0] == shape:
            return replace(self._latest[1], version=contents.version)  # with the same tasks: nobody compares them
        self._sets = {found.digest: self._sets.get(found.digest) or await _parse(found) for found in contents.sets}
        self._dynamic = {task_id: self._definition(task_id, text) for task_id, text in contents.dynamic.items()}
        tasks = merge(
            {digest: (first_seen_ms[digest], one.definitions) for digest, one in self._sets.items()},
            {task_id: definition for task_id, (_, definition) in self._dynamic.items() if definition is not None},
            frozenset(contents.withdrawn),
        )
        news = CatalogRead(
            version=contents.version,
            tasks=tasks,
            sets={digest: one.ids for digest, one in self._sets.items()},
            functions={digest: one.functions for digest, one in self._sets.items()},
            forgotten=contents.forgotten,
            withdrawn=contents.withdrawn,
            others=self._not_understood() - tasks.keys(),
            complete=not any(one.nameless for one in self._sets.values()),
        )
        self._latest = shape, news
        return news

    def _not_understood(self) -> frozenset[str]:
        kept = {task_id for task_id, (_, definition) in self._dynamic.items() if definition is None}
        return frozenset(kept).union(*(one.ids.difference(one.definitions) for one in self._sets.values()))

    def _definition(self, task_id: str, text: str) -> tuple[str, Definition | None]:
        known = self._dynamic.get(task_id)
        if known is not None and known[0] == text:
            return known
        try:
            return text, Definition.from_json(text)
        except MalformedDefinition as error:
            log.warning("The dynamic task %s is not understood by this version: %s", task_id, error)
            return text, None


async def _parse(found: DeclaredSet) -> _Set:
    """Others have their turn after each page: the beats go on, however many tasks there are."""
    definitions: dict[str, Definition] = {}
    functions: set[str] = set()
    refused: dict[str, str] = {}
    nameless = ""
    for text in found.pages:
        page = parse_page(text)
        definitions.update(page.definitions)
        functions.update(page.functions)
        refused.update(page.refused)
        nameless = nameless or page.nameless
        await trio.lowlevel.checkpoint()
    if refused or nameless:
        log.warning(
            "The declaration %.8s is not understood by this version in part, left out are %s: %s",
            found.digest,
            f"{len(refused)} task(s), the first {min(refused)}" if refused else "tasks that it does not name",
            refused[min(refused)] if refused else nameless,
        )
    return _Set(definitions, frozenset(definitions) | frozenset(refused), frozenset(functions), bool(nameless))
