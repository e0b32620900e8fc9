"""TaskManager: an engine that starts and stops with a FastAPI application."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, final

import anyio

from engine.app import Engine
from engine.errors import EngineStateError
from integrations.fastapi.life import running
from integrations.fastapi.schemas import HealthResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from fastapi import FastAPI

    from engine.config import Config
    from engine.domain.group import TaskGroup
    from integrations.fastapi.life import EngineLife

__all__ = ["TaskManager"]

log = logging.getLogger("fastapi.task-manager")


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

    def __init__(self, app: FastAPI, config: Config | None = None, *, engine: Engine | None = None) -> None:
        if (config is None) == (engine is None):
            raise EngineStateError("TaskManager", "give either a config or an engine")
        self._engine = engine if engine is not None else Engine(config)
        self._life: EngineLife | None = None
        self._starter: int | None = None
        """The task that has started it."""

        self._open = AsyncExitStack()
        self._join(app)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The settings."""
        return self._engine.config

    @property
    def task_groups(self) -> list[TaskGroup]:
        """A copy, in the order of their adding."""
        return self._engine.groups

    @property
    def is_running(self) -> bool:
        """Does the engine run? Says nothing about Redis: see ``is_healthy``."""
        return self._life is not None and self._life.alive

    @property
    def worker_id(self) -> str | None:
        """The name of this worker for people; None while it does not run."""
        return self._engine.worker_id if self.is_running else None

    @property
    def worker_started_at(self) -> str | None:
        """UTC, ISO 8601 with Z; None while it does not run."""
        started_s = self._engine.started_at_s
        if not self.is_running or started_s is None:
            return None
        return datetime.fromtimestamp(started_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def is_leader(self) -> bool:
        """Does this worker schedule, as far as it knows?"""
        return self.is_running and self._engine.leads

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
        self._engine.add_task_group(task_group)

    # -- how it is ----------------------------------------------------------------------------------------------------

    async def is_healthy(self) -> bool:
        """Does the engine run, is Redis reached, and is every actor up? Never raises."""
        return (await self.health_check()).status == "healthy"

    async def health_check(self) -> HealthResponse:
        """How this worker is. Never raises, also before the start and after the end."""
        life = self._life
        found = await life.health() if life is not None else None
        if found is None:
            return HealthResponse(status="unhealthy", redis_connected=False, worker_id=self.worker_id)
        return HealthResponse(
            status="healthy" if found.redis_connected and not found.down else "unhealthy",
            redis_connected=found.redis_connected,
            worker_id=self.worker_id,
            worker_started_at=self.worker_started_at,
            is_leader=found.leads,
            store=found.store,
        )

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
            self._life = await self._open.enter_async_context(running(self._engine))
        finally:
            if self._life is None:
                self._starter = None
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
        try:
            await self._open.aclose()
        finally:
            self._life = self._starter = None
        log.info("Stopped TaskManager")

    def _join(self, app: FastAPI) -> None:
        """Start inside the application's own lifespan: after it has begun, and until before it ends."""
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
            async with inner(app) as state:
                await self.start()
                try:
                    yield state
                finally:
                    await self.stop()

        app.router.lifespan_context = lifespan  # type: ignore[assignment]  # Starlette accepts None, its type does not
