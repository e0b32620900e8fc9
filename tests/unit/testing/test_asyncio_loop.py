"""Functions of tasks on a loop of asyncio: of their own and in virtual time, or one that the test gives."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from engine import TaskGroup
from engine.errors import EngineStateError, InvalidExpectation
from engine.testing import Fault
from engine.testing.points import points_for

if TYPE_CHECKING:
    from engine.testing import TroupeEngine


@pytest.fixture
def shop() -> TaskGroup:
    """The group that the engine of a test runs."""
    return TaskGroup("shop")


@pytest.fixture
def troupe_groups(shop: TaskGroup) -> TaskGroup:
    """As a user's conftest has it."""
    return shop


def test_asyncio_sleeps_in_virtual_time(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """So do its timeouts, and anyio on top of it; the loop's own clock is the virtual one."""
    lasted_s: list[float] = []

    @shop.add_task("0 3 * * *")
    async def report() -> None:
        before_s = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3_600):
                await asyncio.Event().wait()
        await asyncio.gather(asyncio.sleep(60), anyio.sleep(30))
        lasted_s.append(asyncio.get_running_loop().time() - before_s)

    troupe_engine.start(bodies_on="asyncio")
    troupe_engine.advance(to="2026-01-01 04:00:30")
    assert [run.state for run in troupe_engine.runs("shop/report")] == ["running"]
    [run] = troupe_engine.run_due()
    assert run.verdict == "ran"
    assert lasted_s == [pytest.approx(3_660, abs=0.01)]
    assert troupe_engine.now.hour == 4


def test_a_timeout_of_the_task_cancels_what_asyncio_waits_for(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """As on the loop of an application."""
    ends: list[str] = []

    @shop.add_task("0 3 * * *", timeout=60)
    async def report() -> None:
        try:
            await asyncio.sleep(61)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    troupe_engine.start(bodies_on="asyncio")
    troupe_engine.advance(hours=4)
    assert ends == ["cancelled"]
    troupe_engine.assert_ran("shop/report", verdict="failed", reason="timed out")
    assert [start.outcome for start in troupe_engine.starts("shop/report")] == ["cancelled"]


def test_real_threads_and_sockets_are_waited_for(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """In real time, while the virtual clock stands still."""
    heard: list[bytes] = []
    ours, theirs = socket.socketpair()

    def answer() -> None:
        theirs.recv(10)
        time.sleep(0.02)
        theirs.send(b"pong")

    @shop.add_task("0 3 * * *", timeout=1)
    async def report() -> None:
        await asyncio.to_thread(time.sleep, 0.2)
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(b"ping")
        heard.append(await reader.read(10))
        writer.close()

    server = threading.Thread(target=answer)
    server.start()
    troupe_engine.start(bodies_on="asyncio")
    troupe_engine.advance(hours=4)
    server.join()
    theirs.close()
    assert heard == [b"pong"]
    troupe_engine.assert_ran("shop/report", times=1)


def test_asyncio_on_trio_is_an_error_that_says_what_to_write(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """In the ledger, and so in every report."""

    @shop.add_task("0 3 * * *", max_retries=0)
    async def report() -> None:
        await asyncio.sleep(1)

    troupe_engine.trigger("shop/report")
    [run] = troupe_engine.runs("shop/report")
    assert run.verdict == "failed"
    assert str(run.error).startswith(
        "AsyncioNeeded: this task calls asyncio, and its function runs on trio here: write "
        "troupe_engine.start(bodies_on='asyncio'), or give troupe_groups a TaskManager"
    )


def test_a_test_can_use_the_loop_of_the_functions(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """To open what belongs to it, and to look through it afterwards."""
    pool: list[asyncio.AbstractEventLoop] = []

    async def open_pool(name: str) -> str:
        await asyncio.sleep(5)
        pool.append(asyncio.get_running_loop())
        return name

    @shop.add_task("0 3 * * *", max_retries=0)
    async def uses() -> None:
        assert pool == [asyncio.get_running_loop()]

    troupe_engine.start(bodies_on="asyncio")
    assert troupe_engine.run_async(open_pool, "pool") == "pool"
    troupe_engine.trigger("shop/uses")
    troupe_engine.assert_ran("shop/uses")


def test_a_function_makes_and_removes_tasks(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Through its group, as in an application: the engine is on another loop."""

    @shop.add_task("0 3 * * *", max_retries=0)
    async def plan() -> None:
        await shop.create_task("plan", "0 5 * * *", name="later")
        await shop.create_task("plan", "0 6 * * *", name="never")
        await shop.remove_task("never")

    troupe_engine.start(bodies_on="asyncio")
    troupe_engine.advance(hours=4)
    assert [run.error for run in troupe_engine.runs("shop/plan")] == [None]
    troupe_engine.assert_scheduled("shop/later", next="2026-01-01 05:00")


def test_functions_can_run_on_the_loop_of_an_asyncio_test(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Where the test's own pool lives: in real time, while the virtual clock stands still."""
    threads: list[threading.Thread] = []

    @shop.add_task("0 3 * * *", timeout=1)
    async def report() -> None:
        await asyncio.sleep(0.2)
        threads.append(threading.current_thread())

    async def test() -> None:
        troupe_engine.start(bodies_on=asyncio.get_running_loop())
        with pytest.raises(EngineStateError, match=r"write await asyncio\.to_thread\(troupe_engine\.advance, …\)"):
            troupe_engine.advance(hours=4)
        await asyncio.to_thread(troupe_engine.advance, hours=4)
        troupe_engine.assert_ran("shop/report", times=1)

    asyncio.run(test())
    assert threads == [threading.current_thread()]
    troupe_engine.close()


def test_a_loop_that_is_none_is_refused(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Before anything starts."""
    with pytest.raises(InvalidExpectation, match=r"bodies_on: 'uvloop'; give 'trio', 'asyncio' or a loop of asyncio"):
        troupe_engine.start(bodies_on="uvloop")  # type: ignore[arg-type] # the mistake
    troupe_engine.start(bodies_on="asyncio")


@pytest.mark.parametrize(
    "name",
    ["killed at: await asyncio.sleep(30)", "stalled in the body, for longer than its lease", "stopped in the body"],
)
def test_crash_points_are_replayed_there_too(shop: TaskGroup, troupe_engine: TroupeEngine, name: str) -> None:
    """A function that was killed stands still for ever, one that is stalled goes on later."""
    done: list[str] = []

    @shop.add_task("0 3 * * *")
    async def report() -> None:
        try:
            await asyncio.sleep(30)
            done.append("done")
        finally:
            done.append("cleaned up")

    [point] = [point for point in points_for(report) if point.name == name]
    fault = Fault(troupe_engine, point, report)
    fault.replay(bodies_on="asyncio")
    assert (fault.starts, fault.verdict) == (2, "ran")
    first = {"killed": [], "stalled": ["done", "cleaned up"], "stopped": ["cleaned up"]}[name.partition(" ")[0]]
    assert sorted(done) == sorted([*first, "done", "cleaned up"])
