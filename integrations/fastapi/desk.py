"""What the management API needs of the process that serves it, on whatever loop its requests are handled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.app import Engine
    from engine.management import Management
    from integrations.fastapi.schemas import HealthResponse

__all__ = ["Desk"]

T = TypeVar("T")


class Desk(Protocol):
    """An engine, and the way into the thread in which it runs."""

    engine: Engine
    """Its settings and groups can be read from any thread; its tree only within ``perform``."""

    async def perform(self, operation: Callable[[Management], Awaitable[T]]) -> T:
        """Do something in the engine's thread, and wait for it. Cancelled, it may be done all the same.

        Raises:
            EngineStateError: the engine does not run.
            RedisUnavailable: Redis does not answer.
        """

    async def health_check(self) -> HealthResponse:
        """How this worker is. Never raises, also when the engine does not run."""

    async def alive(self) -> bool:
        """False only when a restart of the process would help. Never raises."""

    async def ready(self) -> bool:
        """False when this worker should get no traffic. Never raises."""
