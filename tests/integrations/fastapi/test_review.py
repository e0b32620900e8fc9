"""What users run into: the moment after the start, a worker that lost its Redis, names given by the other word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
import redis as redis_client
from fastapi import FastAPI

from engine.store.keys import Keys
from integrations.fastapi import Config, TaskGroup, TaskManager
from tests.integrations.fastapi.crossing import LIMIT_S, until
from tests.integrations.fastapi.managed import NEW_YEAR, managed
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
