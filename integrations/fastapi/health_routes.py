"""Routes of the management API: how this worker is, and how it is set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Response
from fastapi.utils import is_body_allowed_for_status_code

from integrations.fastapi.schemas import HealthResponse, ProbeResponse
from integrations.fastapi.settings import ConfigResponse, shown

if TYPE_CHECKING:
    from fastapi import APIRouter
    from pydantic import BaseModel

    from integrations.fastapi.desk import Desk

__all__ = ["add_health"]


def add_health(router: APIRouter, desk: Desk) -> None:
    """Health, probes and settings."""
    unhealthy = desk.engine.config.unhealthy_status

    @router.get("/health", tags=["health"], responses=_says(HealthResponse, unhealthy, "Unhealthy"))
    async def get_health(response: Response) -> HealthResponse:
        """How this worker is: its engine runs, Redis is reached, and every actor is up."""
        health = await desk.health_check()
        if health.status != "healthy":
            response.status_code = unhealthy
        return health

    @router.get("/health/live", tags=["health"], responses=_says(ProbeResponse, 503, "A restart would help"))
    async def get_liveness(response: Response) -> ProbeResponse:
        """Fails only when a restart of this process would help."""
        return _probe(response, passed=await desk.alive())

    @router.get("/health/ready", tags=["health"], responses=_says(ProbeResponse, 503, "Send no traffic here"))
    async def get_readiness(response: Response) -> ProbeResponse:
        """Fails when this worker should get no traffic."""
        return _probe(response, passed=await desk.ready())

    @router.get("/config", tags=["health"], response_model=ConfigResponse)
    async def get_config() -> BaseModel:
        """How this worker is set up. No secrets, and nothing of how to get to Redis."""
        return shown(desk.engine.config)


def _says(model: type[BaseModel], status: int, description: str) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the same shape under another status."""
    if status == 200:
        return {}
    body = {"model": model} if is_body_allowed_for_status_code(status) else {}
    return {status: {**body, "description": description}}


def _probe(response: Response, *, passed: bool) -> ProbeResponse:
    if not passed:
        response.status_code = 503
    return ProbeResponse(status="ok" if passed else "failing")
