"""TaskManager: an engine that starts and stops with a FastAPI application."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, final

import anyio

from engine.app import Engine
from engine.errors import EngineStateError
from integrations.fastapi.health import health_of, started_at
from integrations.fastapi.life import running
from integrations.fastapi.router import make_router, unguarded
from integrations.fastapi.schemas import HealthResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from fastapi import APIRouter, FastAPI, Request
    from fastapi.params import Depends as Dependency

    from engine.config import Config
    from engine.domain.group import TaskGroup
    from engine.management import Management
    from integrations.fastapi.life import EngineLife

__all__ = ["TaskManager"]

log = logging.getLogger("fastapi.task-manager")

T = TypeVar("T")


@final
class TaskManager:
    """Schedules and executes tasks for as long as the application's lifespan lasts.

    The application's own lifespan is entered first and left last, and what it yields reaches ``request.state``.

    The engine has a thread of its own, so a handler that blocks the application's loop costs neither leadership nor
    leases. ``async def`` tasks run on the application's loop, where its connection pools live; ``def`` tasks in worker
    threads that are not those of its routes. Redis need not be there when the application starts.

    Args:
        app: whose lifespan this joins.
        config: every setting of an engine that is made here.
        engine: an engine that exists already, in place of a config.

    Raises:
        EngineStateError: both config and engine are given, or neither.
    """

    engine: Engine
    """The engine, whose tree and restarts belong to its own thread: see ``perform``."""

    def __init__(self, app: FastAPI, config: Config | None = None, *, engine: Engine | None = None) -> None:
        if (config is None) == (engine is None):
            raise EngineStateError("TaskManager", "give either a config or an engine")
        self.engine = engine if engine is not None else Engine(config)
        self._life: EngineLife | None = None
        self._starter: int | None = None
        """The task that has started it."""

        self._open = AsyncExitStack()
        self._never_started, self._told, self._stopping = True, False, False
        self._join(app)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The settings."""
        return self.engine.config

    @property
    def task_groups(self) -> list[TaskGroup]:
        """A copy, in the order of their adding."""
        return self.engine.groups

    @property
    def is_running(self) -> bool:
        """Does the engine run? Says nothing about Redis: see ``is_healthy``."""
        return self._life is not None and self._life.alive

    @property
    def worker_id(self) -> str | None:
        """The name of this worker for people; None while it does not run."""
        return self.engine.worker_id if self.is_running else None

    @property
    def worker_started_at(self) -> str | None:
        """UTC, ISO 8601 with Z; None while it does not run."""
        return started_at(self.engine) if self.is_running else None

    @property
    def is_leader(self) -> bool:
        """Does this worker schedule, as far as it knows?"""
        return self.is_running and self.engine.leads

    @property
    def redis_client(self) -> NoReturn:
        """There is none to share.

        Raises:
            EngineStateError: says what to use instead.
        """
        raise EngineStateError("redis_client", "the engine's connections are its own; open a client of yours")

    @property
    def runner(self) -> NoReturn:
        """There is none.

        Raises:
            EngineStateError: says what to use instead.
        """
        raise EngineStateError("runner", "use is_running, worker_id, is_leader or health_check() instead")

    def add_task_group(self, task_group: TaskGroup) -> None:
        """Add a group of tasks, before the application starts.

        Raises:
            DuplicateGroup: there is one of that name.
            EngineStateError: the engine runs.
        """
        self.engine.add_task_group(task_group)

    def get_manager_router(
        self,
        *,
        dependencies: Sequence[Dependency] = (),
        read_only: bool = False,
        actor: Callable[[Request], str | Awaitable[str]] | None = None,
    ) -> APIRouter:
        """The management API, to be included in an application: ``app.include_router(router, prefix="/tasks")``.

        Args:
            dependencies: for each route, such as one that asks who is there. Without any, and without those of
                ``include_router``, everybody who reaches the application can change its tasks: the log warns.
            read_only: leave out every route that changes something.
            actor: says who a request is from, for the events; the address of the client otherwise.
        """
        return make_router(self, dependencies=dependencies, read_only=read_only, actor=actor)

    async def perform(self, operation: Callable[[Management], Awaitable[T]]) -> T:
        """As ``Engine.perform``, on any loop of this process: look at the cluster, or change it.

        Raises:
            EngineStateError: the engine does not run; says why.
            RedisUnavailable: no answer; what was asked for may have been done.
        """
        if self._life is None:
            why = self._why_not_running()
            if self._never_started and not self._told:
                self._told = True
                log.error("%s", why[0].upper() + why[1:])
            raise EngineStateError("perform", why)
        return await self.engine.perform(operation)

    def _why_not_running(self) -> str:
        if not self._never_started:
            return "the engine was stopped with its application"
        return (
            "the engine was never started. The lifespan of its application does not run, as that of one that is "
            "mounted in another: give TaskManager the outermost application, or await its start() and stop()"
        )

    # -- how it is ----------------------------------------------------------------------------------------------------

    async def is_healthy(self) -> bool:
        """Does the engine run, is Redis reached, and is every actor up? Never raises."""
        return (await self.health_check()).status == "healthy"

    async def health_check(self) -> HealthResponse:
        """How this worker is. Never raises, also before the start and after the end."""
        life = self._life
        if life is None:
            return HealthResponse(status="unhealthy", redis_connected=False, detail=self._why_not_running())
        if not self.engine.config.enabled and life.alive:
            return HealthResponse(status="healthy", redis_connected=False, store="none: disabled (Config.enabled)")
        found = await life.health()
        if found is None:
            why = f"the engine has failed: {life.failure}" if life.failure else "the engine does not answer"
            return HealthResponse(status="unhealthy", redis_connected=False, worker_id=self.worker_id, detail=why)
        return health_of(self.engine, found)

    async def alive(self) -> bool:
        """For a liveness probe: False only when a restart of the process would help. Never raises.

        Redis being away, or a lifespan that does not run, is not mended by a restart.
        """
        return self._life is None or self._stopping or await self._life.answers()

    async def ready(self) -> bool:
        """For a readiness probe: False while the engine starts or stops, and when it has ended. Never raises.

        Redis being away makes no worker unready: an application that works without its tasks would be taken out of
        traffic everywhere at once.
        """
        if self._life is None or self._stopping:
            return False
        if not self.engine.config.enabled:
            return self._life.alive
        found = await self._life.health()
        return found is not None and not found.draining

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine; the application's lifespan does this by itself. It can be repeated after ``stop``.

        Raises:
            EngineStateError: it has been started, and not stopped.
        """
        if self._starter is not None:
            raise EngineStateError("start", "it has been started; call stop() first")
        self._starter = anyio.get_current_task().id
        try:
            self._life = await self._open.enter_async_context(running(self.engine))
        finally:
            if self._life is None:
                self._starter = None
        self._never_started = False
        log.info("Started TaskManager")

    async def stop(self) -> None:
        """Stop the engine: runs in progress get ``shutdown_grace``. Without effect when it has not been started.

        Raises:
            EngineStateError: another task than this one has started it, and must stop it.
        """
        if self._life is None:
            return
        if self._starter != anyio.get_current_task().id:
            raise EngineStateError("stop", "it must be stopped by the task that started it, as the lifespan does")
        self._stopping = True
        try:
            await self._open.aclose()
        finally:
            self._life = self._starter = None
            self._stopping = False
        log.info("Stopped TaskManager")

    def _join(self, app: FastAPI) -> None:
        """Start inside the application's own lifespan: after it has begun, and until before it ends."""
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
            async with inner(app) as state:
                await self.start()
                if unguarded(app):
                    log.warning(
                        "Everybody who reaches this application can change its tasks: its management router has no "
                        "dependencies. Give get_manager_router() or include_router() one that asks who is there"
                    )
                try:
                    yield state
                finally:
                    await self.stop()

        app.router.lifespan_context = lifespan  # type: ignore[assignment]  # Starlette accepts None, its type does not
