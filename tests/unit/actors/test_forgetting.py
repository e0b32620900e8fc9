"""Redis forgets what it acknowledged, and whole workers tell it again: nothing runs twice, nothing is undone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from engine.domain.run import RunContext
from tests.unit.actors.stage import EPOCH_MS, Gate, group, noting

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from engine.domain.group import TaskGroup
    from engine.store.catalog import RecordedEvent
    from tests.unit.actors.stage import Stage, Worker

LEASE_S = 9.0
YEARLY = "0 0 1 1 *"


async def crew(stage: Stage, count: int, *groups: TaskGroup) -> list[Worker]:
    return [await stage.worker(*groups) for _ in range(count)]


def counting(tasks: TaskGroup, expression: str, *, name: str = "t", **settings: object) -> Counter[str]:
    """Declare a task that counts the starts of each of its runs."""
    starts: Counter[str] = Counter()

    async def count() -> None:
        starts[RunContext.current().run_id] += 1
        await trio.sleep(0.3)

    tasks.add_task(expression, name=name, **settings)(count)  # type: ignore[arg-type]
    return starts


async def lost(stage: Stage) -> list[RecordedEvent]:
    return [e for e in await stage.store.catalog.recent_events(count=1_000) if e.name == "history_lost"]


async def slots(stage: Stage, task_id: str) -> Counter[int]:
    """How many verdicts each slot has, by seconds."""
    found: Counter[int] = Counter()
    for entry in await stage.ledger(task_id):
        if entry.from_ms is not None and entry.to_ms is not None:
            found.update(range((entry.from_ms - EPOCH_MS) // 1000, (entry.to_ms - EPOCH_MS) // 1000 + 1))
    return found


def restarts(workers: list[Worker]) -> int:
    return sum(node.restarts for worker in workers for node in worker.supervision.snapshot().walk())


def lose_what_follows(stage: Stage) -> Callable[[], None]:
    """From now on what is written is not saved; the function restarts the server from what was."""
    saved = stage.server.save()

    def restart() -> None:
        stage.server.stop()
        stage.server.start(saved)

    return restart


@pytest.mark.parametrize("at_s", [20.2, 20.7, 21.99])
async def test_flushall_costs_no_slot_and_doubles_none(autojump_clock: MockClock, stage: Stage, at_s: float) -> None:
    """Also of those that were due around it; scheduling goes on within a lease."""
    tasks = group()
    starts = counting(tasks, "* * * * * *")
    workers = await crew(stage, 3, tasks)
    await stage.until(at_s)
    await stage.redis.flushall()
    await stage.until(at_s + LEASE_S)
    assert (at_s + LEASE_S) * 1000 + EPOCH_MS - max(int(run.rpartition("@")[2]) for run in starts) < 2_000
    await stage.until(60.5)
    assert max(starts.values()) == 1
    found = await slots(stage, "g/t")
    assert {second for second in range(22, 60) if found[second] != 1} == set()
    assert [event.fields["what"] for event in (await lost(stage))[:1]] == ["its keys were gone"]
    assert restarts(workers) == 0


async def test_a_run_in_progress_outlives_flushall(autojump_clock: MockClock, stage: Stage) -> None:
    """It goes on under its lease, is not started again, and gets its verdict."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="long", run_on_first_start=True)(gate.walk)
    workers = await crew(stage, 3, tasks)
    await stage.until(20)
    await stage.redis.flushall()
    await stage.until(20 + 5 * LEASE_S)
    assert (gate.inside, gate.most_inside) == (1, 1)
    gate.open.set()
    await stage.until(80)
    assert gate.passed == 1
    assert await stage.verdicts("g/long") == [("ran", "")]
    assert restarts(workers) == 0


async def test_pauses_and_dynamic_tasks_outlive_flushall(autojump_clock: MockClock, stage: Stage) -> None:
    """A paused task does not run once, and a task that was made at run time runs on."""
    tasks = group()
    paused = counting(tasks, "* * * * * *", name="paused")
    made: list[float] = []

    async def note() -> None:
        await trio.lowlevel.checkpoint()
        made.append(trio.current_time())

    tasks.register_function(note, name="note")
    workers = await crew(stage, 2, tasks)
    await stage.until(5)
    assert await stage.store.catalog.pause(["g/paused"], "pause", until_ms=None, details="{}", who="me")
    await tasks.create_task("note", "* * * * * *", name="made")
    await stage.until(10.5)
    count = len(paused)
    await stage.redis.flushall()
    await stage.until(40.5)
    assert len(paused) == count
    assert {31, 32, 33, 34, 35} <= {int(at_s) for at_s in made}
    assert set(Counter(int(at_s) for at_s in made).values()) == {1}
    assert await stage.store.catalog.resume(["g/paused"], "resume", who="me") == [True]
    await stage.until(45.5)
    assert len(paused) > count
    assert restarts(workers) == 0


async def test_a_worker_that_remembers_nothing_may_come_first(autojump_clock: MockClock, stage: Stage) -> None:
    """A new process starts in the moment of FLUSHALL and leads: what the others remember comes back all the same."""
    tasks = group()
    paused = counting(tasks, "* * * * * *", name="paused")
    gate = Gate()
    tasks.add_task(YEARLY, name="long", run_on_first_start=True)(gate.walk)
    await crew(stage, 2, tasks)
    await stage.until(5)
    await stage.store.catalog.pause(["g/paused"], "pause", until_ms=None, details="{}", who="me")
    await stage.until(20.1)
    count = len(paused)
    for worker in stage.workers:
        worker.cable.cut()
    await stage.redis.flushall()
    newcomer = await stage.worker(tasks)
    await stage.until(21)
    for worker in stage.workers:
        worker.cable.join()
    await stage.until(60)
    assert newcomer.restarts("leader") == 0
    ran_meanwhile = len(paused) - count
    assert ran_meanwhile <= 2
    assert await stage.store.catalog.resume(["g/paused"], "resume", who="me") == [True]
    assert gate.most_inside <= 2  # the newcomer knew of no first start


@pytest.mark.parametrize("lost_s", [0.2, 0.5, 2.2])
async def test_a_lost_tail_doubles_no_slot_that_a_living_worker_had(
    autojump_clock: MockClock, stage: Stage, lost_s: float
) -> None:
    """A run was published, claimed, ended in the time that is lost: it is not published or started again."""
    tasks = group()
    starts = counting(tasks, "* * * * * *")
    workers = await crew(stage, 3, tasks)
    await stage.until(20.1)
    restart = lose_what_follows(stage)
    await stage.until(20.1 + lost_s)
    restart()
    await stage.until(60.5)
    assert max(starts.values()) == 1
    found = await slots(stage, "g/t")
    assert {second for second in range(2, 60) if found[second] != 1} == set()
    assert restarts(workers) == 0


async def test_a_replica_whose_clock_is_behind_opens_no_slot_again(autojump_clock: MockClock, stage: Stage) -> None:
    """Slots that are not due there yet had their runs, and are not published again when their time comes once more."""
    tasks = group()
    starts = counting(tasks, "*/2 * * * * *")
    workers = await crew(stage, 3, tasks)
    await stage.until(19.5)
    restart = lose_what_follows(stage)
    await stage.until(24.1)
    stage.redis_ahead_s = -6.0
    restart()
    await stage.until(60.5)
    assert max(starts.values()) == 1
    found = await slots(stage, "g/t")
    assert {second for second in range(2, 52, 2) if found[second] != 1} == set()
    assert restarts(workers) == 0


async def test_flushall_opens_no_slot_again_after_the_clock_of_redis_stepped_back(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Their runs ended too long ago to be remembered: that the slots were passed is remembered, over two of them."""
    tasks = group()
    starts = counting(tasks, "*/10 * * * * *")
    workers = await crew(stage, 2, tasks)
    await stage.until(120.5)
    stage.redis_ahead_s = -100.0
    for at_s in (125.5, 140.5):
        await stage.until(at_s)
        await stage.redis.flushall()
    await stage.until(215)
    assert (len(starts), max(starts.values())) == (12, 1)
    await stage.until(255)
    assert (len(starts), max(starts.values())) == (15, 1)
    assert restarts(workers) == 0


async def test_of_the_due_instants_that_workers_remember_the_latest_counts(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """One that was cut off for a while comes first; the slot that is open by its memory ran long ago."""
    tasks = group()
    starts = counting(tasks, "0 */2 * * * *")
    absent, *present = await crew(stage, 3, tasks)
    await stage.until(100)
    absent.cable.cut()
    await stage.until(200)
    assert sum(starts.values()) == 1
    for worker in present:
        worker.cable.cut()
    await stage.redis.flushall()
    absent.cable.join()
    await stage.until(201)
    assert await stage.store.timetable.tasks() == {"g/t": EPOCH_MS + 120_000}
    for worker in present:
        worker.cable.join()
    await stage.until(235)
    assert sum(starts.values()) == 1
    await stage.until(245)
    assert (len(starts), max(starts.values())) == (2, 1)
    assert restarts([absent, *present]) == 0


async def test_a_claim_that_is_lost_is_not_given_to_another(autojump_clock: MockClock, stage: Stage) -> None:
    """The run is queued in what was saved, and goes on: nobody claims it before its worker has told."""
    tasks, gate = group(), Gate()
    tasks.add_task("20 * * * * *", name="long")(gate.walk)
    await stage.worker(tasks, concurrent_tasks=0)
    workers = [await stage.worker(tasks, can_lead=False, slow_s=0.3) for _ in range(3)]
    await stage.until(20.1)
    restart = lose_what_follows(stage)
    assert gate.inside == 0
    await stage.until(22)
    assert gate.inside == 1
    restart()
    await stage.until(22 + 4 * LEASE_S)
    assert (gate.inside, gate.most_inside) == (1, 1)
    gate.open.set()
    await stage.until(70)
    assert gate.passed == 1
    assert await stage.verdicts("g/long") == [("ran", "")]
    assert await lost(stage)
    assert restarts(workers) == 0


async def test_a_restart_that_loses_nothing_is_over_when_all_have_beaten(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """No slot is late by a lease, and no loss is told of."""
    tasks = group()
    started_s = noting(tasks, "* * * * * *")
    await crew(stage, 3, tasks)
    await stage.until(20.3)
    stage.server.stop()
    await stage.until(20.6)
    stage.server.start()
    await stage.until(40.5)
    assert max(at_s - int(at_s) for at_s in started_s) < 0.5
    assert len(started_s) >= 39
    assert await lost(stage) == []


async def test_a_change_that_is_lost_is_made_again(autojump_clock: MockClock, stage: Stage) -> None:
    """A task paused in the time that is lost stays paused, one resumed in it is not paused again."""
    tasks = group()
    one, other = (counting(tasks, "* * * * * *", name=name) for name in ("one", "other"))
    await crew(stage, 2, tasks)
    await stage.until(5)
    pauses = stage.store.catalog
    await pauses.pause(["g/other"], "pause other", until_ms=None, details="{}", who="me")
    await stage.until(20.1)
    restart = lose_what_follows(stage)
    await pauses.pause(["g/one"], "pause one", until_ms=None, details="{}", who="me")
    await pauses.resume(["g/other"], "resume other", who="me")
    await stage.until(22.5)
    restart()
    counts = len(one), len(other)
    await stage.until(50.5)
    assert len(one) == counts[0]
    assert len(other) > counts[1] + 20


@pytest.mark.parametrize("made_again", [[], ["g/made"]])
async def test_a_removal_that_is_lost_leaves_nothing_of_the_task(
    autojump_clock: MockClock, stage: Stage, made_again: list[str]
) -> None:
    """Redis has its definition again, and a run in progress: all of it goes, and the name is free at once."""
    tasks, gate = group(), Gate()
    tasks.register_function(gate.walk, name="walk")
    await crew(stage, 2, tasks)
    await stage.until(5)
    await tasks.create_task("walk", "20 * * * * *", name="made")
    await stage.until(20.1)
    assert gate.inside == 1
    restart = lose_what_follows(stage)
    await tasks.remove_task("made")
    await stage.until(22)
    restart()
    await stage.until(23)
    assert tasks.tasks == []
    if made_again:
        await tasks.create_task("walk", YEARLY, name="made")
    await stage.until(60)
    gate.open.set()
    await stage.until(90)
    keys = stage.store.keys
    assert await stage.redis.hkeys(keys.dynamic) == made_again
    assert list(await stage.store.timetable.tasks()) == made_again
    assert await stage.store.runs.live("g/made") == {}
    assert await stage.verdicts("g/made") == []
    assert gate.passed == 1


async def test_a_run_of_a_task_that_is_removed_stays_gone_when_its_worker_comes_back(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """It was cut off for longer than a lease, and over a restart that lost nothing: no loss is told of either."""
    tasks, gate = group(), Gate()
    tasks.register_function(gate.walk, name="walk")
    worker = await stage.worker(tasks)
    await stage.worker(tasks, concurrent_tasks=0)
    await stage.until(5)
    await tasks.create_task("walk", "20 * * * * *", name="made")
    await stage.until(20.1)
    assert gate.inside == 1
    worker.cable.cut()
    assert await stage.store.operations.forget("g/made", "forget", who="me") == 0
    await stage.until(60)
    assert await stage.store.runs.live("g/made") == {}
    stage.server.stop()
    await stage.until(61)
    stage.server.start()
    await stage.until(61 + 2 * LEASE_S)
    worker.cable.join()
    await stage.until(100)
    assert await stage.store.runs.live("g/made") == {}
    assert await stage.verdicts("g/made") == []
    assert await lost(stage) == []
    assert gate.inside == 0


@pytest.mark.parametrize("ends_s", [round(20.9 + 0.05 * n, 2) for n in range(20)])
async def test_an_end_that_is_told_while_redis_is_told_again_is_no_lost_run(
    autojump_clock: MockClock, stage: Stage, ends_s: float
) -> None:
    """Redis, which forgot the run, refuses its end; until that is heard the worker tells of the run as in progress."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="long", run_on_first_start=True)(gate.walk)
    worker = await stage.worker(tasks)
    await stage.until(20)
    worker.cable.late_s = 0.1
    await stage.redis.flushall()
    await stage.until(ends_s)
    gate.open.set()
    await stage.until(20 + 6 * LEASE_S)
    assert (gate.inside, gate.passed) == (0, 1)
    assert await stage.verdicts("g/long") == [("ran", "")]
    assert worker.restarts("consumer") == 0


async def test_epochs_grow_over_two_failovers_to_a_clock_that_is_behind(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """The second replica knows nothing of what the first was told: workers remember the latest time of any."""
    workers = await crew(stage, 2, group())
    await stage.until(20.1)
    restart, again = lose_what_follows(stage), lose_what_follows(stage)
    await stage.until(21)
    epochs = [leader_epoch(await stage.redis.get(stage.store.keys.leader))]
    stage.redis_ahead_s = -8.0
    for fail_over in (restart, again):
        fail_over()
        await trio.sleep(4)
        epochs.append(leader_epoch(await stage.redis.get(stage.store.keys.leader)))
    assert epochs == sorted(set(epochs))
    assert restarts(workers) == 0


async def test_who_has_not_told_yet_is_waited_for_when_all_is_deleted_once_more(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """The others know of it by now from each other only, since Redis has forgotten it."""
    absent, present = await crew(stage, 2, group())
    await stage.until(20.1)
    absent.cable.cut()
    await stage.redis.flushall()
    await stage.until(24.1)
    assert [worker.worker for worker in await stage.store.leases.workers()] == [present.identity.key]
    await stage.redis.flushall()
    await stage.until(28.1)
    assert await stage.store.election.leader() is None
    absent.cable.join()
    await stage.until(29.1)
    assert await stage.store.election.leader() is not None


async def test_a_worker_that_was_buried_meanwhile_tells_of_no_loss(autojump_clock: MockClock, stage: Stage) -> None:
    """It was cut off over a restart that lost nothing, and the leader has forgotten it: Redis has not."""
    workers = await crew(stage, 2, group())
    await stage.until(20.1)
    sleeper = next(worker for worker in workers if not worker.leads)
    sleeper.cable.cut()
    stage.server.stop()
    await stage.until(20.5)
    stage.server.start()
    await stage.until(20.5 + 10 * LEASE_S)
    assert len(await stage.store.leases.workers()) == 1
    sleeper.cable.join()
    await stage.until(20.5 + 11 * LEASE_S)
    assert len(await stage.store.leases.workers()) == 2
    assert await lost(stage) == []


def leader_epoch(value: str) -> int:
    return int(value.split(":")[-2])
