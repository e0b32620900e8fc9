"""An application with the management API, served in this process on a loop of either kind."""

from __future__ import annotations

import re
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import redis
from fastapi import FastAPI

from engine.store.keys import Keys
from integrations.fastapi import Config, TaskGroup, TaskManager
from tests.system.cluster import PATIENCE_S, QUICK

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient` is deprecated")
    from fastapi.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import httpx

    from tests.store.servers import RedisServer

__all__ = ["MEANT", "NEW_YEAR", "Managed", "TestClient", "application", "managed", "until"]

NEW_YEAR: Final = "0 0 1 1 *"
MEANT: Final = {"X-Requested-With": "tests"}
"""What a request that changes something must show."""


@final
@dataclass(frozen=True, slots=True)
class Managed:
    """An application that is served, and a client of it that shows what the guard wants to see."""

    app: FastAPI
    manager: TaskManager
    client: TestClient
    server: RedisServer

    def get(self, path: str, **query: str) -> Any:
        """The answer to a look, which must be a good one."""
        response = self.client.get(path, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def do(self, method: str, path: str, *, json: Any = None, **query: str) -> Any:
        """The answer to a change, which must be a good one."""
        response = self.client.request(method, path, params=query, json=json)
        assert response.status_code == 200, response.text
        return response.json()

    def task(self, name: str) -> Any:
        """How the API shows a task, the only one of that name."""
        [found] = self.get("/tasks", name=name)
        return found

    def events(self) -> list[dict[str, str]]:
        """What changed, and who changed it, the oldest first."""
        with redis.Redis(unix_socket_path=self.server.path, decode_responses=True) as client:
            told: Any = client.xrange(Keys(self.manager.config.redis_key_prefix).events)
        return [fields for _, fields in told]


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first answer that is true. Fails after ``PATIENCE_S``."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)
    return answer


def _refuse_surprises(app: FastAPI) -> Callable[[httpx.Response], None]:
    """A hook that fails for a Problem under a status that OpenAPI does not announce for its operation."""
    paths = app.openapi()["paths"]
    patterns = {path: re.compile(re.sub(r"{\w+}", "[^/]+", path)) for path in paths}

    def look(response: httpx.Response) -> None:
        request = response.request
        found = next(path for path, pattern in patterns.items() if pattern.fullmatch(request.url.path))
        announced = paths[found].get(request.method.lower(), {"responses": {}})["responses"]
        if b'"code":' in response.read():
            assert str(response.status_code) in announced, f"{request.method} {found}: {response.status_code}"

    return look


def application(
    server: RedisServer,
    prefix: str,
    groups: Sequence[TaskGroup] = (),
    *,
    router: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[FastAPI, TaskManager]:
    """An application with the API at its root, not started. ``router`` are the arguments of ``get_manager_router``."""
    app = FastAPI()
    config = Config(**{"redis_url": f"unix://{server.path}", "redis_key_prefix": prefix, **QUICK, **more})
    manager = TaskManager(app, config)
    for group in groups:
        manager.add_task_group(group)
    app.include_router(manager.get_manager_router(**(router or {})))
    return app, manager


@contextmanager
def managed(
    server: RedisServer,
    prefix: str,
    groups: Sequence[TaskGroup] = (),
    *,
    backend: str = "asyncio",
    router: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> Iterator[Managed]:
    """Serve one for the block, from when it is healthy and every declared task has its first instant."""
    app, manager = application(server, prefix, groups, router=router, **more)
    with TestClient(app, backend=backend, headers={**MEANT, **(headers or {})}) as client:  # type: ignore[arg-type]  # a literal of two
        client.event_hooks = {"response": [_refuse_surprises(app)]}
        served = Managed(app, manager, client, server)

        def ready() -> bool:
            if client.get("/health").status_code != 200:
                return False
            due = {(task["task_group_name"], task["name"]) for task in served.get("/tasks") if task["next_run"]}
            return not manager.config.can_lead or due >= {
                (each.name, one.name) for each in groups for one in each.tasks
            }

        until(ready, "every task is scheduled")
        yield served
