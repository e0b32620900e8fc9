"""The management API: what operators and other systems ask of the cluster, over HTTP.

It runs on any loop: whatever concerns the engine or Redis happens in the engine's thread, through a ``Desk``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastapi.routing
from fastapi import APIRouter

from integrations.fastapi.dynamic_routes import add_dynamic_tasks
from integrations.fastapi.guard import SAFE_METHODS
from integrations.fastapi.health_routes import add_health
from integrations.fastapi.parameters import who_asks
from integrations.fastapi.routes import ManagementRoute, route_class
from integrations.fastapi.supervisor_routes import add_restart, add_supervisor
from integrations.fastapi.task_routes import add_actions, add_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from fastapi import Request
    from fastapi.params import Depends as Dependency
    from starlette.applications import Starlette

    from integrations.fastapi.desk import Desk

__all__ = ["make_router", "unguarded"]


def make_router(
    desk: Desk,
    *,
    dependencies: Sequence[Dependency] = (),
    read_only: bool = False,
    actor: Callable[[Request], str | Awaitable[str]] | None = None,
) -> APIRouter:
    """The routes of the management API, to be included in an application of any loop.

    Args:
        desk: the engine, and the way to it.
        dependencies: for each route, such as one that asks who is there.
        read_only: leave out every route that changes something.
        actor: says who a request is from, for the events, asynchronous or not; called after the dependencies. By
            default the address of the client. What it raises goes out as from any dependency of the application.
    """
    router = APIRouter(dependencies=list(dependencies), route_class=route_class(desk.engine.config.max_payload_bytes))
    add_health(router, desk)
    add_tasks(router, desk)
    add_supervisor(router, desk)
    if not read_only:
        who = who_asks(actor)
        add_actions(router, desk, who)
        add_dynamic_tasks(router, desk, who)
        add_restart(router, desk, who)
    return router


def unguarded(app: Starlette) -> bool:
    """Can the routes of a management API in this application change something without any dependency?

    Applications mounted in it are looked at, too. What middleware does cannot be seen here.
    """
    return any(
        isinstance(getattr(route, "original_route", route), ManagementRoute)
        and not (route.methods or set()) <= SAFE_METHODS
        and not route.dependencies
        for route in _routes(app)
    )


def _routes(app: Any) -> Iterator[Any]:
    """Every route as it is mounted, with the dependencies of all that it is included in."""
    # FastAPI copied included routes at first, and refers to them since; then this says what became of them.
    contexts = getattr(fastapi.routing, "iter_route_contexts", iter)
    for route in contexts(app.routes):
        original = getattr(route, "original_route", route)
        mounted = getattr(original, "app", None)
        if isinstance(original, fastapi.routing.APIRoute):
            yield route
        elif hasattr(mounted, "routes"):
            yield from _routes(mounted)
