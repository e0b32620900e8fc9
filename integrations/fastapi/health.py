"""How a worker that runs is, as the management API says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.views import iso
from integrations.fastapi.schemas import HealthResponse

if TYPE_CHECKING:
    from engine.app import Engine
    from engine.worker import Health

__all__ = ["health_of", "started_at"]


def started_at(engine: Engine) -> str | None:
    """When its worker started: UTC, ISO 8601 with Z, whole seconds. None before the first start."""
    return None if engine.started_at_s is None else iso(int(engine.started_at_s) * 1000)


def health_of(engine: Engine, found: Health) -> HealthResponse:
    """Healthy when Redis does what it is asked, every actor is up, and no key of Redis stands in their way."""
    wrong = f"not running: {', '.join(found.down)}" if found.down else found.broken
    wrong = found.redis_trouble or wrong
    return HealthResponse(
        status="healthy" if found.redis_connected and wrong is None else "unhealthy",
        redis_connected=found.redis_connected,
        worker_id=engine.worker_id,
        worker_started_at=started_at(engine),
        is_leader=found.leads,
        store=found.store,
        detail=wrong,
    )
