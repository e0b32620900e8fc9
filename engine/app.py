"""Engine: one worker of the cluster, from its start to its end."""

from __future__ import annotations

import logging
import math
import signal
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final

import trio

from actors.declared import Outbox
from engine.config import Config
from engine.connect import place_of
from engine.domain.group import TaskGroup
from engine.domain.task import check_inherited
from engine.errors import (
    ApiRefused,
    ApiUnavailable,
    CannotCrash,
    ConfigError,
    DuplicateGroup,
    EmbeddedRedisError,
    EngineStateError,
    OtherSchema,
    RedisUnavailable,
    RedisUnreachable,
    ServiceNotFound,
    TaskDeclarationError,
    TaskTypeError,
    TroupeError,
)
from engine.keeping import GroupKeeper
from engine.management import check_dynamic
from engine.runtime import default_environment
from engine.runtime.fork import in_children, no_way_back
from engine.services import opened
from engine.store.predecessor import PredecessorUnreadable
from engine.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from actors.running import Host
    from engine.management import Management
    from engine.runtime import Environment, Node
    from engine.store.transport import LinkStatistics
    from engine.worker import Health

__all__ = ["Engine", "running_engines"]

T = TypeVar("T")

log = logging.getLogger("fastapi.task-manager.runner")

EX_UNAVAILABLE, EX_SOFTWARE, EX_CONFIG = 69, 70, 78
"""Exit codes of sysexits.h: Redis or an address cannot be had; Troupe failed; a person must change something."""

PERSON_MUST_ACT = (
    ConfigError
    | ApiRefused
    | ServiceNotFound
    | EmbeddedRedisError
    | OtherSchema
    | TaskDeclarationError
    | PredecessorUnreadable
)
"""Errors that no repetition mends."""

_running: set[Engine] = set()


def running_engines() -> list[Engine]:
    """The engines that run in this process, in no order. From any thread. One that is disabled does not count."""
    return list(_running)


def exit_code(error: TroupeError) -> int:
    """The code with which a process ends that could not go on."""
    if isinstance(error, RedisUnreachable | RedisUnavailable | ApiUnavailable):
        return EX_UNAVAILABLE
    return EX_CONFIG if isinstance(error, PERSON_MUST_ACT) else EX_SOFTWARE


@final
class Engine:
    """Declares tasks, leads when nobody does, and executes runs: one worker among any number on one Redis.

    An engine can be started again after it has ended; each start is a worker with an identity of its own.

    Args:
        config: every setting; without one, ``Config()`` takes them from the environment.
        groups: what ``add_task_group`` adds.
        environment: where time, chance and ids come from, so that tests can govern them; without one, from the host.

    Raises:
        ConfigError: no ``config`` is given, and the environment has no valid one.
        DuplicateGroup: two groups have the same name.
    """

    config: Config
    """Every setting, as given or read from the environment."""

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
        self._worker: Worker | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        """While there is a worker: how other threads reach its own."""

        self._host: Host | None = None
        self._stop, self._begun = trio.Event(), trio.Event()
        self._serving = False
        given: object = groups
        if isinstance(given, TaskGroup):
            raise TaskTypeError(given.name, "groups", "is one group; give a list, as in Engine(config, [group])")
        for group in groups:
            self.add_task_group(group)

    def add_task_group(self, group: TaskGroup) -> None:
        """Add a group of tasks, before the start.

        Raises:
            DuplicateGroup: there is one of that name.
            EngineStateError: the engine runs.
            TaskDeclarationError: a task contradicts what it inherits from the Config.
        """
        if self._serving:
            raise EngineStateError("add_task_group", "the engine runs; add groups before it starts")
        if group.name in self._groups:
            raise DuplicateGroup(group.name)
        self._check_inherited(group)
        self._groups[group.name] = group

    @property
    def groups(self) -> list[TaskGroup]:
        """A copy, in the order of their adding."""
        return list(self._groups.values())

    @property
    def worker_id(self) -> str | None:
        """The name of this worker for people; None before the first start."""
        return self._worker.identity.worker_id if self._worker else None

    def tree(self) -> Node:
        """The supervision tree, as it is now or was at the end.

        Raises:
            EngineStateError: the engine has not started yet.
        """
        if self._worker is None:
            raise EngineStateError("tree", "there is none before the engine starts")
        return self._worker.supervision.snapshot()

    def link_statistics(self) -> LinkStatistics:
        """Counters and state of the connections to Redis, as they are now or were at the end.

        Raises:
            EngineStateError: the engine has not started yet.
        """
        if self._worker is None:
            raise EngineStateError("link_statistics", "there is no connection before the engine starts")
        return self._worker.link.statistics()

    @property
    def leads(self) -> bool:
        """Does this worker lead, as far as it knows? From any thread."""
        return self._worker is not None and self._worker.leads

    @property
    def started_at_s(self) -> float | None:
        """When this worker started, in seconds since the epoch; None before the first start."""
        return self._worker.started_at_s if self._worker else None

    def health(self) -> Health:
        """Whether Redis is reached and does what it is asked, and every actor runs. Only in the engine's own thread.

        Raises:
            EngineStateError: the engine has not started yet.
        """
        if self._worker is None:
            raise EngineStateError("health", "there is none before the engine starts")
        return self._worker.health()

    async def perform(self, operation: Callable[[Management], Awaitable[T]]) -> T:
        """Look at the cluster or change it, as the HTTP API does: ``await engine.perform(lambda m: m.tasks(Match()))``.

        In the trio run of the engine, or on the loop of the application around it. Cancelled there, it is done all the
        same.

        Raises:
            EngineStateError: the engine does not run, or cannot be reached from where this is called.
            RedisUnavailable: no answer; what was asked for may have been done.
        """
        worker, token, host = self._worker, self._token, self._host
        if worker is None or token is None:
            why = "" if self.config.enabled else ": it is disabled (Config.enabled)"
            raise EngineStateError("perform", f"the engine does not run{why}")
        if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is token:
            return await operation(worker.management)
        if host is None:
            raise EngineStateError("perform", "call it in the trio run in which the engine runs")
        return await host.ask(lambda: operation(worker.management))

    def restart(self, path: str) -> None:
        """Ask for one actor or supervisor to be stopped in order and started again, and return at once.

        ``path`` is that of ``tree()``; the name of the root may be left out, as in ``"scheduling.leader"``. Runs in
        progress lose nothing but time: what can be cancelled is handed back, threads go on and are reported by the
        successor. Counts against no limit. Only in the thread in which the engine runs.

        Raises:
            EngineStateError: the engine does not run.
            UnknownActor: nothing below the root has this path; names the nearest.
        """
        if self._worker is None or self._token is None:
            raise EngineStateError("restart", "the engine does not run")
        self._worker.supervision.restart(path)

    def crash(self, path: str, error: Exception) -> None:
        """Have one actor fail with ``error``, as if its own code had raised it, and return at once: for tests.

        ``engine.testing.crash`` finds the engine itself. From any thread. The actor fails a moment later, and its
        supervisor restarts it as after any crash; one that is not up by then is left alone, with a WARNING.

        Raises:
            EngineStateError: the engine does not run.
            UnknownActor: nothing has this path; names the nearest.
            CannotCrash: it is a supervisor.
        """
        worker, token = self._worker, self._token
        if worker is None or token is None:
            raise EngineStateError("crash", "the engine does not run")
        worker.supervision.actor(path)

        def crash_now() -> None:
            try:
                worker.supervision.crash(path, error)
            except CannotCrash as refused:
                log.warning("%s", refused)

        try:
            token.run_sync_soon(crash_now)
        except trio.RunFinishedError:
            raise EngineStateError("crash", "the engine does not run") from None

    async def wait_begun(self) -> None:
        """Wait until ``serve`` has taken the groups and made a worker. Redis need not be there. In its own trio run.

        From then on dynamic tasks go to Redis, and ``perform`` gets to the engine.
        """
        await self._begun.wait()

    def stop(self) -> None:
        """Ask for a graceful stop, and return at once. From the thread in which the engine runs."""
        self._stop.set()

    def run(self, *, api: str | None = None) -> None:
        """Run under trio until SIGINT or SIGTERM, then stop gracefully; a second signal stops at once.

        Returns after a graceful stop.

        Args:
            api: where the HTTP API listens, such as ``"127.0.0.1:8000"``; see ``serve``.

        Raises:
            SystemExit: 69, Redis was not reached within ``startup_timeout``, or the address of the API is taken; 70,
                the engine failed: the root supervisor gave up; 78, a setting, the address of the API, a task or the
                embedded Redis cannot be used until somebody changes what the log says; 128 + the signal's number
                after a second signal.
        """
        try:
            signalled = trio.run(self._run_until_signal, api)
        except TroupeError as error:
            code = exit_code(error)
            if code == EX_SOFTWARE:
                log.critical("The engine failed: %s", error, exc_info=error)
            else:
                log.critical("%s", error)
            sys.exit(code)
        if signalled is not None:
            sys.exit(128 + signalled)

    async def serve(
        self,
        *,
        host: Host | None = None,
        wait_for_redis: bool = False,
        api: str | None = None,
        task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run inside a trio program until ``stop``. Started when Redis is reached and every actor has started.

        ``host`` runs the ``async def`` tasks elsewhere, on the loop of an application around the engine. With
        ``wait_for_redis`` it keeps trying to reach Redis, however long that takes.

        ``api`` is where the HTTP API listens, from before the first connection to Redis to the end of the drain: an IP
        address and a port, ``"127.0.0.1:8000"`` or ``"[::1]:8000"``; with port 0 the log says which one it has. With
        ``Config.api_token`` whoever asks must show the token; without one only a loopback address is taken. An engine
        that is disabled serves none.

        Cancelled, it ends at once: runs in progress are cancelled and, if Redis answers within moments, handed back.

        Raises:
            ApiRefused: ``api`` is no address, or other hosts reach it and there is no token.
            ApiUnavailable: that address is taken.
            ConfigError: ``Config.api_token`` cannot be sent in a header.
            EmbeddedRedisError: it was asked for and cannot be had.
            EngineStateError: it runs already.
            TaskDeclarationError: a task contradicts what it inherits from the Config.
            OtherSchema: Redis holds data that another version wrote, at the start or on a later connection.
            RedisUnreachable: no connection within ``startup_timeout``.
            RestartLimitExceeded: the root supervisor gave up.
            ServiceNotFound: nothing that is installed serves the HTTP API.
        """
        if self._serving:
            raise EngineStateError("serve", "the engine runs already")
        self._serving = True
        self._stop = trio.Event()
        self._worker, self._host = None, host
        outbox = Outbox()
        keeper = GroupKeeper(
            outbox,
            self.perform,
            check=partial(check_dynamic, config=self.config),
            who=lambda: self.worker_id or self.config.worker_service_name,
        )
        in_use = ExitStack()
        in_use.enter_context(in_children(self._forget))
        in_use.enter_context(no_way_back())
        try:
            services = in_use.enter_context(opened(self, api))
            for group in self.groups:
                self._check_inherited(group)
                in_use.enter_context(group.in_use(keeper))
            if not self.config.enabled:
                self._begun.set()
                log.info("Troupe is disabled (Config.enabled): nothing is scheduled or executed here")
                task_status.started(self)
                await self._stop.wait()
                return
            async with place_of(self.config) as place:
                self._worker = Worker(
                    config=self.config,
                    groups=self.groups,
                    place=place,
                    environment=self._environment or default_environment(),
                    outbox=outbox,
                    host=host,
                    above=services,
                    startup_timeout_s=math.inf if wait_for_redis else self.config.startup_timeout,
                )
                self._token = trio.lowlevel.current_trio_token()
                _running.add(self)
                self._begun.set()
                await self._worker.run(self._stop, lambda: task_status.started(self))
        finally:
            self._begun = trio.Event()
            _running.discard(self)
            self._token = None
            in_use.close()
            self._serving = False
            if left := outbox.left():
                log.warning("%d change(s) of dynamic tasks were asked for and not made before the engine ended", left)

    def _forget(self) -> None:
        """In the child of a fork: the engine runs in the parent, and not here, where it can be started anew."""
        _running.discard(self)
        self._worker = self._token = self._host = None
        self._serving = False
        for group in self._groups.values():
            group.forget_engines()

    def _check_inherited(self, group: TaskGroup) -> None:
        for task in group.tasks:
            check_inherited(task.definition, retry_backoff_max=self.config.retry_backoff_max)

    async def _run_until_signal(self, api: str | None) -> int | None:
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
                    await self.serve(api=api)
                except TroupeError as error:  # out of here it would be in a group
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return ended_by
