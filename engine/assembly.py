"""The supervision tree of one worker: which roles there are, who writes to whom, and what happens when one fails."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, final

import trio

from actors.catalog import Catalog, Scheduling
from actors.consumer import Consumer
from actors.coordinator import Coordinator
from actors.heartbeat import Heartbeat
from actors.leader import Leader
from actors.link import LinkKeeper
from actors.memory import RecentEnds
from actors.messages import (
    CatalogInbox,
    ConsumerInbox,
    CoordinatorInbox,
    Drain,
    HeartbeatInbox,
    LeaderInbox,
    ReconcilerInbox,
    StatsInbox,
)
from actors.predecessor import Predecessor
from actors.reconciler import Reconciler
from actors.stats import Stats
from actors.threads import Threads
from engine.domain.task import Task
from engine.errors import AskTimeout, MailboxClosed
from engine.runtime import Backoff, Child, Mailbox, Strategy, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from actors.declared import Declared, Outbox, Posted
    from actors.identity import Identity
    from actors.running import Host
    from engine.config import Config
    from engine.domain.group import TaskGroup
    from engine.store.store import Store

__all__ = ["Parts", "Troupe", "assemble"]

log = logging.getLogger("fastapi.task-manager.runner")

RESIGN_S = 3.0
"""How long a leader may take to resign before the lease is left to do it."""

ASK_AGAIN_S = 1.0
"""An actor that crashes forgets who asked it to let go, so it is asked again."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a worker is made of, besides its actors."""

    config: Config
    store: Store
    identity: Identity
    groups: Sequence[TaskGroup]
    declared: Declared
    """By those groups."""

    services: Sequence[Callable[..., Awaitable[None]]]
    """What keeps Redis reachable."""

    redis_label: str
    snapshot: Callable[[], Mapping[str, Any]]
    """The tree, for this worker's presence."""

    started_ms: int
    outbox: Outbox
    carry_out: Callable[[Posted], Awaitable[None]]
    """Does what was posted there. Raises RedisUnavailable; then it is repeated."""

    on_leadership: Callable[[bool], None]
    """Called when this worker begins or ceases to lead."""

    host: Host | None = None
    """Where asynchronous bodies run; None: on the engine's own loop."""

    above: Sequence[Child] = ()
    """What the engine starts from above itself: started when all else is, and stopped first, after the drain."""

    around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """What is put around the function of every task, of the same kind as the function; None: nothing."""


@final
@dataclass(frozen=True, slots=True)
class Troupe:
    """A tree to be supervised, and how it is told to let go before it stops."""

    spec: Supervisor
    leader: Mailbox[LeaderInbox] | None
    consumer: Mailbox[ConsumerInbox]
    heartbeat: Mailbox[HeartbeatInbox]
    draining: trio.Event
    """Set by ``drain``, so that an actor that is restarted meanwhile takes no work either."""

    threads: Threads
    """Those of ``def`` tasks."""

    async def drain(self, *, grace_s: float) -> None:
        """Tell everybody at once to let go; runs in progress get their time, while their leases are kept."""
        self.draining.set()
        async with trio.open_nursery() as nursery:
            if self.leader is not None:
                nursery.start_soon(_tell_to_drain, partial(self.leader.ask, Drain), RESIGN_S)
            nursery.start_soon(_tell_to_drain, partial(self.heartbeat.ask, Drain), RESIGN_S)
            await _tell_to_drain(partial(self.consumer.ask, Drain), grace_s + 2 * RESIGN_S)


class _Ask(Protocol):
    async def __call__(self, *, timeout_s: float) -> None: ...


async def _tell_to_drain(ask: _Ask, patience_s: float) -> None:
    until_s = trio.current_time() + patience_s
    while True:
        left_s = until_s - trio.current_time()
        try:
            await ask(timeout_s=max(0.0, min(ASK_AGAIN_S, left_s)))  # a process that stood still comes too late
        except AskTimeout as error:
            if left_s > ASK_AGAIN_S:
                continue
            log.warning("Stopping goes on without an answer: %s", error)
        except MailboxClosed as error:
            log.warning("Stopping goes on without an answer: %s", error)
        return


def assemble(parts: Parts) -> Troupe:
    """The tree, in start order. It stops in reverse, after a drain: heartbeat and link last."""
    config, store, identity = parts.config, parts.store, parts.identity
    declared = parts.declared
    scheduling = (
        Scheduling(
            leader=Mailbox[LeaderInbox]("leader"),
            coordinator=Mailbox[CoordinatorInbox]("coordinator"),
            reconciler=Mailbox[ReconcilerInbox]("reconciler"),
        )
        if config.can_lead
        else None
    )
    catalog = Mailbox[CatalogInbox]("catalog")
    stats = Mailbox[StatsInbox]("stats")
    heartbeat = Mailbox[HeartbeatInbox]("heartbeat")
    consumer = Mailbox[ConsumerInbox]("consumer")
    threads, recent = Threads(config.concurrent_tasks), RecentEnds(config)
    predecessor = Predecessor(config=config, store=store, name=identity.worker_id)
    draining = trio.Event()
    around = parts.around or (lambda function: function)
    tasks = {
        task.id: task if parts.around is None else Task(task.definition, around(task.function))
        for group in parts.groups
        for task in group.declared
        if not task.dynamic
    }
    functions = {
        (group.name, name): around(function)
        for group in parts.groups
        for name, function in group.function_registry.items()
    }

    def make_catalog() -> Catalog:
        return Catalog(
            config=config,
            store=store,
            identity=identity,
            declared=declared,
            outbox=parts.outbox,
            carry_out=parts.carry_out,
            started_ms=parts.started_ms,
            consumer=consumer,
            heartbeat=heartbeat,
            scheduling=scheduling,
        )

    def make_heartbeat() -> Heartbeat:
        return Heartbeat(
            config=config,
            store=store,
            identity=identity,
            declared=declared,
            snapshot=parts.snapshot,
            started_ms=parts.started_ms,
            consumer=consumer,
            catalog=catalog,
            stats=stats,
            leader=scheduling.leader if scheduling is not None else None,
            draining=draining.is_set(),
        )

    def make_consumer() -> Consumer:
        return Consumer(
            config=config,
            store=store,
            identity=identity,
            tasks=tasks,
            functions=functions,
            threads=threads,
            recent=recent,
            catalog=catalog,
            stats=stats,
            host=parts.host,
            draining=draining.is_set(),
        )

    def make_leader(mail: Scheduling) -> Leader:
        return Leader(
            config=config,
            store=store,
            identity=identity,
            coordinator=mail.coordinator,
            reconciler=mail.reconciler,
            catalog=catalog,
            heartbeat=heartbeat,
            on_change=parts.on_leadership,
            predecessor=predecessor,
            draining=draining.is_set(),
        )

    sixth_of_a_lease = config.run_lease_s / 6
    children: list[Child | Supervisor] = [
        Child("link", lambda: LinkKeeper(parts.services, parts.redis_label, store.transport)),
        Child("catalog", make_catalog, catalog),
        Child("stats", Stats, stats),
        Child(
            "heartbeat",
            make_heartbeat,
            heartbeat,
            # Leases must not run out while their keeper backs off.
            backoff=Backoff(first_s=min(0.1, sixth_of_a_lease), max_s=sixth_of_a_lease),
        ),
        Supervisor("execution", Strategy.ONE_FOR_ONE, (Child("consumer", make_consumer, consumer),)),
    ]
    if scheduling is not None:
        children.append(_scheduling(config, store, scheduling, catalog, partial(make_leader, scheduling)))
    children += parts.above
    # Each role finds its way from Redis alone, so one that fails takes nobody with it.
    spec = Supervisor("engine", Strategy.ONE_FOR_ONE, tuple(children))
    return Troupe(spec, scheduling.leader if scheduling else None, consumer, heartbeat, draining, threads)


def _scheduling(
    config: Config,
    store: Store,
    mail: Scheduling,
    catalog: Mailbox[CatalogInbox],
    make_leader: Callable[[], Leader],
) -> Supervisor:
    return Supervisor(
        "scheduling",
        Strategy.REST_FOR_ONE,  # coordinator and reconciler act under the term of the leader above them
        (
            Child("leader", make_leader, mail.leader),
            Child(
                "coordinator",
                lambda: Coordinator(config=config, store=store, leader=mail.leader, catalog=catalog),
                mail.coordinator,
            ),
            Child(
                "reconciler",
                lambda: Reconciler(config=config, store=store, leader=mail.leader, catalog=catalog),
                mail.reconciler,
            ),
        ),
    )
