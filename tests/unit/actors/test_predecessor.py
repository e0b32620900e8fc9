"""A leader of the replaced system under the same prefix: it is named once, and waited for if that is asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ResponseError

from actors.predecessor import SURELY_GONE
from tests.unit.actors.stage import group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage, Worker

LOCK = "troupe_leader_lock"
HOLDER = "fastapi_task_manager__web_1__7__0badcafe"
RETRY_S = 5.0
WAITS: dict[str, Any] = {"wait_for_predecessor": True, "leader_retry_interval": RETRY_S}


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What the leader has logged at that level about the replaced system."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "fastapi.task-manager.leader"
        and record.levelno == level
        and "the prefix 'troupe'" in record.getMessage()
    ]


def looks(worker: Worker) -> list[float]:
    """When it looked at the lock. It may do so twice at one instant, since the Catalog calls the Leader, too."""
    return sorted({at_s for at_s, command in worker.cable.sent if command == ("GET", LOCK)})


async def test_a_live_leader_of_the_replaced_system_is_named_once_and_both_schedule(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an ERROR of the worker's start. A restart of the actor does not look again."""
    await stage.redis.set(LOCK, HOLDER)
    tasks = group()
    started_s = noting(tasks, "* * * * *")
    worker = await stage.worker(tasks)
    await stage.until(61)
    worker.crash("leader")
    await stage.until(121)
    worker.crashes.clear()
    [error] = said(caplog, logging.ERROR)
    assert HOLDER in error
    assert "wait_for_predecessor" in error
    assert [round(at_s) for at_s in started_s] == [60, 120]
    assert looks(worker) == [0]
    assert await stage.redis.get(LOCK) == HOLDER


async def test_nothing_is_said_where_there_is_none(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing waits: the first election is at once."""
    worker = await stage.worker(group(), **WAITS)
    await stage.settle()
    assert worker.leads
    await stage.until(60)
    assert looks(worker) == [0]
    assert said(caplog, logging.ERROR) == said(caplog, logging.INFO) == []


async def test_a_leader_under_another_prefix_is_nobodys_business(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """It schedules other tasks."""
    await stage.redis.set("troupe_2_leader_lock", HOLDER)
    worker = await stage.worker(group(), **WAITS)
    await stage.settle()
    assert worker.leads
    assert said(caplog, logging.ERROR) == []


async def test_a_worker_that_waits_schedules_when_that_leader_has_gone(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks once in each ``leader_retry_interval``, and never again afterwards."""
    caplog.set_level(logging.INFO)
    await stage.redis.set(LOCK, HOLDER)
    tasks = group()
    started_s = noting(tasks, "* * * * *")
    worker = await stage.worker(tasks, **WAITS)
    await stage.until(62)
    assert started_s == []
    assert "waiting" in worker.doing("leader")
    assert looks(worker) == [RETRY_S * n for n in range(13)]
    assert len(said(caplog, logging.ERROR)) == 1
    assert said(caplog, logging.INFO) == []

    await stage.redis.delete(LOCK)  # as its leader does when it stops
    gone_s = 65 + SURELY_GONE * RETRY_S
    await stage.until(gone_s - 0.01)
    assert not worker.leads
    await stage.until(gone_s + 0.01)
    assert "leading" in worker.doing("leader")
    [info] = said(caplog, logging.INFO)
    assert "stands for election" in info
    before = looks(worker)
    await stage.redis.set(LOCK, HOLDER)
    await stage.until(181)
    assert started_s == [120, 180]
    assert looks(worker) == before
    assert len(said(caplog, logging.ERROR)) == 1


async def test_a_lock_that_passes_to_another_worker_there_has_not_gone(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """In a rolling update its workers stop one after the other: the next one leads an interval later at most."""
    caplog.set_level(logging.INFO)
    await stage.redis.set(LOCK, HOLDER)
    worker = await stage.worker(group(), **WAITS)
    await stage.until(9.9)
    await stage.redis.delete(LOCK)
    await stage.until(10 + RETRY_S)  # an interval later, at its worst
    await stage.redis.set(LOCK, "another")
    await stage.until(120)
    assert not worker.leads
    assert said(caplog, logging.INFO) == []
    await stage.until(121)
    await stage.redis.delete(LOCK)  # which it sees at its next look
    seen_s = looks(worker)[-1] + RETRY_S
    await stage.until(seen_s + SURELY_GONE * RETRY_S - 0.01)
    assert not worker.leads
    await stage.until(seen_s + SURELY_GONE * RETRY_S + 0.01)
    assert "leading" in worker.doing("leader")


async def test_a_follower_looks_once(autojump_clock: MockClock, stage: Stage) -> None:
    """Not at each of its attempts to lead."""
    await stage.worker(group())
    await stage.until(1)
    follower = await stage.worker(group(), **WAITS)
    await stage.until(60)
    assert not follower.leads
    assert looks(follower) == [1]


async def test_a_worker_that_waits_executes_what_others_publish(autojump_clock: MockClock, stage: Stage) -> None:
    """Only scheduling is held up."""
    await stage.redis.set(LOCK, HOLDER)
    tasks = group()
    started_s = noting(tasks, "* * * * *")
    waits = await stage.worker(tasks, **WAITS)
    leads = await stage.worker(tasks, concurrent_tasks=0)
    await stage.until(61)
    assert started_s == [60]
    assert leads.leads
    assert not waits.leads


async def test_losing_redis_while_looking_is_a_state(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """What it could not see is not gone, and no restart is counted."""
    caplog.set_level(logging.INFO)
    stage.server.stop()
    worker = await stage.worker(group(), **WAITS)
    await stage.until(30)
    assert said(caplog, logging.ERROR) == []
    stage.server.start()
    await stage.redis.set(LOCK, HOLDER)
    await stage.until(40)
    assert len(said(caplog, logging.ERROR)) == 1
    worker.cable.cut()
    await stage.until(100)
    worker.cable.join()
    await stage.until(110)
    assert not worker.leads
    assert worker.restarts("leader") == 0
    assert said(caplog, logging.INFO) == []


async def test_a_restarted_leader_waits_on_and_does_not_repeat_itself(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """What is known of the other system survives the actor."""
    await stage.redis.set(LOCK, HOLDER)
    worker = await stage.worker(group(), **WAITS)
    await stage.until(12)
    worker.crash("leader")
    await stage.until(30)
    assert worker.restarts("leader") == 1
    assert not worker.leads
    assert len(said(caplog, logging.ERROR)) == 1
    worker.crashes.clear()


@pytest.mark.parametrize("waits", [False, True])
async def test_a_redis_that_does_not_show_the_lock_keeps_nobody_from_scheduling(
    autojump_clock: MockClock,
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    waits: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A user who may only touch this application's own keys. Whoever wanted to wait is told."""
    worker_settings = WAITS if waits else {}
    send = type(stage.store.transport)._request  # type: ignore[attr-defined]  # the cable of a worker

    async def refusing(cable: Any, lane: Any, args: tuple[Any, ...], block_s: float) -> Any:
        if args == ("GET", LOCK):
            raise ResponseError("NOPERM No permissions to access a key")
        return await send(cable, lane, args, block_s)

    monkeypatch.setattr(type(stage.store.transport), "_request", refusing)
    worker = await stage.worker(group(), **worker_settings)
    await stage.until(1)
    assert worker.leads
    warnings = [record.getMessage() for record in caplog.records if "cannot be seen" in record.getMessage()]
    assert len(warnings) == waits
    assert all("NOPERM" in warning for warning in warnings)
