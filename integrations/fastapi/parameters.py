"""What several routes of the management API take: filters, and who the request is from."""

from __future__ import annotations

from difflib import get_close_matches
from inspect import isawaitable
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Depends, Query, Request

from engine.management import Match
from integrations.fastapi.guard import GUARD_HEADER
from integrations.fastapi.problems import LONGEST, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["GUARDED", "UNKNOWN", "GroupFilter", "MatchFilters", "TagFilter", "TaskFilter", "who_asks"]

LONGEST_ACTOR: Final = 200
"""Characters of who a request is from: he is named in events and pauses."""

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


FILTERS: Final = ("task_group_name", "task_name", "name", "tag")
MISTAKEN: Final = frozenset({"group", "task", "task_id", "tags"})
"""What people write for a filter; and whatever is nearly one. Other parameters may be the application's own."""


def _match(
    request: Request,
    task_group_name: GroupFilter = None,
    task_name: TaskFilter = None,
    name: TaskFilter = None,
    tag: TagFilter = None,
) -> Match:
    _refuse_misspelt(request)
    if None not in {task_name, name} and task_name != name:
        raise Refusal(422, "invalid_request", "task_name and name mean the same, and differ; give one", field="name")
    return Match(group=task_group_name, name=name if task_name is None else task_name, tag=tag)


def _refuse_misspelt(request: Request) -> None:
    """A filter that is not understood would be no filter, and the request would mean every task of the cluster."""
    for given in request.query_params:
        if given not in FILTERS and (given in MISTAKEN or get_close_matches(given, FILTERS, n=1, cutoff=0.8)):
            detail = f"{given!r} is no filter, so this would have meant every task"
            hint = "the filters are task_group_name, task_name (or name) and tag"
            raise Refusal(422, "invalid_request", detail, field=given[:LONGEST], hint=hint)


MatchFilters = Annotated[Match, Depends(_match)]
"""Which tasks a request means: all three filters together."""


def who_asks(actor: Callable[[Request], str | Awaitable[str]] | None) -> Any:
    """A dependency that says who a request is from. Raises TypeError for what cannot be called."""
    if actor is not None and not callable(actor):
        raise TypeError(f"actor is {actor!r}; give a function of the request that says who it is from")

    async def who(request: Request) -> str:
        if actor is None:
            return request.client.host if request.client is not None and request.client.host else UNKNOWN
        said: object = actor(request)
        if isawaitable(said):
            said = await said
        return _presentable(said)

    return Depends(who)


def _presentable(who: object) -> str:
    """Text that fits into an event, whatever the application says."""
    text = "" if who is None else str(who)
    return text.encode("utf-8", "replace").decode()[:LONGEST_ACTOR].strip() or UNKNOWN
