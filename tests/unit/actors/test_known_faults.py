"""Stories that go wrong in the system that Troupe replaces, told as they were seen there.

docs/known-faults.md names the test of each known fault; these are the ones that no other test tells.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from engine.domain.names import trigger_run_id
from engine.store.operations import Refused, Trigger
from tests.unit.actors.stage import EPOCH_S, Gate, at_ms, group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage

YEARLY = "0 0 1 1 *"
DAY_S = 86_400


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_run_of_eight_seconds_under_leases_of_a_fraction_is_started_once(
    autojump_clock: MockClock, stage: Stage, kind: str
) -> None:
    """There it was started seven times, by whoever was there and by each worker that came."""
    tasks, starts, started = group(), list[float](), trio.Event()

    async def work() -> None:
        starts.append(trio.current_time())
        started.set()
        await trio.sleep(8)

    def work_in_thread() -> None:
        trio.from_thread.run(work)

    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(work_in_thread if kind == "thread" else work)
    settings = {"running_heartbeat_interval": 0.2, "reconciliation_interval": 0.2}
    await stage.worker(tasks, **settings)
    with stage.time_stands_still():
        await started.wait()
    for second in (1, 3, 6):
        await stage.until(second)
        await stage.worker(tasks, **settings)
    assert await stage.becomes(partial(stage.ledger, "g/t")) == pytest.approx(8, abs=0.1)
    assert await stage.verdicts("g/t") == [("ran", "")]
    assert len(starts) == 1


async def test_a_disabled_task_stays_disabled_for_ever(autojump_clock: MockClock, stage: Stage) -> None:
    """There it enabled itself after five days; here not even after a year in which nobody ran."""
    tasks = group()
    started_s = noting(tasks, "* * * * *")
    worker = await stage.worker(tasks)
    await stage.until(10)
    assert await stage.store.catalog.pause(["g/t"], "op", until_ms=None, details="{}", who="somebody") == [True]
    await stage.until(61)
    assert await stage.verdicts("g/t") == [("skipped", "paused")]
    await worker.stop()
    for days in (6, 365):
        await stage.until(days * DAY_S - 5)
        worker = await stage.worker(tasks)
        await stage.until(days * DAY_S + 5)
        await worker.stop()
        newest = (await stage.ledger("g/t"))[-1]
        assert (newest.verdict, newest.reason, newest.to_ms) == ("skipped", "paused", at_ms(days * DAY_S))
    assert started_s == []


async def test_a_run_that_was_cancelled_does_not_keep_its_task_from_running(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """There its heartbeat went on without it, so that a task without parallel runs never ran again."""
    tasks, gate = group(allow_parallel=False), Gate()
    tasks.add_task("* * * * *", name="t")(gate.walk)
    worker = await stage.worker(tasks)
    await stage.until(61)
    assert gate.inside == 1
    [run_id] = await stage.store.runs.live("g/t")
    assert await stage.store.operations.cancel([run_id], "op", who="somebody") == ["asked"]
    await stage.until(70)
    assert gate.inside == 0
    assert await stage.store.leases.expiring(2**52) == []
    await stage.until(121)
    assert gate.inside == 1
    gate.open.set()
    await stage.until(122)
    assert await stage.verdicts("g/t") == [("failed", "cancelled"), ("ran", "")]
    await worker.stop()


async def test_a_yearly_task_runs_neither_when_it_is_deployed_nor_when_it_is_edited(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """There a task without a known next run was due at once. Nor does it when Redis has lost everything."""
    before, after = group(), group()
    first_s, second_s = noting(before, YEARLY), noting(after, "0 0 2 1 *")
    worker = await stage.worker(before)
    await stage.until(30)
    await worker.stop()
    worker = await stage.worker(after)
    await stage.until(60)
    await stage.redis.flushall()
    await stage.until(120)
    assert (first_s, second_s) == ([], [])
    assert await stage.verdicts("g/t") == []
    due = await stage.store.timetable.tasks()
    assert due["g/t"] > (EPOCH_S + 30 * DAY_S) * 1_000


async def test_a_late_start_of_all_takes_one_run_of_each_task_and_tells_what_was_missed(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """There slots that nobody published left no trace."""
    tasks = group()
    started_s = noting(tasks, "0 * * * *")
    worker = await stage.worker(tasks)
    await stage.until(10)
    worker.kill()
    await stage.until(10 * 3_600 + 10)
    await stage.worker(tasks)
    await stage.until(10 * 3_600 + 60)
    assert len(started_s) == 1
    missed, ran = await stage.ledger("g/t")
    assert (missed.verdict, missed.count, missed.from_ms, missed.to_ms) == ("missed", 9, at_ms(3_600), at_ms(9 * 3_600))
    assert (ran.verdict, ran.from_ms) == ("ran", at_ms(10 * 3_600))


async def test_a_trigger_of_a_disabled_task_is_refused_and_not_kept(autojump_clock: MockClock, stage: Stage) -> None:
    """There it answered success, did nothing, and fired when the task was enabled."""
    tasks = group()
    started_s = noting(tasks, YEARLY)
    await stage.worker(tasks)
    await stage.until(1)
    await stage.store.catalog.pause(["g/t"], "off", until_ms=None, details="{}", who="somebody")
    trigger = Trigger(trigger_run_id("g/t", "one"), "low", "allow")
    [reply] = await stage.store.operations.trigger([trigger], who="somebody", queue_cap=10)
    assert reply == Refused("paused")
    await stage.store.catalog.resume(["g/t"], "on", who="somebody")
    await stage.until(60)
    assert started_s == []
