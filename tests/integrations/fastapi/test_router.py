"""The management API in an application, on loops of both kinds and on a real Redis."""

from __future__ import annotations

import json
import math
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from engine.errors import MailboxClosed
from engine.management import Match
from integrations.fastapi import Config, TaskGroup, TaskManager
from tests.integrations.fastapi.managed import MEANT, NEW_YEAR, TestClient, managed, until
from tests.store.servers import RedisServer, find_binary, free_port
from tests.system.cluster import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.types import Message, Scope


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for this file; each test has a prefix of its own."""
    server = RedisServer(find_binary("6.2"), tmp_path_factory.mktemp("redis")).start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Of this test alone."""
    name: str = request.node.name
    return name.translate(str.maketrans("[]{} ", "-----"))[:100]


def shop(*, fails: threading.Event | None = None) -> TaskGroup:
    """A group with two tasks, and functions for more; ``report`` fails while told to."""
    group = TaskGroup("shop", tags=["sales"])

    @group.add_task(NEW_YEAR, name="report", tags=["slow"], retry_backoff=600, retry_backoff_max=600)
    async def report() -> None:
        if fails is not None and fails.is_set():
            raise ValueError("no figures")

    @group.add_task(NEW_YEAR, name="bill", kwargs={"month": 5})
    def bill(month: int) -> None: ...

    @group.register_function("greet")
    async def greet(name: str, times: int = 1) -> None: ...

    return group


def bare() -> TaskGroup:
    """A group without tags."""
    group = TaskGroup("bare")

    @group.add_task(NEW_YEAR, name="plain")
    async def plain() -> None: ...

    return group


GREET = {"task_group_name": "shop", "function_name": "greet", "cron_expression": NEW_YEAR, "kwargs": {"name": "Ada"}}


# -- the whole of it, on both kinds of loop ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_is_made_run_looked_at_and_removed(backend: str, redis: RedisServer, prefix: str) -> None:
    """On either loop, in one breath."""
    with managed(redis, prefix, [shop()], backend=backend) as served:
        made = served.do("POST", "/tasks", json={**GREET, "name": "ada", "tags": ["new"], "timezone": "Europe/Rome"})
        assert made == {
            "task_group_name": "shop",
            "task_name": "ada",
            "function_name": "greet",
            "cron_expression": NEW_YEAR,
            "kwargs": {"name": "Ada"},
            "dynamic": True,
        }
        assert served.task("ada")["tags"] == ["sales", "new"]
        assert served.task("ada")["timezone"] == "Europe/Rome"
        [run_id] = served.do("POST", "/tasks/trigger", task_name="ada")["run_ids"]
        assert run_id.startswith("shop/ada@t-")

        def ran() -> Any:
            return served.get("/tasks/shop/ada/statistics")["runs"]

        [run] = until(ran, "a run has ended")
        assert (run["outcome"], run["attempt"], run["error"]) == ("ran", 1, None)
        assert run["worker"]
        assert run["run_date"].endswith("Z")
        assert abs(datetime.fromisoformat(run["run_date"]).timestamp() - time.time()) < PATIENCE_S
        assert run["durations_second"] >= 0
        assert served.get("/supervisor/scheduling.leader")["state"] == "running"
        served.do("POST", "/supervisor/engine.stats/restart")
        removed = served.do("DELETE", "/tasks", task_group_name="shop", task_name="ada")
        assert removed == made
        assert served.get("/tasks", name="ada") == []
        assert served.client.get("/tasks/shop/ada/statistics").status_code == 404


def test_tasks_come_as_they_are_declared_and_then_by_name(redis: RedisServer, prefix: str) -> None:
    """Groups in the order of their adding; what was made at run time follows within its group."""
    with managed(redis, prefix, [shop(), bare()]) as served:
        [group, _] = served.manager.task_groups
        for name in ("zoe", "max", "ada", "kim"):
            served.do("POST", "/tasks", json={**GREET, "name": name})
        until(lambda: len(group.tasks) == 6, "this process has heard of them")
        names = ["report", "bill", "ada", "kim", "max", "zoe", "plain"]
        assert [task["name"] for task in served.get("/tasks")] == names
        disabled = served.do("POST", "/tasks/disable")
        assert [task["task"] for task in disabled["affected_tasks"]] == names
        assert disabled["count"] == 7
        counts = {group["name"]: group["task_count"] for group in served.get("/task-groups")}
        assert counts == {"shop": 6, "bare": 1}


def test_a_task_without_the_tag_does_not_match(redis: RedisServer, prefix: str) -> None:
    """Filters are exact, and all that are given must match."""
    with managed(redis, prefix, [shop(), bare()]) as served:

        def found(**query: str) -> list[str]:
            return [task["name"] for task in served.get("/tasks", **query)]

        assert found(tag="sales") == ["report", "bill"]
        assert found(tag="slow") == ["report"]
        assert found(tag="slo") == []
        assert found(task_group_name="bare", tag="sales") == []
        assert [group["name"] for group in served.get("/task-groups", tag="sales")] == ["shop"]
        assert served.do("POST", "/tasks/disable", tag="slow")["count"] == 1


def test_instants_are_utc_or_null(redis: RedisServer, prefix: str) -> None:
    """A task that nobody has scheduled has no next run."""
    with managed(redis, prefix, [shop()], can_lead=False) as served:
        assert [task["next_run"] for task in served.get("/tasks")] == [None, None]
        with managed(redis, prefix, [shop()]) as leading:
            assert leading.task("report")["next_run"].endswith("-01-01T00:00:00Z")


# -- changing tasks ---------------------------------------------------------------------------------------------------


def test_disabled_tasks_are_not_triggered_unless_forced(redis: RedisServer, prefix: str) -> None:
    """Of several they are skipped, with the reason; one that is named, or all, is 409."""
    with managed(redis, prefix, [shop()]) as served:
        served.do("POST", "/tasks/disable", task_name="bill", reason="month end")
        views = served.client.portal.call(served.manager.perform, lambda m: m.tasks(Match(name="bill")))  # type: ignore[union-attr]
        assert views[0].pause is not None
        assert (views[0].pause.who, views[0].pause.why) == ("testclient", "month end")
        assert not served.task("bill")["is_active"]

        triggered = served.do("POST", "/tasks/trigger", task_group_name="shop")
        assert triggered["affected_tasks"] == [{"task_group": "shop", "task": "report"}]
        assert triggered["skipped"] == [{"task_group": "shop", "task": "bill", "reason": "disabled"}]
        assert (triggered["count"], len(triggered["run_ids"])) == (1, 1)

        refused = served.client.post("/tasks/trigger", params={"task_name": "bill"})
        assert (refused.status_code, refused.json()["code"]) == (409, "nothing_triggered")

        until(lambda: not served.task("report")["is_running"], "the first run has ended")
        forced = served.do("POST", "/tasks/trigger", force="true")
        assert [task["task"] for task in forced["affected_tasks"]] == ["report", "bill"]
        assert [run_id.partition("@")[0] for run_id in forced["run_ids"]] == ["shop/report", "shop/bill"]
        assert served.do("POST", "/tasks/enable", task_name="bill")["count"] == 1
        assert served.task("bill")["is_active"]


def test_a_retry_that_waits_is_shown_and_can_be_made_due(redis: RedisServer, prefix: str) -> None:
    """A failed attempt is in the statistics at once, also before the last; cleared, it is not."""
    fails = threading.Event()
    fails.set()
    with managed(redis, prefix, [shop(fails=fails)]) as served:
        served.do("POST", "/tasks/trigger", task_name="report")
        until(lambda: served.task("report")["retry_after"], "the retry waits")
        assert served.task("report")["retry_delay"] == 600
        runs = served.get("/tasks/shop/report/statistics")["runs"]
        assert [(run["outcome"], run["attempt"]) for run in runs] == [("failed", 1)]
        assert "no figures" in runs[0]["error"]
        fails.clear()
        assert served.do("POST", "/tasks/reset-retry", task_name="report")["count"] == 1
        assert (served.events()[-1]["what"], served.events()[-1]["who"]) == ("shop/report", "testclient")
        until(lambda: len(served.get("/tasks/shop/report/statistics")["runs"]) == 2, "it ran again")
        runs = served.get("/tasks/shop/report/statistics")["runs"]
        assert [(run["outcome"], run["attempt"]) for run in runs] == [("failed", 1), ("ran", 2)]
        assert served.do("DELETE", "/tasks/statistics", task_name="report")["count"] == 1
        assert served.get("/tasks/shop/report/statistics")["runs"] == []


def test_a_task_whose_function_no_worker_has_is_an_orphan_and_can_be_removed(redis: RedisServer, prefix: str) -> None:
    """It was made by a worker that has gone; another one shows it, and removes it."""
    with managed(redis, prefix, [shop()]) as served:
        served.do("POST", "/tasks", json={**GREET, "name": "ada"})
        assert served.task("ada")["orphan"] is False
    with managed(redis, prefix, [bare()]) as other:
        until(lambda: other.task("ada")["orphan"], "nobody has its function")
        assert other.do("DELETE", "/tasks", task_group_name="shop", task_name="ada")["task_name"] == "ada"
        assert other.get("/tasks", name="ada") == []


# -- who, and from where ----------------------------------------------------------------------------------------------


def test_every_change_is_an_event_with_who_asked_for_it(redis: RedisServer, prefix: str) -> None:
    """As the application says, after its dependencies have had their turn."""

    async def login(request: Request) -> None:
        request.state.user = request.headers.get("X-User", "nobody")

    def actor(request: Request) -> str:
        if request.state.user == "mallory":
            raise HTTPException(403, "not you")
        return f"user {request.state.user}"

    options = {"dependencies": [Depends(login)], "actor": actor}
    with managed(redis, prefix, [shop()], router=options) as served:
        served.client.headers["X-User"] = "ada"
        served.do("POST", "/tasks/disable", task_name="bill")
        served.do("POST", "/tasks/enable", task_name="bill")
        served.do("POST", "/tasks/trigger", task_name="bill")
        served.do("DELETE", "/tasks/statistics", task_name="bill")
        served.do("POST", "/tasks", json={**GREET, "name": "ada"})
        served.do("DELETE", "/tasks", task_group_name="shop", task_name="ada")
        served.do("POST", "/supervisor/stats/restart")
        mine = [event for event in served.events() if event.get("who") == "user ada"]
        told = [(event["event"], event["what"].partition("@")[0]) for event in mine]
        assert told == [
            ("paused", "shop/bill"),
            ("resumed", "shop/bill"),
            ("triggered", "shop/bill"),
            ("statistics cleared", "shop/bill"),
            ("defined", "shop/ada"),
            ("forgotten", "shop/ada"),
            ("actor restarted", "engine.stats"),
        ]
        before = served.events()
        refused = served.client.post("/tasks/disable", headers={"X-User": "mallory"})
        assert (refused.status_code, refused.json()) == (403, {"detail": "not you"})
        assert served.events() == before


@pytest.mark.parametrize(("client", "who"), [(("192.0.2.7", 4711), "192.0.2.7"), (None, "unknown")])
def test_without_an_actor_it_is_the_clients_address(
    client: tuple[str, int] | None, who: str, redis: RedisServer, prefix: str
) -> None:
    """Its host; a server on a unix socket knows none."""
    with managed(redis, prefix, [shop()]) as served:

        async def with_client(scope: Scope, receive: Any, send: Any) -> None:
            await served.app({**scope, "client": client}, receive, send)

        assert TestClient(with_client, headers=MEANT).post("/tasks/disable").status_code == 200
        assert [event["who"] for event in served.events() if "who" in event][-1] == who


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, str, Any, int, str, str | None]] = [
    ("POST", "/tasks/disable?task_name=nobody", None, 404, "no_such_task", None),
    ("POST", "/tasks/trigger?tag=nothing", None, 404, "no_such_task", None),
    ("GET", "/tasks/shop/nobody/statistics", None, 404, "no_such_task", None),
    ("GET", "/tasks/%00/%ED%A0%80/statistics", None, 404, "no_such_task", None),
    ("POST", "/tasks/trigger?force=perhaps", None, 422, "invalid_request", "force"),
    ("GET", "/supervisor/scheduling.leadr", None, 404, "no_such_actor", "path"),
    ("POST", "/supervisor/nobody/restart", None, 404, "no_such_actor", "path"),
    ("POST", "/supervisor/engine/restart", None, 409, "root_cannot_restart", "path"),
    ("GET", "/supervisor?scope=universe", None, 422, "invalid_request", "scope"),
    ("DELETE", "/tasks?task_group_name=shop&task_name=bill", None, 400, "static_task", "task_name"),
    ("DELETE", "/tasks?task_group_name=shop&task_name=nobody", None, 404, "no_such_task", None),
    ("DELETE", "/tasks?task_group_name=shop", None, 422, "invalid_request", "task_name"),
    ("POST", "/tasks", {**GREET, "task_group_name": "nobody"}, 404, "no_such_group", "task_group_name"),
    ("POST", "/tasks", {**GREET, "function_name": "nothing"}, 400, "no_such_function", "function_name"),
    ("POST", "/tasks", {**GREET, "cron_expression": "61 * * * *"}, 400, "invalid_cron", "cron_expression"),
    ("POST", "/tasks", {**GREET, "timezone": "Europe/Nowhere"}, 400, "invalid_timezone", "timezone"),
    ("POST", "/tasks", {**GREET, "name": "bill"}, 409, "name_taken", "name"),
    ("POST", "/tasks", {**GREET, "name": "a/b"}, 422, "invalid_task", "name"),
    ("POST", "/tasks", {**GREET, "name": ""}, 422, "invalid_task", "name"),
    ("POST", "/tasks", {**GREET, "kwargs": {"nam": "Ada"}}, 422, "invalid_task", "kwargs"),
    ("POST", "/tasks", {**GREET, "kwargs": {}}, 422, "invalid_task", "kwargs"),
    ("POST", "/tasks", {**GREET, "kwargs": {"name": "\ud800"}}, 422, "invalid_request", "body"),
    ("POST", "/tasks", {**GREET, "description": "\ud800"}, 422, "invalid_request", "body"),
    ("POST", "/tasks", {**GREET, "kwargs": 3}, 422, "invalid_request", "kwargs"),
    ("POST", "/tasks", {**GREET, "retry_backoff": -1}, 422, "invalid_task", "retry_backoff"),
    ("POST", "/tasks", {**GREET, "max_retries": 0.5}, 422, "invalid_request", "max_retries"),
    ("POST", "/tasks", {**GREET, "tags": [""]}, 422, "invalid_task", "tags"),
    ("POST", "/tasks", {**GREET, "kwargs": {"name": math.nan}}, 422, "invalid_task", "kwargs"),
    ("POST", "/tasks", {"cron_expression": NEW_YEAR}, 422, "invalid_request", "task_group_name"),
    ("POST", "/tasks", [], 422, "invalid_request", "body"),
    ("POST", "/tasks", b"", 422, "invalid_request", "body"),
    ("POST", "/tasks", b"{", 422, "body_not_json", "body"),
    ("POST", "/tasks", b'"\xff"', 422, "body_not_json", "body"),
    ("POST", "/tasks", b"[" * 60_000, 422, "body_not_json", "body"),
    ("POST", "/tasks", b"1" * 60_000, 422, "body_not_json", "body"),
    ("POST", "/tasks", b"1" * 65_537, 413, "payload_too_large", "body"),
]


def test_what_is_wrong_is_said_in_one_shape_and_nothing_is_done(redis: RedisServer, prefix: str) -> None:
    """Status, code and field of every kind of error that a request can be the reason of."""
    with managed(redis, prefix, [shop()]) as served:
        before = served.get("/tasks"), served.events()
        for method, path, body, status, code, field in REFUSED:
            raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if raw is not None else {}
            response = served.client.request(method, path, content=raw, headers=headers)
            where = f"{method} {path} {str(body)[:80]}: {response.text[:300]}"
            assert response.status_code == status, where
            problem = response.json()
            assert problem.keys() == {"detail", "code", "field", "hint"}, where
            assert (problem["code"], problem["field"]) == (code, field), where
            assert problem["detail"], where
        assert (served.get("/tasks"), served.events()) == before


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({}, False),
        ({"Content-Type": "text/plain"}, False),
        ({"Content-Type": "application/x-www-form-urlencoded"}, False),
        ({"Content-Type": "multipart/form-data; boundary=x"}, False),
        ({"Content-Type": "text/plain; application/json"}, False),
        ({"Content-Type": "application/json"}, True),
        ({"Content-Type": "Application/Problem+JSON; charset=utf-8"}, True),
        ({"X-Requested-With": ""}, True),
        ({"x-requested-with": "curl", "Content-Type": "text/plain"}, True),
    ],
)
def test_a_page_of_another_site_cannot_change_anything(
    headers: dict[str, str],
    admitted: bool,  # noqa: FBT001  # a parameter of the test
    redis: RedisServer,
    prefix: str,
) -> None:
    """What a browser sends without asking first is 415, which says what to send, before anything is done."""
    changes = [
        *(("POST", f"/tasks/{action}") for action in ("disable", "enable", "reset-retry", "trigger")),
        *(("DELETE", "/tasks/statistics"), ("POST", "/supervisor/stats/restart")),
        *(("DELETE", "/tasks?task_group_name=shop&task_name=nobody"), ("POST", "/tasks")),
    ]
    asked: list[str] = []

    def actor(request: Request) -> str:
        asked.append(request.url.path)
        return "somebody"

    with managed(redis, prefix, [shop()], router={"actor": actor}) as served:
        before = served.events()
        del served.client.headers["X-Requested-With"]
        for method, path in changes:
            response = served.client.request(method, path, headers=headers)
            assert (response.status_code != 415) == admitted, f"{method} {path}"
            if not admitted:
                assert response.json()["code"] == "csrf_guard"
                assert "'X-Requested-With'" in response.json()["hint"]
                assert "Content-Type: application/json" in response.json()["hint"]
        assert (served.events() == before) == (not admitted)
        assert bool(asked) == admitted


def ask(receive: Callable[[], Awaitable[Message]]) -> tuple[int, Any]:
    """Status and answer to a POST /tasks whose body comes from there, without any server around the application."""
    config = Config(redis_host="127.0.0.1", redis_port=free_port(), max_payload_bytes=10_000)
    app = FastAPI()
    app.include_router(TaskManager(app, config).get_manager_router())
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/tasks", "query_string": b"", "root_path": ""}
    scope["headers"] = [(b"content-type", b"application/json"), (b"content-length", b"5")]
    anyio.run(app, scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_body_that_is_too_large_is_not_read_to_its_end() -> None:
    """Whatever its length is said to be, and if it never ends."""
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1_000
        return {"type": "http.request", "body": b"[" * 1_000, "more_body": True}

    status, problem = ask(receive)
    assert (status, problem["code"]) == (413, "payload_too_large")
    assert "10,000" in problem["detail"]
    assert read == 11_000


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_failure() -> None:
    """Nobody hears the answer; nothing is raised for the server to report."""
    messages: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    status, problem = ask(receive)
    assert (status, problem["code"]) == (400, "client_gone")


def test_a_task_that_is_too_large_is_refused(redis: RedisServer, prefix: str) -> None:
    """Its definition takes more than its request when the JSON of that is terser."""
    with managed(redis, prefix, [shop()], max_payload_bytes=400) as served:
        terse = json.dumps({**GREET, "kwargs": {"name": "x" * 250}}, separators=(",", ":"))
        assert len(terse) < 400
        response = served.client.post("/tasks", content=terse, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
        assert len(served.get("/tasks")) == 2


# -- the application around it ----------------------------------------------------------------------------------------


def test_handlers_of_the_application_are_neither_used_nor_changed(redis: RedisServer, prefix: str) -> None:
    """They go on dealing with its own routes, and with what its dependencies raise."""

    async def door(request: Request) -> None:
        if "X-Key" not in request.headers:
            raise HTTPException(401, "who is there?")
        if request.headers["X-Key"] == "broken":
            raise ZeroDivisionError
        if request.headers["X-Key"] == "bug":
            raise MailboxClosed("engine.link")  # ours, and no request should be the reason of it

    with managed(redis, prefix, [shop()], router={"dependencies": [Depends(door)]}, headers={"X-Key": "1"}) as served:
        app = served.app

        async def theirs(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"theirs": type(error).__name__}, status_code=418)

        app.middleware_stack = None  # it is built with the handlers that there are
        for kind in (HTTPException, RequestValidationError, Exception):
            app.add_exception_handler(kind, theirs)

        @app.get("/own")
        async def own(number: int) -> int:
            return number

        client = TestClient(app, headers=MEANT, raise_server_exceptions=False)
        answers = {
            "own": client.get("/own?number=x"),
            "nobody": client.get("/tasks"),
            "broken": client.get("/tasks", headers={"X-Key": "broken"}),
            "bug": client.get("/tasks", headers={"X-Key": "bug"}),
            "wrong": client.get("/supervisor?scope=x", headers={"X-Key": "1"}),
        }
    assert {name: (answer.status_code, answer.json().get("theirs")) for name, answer in answers.items()} == {
        "own": (418, "RequestValidationError"),
        "nobody": (418, "HTTPException"),
        "broken": (418, "ZeroDivisionError"),
        "bug": (418, "MailboxClosed"),
        "wrong": (422, None),
    }
