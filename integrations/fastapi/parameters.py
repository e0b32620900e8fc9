"""What several routes of the management API take: filters, and who the request is from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Depends, Query, Request

from integrations.fastapi.guard import GUARD_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GUARDED", "UNKNOWN", "GroupFilter", "TagFilter", "TaskFilter", "who_asks"]

UNKNOWN: Final = "unknown"
"""Who it was, when neither the application nor the connection says."""

GUARDED: Final = {
    "parameters": [
        {
            "name": GUARD_HEADER,
            "in": "header",
            "required": False,
            "description": "Any value. Needed where the content type is not JSON: see 415.",
            "schema": {"type": "string"},
        }
    ]
}
"""For OpenAPI: what a request that changes something must show."""

GroupFilter = Annotated[str | None, Query(description="The exact name of a group; left out: any.")]
TaskFilter = Annotated[str | None, Query(description="The exact name of a task; left out: any.")]
TagFilter = Annotated[str | None, Query(description="One of the tags, exactly; what has no tags does not match.")]


def who_asks(actor: Callable[[Request], str] | None) -> Any:
    """A dependency that says who a request is from."""

    async def who(request: Request) -> str:
        if actor is not None:
            return actor(request)
        return request.client.host if request.client is not None and request.client.host else UNKNOWN

    return Depends(who)
