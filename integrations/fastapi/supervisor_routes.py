"""Routes of the management API: the actors of this process, to be looked at and restarted, and all workers."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Path, Query

from engine.errors import RedisUnavailable, UnknownActor
from integrations.fastapi.parameters import GUARDED
from integrations.fastapi.problems import Refusal, documented
from integrations.fastapi.schemas import (
    ActorResponse,
    ClusterResponse,
    RestartResponse,
    WorkerResponse,
    WorkerTreeResponse,
)

if TYPE_CHECKING:
    from fastapi import APIRouter

    from engine.management import Management
    from engine.runtime import Node
    from engine.views import WorkerView
    from integrations.fastapi.desk import Desk

__all__ = ["add_restart", "add_supervisor"]

log = logging.getLogger("fastapi.task-manager.api")

ActorPath = Annotated[str, Path(description="As in GET /supervisor; the name of the root may be left out.")]


def add_supervisor(router: APIRouter, desk: Desk) -> None:
    """The supervision tree, one actor of it, and the workers."""

    @router.get("/supervisor", tags=["supervisor"], responses=documented(422, 503))
    async def get_supervision_tree(
        scope: Annotated[Literal["process", "cluster"], Query(description="Of this process, or of every worker.")] = (
            "process"
        ),
    ) -> ActorResponse | ClusterResponse:
        """The supervision tree of this process, or those of all workers."""
        if scope == "process":
            return ActorResponse.of(await _tree(desk))
        workers = await desk.perform(_workers)
        return ClusterResponse(workers=[WorkerTreeResponse.of(view) for view in workers])

    @router.get("/supervisor/{path}", tags=["supervisor"], responses=documented(404, 422, 503))
    async def get_actor(path: ActorPath) -> ActorResponse:
        """One actor or supervisor of this process: its state, its mailbox, its restarts and its last failure."""
        return ActorResponse.of(_find(await _tree(desk), path))

    @router.get("/workers", tags=["supervisor"], responses=documented(503))
    async def list_workers() -> list[WorkerResponse]:
        """Every live worker, by identity."""
        return [WorkerResponse.of(view) for view in await desk.perform(_workers)]


def add_restart(router: APIRouter, desk: Desk, who: Any) -> None:
    """Restart one actor; ``who`` is a dependency."""

    @router.post(
        "/supervisor/{path}/restart",
        tags=["supervisor"],
        responses=documented(404, 409, 413, 415, 422, 503),
        openapi_extra=GUARDED,
    )
    async def restart_actor(path: ActorPath, who: str = who) -> RestartResponse:
        """Have one actor or supervisor of this process stopped in order and started again. Returns at once.

        Runs in progress lose nothing but time, and it counts against no limit.
        """

        async def restart(management: Management) -> Node:
            tree = desk.engine.tree()
            node = _find(tree, path)
            if node is tree:
                raise Refusal(
                    409,
                    "root_cannot_restart",
                    f"{path!r} is the root, which only the process can restart",
                    field="path",
                    hint="restart an actor or supervisor below it",
                )
            try:
                await management.note("actor restarted", node.path, who=who)
            except RedisUnavailable as error:  # a restart may be wanted just because of that
                log.warning("The restart of %s by %s is no event: %s", node.path, who, error)
            desk.engine.restart(node.path)
            log.info("%s is restarted, as %s asked for", node.path, who)
            return node

        node = await desk.perform(restart)
        return RestartResponse(path=node.path, state=node.state.value, restarts=node.restarts)


async def _tree(desk: Desk) -> Node:
    async def look(_: Management) -> Node:
        return desk.engine.tree()

    return await desk.perform(look)


async def _workers(management: Management) -> list[WorkerView]:
    return sorted(await management.workers(), key=lambda view: view.key)


def _find(tree: Node, path: str) -> Node:
    """The node with this path; the name of the root before it may be left out."""
    for node in tree.walk():
        if path in {node.path, node.path.removeprefix(f"{tree.path}.")}:
            return node
    near = get_close_matches(path, [node.path for node in tree.walk()], n=1, cutoff=0.5)
    raise UnknownActor(path, next(iter(near), None))
