"""Engine: one worker of the cluster, from its start to its end."""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING, final

import trio

from actors.identity import Identity
from actors.messages import Drain
from engine.assembly import Parts, assemble
from engine.config import Config
from engine.connect import link_to, place_of
from engine.errors import (
    AskTimeout,
    DuplicateGroup,
    EngineStateError,
    MailboxClosed,
    RedisUnreachable,
    RestartLimitExceeded,
    TroupeError,
)
from engine.runtime import Supervision, default_environment
from engine.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.assembly import Troupe
    from engine.connect import Place
    from engine.domain.group import TaskGroup
    from engine.runtime import Environment, Node
    from engine.store.link import Link
    from engine.store.transport import LinkStatistics

__all__ = ["Engine"]

log = logging.getLogger("fastapi.task-manager.runner")

EX_UNAVAILABLE, EX_SOFTWARE = 69, 70
"""Exit codes of sysexits.h: Redis could not be reached at start; the root supervisor gave up."""

RESIGN_S = 3.0
"""How long a leader may take to resign before the lease is left to do it."""

LAST_WORDS_S = 3.0
"""How long an engine that is cancelled, or has lost Redis, may take to resign and to hand back its runs."""


@final
class Engine:
    """Declares tasks, leads when nobody does, and executes runs: one worker among any number on one Redis.

    An engine can be started again after it has ended; each start is a worker with an identity of its own.
    """

    def __init__(
        self,
        config: Config | None = None,
        groups: Iterable[TaskGroup] = (),
        *,
        environment: Environment | None = None,
    ) -> None:
        self.config = config if config is not None else Config()
        self._groups: dict[str, TaskGroup] = {}
        self._environment = environment
        self._supervision: Supervision | None = None
        self._identity: Identity | None = None
        self._link: Link | None = None
        self._stop = trio.Event()
        self._serving = False
        for group in groups:
            self.add_task_group(group)

    def add_task_group(self, group: TaskGroup) -> None:
        """Add a group of tasks, before the start.

        Raises:
            DuplicateGroup: there is one of that name.
            EngineStateError: the engine runs.
        """
        if self._serving:
            raise EngineStateError("add_task_group", "the engine runs; add groups before it starts")
        if group.name in self._groups:
            raise DuplicateGroup(group.name)
        self._groups[group.name] = group

    @property
    def groups(self) -> list[TaskGroup]:
        """A copy, in the order of their adding."""
        return list(self._groups.values())

    @property
    def worker_id(self) -> str | None:
        """The name of this worker for people; None before the first start."""
        return self._identity.worker_id if self._identity else None

    def tree(self) -> Node:
        """The supervision tree, as it is now or was at the end.

        Raises:
            EngineStateError: the engine has not started yet.
        """
        if self._supervision is None:
            raise EngineStateError("tree", "there is none before the engine starts")
        return self._supervision.snapshot()

    def link_statistics(self) -> LinkStatistics:
        """Counters and state of the connections to Redis, as they are now or were at the end.

        Raises:
            EngineStateError: the engine has not started yet.
        """
        if self._link is None:
            raise EngineStateError("link_statistics", "there is no connection before the engine starts")
        return self._link.statistics()

    def stop(self) -> None:
        """Ask for a graceful stop, and return at once. From the thread in which the engine runs."""
        self._stop.set()

    def run(self) -> None:
        """Run under trio until SIGINT or SIGTERM, then stop gracefully; a second signal stops at once.

        Returns after a graceful stop.

        Raises:
            SystemExit: 69, Redis was not reached within ``startup_timeout``; 70, the root supervisor gave up;
                128 + the signal's number after a second signal.
        """
        try:
            signalled = trio.run(self._run_until_signal)
        except RedisUnreachable as error:
            log.critical("%s", error)
            sys.exit(EX_UNAVAILABLE)
        except RestartLimitExceeded as error:
            log.critical("The engine failed: %s", error, exc_info=error)
            sys.exit(EX_SOFTWARE)
        if signalled is not None:
            sys.exit(128 + signalled)

    async def serve(self, *, task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED) -> None:
        """Run inside a trio program until ``stop``. Started when Redis is reached and every actor has started.

        Cancelled, it ends at once: runs in progress are cancelled and, if Redis answers within moments, handed back.

        Raises:
            EngineStateError: it runs already.
            RedisUnreachable: no connection within ``startup_timeout``.
            RestartLimitExceeded: the root supervisor gave up.
        """
        if self._serving:
            raise EngineStateError("serve", "the engine runs already")
        self._serving = True
        self._stop = trio.Event()
        try:
            if not self.config.enabled:
                log.info("Troupe is disabled (Config.enabled): nothing is scheduled or executed here")
                task_status.started(self)
                await self._stop.wait()
                return
            async with place_of(self.config) as place:
                await self._serve(place, task_status)
        finally:
            self._serving = False

    async def _serve(
        self,
        place: Place,
        task_status: trio.TaskStatus[Engine],
    ) -> None:
        config, environment = self.config, self._environment or default_environment()
        identity = self._identity = Identity.make(config.worker_service_name, environment.new_id())
        link = self._link = link_to(place.address, config, name=f"troupe-{identity.pid}-{identity.nonce[:4]}")
        troupe = assemble(
            Parts(
                config=config,
                store=Store.over(link, prefix=config.redis_key_prefix, ledger_length=config.ledger_length),
                identity=identity,
                groups=self.groups,
                services=(*place.services, link.run),
                redis_label=place.address.label,
                snapshot=lambda: supervision.snapshot().to_dict(),
                started_ms=round(environment.clock.wall() * 1000),
            )
        )
        supervision = self._supervision = Supervision(troupe.spec, environment)
        log.info("Worker %s starts", identity.worker_id)
        failure: list[RestartLimitExceeded] = []
        tree_scope = trio.CancelScope(shield=True)

        async def run_tree(*, task_status: trio.TaskStatus[Supervision] = trio.TASK_STATUS_IGNORED) -> None:
            with tree_scope:
                try:
                    await supervision.run(task_status=task_status)
                except RestartLimitExceeded as error:
                    failure.append(error)
            nursery.cancel_scope.cancel()

        reached, patience_s = False, 0.0
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(run_tree)
                reached = await _reached(link, self._stop, config.startup_timeout)
                if reached or self._stop.is_set():
                    task_status.started(self)
                if reached:
                    patience_s = LAST_WORDS_S
                    await self._stop.wait()
                    await self._drain(troupe)
                    supervision.stop()
                    if link.is_up():  # else there is nobody to take leave of
                        await supervision.wait_stopped()
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(patience_s):
                    supervision.stop()
                    await supervision.wait_stopped()
                tree_scope.cancel()
        log.info("Worker %s stopped", identity.worker_id)
        if failure:
            raise failure[0]
        if not reached and not self._stop.is_set():
            raise RedisUnreachable(place.address.label, config.startup_timeout, link.statistics().last_error)

    async def _drain(self, troupe: Troupe) -> None:
        """Tell everybody at once to let go; runs in progress get their time, while their leases are kept."""
        log.info("Stopping: runs in progress get %g s", self.config.shutdown_grace)
        async with trio.open_nursery() as nursery:
            if troupe.leader is not None:
                nursery.start_soon(_ask_to_drain, troupe.leader, RESIGN_S)
            nursery.start_soon(_ask_to_drain, troupe.heartbeat, RESIGN_S)
            await _ask_to_drain(troupe.consumer, self.config.shutdown_grace + 2 * RESIGN_S)

    async def _run_until_signal(self) -> int | None:
        """Serve; the number of the second signal if there was one."""
        ended_by: int | None = None
        failure: TroupeError | None = None
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def obey() -> None:
                    nonlocal ended_by
                    async for number in signals:
                        if self._stop.is_set():
                            ended_by = number
                            nursery.cancel_scope.cancel()
                        else:
                            log.info("Signal %s: stopping", signal.Signals(number).name)
                            self.stop()

                nursery.start_soon(obey)
                try:
                    await self.serve()
                except TroupeError as error:  # out of here it would be in a group
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return ended_by


async def _ask_to_drain(mailbox: object, timeout_s: float) -> None:
    try:
        await mailbox.ask(Drain, timeout_s=timeout_s)  # type: ignore[attr-defined]
    except (AskTimeout, MailboxClosed) as error:
        log.warning("Stopping goes on without an answer: %s", error)


async def _reached(link: Link, stop: trio.Event, timeout_s: float) -> bool:
    """Wait until Redis is reached (True), or ``stop`` is set, or the time is over."""
    reached = False
    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:

            async def wait_up() -> None:
                nonlocal reached
                await link.wait_up()
                reached = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_up)
            await stop.wait()
            nursery.cancel_scope.cancel()
    return reached
