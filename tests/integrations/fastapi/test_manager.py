"""TaskManager in one process: started and stopped in every order, with and without a Redis."""

from __future__ import annotations

import json
import multiprocessing
import threading
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import APIRouter, FastAPI

from engine.app import Engine
from engine.errors import EngineStateError
from integrations.fastapi import Config, HealthResponse, TaskGroup, TaskManager
from tests.integrations.fastapi.application import make_app
from tests.integrations.fastapi.crossing import LIMIT_S, until
from tests.store.servers import RedisServer, find_binary, free_port
from tests.system.cluster import QUICK

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient` is deprecated")
    from fastapi.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.integrations.fastapi.crossing import Loop


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for this file."""
    server = RedisServer(find_binary("6.2"), tmp_path_factory.mktemp("redis")).start()
    try:
        yield server
    finally:
        server.kill()


def nowhere() -> Config:
    """A Redis at which nobody listens."""
    return Config(redis_host="127.0.0.1", redis_port=free_port())


def on(loop: Loop, main: Callable[[], Awaitable[object]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(LIMIT_S):
            await main()

    anyio.run(limited, backend=loop[0], backend_options=loop[1])


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "troupe-engine"]


# -- with a Redis -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_application_under_test_client_runs_its_tasks(backend: str, redis: RedisServer, tmp_path: Path) -> None:
    """Async ones on its loop, inside its lifespan; plain ones in threads; twice, with two identities."""
    effects, workers = tmp_path / "effects", []
    spec = {"redis_url": f"unix://{redis.path}", "redis_key_prefix": backend, **QUICK}
    app = make_app({"config": spec, "effects": str(effects)})
    manager: TaskManager = app.state.manager

    def story() -> list[dict[str, Any]]:
        return [json.loads(line) for line in effects.read_text().splitlines()]

    for _ in range(2):
        with TestClient(app, backend=backend) as client:  # type: ignore[arg-type]
            assert client.get("/state").json()["pool"] == "open"
            assert client.portal is not None
            client.portal.call(until, lambda: sum(line["event"] == "start" for line in story()) == 2)
            client.portal.call(until, lambda: manager.is_leader)
            health = HealthResponse(**client.get("/health").json())
            assert health.status == "healthy"
            assert health.worker_id == manager.worker_id
            workers.append(manager.worker_id)
        assert not manager.is_running
        assert engine_threads() == []
    assert len(set(workers)) == 2
    entered, *_ = lines = story()
    assert [line["event"] for line in lines if line["event"] in {"entered", "left"}] == ["entered", "left"] * 2
    ran = {line["task"]: line for line in lines if line["event"] == "start"}
    assert {key: ran["loop"][key] for key in ("thread", "loop", "pool")} == {
        key: entered[key] for key in ("thread", "loop", "pool")
    }
    assert ran["thread"]["thread"] != entered["thread"]


def test_a_manager_that_was_made_before_a_fork_works_after_it(redis: RedisServer, tmp_path: Path) -> None:
    """As servers do that preload the application: nothing of it lives before the start."""
    config = {"redis_url": f"unix://{redis.path}", "redis_key_prefix": "fork"}
    app = make_app({"config": config, "effects": str(tmp_path / "effects")})
    fork = multiprocessing.get_context("fork")
    answers: Any = fork.Queue()

    def child() -> None:
        async def main() -> None:
            with anyio.fail_after(LIMIT_S):
                async with app.router.lifespan_context(app):
                    while not await app.state.manager.is_healthy():
                        await anyio.lowlevel.checkpoint()
                    answers.put(app.state.manager.worker_id)

        anyio.run(main)

    children = [fork.Process(target=child) for _ in range(2)]
    for process in children:
        process.start()
    names = {answers.get(timeout=LIMIT_S) for _ in children}
    for process in children:
        process.join(LIMIT_S)
    assert len(names) == 2
    assert [process.exitcode for process in children] == [0, 0]


# -- without one ------------------------------------------------------------------------------------------------------


def test_start_and_stop_can_be_repeated(loop: Loop) -> None:
    """Stop without a start does nothing, a second stop neither; a second start says so."""

    async def main() -> None:
        manager = TaskManager(FastAPI(), nowhere())
        await manager.stop()
        for _ in range(2):
            assert not manager.is_running
            await manager.start()
            assert engine_threads()
            with pytest.raises(EngineStateError, match="call stop"):
                await manager.start()
            await manager.stop()
            await manager.stop()
        assert manager.worker_id is None
        assert engine_threads() == []

    on(loop, main)


def test_health_is_told_at_any_time(loop: Loop) -> None:
    """Before the start, without a Redis, and after the end: unhealthy, and never an error."""

    async def main() -> None:
        manager = TaskManager(FastAPI(), nowhere())
        assert not await manager.is_healthy()
        await manager.start()
        await until(lambda: manager.worker_id)
        health = await manager.health_check()
        assert (health.status, health.redis_connected) == ("unhealthy", False)
        await manager.stop()
        assert await manager.health_check() == HealthResponse(
            status="unhealthy", redis_connected=False, detail="the engine was stopped with its application"
        )

    on(loop, main)


def test_stopping_is_for_the_task_that_started(loop: Loop) -> None:
    """Another gets an error, and the engine goes on."""

    async def main() -> None:
        manager = TaskManager(FastAPI(), nowhere())
        await manager.start()

        async def stranger() -> None:
            with pytest.raises(EngineStateError, match="the task that started it"):
                await manager.stop()

        async with anyio.create_task_group() as group:
            group.start_soon(stranger)
        assert manager.is_running
        await manager.stop()

    on(loop, main)


def test_a_lifespan_that_is_cancelled_waits_for_the_engine_to_end(loop: Loop) -> None:
    """Wherever it is cancelled, the thread has ended when it has."""

    async def main() -> None:
        app = FastAPI()
        manager = TaskManager(app, nowhere())
        for cancel_first in (True, False):
            with anyio.CancelScope() as scope:
                if cancel_first:
                    scope.cancel()
                async with app.router.lifespan_context(app):
                    scope.cancel()
                    await anyio.sleep(LIMIT_S)
            assert scope.cancelled_caught
            assert not manager.is_running
            assert engine_threads() == []

    on(loop, main)


def test_an_engine_that_fails_leaves_the_application_alone(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """Health says so at once; the manager can be stopped, and started when the cause is gone."""

    async def main() -> None:
        engine = Engine(nowhere())
        first, second = TaskManager(FastAPI(), engine=engine), TaskManager(FastAPI(), engine=engine)
        await first.start()
        await until(lambda: first.worker_id)
        await second.start()
        await until(lambda: not second.is_running)
        for _ in range(3):
            assert not await second.is_healthy()
        await second.stop()
        await first.stop()
        await second.start()
        await until(lambda: second.worker_id)
        await second.stop()

    on(loop, main)
    [failure] = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert "the application goes on without it: Engine.serve: the engine runs already" in failure.message


def test_a_lifespan_without_a_state_stays_one() -> None:
    """A server that knows no lifespan state would refuse an empty one. A router's state is kept beside it."""

    async def main() -> None:
        app = FastAPI()
        TaskManager(app, nowhere())
        async with app.router.lifespan_context(app) as state:
            assert not state
        app.include_router(APIRouter(lifespan=None))

    anyio.run(main)


def test_what_a_manager_is_made_of() -> None:
    """A config or an engine; what it shows are copies; what it does not have says what to use."""
    with pytest.raises(EngineStateError, match="either a config or an engine"):
        TaskManager(FastAPI())
    config = nowhere()
    manager = TaskManager(FastAPI(), config)
    group = TaskGroup("reports")
    manager.add_task_group(group)
    manager.task_groups.clear()
    assert manager.task_groups == [group]
    assert manager.config is config
    assert (manager.worker_id, manager.worker_started_at, manager.is_leader) == (None, None, False)
    with pytest.raises(EngineStateError, match="open a client of yours"):
        _ = manager.redis_client
    with pytest.raises(EngineStateError, match="is_running"):
        _ = manager.runner
