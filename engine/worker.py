"""Worker: one life of an engine, with an identity, connections and a tree of its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

import trio

from actors.declared import Declared
from actors.identity import Identity
from engine.assembly import Parts, assemble
from engine.connect import first_of, link_to
from engine.errors import RedisUnreachable, RestartLimitExceeded
from engine.keeping import carry_out
from engine.management import Management
from engine.runtime import State, Supervision
from engine.store.history import History
from engine.store.keys import Keys
from engine.store.schema import SchemaCheck
from engine.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actors.declared import Outbox
    from actors.running import Host
    from engine.config import Config
    from engine.connect import Place
    from engine.domain.group import TaskGroup
    from engine.runtime import Child, Environment

__all__ = ["Health", "Worker"]

log = logging.getLogger("fastapi.task-manager.runner")

LAST_WORDS_S = 3.0
"""How long a worker that is cancelled, or has lost Redis, may take to resign and to hand back its runs."""


@final
@dataclass(frozen=True, slots=True)
class Health:
    """How a worker is."""

    redis_connected: bool
    redis_trouble: str | None
    """Why Redis does not do what it is asked, while it does not: it is away, refuses, or its replicas are behind."""

    leads: bool
    store: str
    """Where Redis is, without a password."""

    down: tuple[str, ...]
    """Paths of the actors and supervisors that are not running."""

    draining: bool
    """It stops, and takes no work."""

    broken: str | None = None
    """What is wrong with a key of Redis that this worker cannot do without."""


@final
class Worker:
    """Made at each start of an engine, never before: a fork would share its identity, and both would lead."""

    def __init__(
        self,
        *,
        config: Config,
        groups: Sequence[TaskGroup],
        place: Place,
        environment: Environment,
        outbox: Outbox,
        host: Host | None = None,
        above: Sequence[Child] = (),
        startup_timeout_s: float,
    ) -> None:
        self._config, self._place, self._startup_timeout_s = config, place, startup_timeout_s
        self.started_at_s = environment.clock.wall()
        """Seconds since the epoch, by this host's clock."""

        self.leads = False
        """Whether this worker leads, as far as it knows."""

        self.identity = Identity.make(config.worker_service_name, environment.new_id())
        self._schema = SchemaCheck(config.redis_key_prefix, writes=True)
        history = History(
            Keys(config.redis_key_prefix), lease_ms=round(config.run_lease_s * 1000), new_id=environment.new_id
        )
        name = f"troupe-{self.identity.pid}-{self.identity.nonce[:4]}"
        greetings = (self._schema, history)
        self.link = link_to(place.address, config, name=name, greetings=greetings, replicas=config.wait_replicas)
        store = self._store = Store.over(
            self.link, prefix=config.redis_key_prefix, ledger_length=config.ledger_length, history=history
        )
        declared = Declared(groups)
        self.management = Management(store, config, lambda: groups, new_id=environment.new_id, own=declared.own)
        self._troupe = assemble(
            Parts(
                config=config,
                store=store,
                identity=self.identity,
                declared=declared,
                groups=groups,
                services=(*place.services, self.link.run),
                redis_label=place.label,
                snapshot=lambda: self.supervision.snapshot().to_dict(),
                started_ms=round(self.started_at_s * 1000),
                outbox=outbox,
                carry_out=partial(carry_out, management=self.management, who=self.identity.worker_id),
                on_leadership=self._note_leadership,
                host=host,
                above=above,
            )
        )
        self.supervision = Supervision(self._troupe.spec, environment)

    async def run(self, stop: trio.Event, on_started: Callable[[], None]) -> None:
        """Work until ``stop`` is set, then drain and stop. ``on_started`` is called when Redis is reached.

        Cancelled, it still takes leave of Redis, for ``LAST_WORDS_S`` at most: it resigns and hands its runs back.

        Raises:
            OtherSchema: Redis holds data of another version, at the start or on a later connection.
            RedisUnreachable: no connection within ``startup_timeout_s``.
            RestartLimitExceeded: the root supervisor gave up.
        """
        log.info("Worker %s starts", self.identity.worker_id)
        failure: RestartLimitExceeded | None = None
        tree = trio.CancelScope(shield=True)

        async def run_tree(*, task_status: trio.TaskStatus[Supervision]) -> None:
            nonlocal failure
            with tree:
                try:
                    await self.supervision.run(task_status=task_status)
                except RestartLimitExceeded as error:  # out of here it would be in a group
                    failure = error
            nursery.cancel_scope.cancel()

        reached = False
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(run_tree)
                reached = await self._reached(stop)
                if reached or stop.is_set():
                    on_started()
                if reached:
                    await first_of(stop.wait, self._schema.refused.wait)
                if reached and self._schema.refusal is None:
                    log.info("Stopping: runs in progress, if any, get %g s", self._config.shutdown_grace)
                    await self._troupe.drain(grace_s=self._config.shutdown_grace)
                    self.supervision.stop()
                    if self.link.is_up():  # each child by its own deadline; else there is nobody to take leave of
                        await self.supervision.wait_stopped()
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(LAST_WORDS_S if reached else 0.0):
                    self.supervision.stop()
                    await self.supervision.wait_stopped()
                tree.cancel()
        log.info("Worker %s stopped", self.identity.worker_id)
        if failure is not None:
            raise failure
        if self._schema.refusal is not None:
            raise self._schema.refusal
        if not reached and not stop.is_set():
            raise RedisUnreachable(
                self._place.address.label, self._startup_timeout_s, self.link.statistics().last_error
            )

    def health(self) -> Health:
        """How this worker is. Only in the thread in which it runs."""
        nodes = self.supervision.snapshot().walk()
        down = tuple(node.path for node in nodes if node.state is not State.RUNNING)
        return Health(
            redis_connected=self.link.is_up(),
            redis_trouble=self.link.statistics().trouble,
            leads=self.leads,
            store=self._place.label,
            down=down,
            draining=self._troupe.draining.is_set(),
            broken=None if self._store.broken is None else str(self._store.broken),
        )

    def _note_leadership(self, leads: bool) -> None:  # noqa: FBT001  # a callback of one word
        self.leads = leads

    async def _reached(self, stop: trio.Event) -> bool:
        """Wait until Redis is reached (True), or refused, or ``stop`` is set, or the time is over."""
        with trio.move_on_after(self._startup_timeout_s):
            await first_of(self.link.wait_up, self._schema.refused.wait, stop.wait)
        return self.link.is_up()
