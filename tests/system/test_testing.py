"""engine.testing: whoever tests an application of theirs makes a part of the engine fail, from wherever they are."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio
from fastapi import FastAPI

from engine import Config, Engine, EngineStateError, TaskGroup, UnknownActor
from engine.app import running_engines
from engine.errors import CannotCrash, Crashed, WhichEngine
from engine.testing import crash
from integrations.fastapi import TaskManager
from tests.system.cluster import PATIENCE_S, QUICK, YEARLY, eventually

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient` is deprecated")
    from fastapi.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from engine import Node
    from tests.system.cluster import Cluster

NOWHERE: Final = "redis://127.0.0.1:1"
SUPERVISOR: Final = "fastapi.task-manager.supervisor"


def part(engine: Engine, path: str) -> Node:
    [found] = [node for node in engine.tree().walk() if node.path == f"engine.{path}"]
    return found


@asynccontextmanager
async def at_work(engine: Engine) -> AsyncIterator[Engine]:
    """The engine, with every part up, whether or not there is a Redis."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.serve)

        async def up() -> bool:
            return engine in running_engines() and all(n.state.value == "running" for n in engine.tree().walk())

        await eventually(up, "the engine is up")
        try:
            yield engine
        finally:
            engine.stop()


async def comes_back(engine: Engine, path: str, *, restarts: int = 1) -> None:
    async def back() -> bool:
        node = part(engine, path)
        return node.restarts == restarts and node.state.value == "running"

    await eventually(back, f"{path} comes back")


def in_thread() -> None:
    """No run, no loop, no context of whoever waits for it."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            crash("stats")
        except BaseException as error:  # noqa: BLE001  # to be raised in the test
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


@pytest.mark.parametrize("call", [lambda: crash("stats"), lambda: crash("engine.stats"), in_thread])
async def test_the_only_engine_of_a_process_is_meant(call: Callable[[], None]) -> None:
    """From its own loop or from any thread; nothing has happened yet when the call returns to the loop."""
    async with at_work(Engine(Config(redis_url=NOWHERE))) as engine:
        call()
        assert part(engine, "stats").state.value == "running"
        await comes_back(engine, "stats")
        failure = part(engine, "stats").last_failure
        assert failure is not None
        assert failure.error.startswith("Crashed: ")
        assert failure.error.endswith("stats' was made to crash")


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_run_means_the_engine_that_executes_it(cluster: Cluster, kind: str) -> None:
    """Whichever else runs in the process. Elsewhere nothing is guessed."""
    engines = []
    for name in ("one", "other"):
        group = TaskGroup(name)

        async def in_loop() -> None:
            await trio.lowlevel.checkpoint()
            crash("stats")

        def in_thread() -> None:
            crash("stats")

        if name == "one":
            group.add_task(YEARLY, name="t", run_on_first_start=True)(in_loop if kind == "loop" else in_thread)
        engines.append(Engine(Config(redis_url=cluster.url, redis_key_prefix=name, **QUICK), [group]))
    one, other = engines
    async with at_work(other), at_work(one):
        with pytest.raises(WhichEngine, match=r"^2 engines run in this process; say which: engine\.crash\(path, error"):
            crash("stats")
        await comes_back(one, "stats")
        assert part(other, "stats").restarts == 0
        error = Crashed("heartbeat")
        other.crash("heartbeat", error)
        await comes_back(other, "heartbeat")
        assert part(one, "heartbeat").restarts == 0


@pytest.mark.parametrize("where", ["handler", "plain handler", "task", "plain task"])
def test_an_application_makes_its_own_engine_fail(
    cluster: Cluster, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On its loop and in its worker threads, while the engine runs in a thread of its own."""
    app, group = FastAPI(), TaskGroup("g")

    async def fail() -> None:
        crash("scheduling.leader")

    def fail_plainly() -> None:
        crash("scheduling.leader")

    app.get("/handler")(fail)
    app.get("/plain handler")(fail_plainly)
    if "task" in where:
        group.add_task(YEARLY, name="t", run_on_first_start=True)(fail if where == "task" else fail_plainly)
    config = Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **QUICK)
    TaskManager(app, engine=Engine(config, [group]))
    caplog.set_level(logging.INFO)

    def told(text: str) -> bool:
        return any(text in record.getMessage() for record in caplog.records if record.name == SUPERVISOR)

    with TestClient(app) as client:
        until(lambda: "became LEADER" in caplog.text)
        if "handler" in where:
            assert client.get(f"/{where}").status_code == 200
        until(lambda: told("engine.scheduling.leader restarted (restart 1)"))
    assert told("engine.scheduling.leader failed: Crashed: 'scheduling.leader' was made to crash; restart in ")


def until(condition: Callable[[], bool]) -> None:
    """Wait in a thread that has no loop."""
    limit_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit_s
        time.sleep(0.02)


async def test_a_path_that_no_actor_has_is_refused_at_once() -> None:
    """In the caller, with the nearest one; so is that of a supervisor. Nothing fails."""
    async with at_work(Engine(Config(redis_url=NOWHERE))) as engine:
        with pytest.raises(UnknownActor, match=r"'scheduling\.leadr'; did you mean 'scheduling\.leader'\?"):
            crash("scheduling.leadr")
        with pytest.raises(CannotCrash, match=r"'engine\.scheduling' .* crash one of engine\.scheduling\.leader, "):
            crash("scheduling")
        with pytest.raises(UnknownActor, match=r"did you mean 'execution\.consumer'"):
            engine.restart("execution.consummer")
        await comes_back(engine, "scheduling.leader", restarts=0)


async def test_a_part_without_the_right_to_lead_is_unknown() -> None:
    """The tree is that of this process."""
    async with at_work(Engine(Config(redis_url=NOWHERE, can_lead=False))):
        with pytest.raises(UnknownActor):
            crash("scheduling.leader")


async def test_an_actor_that_is_down_already_is_left_alone_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether it is up shows in the engine's own thread alone, so the caller cannot be told."""
    async with at_work(Engine(Config(redis_url=NOWHERE))) as engine:
        crash("link")
        await comes_back_or_waits(engine, "link")
        crash("link")
        await eventually(lambda: logged(caplog, "'engine.link' cannot be made to crash: it is not up"), "a warning")
        await comes_back(engine, "link")


async def comes_back_or_waits(engine: Engine, path: str) -> None:
    async def waits() -> bool:
        return part(engine, path).state.value == "backing_off"

    await eventually(waits, f"{path} backs off")


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


async def test_without_an_engine_that_runs_nothing_can_fail() -> None:
    """Before the first start, after the end, and where the engine is disabled."""
    group = TaskGroup("g")
    idle, off = Engine(Config(redis_url=NOWHERE)), Engine(Config(redis_url=NOWHERE, enabled=False), [group])

    def refused(engine: Engine) -> None:
        with pytest.raises(WhichEngine, match=r"^no engine runs that could be meant; start one"):
            crash("stats")
        with pytest.raises(EngineStateError, match=r"^Engine\.crash: the engine does not run"):
            engine.crash("stats", Crashed("stats"))
        with pytest.raises(EngineStateError, match=r"^Engine\.restart: the engine does not run"):
            engine.restart("stats")

    refused(idle)
    async with trio.open_nursery() as nursery:
        await nursery.start(off.serve)
        refused(off)
        off.stop()
    async with at_work(idle):
        assert running_engines() == [idle]
    refused(idle)


async def test_a_forked_child_has_no_running_engine() -> None:
    """It has a copy of the registry of its parent, and none of its threads."""
    async with at_work(Engine(Config(redis_url=NOWHERE))):
        await trio.to_thread.run_sync(fork_and_look)


def fork_and_look() -> None:
    """In a thread: in that of the engine no child may come back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12 on: this process has threads
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if not running_engines() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
