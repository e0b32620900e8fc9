"""The management API as an application of its own, for an engine that runs on the loop that serves it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar, final

import trio
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from engine.errors import EngineStateError
from engine.services import token_of
from engine.version import VERSION
from integrations.fastapi.gate import Gate, describe
from integrations.fastapi.health import health_of
from integrations.fastapi.problems import Refusal, answer, of_refusal
from integrations.fastapi.router import make_router
from integrations.fastapi.schemas import HealthResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Request
    from fastapi.responses import Response
    from starlette.types import ASGIApp

    from engine.app import Engine
    from engine.management import Management

__all__ = ["EngineDesk", "make_app"]

T = TypeVar("T")


@final
class EngineDesk:
    """The desk of a standalone engine: requests are handled on its own loop, so nothing has to cross threads."""

    engine: Engine

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def perform(self, operation: Callable[[Management], Awaitable[T]]) -> T:
        """As ``Engine.perform``."""
        return await self.engine.perform(operation)

    async def health_check(self) -> HealthResponse:
        """How this worker is."""
        await trio.lowlevel.checkpoint()
        try:
            return health_of(self.engine, self.engine.health())
        except EngineStateError as error:
            return HealthResponse(status="unhealthy", redis_connected=False, detail=str(error))

    async def alive(self) -> bool:
        """It is: this is its own loop that answers, and when the tree gives up the process ends."""
        await trio.lowlevel.checkpoint()
        return True

    async def ready(self) -> bool:
        """Not while it stops. Redis being away makes no worker unready: it would be so everywhere at once."""
        await trio.lowlevel.checkpoint()
        try:
            return not self.engine.health().draining
        except EngineStateError:
            return False


def make_app(engine: Engine) -> ASGIApp:
    """The management API of ``engine``, for whoever may use it."""
    token = token_of(engine.config)
    app = FastAPI(title="Troupe", version=VERSION, description="The management API of one worker.")
    app.include_router(make_router(EngineDesk(engine)))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            describe(made(), has_token=token is not None)
        return made()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI says to extend it
    return Gate(app, token)


async def _http_error(_: Request, error: Exception) -> Response:
    """Of this application, not of the router, whose errors never get here."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = "not_found" if status == 404 else HTTPStatus(status).name.lower()
    hint = "GET /openapi.json says which there are" if status in {404, 405} else None
    return answer(of_refusal(Refusal(status, code, HTTPStatus(status).phrase, field="path", hint=hint)))


async def _bug(_request: Request, _error: Exception) -> Response:
    """The log has it with its traceback: Starlette raises it again when this is sent."""
    return answer(of_refusal(Refusal(500, "internal_error", "the request failed here, for a reason that the log says")))
