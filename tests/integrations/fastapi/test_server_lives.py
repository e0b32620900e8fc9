"""What a life inside an application leaves behind, and two of them side by side."""

from __future__ import annotations

import contextvars
import gc
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI

from actors.running import Running
from actors.threads import ThreadCall
from engine.app import Engine
from integrations.fastapi import Config, TaskGroup, TaskManager
from integrations.fastapi.bridge import _Call
from tests.integrations.fastapi.crossing import until
from tests.store.servers import RedisServer, find_binary
from tests.system.cluster import QUICK, YEARLY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.integrations.fastapi.crossing import Loop

pytestmark = pytest.mark.slow

RUNS = 1_000
COLOR: contextvars.ContextVar[str] = contextvars.ContextVar("color")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for this file."""
    server = RedisServer(find_binary("6.2"), tmp_path_factory.mktemp("redis")).start()
    try:
        yield server
    finally:
        server.kill()


def on(loop: Loop, main: Callable[[], Awaitable[object]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(50):
            await main()

    anyio.run(limited, backend=loop[0], backend_options=loop[1])


async def until_within(condition: Callable[[], object]) -> None:
    """As ``until``, for what takes seconds, and without using up the processor."""
    with anyio.fail_after(50):
        while not condition():  # noqa: ASYNC110  # other threads make it true
            await anyio.sleep(0.01)


def config(redis: RedisServer, prefix: str, **settings: Any) -> Config:
    return Config(redis_url=f"unix://{redis.path}", redis_key_prefix=prefix, **{**QUICK, **settings})


def living(*kinds: type) -> int:
    """How many objects of these kinds there are, wherever they are held."""
    gc.collect()
    return sum(isinstance(found, kinds) for found in gc.get_objects())


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_a_thousand_runs_leave_nothing_behind(kind: str, loop: Loop, redis: RedisServer) -> None:
    """While the application goes on: no call, no run, no task or thread that waits, nothing that a context held."""
    ended = 0
    count = threading.Lock()
    group = TaskGroup("many")

    def note() -> None:
        nonlocal ended
        with count:
            ended += 1

    async def in_loop() -> None:
        await anyio.lowlevel.checkpoint()
        note()

    for number in range(RUNS):
        group.add_task(YEARLY, name=f"t{number}", run_on_first_start=True)(in_loop if kind == "loop" else note)

    before = living(_Call, Running, ThreadCall)  # what other tests of this process have left

    async def main() -> None:
        app = FastAPI()
        prefix = f"{kind}-{loop[0]}-{len(loop[1])}"
        manager = TaskManager(app, config(redis, prefix, concurrent_tasks=100))
        manager.add_task_group(group)
        async with app.router.lifespan_context(app):
            await until_within(lambda: ended == RUNS)
            life = manager._life
            assert life is not None
            bridge = life.bridge
            await until_within(lambda: living(_Call, Running, ThreadCall) <= before)
            await until_within(lambda: not (bridge._going or bridge._to_host or bridge._to_engine))
        assert ended == RUNS

    on(loop, main)


def test_what_the_lifespan_has_set_is_seen_by_plain_tasks_too(loop: Loop, redis: RedisServer) -> None:
    """In their threads; what they set themselves stays theirs."""
    seen: list[str] = []
    group = TaskGroup("plain")

    def look() -> None:
        seen.append(COLOR.get())
        COLOR.set("red")

    for name in ("one", "two"):
        group.add_task(YEARLY, name=name, run_on_first_start=True)(look)

    async def main() -> None:
        app = FastAPI()
        manager = TaskManager(app, config(redis, f"plain-{loop[0]}-{len(loop[1])}", concurrent_tasks=1))
        manager.add_task_group(group)
        COLOR.set("green")
        async with app.router.lifespan_context(app):
            COLOR.set("blue")
            await until_within(lambda: len(seen) == 2)

    on(loop, main)
    assert seen == ["green", "green"]


def test_two_managers_of_one_application_are_two_workers(loop: Loop, redis: RedisServer) -> None:
    """Each with its own tasks and settings; both end with the application."""
    ran: set[str] = set()

    def group(name: str) -> TaskGroup:
        found = TaskGroup(name)

        async def body() -> None:
            await anyio.lowlevel.checkpoint()
            ran.add(name)

        found.add_task(YEARLY, name="task", run_on_first_start=True)(body)
        return found

    async def main() -> None:
        app = FastAPI()
        managers = [TaskManager(app, config(redis, f"{name}-{loop[0]}-{len(loop[1])}")) for name in ("one", "two")]
        for manager, name in zip(managers, ("one", "two"), strict=True):
            manager.add_task_group(group(name))
        async with app.router.lifespan_context(app):
            await until_within(lambda: ran == {"one", "two"})
            assert [(await manager.health_check()).status for manager in managers] == ["healthy"] * 2
            assert len({manager.worker_id for manager in managers}) == 2
        assert not any(manager.is_running for manager in managers)

    on(loop, main)


def test_an_engine_that_is_given_twice_runs_once(
    loop: Loop, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The second manager says so, in the log and in its health, and disturbs neither the first nor the application."""

    async def main() -> None:
        app = FastAPI()
        engine = Engine(config(redis, f"twice-{loop[0]}-{len(loop[1])}"))
        second, first = (TaskManager(app, engine=engine) for _ in range(2))  # the last one to join is the outer one
        async with app.router.lifespan_context(app):
            running = [manager for manager in (first, second) if manager.is_running]
            await until(lambda: len([manager for manager in (first, second) if manager.is_running]) == 1)
            [runs] = [manager for manager in running if manager.is_running]
            await until_within(lambda: engine.leads)
            assert (await runs.health_check()).status == "healthy"
            [other] = {first, second} - {runs}
            assert (await other.health_check()).status == "unhealthy"

    on(loop, main)
    assert "the application goes on without it: Engine.serve: the engine runs already" in caplog.text
