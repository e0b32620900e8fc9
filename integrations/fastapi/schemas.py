"""What the management API says, in the shapes of the system that it replaces."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

__all__ = ["HealthResponse"]


class HealthResponse(BaseModel):
    """How this worker is."""

    status: Literal["healthy", "unhealthy"]
    redis_connected: bool
    worker_id: str | None = None
    worker_started_at: str | None = None
    """UTC, ISO 8601 with Z."""

    is_leader: bool | None = None
    store: str | None = None
    """Where Redis is, without a password; says so when it is the embedded one, which is for development."""
