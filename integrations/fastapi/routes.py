"""The class of every route of the management API: it guards what changes something, and makes each error a Problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from engine.errors import TroupeError
from integrations.fastapi.guard import SAFE_METHODS, admit, is_json, read
from integrations.fastapi.problems import Refusal, answer, of_error, of_refusal, of_validation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi import Request
    from fastapi.responses import Response

__all__ = ["ManagementRoute", "route_class"]


class ManagementRoute(APIRoute):
    """A route of the management API. Its errors are made here, so no handler of the application sees them."""

    max_payload_bytes: ClassVar[int]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls for each request: around the one that it makes itself."""
        handle = super().get_route_handler()

        async def handle_or_explain(request: Request) -> Response:
            try:
                if request.method not in SAFE_METHODS:
                    admit(request.method, request.headers)
                    request = await read(request, limit_bytes=self.max_payload_bytes)
                return await handle(request)
            except Refusal as refusal:
                return answer(of_refusal(refusal))
            except RequestValidationError as error:
                return answer(of_validation(error, is_json=is_json(request.headers.get("content-type", ""))))
            except TroupeError as error:
                found = of_error(error)
                if found is None:
                    raise
                return answer(found)

        return handle_or_explain


def route_class(max_payload_bytes: int) -> type[ManagementRoute]:
    """Of a router that reads no larger bodies."""
    return type("ManagementRoute", (ManagementRoute,), {"max_payload_bytes": max_payload_bytes})
