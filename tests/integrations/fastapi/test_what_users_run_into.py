"""What users run into: the moment after the start, a worker that lost its Redis, names given by the other word."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import redis as redis_client
from fastapi import FastAPI, Request  # FastAPI reads the annotation

from engine.store.keys import Keys
from engine.testing import crash
from integrations.fastapi import Config, TaskGroup, TaskManager
from tests.integrations.fastapi.crossing import LIMIT_S, until
from tests.integrations.fastapi.managed import NEW_YEAR, Managed, application, managed
from tests.integrations.fastapi.managed import until as wait_until
from tests.store.servers import RedisServer, find_binary
from tests.system.cluster import QUICK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.integrations.fastapi.crossing import Loop


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One that a test may end."""
    server = RedisServer(find_binary("6.2"), tmp_path).start()
    try:
        yield server
    finally:
        server.kill()


def on(loop: Loop, main: Callable[[], Awaitable[object]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(LIMIT_S):
            await main()

    anyio.run(limited, backend=loop[0], backend_options=loop[1])


def letters() -> TaskGroup:
    group = TaskGroup("letters")

    @group.register_function
    async def send(to: str = "all") -> None: ...

    return group


def kept(server: RedisServer, prefix: str) -> set[str]:
    """The dynamic tasks that Redis has."""
    with redis_client.Redis(unix_socket_path=server.path, decode_responses=True) as client:
        return set(client.hkeys(Keys(prefix).dynamic))


def test_a_task_can_be_made_as_soon_as_the_manager_has_started(loop: Loop, redis: RedisServer) -> None:
    """``start`` returns, ``is_running`` holds: the groups are those of a running engine, which keeps what is made."""
    group, prefix = letters(), f"made-{loop[0]}"

    async def main() -> None:
        manager = TaskManager(FastAPI(), Config(redis_url=f"unix://{redis.path}", redis_key_prefix=prefix, **QUICK))
        manager.add_task_group(group)
        await manager.start()
        try:
            assert manager.is_running
            await group.create_task("send", NEW_YEAR, {"to": "ada"}, name="waited-for")
        finally:
            await manager.stop()

    on(loop, main)
    assert kept(redis, prefix) == {"letters/waited-for"}


def test_a_task_that_is_added_as_soon_as_the_manager_has_started_is_kept(loop: Loop, redis: RedisServer) -> None:
    """It is not declared, as before the start, which would lose it at the next one without a word."""
    group, prefix = letters(), f"added-{loop[0]}"

    async def main() -> None:
        manager = TaskManager(FastAPI(), Config(redis_url=f"unix://{redis.path}", redis_key_prefix=prefix, **QUICK))
        manager.add_task_group(group)
        await manager.start()
        try:
            group.add_dynamic_task("send", NEW_YEAR, {"to": "ada"}, name="not-waited-for")
            await until(lambda: manager.is_leader)
            await group.create_task("send", NEW_YEAR, {"to": "bob"}, name="later")
            await until(lambda: {"letters/later"} <= kept(redis, prefix))
        finally:
            await manager.stop()

    on(loop, main)
    assert kept(redis, prefix) == {"letters/later", "letters/not-waited-for"}


def test_a_worker_that_has_no_redis_for_longer_than_its_term_is_no_leader(redis: RedisServer) -> None:
    """Another one may lead by then; health that shows two leaders sends people after a fault that is none."""
    with managed(redis, "alone") as served:
        assert served.get("/health")["is_leader"] is True
        redis.kill()
        wait_until(lambda: not served.manager.is_leader, "it leads no longer")
        health = served.client.get("/health").json()
        assert (health["status"], health["is_leader"]) == ("unhealthy", False)


@pytest.mark.parametrize("name", ["name", "task_name"])
def test_an_action_takes_the_name_of_a_task_by_either_word(name: str, redis: RedisServer) -> None:
    """GET /tasks calls it ``name``: whoever disables with that word means one task, not every task of the cluster."""
    group = TaskGroup("letters")
    for one in ("first", "second"):

        @group.add_task(NEW_YEAR, name=one, register=False)
        async def nothing() -> None: ...

    with managed(redis, "either", [group]) as served:
        done = served.do("POST", "/tasks/disable", **{name: "first"})
        assert done["affected_tasks"] == [{"task_group": "letters", "task": "first"}]
        assert [task["name"] for task in served.get("/tasks", **{name: "first"})] == ["first"]


@pytest.mark.parametrize("mistake", ["taskname", "task", "group", "tags", "task_group", "names"])
def test_a_filter_that_is_misspelt_is_refused(mistake: str, redis: RedisServer) -> None:
    """Passed over, it would have meant every task of the cluster."""
    with managed(redis, f"misspelt-{mistake}", [yearly("first")]) as served:
        for method, path in (("POST", "/tasks/disable"), ("DELETE", "/tasks/statistics"), ("GET", "/tasks")):
            refused = served.client.request(method, path, params={mistake: "first"})
            assert (refused.status_code, refused.json()["field"]) == (422, mistake)
            assert "task_name (or name)" in refused.json()["hint"]
        assert served.client.get("/tasks", params={"page": "1"}).status_code == 200  # it may be the application's own
        both = served.client.post("/tasks/disable", params={"name": "first", "task_name": "second"})
        assert both.status_code == 422
        assert served.task("first")["is_active"] is True


def yearly(*names: str) -> TaskGroup:
    group = TaskGroup("letters")
    for name in names:

        @group.add_task(NEW_YEAR, name=name, register=False)
        async def nothing() -> None: ...

    return group


def test_who_disabled_a_task_and_why_is_shown_and_logged(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is woken at night and finds a task that does not run."""

    async def ada(_: Request) -> str:
        return "ada \ud800"

    caplog.set_level(logging.INFO, logger="fastapi.task-manager.api")
    with managed(redis, "who", [yearly("first", "second")], router={"actor": ada}) as served:
        served.do("POST", "/tasks/disable", task_name="first", reason="the bank is closed")
        shown = served.task("first")["disabled"]
        assert (shown["who"], shown["reason"]) == ("ada ?", "the bank is closed")
        assert shown["since"].endswith("Z")
        assert served.task("second")["disabled"] is None
        served.do("POST", "/tasks/reset-retry")
        served.do("POST", "/tasks/enable")
        assert served.task("first")["disabled"] is None
        told = [(event["event"], event["what"], event["who"]) for event in served.events() if "who" in event]
    assert told == [("paused", "letters/first", "ada ?"), ("resumed", "letters/first", "ada ?")]
    assert [record.getMessage() for record in caplog.records if record.name.endswith(".api")] == [
        "ada ? disabled letters/first: the bank is closed",
        "ada ? reset the retries of letters/first, letters/second",
        "ada ? enabled letters/first, letters/second",
    ]


@pytest.mark.parametrize("said", [None, "", "  "])
def test_an_application_that_does_not_know_who_it_is_changes_tasks_all_the_same(
    said: str | None, redis: RedisServer
) -> None:
    """The event says so."""
    with managed(redis, "nobody", [yearly("first")], router={"actor": lambda _: said}) as served:
        served.do("POST", "/tasks/disable")
        assert [event["who"] for event in served.events() if event["event"] == "paused"] == ["unknown"]


def test_who_is_no_function_is_refused_where_the_router_is_made(redis: RedisServer) -> None:
    """And not at the first request that changes something."""
    with pytest.raises(TypeError, match="actor is 'ada'; give a function"):
        application(redis, "text", router={"actor": "ada"})


def test_a_body_that_is_not_said_to_be_json_is_refused_with_what_to_say(redis: RedisServer) -> None:
    """The custom header lets it through the guard, and then it is only text."""
    with managed(redis, "text", [letters()]) as served:
        refused = served.client.post("/tasks", content='{"task_group_name": "letters"}')
        assert refused.status_code == 422
        assert refused.json()["hint"] == "send the body with 'Content-Type: application/json'"


def test_an_actor_that_is_down_is_unhealthy_and_named(redis: RedisServer) -> None:
    """Probes for a restart say that none would help: the supervisor is at it."""
    with managed(redis, "down") as served:
        for _ in range(4):
            crash("stats")
            answer = wait_until(lambda: unhealthy(served), "it is unhealthy for as long as the actor backs off")
            assert answer["detail"] == "not running: engine.stats"
            assert served.client.get("/health/live").status_code == 200
            wait_until(lambda: served.client.get("/health").status_code == 200, "it is healthy again")


def unhealthy(served: Managed) -> Any:
    answer = served.client.get("/health")
    return answer.json() if answer.status_code == 503 else None


def test_an_application_that_is_disabled_needs_no_address(loop: Loop) -> None:
    """It starts nothing, and is healthy."""

    async def main() -> None:
        manager = TaskManager(FastAPI(), Config(enabled=False))
        await manager.start()
        assert (await manager.health_check()).status == "healthy"
        assert await manager.ready()
        await manager.stop()

    on(loop, main)
