"""One process of a cluster that lives in one trio program: the whole tree of a worker, over a transport of its own."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio

from actors.declared import Declared, Outbox
from actors.identity import Identity
from engine.assembly import Parts, assemble
from engine.errors import RestartLimitExceeded
from engine.keeping import GroupKeeper, carry_out
from engine.management import Management, check_dynamic
from engine.runtime import ChildFailed, Supervision
from engine.store.history import History
from engine.store.keys import Keys
from engine.store.store import Store
from engine.store.transport import Transport
from engine.testing.schedule import PROCESS, freeze, thaw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.running import Host
    from engine.config import Config
    from engine.domain.group import TaskGroup
    from engine.runtime import Environment, SupervisorEvent

__all__ = ["Process"]

T = TypeVar("T")


class GreetedTransport(Transport, Protocol):
    """A transport on which each new connection asks which history Redis goes on with."""

    def greet_with(self, history: History) -> None:
        """It asks this."""


class Process:
    """A worker as ``Engine`` makes it, but for the connections and the signals."""

    def __init__(
        self,
        transport: GreetedTransport,
        environment: Environment,
        config: Config,
        groups: Sequence[TaskGroup],
        *,
        number: int,
        host: Host | None = None,
        around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        self.config, self.groups, self.environment = config, groups, environment
        self.identity = Identity(config.worker_service_name, f"host{number}", number, f"{number:016x}")
        self.crashes: list[ChildFailed] = []
        """Actors that failed."""

        self.frozen = False
        self.held: list[trio.lowlevel.Task] = []
        self.when_thawed: list[Callable[[], None]] = []
        """Called once, when it goes on."""

        self.dead = False
        """It was killed: none of its tasks has a turn any more."""

        self.ended = False
        """It has stopped, or its tree has failed."""

        prefix = config.redis_key_prefix
        history = History(Keys(prefix), lease_ms=round(config.run_lease_s * 1000), new_id=environment.new_id)
        transport.greet_with(history)
        store = Store.over(transport, prefix=prefix, ledger_length=config.ledger_length, history=history)
        declared = Declared(groups)
        self.management = Management(store, config, lambda: groups, new_id=environment.new_id, own=declared.own)
        self.outbox = Outbox()
        self.troupe = assemble(
            Parts(
                config=config,
                store=store,
                identity=self.identity,
                declared=declared,
                groups=groups,
                services=(transport.run,),
                redis_label="in process",
                snapshot=lambda: self.supervision.snapshot().to_dict(),
                started_ms=round(environment.clock.wall() * 1000),
                outbox=self.outbox,
                carry_out=partial(carry_out, management=self.management, who=self.identity.worker_id),
                on_leadership=lambda _leads: None,
                host=host,
                around=around,
            )
        )
        self.supervision = Supervision(self.troupe.spec, environment, on_event=self._heard)
        self._life = trio.CancelScope()

    @property
    def name(self) -> str:
        """As people see it."""
        return self.identity.worker_id

    async def run(self, *, task_status: trio.TaskStatus[Supervision] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until stopped or cancelled. Started when every actor is."""
        PROCESS.set(self)
        with self._life, ExitStack() as in_use:
            keeper = GroupKeeper(
                self.outbox,
                self.perform,
                check=partial(check_dynamic, config=self.config),
                who=lambda: self.identity.worker_id,
            )
            for group in self.groups:
                in_use.enter_context(group.in_use(keeper))
            try:
                await self.supervision.run(task_status=task_status)
            except* RestartLimitExceeded:
                pass  # as the process would: it ends; its crashes are told
        self.ended = True

    async def perform(self, operation: Callable[[Management], Awaitable[T]]) -> T:
        """As ``Engine.perform``, in its own trio run."""
        return await operation(self.management)

    async def stop(self) -> None:
        """Stop in order: drain everybody at once, then the children in reverse start order."""
        await self.troupe.drain(grace_s=self.config.shutdown_grace)
        self.supervision.stop()
        await self.supervision.wait_stopped()

    def freeze(self) -> None:
        """Stand still, as with SIGSTOP."""
        freeze(self)

    def thaw(self) -> None:
        """Go on, unless it was killed."""
        if self.dead or not self.frozen:
            return
        thaw(self)
        for call in self.when_thawed:
            call()
        self.when_thawed.clear()

    def die(self) -> None:
        """End with no last word, as with SIGKILL: nothing of it has a turn any more."""
        self.dead = True
        if not self.frozen:
            freeze(self)

    def unwind(self) -> None:
        """Let go of everything, the dead included, so that the program can end."""
        self._life.cancel()
        if self.frozen:
            thaw(self)

    def _heard(self, event: SupervisorEvent) -> None:
        if isinstance(event, ChildFailed):
            self.crashes.append(event)
