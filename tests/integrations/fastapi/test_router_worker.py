"""The management API about the worker that serves it, and about how it is mounted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from engine.config import Config
from integrations.fastapi import TaskGroup, TaskManager
from integrations.fastapi.router import unguarded
from integrations.fastapi.settings import HIDDEN, SHOWN
from tests.integrations.fastapi.managed import MEANT, NEW_YEAR, TestClient, managed, until
from tests.store.guard import connect
from tests.store.servers import RedisServer, find_binary, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for this file; each test has a prefix of its own."""
    server = RedisServer(find_binary("6.2"), tmp_path_factory.mktemp("redis")).start()
    try:
        yield server
    finally:
        server.kill()


def nowhere(**router: Any) -> tuple[FastAPI, TaskManager]:
    """An application with the API, and a Redis at which nobody listens."""
    app = FastAPI()
    manager = TaskManager(app, Config(redis_host="127.0.0.1", redis_port=free_port()))
    app.include_router(manager.get_manager_router(**router))
    return app, manager


def group() -> TaskGroup:
    """One task."""
    made = TaskGroup("shop")

    @made.add_task(NEW_YEAR, name="report")
    async def report() -> None: ...

    return made


# -- how it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_health_is_told_before_the_start_without_a_redis_and_with_one(backend: str, redis: RedisServer) -> None:
    """Unhealthy is 503, and never an error; what needs the engine or Redis is 503 and says why."""
    app, _ = nowhere()
    client = TestClient(app, backend=backend, headers=MEANT)  # type: ignore[arg-type]
    for _ in range(2):
        health = client.get("/health")
        assert (health.status_code, health.json()["status"], health.json()["redis_connected"]) == (
            503,
            "unhealthy",
            False,
        )
        for path in ("/tasks", "/workers", "/supervisor?scope=cluster", "/tasks/a/b/statistics"):
            refused = client.get(path)
            assert (refused.status_code, refused.json()["code"]) == (503, "engine_not_running"), path
        assert client.post("/tasks/disable").json()["code"] == "engine_not_running"
        assert client.get("/functions").json() == {"functions": [], "count": 0}
        assert client.get("/config").status_code == 200
        with client:  # without a Redis; and then once more when it has ended
            assert client.get("/health").status_code == 503
            assert client.get("/health/live").json() == {"status": "ok"}
            until(lambda: client.get("/supervisor/link").status_code == 200, "its engine has begun")
            assert client.get("/supervisor/link").json()["kind"] == "actor"
    with managed(redis, f"health-{backend}", backend=backend) as served:
        assert served.get("/health")["status"] == "healthy"
        assert served.get("/health/live") == served.get("/health/ready") == {"status": "ok"}


def test_an_unhealthy_worker_can_be_asked_to_answer_as_before() -> None:
    """``unhealthy_status=200``, for those who look into the body."""
    app = FastAPI()
    config = Config(redis_host="127.0.0.1", redis_port=free_port(), unhealthy_status=200)
    app.include_router(TaskManager(app, config).get_manager_router())
    response = TestClient(app).get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "unhealthy")
    responses = app.openapi()["paths"]["/health"]["get"]["responses"]
    assert {status: answer["description"] for status, answer in responses.items()} == {"200": "Successful Response"}


@pytest.mark.slow
def test_a_redis_that_does_not_answer_is_503_and_says_so(tmp_path: Path) -> None:
    """Requests that need it wait for their deadline, and no longer."""
    server = RedisServer(find_binary("6.2"), tmp_path).start()
    try:
        with managed(server, "outage", [group()]) as served:
            server.kill()
            for method, path in (("GET", "/tasks"), ("POST", "/tasks/trigger")):
                refused = served.client.request(method, path)
                assert (refused.status_code, refused.json()["code"]) == (503, "redis_unavailable")
            until(lambda: served.client.get("/health").status_code == 503, "health says so")
            assert served.get("/health/live") == {"status": "ok"}
            assert served.get("/supervisor")["path"] == "engine"
            restarted = served.do("POST", "/supervisor/link/restart")  # wanted just then, event or not
            assert restarted["path"] == "engine.link"
            server.start()
            until(lambda: served.client.get("/health").status_code == 200, "it is back")
    finally:
        server.kill()


def test_a_redis_that_refuses_is_503_and_health_says_why(tmp_path: Path) -> None:
    """It is connected, and not healthy. A restart of this process would not help."""
    server = RedisServer(find_binary("6.2"), tmp_path, ("--maxmemory-policy", "noeviction")).start()
    try:
        with managed(server, "full", [group()]) as served:
            with connect(server.port, None) as admin:
                admin.config_set("maxmemory", "1")
            refused = served.client.request("POST", "/tasks/trigger")
            assert (refused.status_code, refused.json()["code"]) == (503, "redis_unavailable")
            answer = served.client.get("/health")
            assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
            assert answer.json()["redis_connected"] is True
            assert "its memory is full: raise maxmemory" in answer.json()["detail"]
            assert served.get("/health/live") == {"status": "ok"}
            assert answer.json()["detail"] in served.get("/supervisor/link")["doing"]
    finally:
        server.kill()


def test_every_setting_is_shown_or_hidden_on_purpose(redis: RedisServer) -> None:
    """A new one must be decided about. No secret is shown, nor where Redis is."""
    assert set(SHOWN) | HIDDEN == Config.model_fields.keys()
    assert not set(SHOWN) & HIDDEN
    secret = "never-shown-4711"  # noqa: S105  # made up
    app = FastAPI()
    config = Config(
        redis_url=f"rediss://{secret}-user:{secret}@redis.{secret}.example:7000/3",
        api_token=secret,
        max_retries=7,
        redis_key_prefix="shop",
    )
    app.include_router(TaskManager(app, config).get_manager_router())
    response = TestClient(app).get("/config")
    assert response.json() == {name: getattr(config, name) for name in SHOWN}
    assert list(response.json()) == list(SHOWN)
    assert response.json()["max_retries"] == 7
    assert secret not in response.text
    assert secret not in json.dumps(app.openapi())


# -- actors and workers -----------------------------------------------------------------------------------------------


def test_the_supervision_tree_and_one_actor_of_it(redis: RedisServer) -> None:
    """With or without the name of the root; a restart begins a new life."""
    with managed(redis, "tree", [group()]) as served:
        tree = served.get("/supervisor")
        assert (tree["path"], tree["kind"], tree["mailbox"]) == ("engine", "supervisor", None)
        names = [child["name"] for child in tree["children"]]
        assert "link" in names
        assert "scheduling" in names
        leader = served.get("/supervisor/scheduling.leader")
        assert (
            leader["path"] == served.get("/supervisor/engine.scheduling.leader")["path"] == "engine.scheduling.leader"
        )
        assert (leader["state"], leader["children"], leader["last_failure"]) == ("running", [], None)
        assert leader["mailbox"]["capacity"] > 0
        assert served.get("/supervisor/engine")["path"] == "engine"

        def stats() -> Any:
            return served.get("/supervisor/stats")

        until(lambda: stats()["uptime_s"] > 0.2, "it has been up for a while")
        restarts = stats()["restarts"]
        assert served.do("POST", "/supervisor/stats/restart") == {
            "path": "engine.stats",
            "state": "running",
            "restarts": restarts,
        }
        until(lambda: stats()["restarts"] == restarts + 1 and stats()["state"] == "running", "its next life")
        near = served.client.get("/supervisor/scheduling.leadr").json()["detail"]
        assert "did you mean 'engine.scheduling.leader'" in near


def test_any_worker_shows_all_of_them(redis: RedisServer) -> None:
    """Their trees and what they are, each as it last said, in one order."""
    with managed(redis, "two", [group()], worker_service_name="one") as one, managed(redis, "two", [group()]) as two:
        ours = {served.manager.worker_id for served in (one, two)}

        def all_said() -> Any:
            trees = one.get("/supervisor", scope="cluster")["workers"]
            return len(trees) == 2 and all(tree["tree"]["state"] == "running" for tree in trees)

        until(all_said, "both have said how they are")
        latest = set()

        def each_was_the_latest() -> bool:
            workers = one.get("/workers")
            assert workers == sorted(workers, key=lambda worker: worker["identity"])
            latest.add(min(workers, key=lambda worker: worker["seen_s_ago"])["identity"])
            return len(latest) == 2

        until(each_was_the_latest, "each has been the last one to be seen")
        for served in (one, two):
            assert {tree["worker_id"] for tree in served.get("/supervisor", scope="cluster")["workers"]} == ours
            workers = served.get("/workers")
            assert {worker["worker_id"] for worker in workers} == ours
            assert [worker["leader"] for worker in workers].count(True) == 1
            for worker in workers:
                assert worker["functions"] == ["shop/report"]
                assert (worker["running"], worker["runs"], worker["draining"]) == (0, [], False)
                assert worker["version"]
                assert worker["pid"] > 0
                assert worker["started_at"].endswith("Z")
                assert worker["worker_id"].rpartition("-")[2] in worker["identity"]


# -- how it is mounted ------------------------------------------------------------------------------------------------


def _anybody() -> None: ...


def _both(app: FastAPI, manager: TaskManager) -> None:
    app.include_router(_plain(manager, dependencies=[Depends(_anybody)]), prefix="/a")
    app.include_router(_plain(manager), prefix="/b")


MOUNTED: dict[str, tuple[bool, Callable[[FastAPI, TaskManager], object]]] = {
    "at the root": (True, lambda app, it: app.include_router(it.get_manager_router())),
    "with a prefix": (True, lambda app, it: app.include_router(it.get_manager_router(), prefix="/tasks")),
    "in a router": (True, lambda app, it: app.include_router(_around(it.get_manager_router()))),
    "in an application": (True, lambda app, it: app.mount("/sub", _with(it.get_manager_router()))),
    "in a plain one": (True, lambda app, it: app.mount("/sub", Starlette(routes=[Mount("/", _with(_plain(it)))]))),
    "guarded": (False, lambda app, it: app.include_router(_plain(it, dependencies=[Depends(_anybody)]))),
    "guarded there": (False, lambda app, it: app.include_router(_plain(it), dependencies=[Depends(_anybody)])),
    "guarded around": (False, lambda app, it: app.include_router(_around(_plain(it), Depends(_anybody)))),
    "read only": (False, lambda app, it: app.include_router(_plain(it, read_only=True))),
    "not at all": (False, lambda _app, _manager: None),
    "beside a guarded one": (True, _both),
}


def _plain(manager: TaskManager, **options: Any) -> APIRouter:
    return manager.get_manager_router(**options)


def _around(router: APIRouter, *dependencies: Any) -> APIRouter:
    outer = APIRouter(prefix="/outer", dependencies=list(dependencies))
    outer.include_router(router)
    return outer


def _with(router: APIRouter) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    return app


@pytest.mark.parametrize("how", MOUNTED)
def test_a_router_that_anybody_can_use_is_seen(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it is mounted; dependencies of its own count, and those of whatever includes it. One warning."""
    app = FastAPI()
    manager = TaskManager(app, Config(redis_host="127.0.0.1", redis_port=free_port()))
    seen, mount = MOUNTED[how]
    mount(app, manager)
    assert unguarded(app) == seen
    with TestClient(app):
        pass
    warnings = [record for record in caplog.records if "no dependencies" in record.getMessage()]
    assert len(warnings) == int(seen)


def test_the_dependencies_of_the_application_count() -> None:
    """They are asked for every route of it."""
    app = FastAPI(dependencies=[Depends(_anybody)])
    app.include_router(TaskManager(app, Config(redis_host="127.0.0.1", redis_port=1)).get_manager_router())
    assert not unguarded(app)


def test_a_read_only_router_changes_nothing() -> None:
    """It has no other route than GET."""
    app, _ = nowhere(read_only=True)
    paths = app.openapi()["paths"]
    assert {method for operations in paths.values() for method in operations} == {"get"}
    full, _ = nowhere()
    looks = {path for path, operations in full.openapi()["paths"].items() if "get" in operations}
    assert paths.keys() == looks
    assert TestClient(app).post("/tasks/disable", headers=MEANT).status_code == 404
    assert TestClient(app).delete("/tasks", headers=MEANT).status_code == 405


# -- what OpenAPI says ------------------------------------------------------------------------------------------------


def test_openapi_is_the_same_each_time_and_says_what_can_come() -> None:
    """Every operation has a name of its own, a tag, a description; every refusal is documented in the one shape."""
    (app, _), (again, _) = nowhere(), nowhere()
    assert json.dumps(app.openapi()) == json.dumps(again.openapi())
    problem = {"$ref": "#/components/schemas/Problem"}
    names = []
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            where = f"{method} {path}"
            assert operation["tags"], where
            assert operation["description"], where
            schemas = {
                status: answer["content"]["application/json"]["schema"]
                for status, answer in operation["responses"].items()
            }
            refusals = {status for status, schema in schemas.items() if schema == problem}
            probes = {"503"} if path.startswith("/health") else set()
            assert schemas.keys() == refusals | probes | {"200"}, where
            guards = [one for one in operation.get("parameters", []) if one["name"] == "X-Requested-With"]
            assert (len(guards) == 1) == (method != "get") == ("415" in refusals), where
            if operation.get("parameters"):
                assert "422" in refusals, where
    assert len(set(names)) == len(names)
    assert "HTTPValidationError" not in app.openapi()["components"]["schemas"]


def test_the_router_can_be_mounted_twice() -> None:
    """Under two prefixes, one of them read only, without a name that both have."""
    app = FastAPI()
    manager = TaskManager(app, Config(redis_host="127.0.0.1", redis_port=free_port()))
    app.include_router(manager.get_manager_router(), prefix="/inside")
    app.include_router(manager.get_manager_router(read_only=True), prefix="/outside")
    paths = app.openapi()["paths"]  # it warns of names that come twice
    assert "/inside/tasks" in paths
    assert "/outside/tasks" in paths
    assert TestClient(app).get("/outside/health").status_code == 503


# -- many tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_thousand_tasks_are_read_with_a_handful_of_commands(redis: RedisServer) -> None:
    """Calls of at most 500 tasks, whatever number of keys each has; and none for what is known already."""
    many = TaskGroup("many")
    for number in range(1_000):

        @many.add_task(NEW_YEAR, name=f"task-{number}", register=False)
        async def nothing() -> None: ...

    with managed(redis, "many", [many], leader_heartbeat_interval=3.0, running_heartbeat_interval=3.0) as served:
        assert [task["name"] for task in served.get("/tasks")] == [f"task-{number}" for number in range(1_000)]

        def sent() -> int:
            return served.manager.engine.link_statistics().commands_sent

        used = []
        for _ in range(5):  # others send commands, too: the least of several is what one answer takes
            before = sent()
            assert len(served.get("/tasks")) == 1_000
            used.append(sent() - before)
        assert min(used) <= 15
