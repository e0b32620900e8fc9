"""enroll, publish, move, requeue: each slot is passed exactly once, by the leader alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.store.runs import Claimed, Failure
from engine.store.session import Broken, Deposed, Done
from engine.store.store import Store
from engine.store.timetable import (
    Due,
    Early,
    Ended,
    Enrolment,
    Move,
    Moved,
    Published,
    Queued,
    Skipped,
    Slot,
)
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, completion, hold
from tests.store.transitions import ON_RUNS, Transition

if TYPE_CHECKING:
    from collections.abc import Sequence

FAR_MS = 3_600_000


async def publish(stage: Stage, slots: Sequence[Slot], *, cap: int = 100) -> list[Any]:
    """As the leader."""
    return list(await stage.store.timetable.publish(stage.leader, slots, queue_cap=cap))


async def pause(stage: Stage, task: str = TASK, *, until_ms: int | None = None) -> None:
    """For a test that needs a task paused."""
    await stage.store.catalog.pause([task], f"pause {until_ms}", until_ms=until_ms, details='{"who": "me"}', who="me")


# -- who may --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transition", [one for one in ON_RUNS if one.leads], ids=lambda transition: transition.name)
async def test_what_only_the_leader_may_do_is_refused_by_epoch(stage: Stage, transition: Transition) -> None:
    """What a deposed leader sent before it knew writes nothing."""
    call = await transition.arrange(stage, [TASK])
    await stage.store.election.resign(stage.leader)
    await stage.store.election.elect("leader", "a new candidacy", lease_ms=LEASE_MS)
    before = await stage.snapshot()
    with pytest.raises(Deposed, match=r"'leader:\d+:nonce' does not lead any longer"):
        await call()
    assert await stage.snapshot() == before


# -- enroll -----------------------------------------------------------------------------------------------------------


async def test_enrolling_gives_a_task_its_first_instant_and_keeps_the_one_it_has(stage: Stage) -> None:
    """Another leader may have a later idea of it: what due holds is the truth."""
    first_ms = stage.now_ms + FAR_MS
    enrolments = [Enrolment(TASK, first_ms), Enrolment(OTHER, first_ms + 1)]
    assert await stage.enroll(*enrolments) == ["enrolled", "enrolled"]
    assert await stage.enroll(Enrolment(TASK, first_ms + 5)) == ["known"]
    assert await stage.store.timetable.tasks() == {TASK: first_ms, OTHER: first_ms + 1}
    assert await stage.in_stream() == []


async def test_a_first_start_queues_a_run_that_is_no_slot(stage: Stage) -> None:
    """A task with run_on_first_start, never seen before: its run now, its first slot later."""
    enrolment = Enrolment(TASK, stage.now_ms + FAR_MS, f"{TASK}@first", priority="high", overlap="skip")
    assert await stage.enroll(enrolment) == ["started"]
    assert await stage.in_stream("high") == [f"{TASK}@first"]
    assert await stage.live() == {f"{TASK}@first": "queued"}
    record = await stage.record(f"{TASK}@first")
    [(entry, _)] = await stage.redis.xrange(stage.store.keys.stream_high)
    assert record == {
        "state": "queued",
        "task": TASK,
        "slot": "",
        "attempt": "1",
        "deliveries": "0",
        "fence": "0",
        "priority": "high",
        "overlap": "skip",
        "entry": entry,
    }
    [claimed] = await stage.claim(await stage.read(priority="high"))
    assert (claimed.run_id, claimed.slot_ms, claimed.attempt) == (f"{TASK}@first", None, 1)
    await stage.store.runs.complete("A", [completion(hold(claimed))])
    [entry_] = await stage.store.ledger.all(TASK)
    assert (entry_.verdict, entry_.run_id, entry_.from_ms, entry_.to_ms) == ("ran", f"{TASK}@first", None, None)


async def test_a_task_that_has_run_before_does_not_start_again_when_it_comes_back(stage: Stage) -> None:
    """It left due (retired) and came back: its ledger says that it is not new."""
    await stage.store.runs.complete("A", [completion(await stage.running())])
    await stage.redis.zrem(stage.store.keys.due, f"t/{TASK}")
    enrolment = Enrolment(TASK, stage.now_ms + FAR_MS, f"{TASK}@first")
    assert await stage.enroll(enrolment) == ["enrolled"]
    assert await stage.in_stream() == []


async def test_a_leader_with_an_older_catalog_enrolls_nothing(stage: Stage) -> None:
    """The task may have been removed since: its instant would stay for ever."""
    version = await stage.store.catalog.version()
    await pause(stage)
    before = await stage.snapshot()
    enrolments = [Enrolment(TASK, stage.now_ms + FAR_MS, f"{TASK}@first"), Enrolment(OTHER, stage.now_ms + FAR_MS)]
    replies = await stage.store.timetable.enroll(stage.leader, enrolments, version=version)
    assert replies == ["outdated", "outdated"]
    assert await stage.snapshot() == before
    replies = await stage.store.timetable.enroll(stage.leader, enrolments, version=version + 1)
    assert replies == ["started", "enrolled"]


# -- publish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("priority", "overlap"), [("low", "allow"), ("high", "skip")])
async def test_publishing_makes_a_run_and_moves_the_task_to_its_next_slot(
    stage: Stage, priority: str, overlap: str
) -> None:
    """Record, index, stream entry and due, together; and nothing else."""
    due_ms = await stage.due()
    before = set(await stage.snapshot())
    assert await publish(stage, [stage.slot(priority=priority, overlap=overlap)]) == [Published()]
    run_id, keys = f"{TASK}@{due_ms}", stage.store.keys
    [(entry, fields)] = await stage.redis.xrange(keys.stream_high if priority == "high" else keys.stream_low)
    assert fields == {"run": run_id}
    assert await stage.record(run_id) == {
        "state": "queued",
        "task": TASK,
        "slot": str(due_ms),
        "attempt": "1",
        "deliveries": "0",
        "fence": "0",
        "priority": priority,
        "overlap": overlap,
        "entry": entry,
    }
    assert await stage.live() == {run_id: "queued"}
    assert await stage.due_ms(f"t/{TASK}") == stage.now_ms + FAR_MS
    assert set(await stage.snapshot()) - before == {keys.run(run_id), keys.live(TASK), keys.passed}


async def test_a_slot_that_is_not_due_by_redis_time_is_early(stage: Stage) -> None:
    """Redis's clock decides; the reply carries it, so that the leader can correct its own."""
    await stage.due(in_ms=FAR_MS)
    before = await stage.snapshot()
    [reply] = await publish(stage, [stage.slot(in_ms=FAR_MS)])
    assert isinstance(reply, Early)
    assert abs(reply.redis_ms - stage.now_ms) < 60_000
    assert await stage.snapshot() == before


async def test_a_slot_that_due_does_not_hold_has_moved(stage: Stage) -> None:
    """Another instant, or none: the reply says which, and nothing is written."""
    due_ms = await stage.due()
    before = await stage.snapshot()
    replies = await publish(stage, [stage.slot(in_ms=-2_000), stage.slot("group/none")])
    assert replies == [Moved(due_ms), Moved(None)]
    assert await stage.snapshot() == before


async def test_the_last_slot_of_a_task_takes_it_out_of_due(stage: Stage) -> None:
    """A schedule may end; then nothing is due."""
    due_ms = await stage.due()
    assert await publish(stage, [Slot(TASK, due_ms, None, "low", "allow")]) == [Published()]
    assert await stage.store.timetable.tasks() == {}
    assert await stage.in_stream() == [f"{TASK}@{due_ms}"]


async def test_a_slot_whose_run_exists_is_not_queued_a_second_time(stage: Stage) -> None:
    """Due was set back by hand: the run's id is the slot's, so it is found."""
    run_id = await stage.queued(ago_ms=1_000)
    await stage.redis.zadd(stage.store.keys.due, {f"t/{TASK}": stage.now_ms - 1_000})
    assert await publish(stage, [stage.slot()]) == [Published()]
    assert await stage.in_stream() == [run_id]
    assert await stage.due_ms(f"t/{TASK}") == stage.now_ms + FAR_MS


@pytest.mark.parametrize("until_in_ms", [None, FAR_MS])
async def test_a_paused_task_skips_its_slot_with_a_verdict(stage: Stage, until_in_ms: int | None) -> None:
    """Until resumed, or until an instant that has not come."""
    due_ms = await stage.due()
    await pause(stage, until_ms=until_in_ms and stage.now_ms + until_in_ms)
    assert await publish(stage, [stage.slot()]) == [Skipped("paused")]
    [entry] = await stage.store.ledger.all(TASK)
    assert (entry.verdict, entry.reason, entry.from_ms, entry.to_ms, entry.count) == (
        *("skipped", "paused"),
        *(due_ms, due_ms, 1),
    )
    assert entry.run_id is None
    assert await stage.due_ms(f"t/{TASK}") == stage.now_ms + FAR_MS
    assert await stage.in_stream() == []
    assert await stage.live() == {}


async def test_a_pause_whose_end_has_come_pauses_no_longer(stage: Stage) -> None:
    """Judged by Redis's clock, with no need of anybody to resume it."""
    await stage.due()
    await pause(stage, until_ms=stage.now_ms - 1)
    assert await publish(stage, [stage.slot()]) == [Published()]


@pytest.mark.parametrize("state", ["queued", "running", "parked"])
async def test_a_task_that_does_not_overlap_skips_while_a_run_of_it_is_there(stage: Stage, state: str) -> None:
    """Queued, running and parked runs count; so the ledger says overlap."""
    await getattr(stage, state)(overlap="skip")
    await stage.redis.zadd(stage.store.keys.due, {f"t/{TASK}": stage.now_ms - 1_000})
    before = await stage.live()
    assert set(before.values()) == {state}
    assert await publish(stage, [stage.slot(overlap="skip")]) == [Skipped("overlap")]
    assert await stage.live() == before
    assert await stage.verdicts() == [("skipped", "overlap")]


async def test_a_task_that_overlaps_itself_is_published_whatever_is_there(stage: Stage) -> None:
    """And its waiting retry goes on being one."""
    item = await stage.waiting(delay_ms=FAR_MS)
    await stage.queued(ago_ms=500)
    assert await stage.live() == {item.id: "waiting", f"{TASK}@{stage.now_ms - 500}": "queued"}
    assert await stage.verdicts() == []


async def test_a_slot_supersedes_the_waiting_retry_of_a_task_that_does_not_overlap(stage: Stage) -> None:
    """The retry has its verdict, and nothing of it stays."""
    item = await stage.waiting(overlap="skip", delay_ms=FAR_MS)
    run_id = await stage.queued(overlap="skip", ago_ms=0)
    assert await stage.live() == {run_id: "queued"}
    assert await stage.record(item.id) == {}
    assert await stage.due_ms(f"r/{item.id}") is None
    [entry] = await stage.store.ledger.all(TASK)
    assert (entry.verdict, entry.reason, entry.run_id, entry.attempt) == ("failed", "superseded", item.id, 2)
    assert entry.story == ("{}",)


@pytest.mark.parametrize("how", ["of another type", "with a hole"])
async def test_a_waiting_retry_with_a_broken_record_breaks_the_slot_and_nothing_else(stage: Stage, how: str) -> None:
    """The records of retries are read from the index, and checked like those named in KEYS."""
    item = await stage.waiting(overlap="skip", delay_ms=FAR_MS)
    if how == "with a hole":
        await stage.redis.hdel(stage.store.keys.run(item.id), "slot")
    else:
        await stage.redis.set(stage.store.keys.run(item.id), "not ours")
    await stage.due(OTHER)
    await stage.redis.zadd(stage.store.keys.due, {f"t/{TASK}": stage.now_ms - 1_000})
    broken, published = await publish(stage, [stage.slot(overlap="skip"), stage.slot(OTHER)])
    assert isinstance(broken, Broken)
    assert published == Published()
    assert await stage.live() == {item.id: "waiting"}


async def test_a_waiting_retry_without_a_record_does_not_stop_its_task(stage: Stage) -> None:
    """Redis lost the record: there is nothing left to end, and the slot is published."""
    item = await stage.waiting(overlap="skip", delay_ms=FAR_MS)
    await stage.redis.delete(stage.store.keys.run(item.id))
    run_id = await stage.queued(overlap="skip", ago_ms=0)
    assert await stage.live() == {run_id: "queued"}


async def test_a_stream_that_is_full_skips_further_slots_with_a_verdict(stage: Stage) -> None:
    """Of the stream of its priority; the slots of one call count too."""
    for task in (TASK, OTHER, "group/third"):
        await stage.due(task)
    await stage.due("group/high")
    slots = [*map(stage.slot, (TASK, OTHER, "group/third")), stage.slot("group/high", priority="high")]
    assert await publish(stage, slots, cap=2) == [
        *(Published(), Published(), Skipped("queue full"), Published()),
    ]
    assert await stage.verdicts("group/third") == [("skipped", "queue full")]
    assert len(await stage.in_stream()) == 2


async def test_runs_in_progress_take_no_place_in_the_queue(stage: Stage) -> None:
    """Their entries stay in the stream until they end; the cap is about those that wait for a worker."""
    await stage.running(TASK)
    await stage.running(OTHER)
    for task in ("group/third", "group/fourth"):
        await stage.due(task)
    slots = [stage.slot("group/third"), stage.slot("group/fourth")]
    assert await publish(stage, slots, cap=1) == [Published(), Skipped("queue full")]


# -- move -------------------------------------------------------------------------------------------------------------


async def test_passing_over_slots_gives_them_one_verdict_together(stage: Stage) -> None:
    """From the first to the last, with their number."""
    due_ms = await stage.due(in_ms=-60_000)
    move = Move(TASK, due_ms, stage.now_ms + FAR_MS, count=31, last_ms=stage.now_ms - 1_000)
    assert await stage.store.timetable.move(stage.leader, [move]) == [Done()]
    [entry] = await stage.store.ledger.all(TASK)
    assert (entry.verdict, entry.reason, entry.count) == ("missed", "catch-up", 31)
    assert (entry.from_ms, entry.to_ms) == (due_ms, stage.now_ms - 1_000)
    assert await stage.store.timetable.tasks() == {TASK: stage.now_ms + FAR_MS}


@pytest.mark.parametrize("next_in_ms", [FAR_MS, None])
async def test_rescheduling_moves_the_instant_and_writes_no_verdict(stage: Stage, next_in_ms: int | None) -> None:
    """The schedule was changed before the slot was due: nothing is missed."""
    due_ms = await stage.due(in_ms=60_000)
    next_ms = None if next_in_ms is None else stage.now_ms + next_in_ms
    assert await stage.store.timetable.move(stage.leader, [Move(TASK, due_ms, next_ms)]) == [Done()]
    assert await stage.due_ms(f"t/{TASK}") == next_ms
    assert await stage.verdicts() == []


async def test_a_slot_in_the_future_cannot_be_passed_over(stage: Stage) -> None:
    """A leader whose clock is ahead would record slots as missed that can still run."""
    due_ms = await stage.due()
    before = await stage.snapshot()
    move = Move(TASK, due_ms, stage.now_ms + 2 * FAR_MS, count=2, last_ms=stage.now_ms + FAR_MS)
    [reply] = await stage.store.timetable.move(stage.leader, [move])
    assert isinstance(reply, Early)
    assert await stage.snapshot() == before


async def test_a_slot_that_has_passed_cannot_be_opened_again(stage: Stage) -> None:
    """Not by moving a task back: what was due before has its verdict. An earlier instant to come is allowed."""
    due_ms = await stage.due(in_ms=2 * FAR_MS)
    before = await stage.snapshot()
    [reply] = await stage.store.timetable.move(stage.leader, [Move(TASK, due_ms, stage.now_ms - 1)])
    assert isinstance(reply, Early)
    assert await stage.snapshot() == before
    assert await stage.store.timetable.move(stage.leader, [Move(TASK, due_ms, stage.now_ms + FAR_MS)]) == [Done()]
    assert await stage.store.timetable.tasks() == {TASK: stage.now_ms + FAR_MS}


@pytest.mark.parametrize("how", ["published", "skipped", "passed over"])
async def test_no_slot_up_to_the_latest_ever_passed_is_opened_again(stage: Stage, how: str) -> None:
    """Though the clock of Redis stands before it now: it stepped back, and what was passed has its verdict."""
    if how == "skipped":
        await pause(stage)
    due_ms = await stage.due(in_ms=-1)
    if how == "passed over":
        await stage.store.timetable.move(stage.leader, [Move(TASK, due_ms, due_ms + 1, count=1, last_ms=due_ms)])
    else:
        await publish(stage, [stage.slot(in_ms=-1)])
    assert await stage.store.timetable.passed_ms() == due_ms
    passed_ms = stage.now_ms + FAR_MS
    await stage.redis.set(stage.store.keys.passed, passed_ms)  # as if the clock had stepped back by an hour
    due_ms = await stage.due(OTHER, in_ms=3 * FAR_MS)
    [reply] = await stage.store.timetable.move(stage.leader, [Move(OTHER, due_ms, passed_ms)])
    assert isinstance(reply, Early)
    assert await stage.due_ms(f"t/{OTHER}") == due_ms
    assert await stage.store.timetable.move(stage.leader, [Move(OTHER, due_ms, passed_ms + 1)]) == [Done()]


async def test_what_was_passed_last_never_becomes_earlier(stage: Stage) -> None:
    """Slots of other tasks that are late lie before it."""
    await stage.due()
    await stage.due(OTHER, in_ms=-5_000)
    await publish(stage, [stage.slot()])
    await publish(stage, [stage.slot(OTHER, in_ms=-5_000)])
    assert await stage.store.timetable.passed_ms() == stage.now_ms - 1_000


async def test_a_move_from_an_instant_that_due_does_not_hold_is_refused(stage: Stage) -> None:
    """Somebody moved it first: the reply says to where."""
    due_ms = await stage.due()
    before = await stage.snapshot()
    moves = [Move(TASK, due_ms - 1, stage.now_ms), Move("group/none", due_ms, stage.now_ms)]
    assert await stage.store.timetable.move(stage.leader, moves) == [Moved(due_ms), Moved(None)]
    assert await stage.snapshot() == before


# -- requeue ----------------------------------------------------------------------------------------------------------


async def test_a_retry_whose_time_has_come_is_queued_again(stage: Stage) -> None:
    """A new entry in its stream, and due knows it no longer."""
    item = await stage.waiting()
    assert await stage.store.timetable.requeue(stage.leader, [item]) == [Queued()]
    assert await stage.in_stream() == [item.id]
    assert await stage.live() == {item.id: "queued"}
    assert await stage.due_ms(f"r/{item.id}") is None
    [claimed] = await stage.claim(await stage.read("B"), "B")
    assert (claimed.attempt, claimed.deliveries) == (2, 0)


async def test_a_parked_run_whose_next_look_has_come_is_queued_again(stage: Stage) -> None:
    """For a worker that knows its function."""
    item = await stage.parked()
    assert await stage.store.timetable.requeue(stage.leader, [item]) == [Queued()]
    assert await stage.in_stream() == [item.id]
    assert await stage.live() == {item.id: "queued"}


async def test_a_retry_that_is_not_due_or_due_at_another_instant_stays(stage: Stage) -> None:
    """Early by Redis's clock; moved where due holds something else."""
    item = await stage.waiting(delay_ms=FAR_MS)
    before = await stage.snapshot()
    early, moved = await stage.store.timetable.requeue(stage.leader, [item, Due(item.id, item.at_ms - 1, is_run=True)])
    assert isinstance(early, Early)
    assert moved == Moved(item.at_ms)
    assert await stage.snapshot() == before


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_a_run_that_neither_waits_nor_is_parked_is_not_queued_again(stage: Stage, state: str) -> None:
    """Something of an earlier retry is left in due: it goes, and the run is where it is."""
    if state == "running":
        run_id = (await stage.running()).run_id
    else:
        run_id = await stage.queued()
    await stage.redis.zadd(stage.store.keys.due, {f"r/{run_id}": stage.now_ms - 5})
    before = await stage.record(run_id)
    left = Due(run_id, stage.now_ms - 5, is_run=True)
    assert await stage.store.timetable.requeue(stage.leader, [left]) == [Moved(None)]
    assert await stage.record(run_id) == before
    assert await stage.live() == {run_id: state}
    assert await stage.in_stream() == [run_id]
    assert await stage.due_ms(f"r/{run_id}") is None


async def test_what_is_left_of_a_run_that_is_no_more_is_removed(stage: Stage) -> None:
    """Or it would be looked at, or stand in the way of its task, for ever."""
    item = await stage.waiting()
    await stage.redis.delete(stage.store.keys.run(item.id))
    assert await stage.store.timetable.requeue(stage.leader, [item]) == [Moved(None)]
    assert await stage.due_ms(f"r/{item.id}") is None
    assert await stage.live() == {}
    assert await stage.in_stream() == []


async def test_a_waiting_retry_of_a_paused_task_fails_and_an_unstarted_run_is_skipped(stage: Stage) -> None:
    """Each slot has its verdict, and nothing of the runs stays."""
    retry, parked = await stage.waiting(), await stage.parked(OTHER)
    for task in (TASK, OTHER):
        await stage.store.catalog.pause([task], task, until_ms=None, details="{}", who="me")
    assert await stage.store.timetable.requeue(stage.leader, [retry, parked]) == [
        Ended("failed", "paused"),
        Ended("skipped", "paused"),
    ]
    assert await stage.verdicts(TASK) == [("failed", "paused")]
    assert await stage.verdicts(OTHER) == [("skipped", "paused")]
    for item, task in ((retry, TASK), (parked, OTHER)):
        assert (await stage.record(item.id), await stage.live(task)) == ({}, {})
        assert await stage.due_ms(f"r/{item.id}") is None


async def another(stage: Stage, state: str) -> None:
    """Another run of the task, beside the one that a test is about."""
    await stage.redis.hset(stage.store.keys.live(TASK), "another run", state)
    await stage.redis.hset(stage.store.keys.run("another run"), "state", state)


@pytest.mark.parametrize("state", ["queued", "running", "parked"])
async def test_a_live_entry_of_no_run_keeps_nothing_from_running(stage: Stage, state: str) -> None:
    """It names a run that has no record: nobody would ever end it."""
    await stage.redis.hset(stage.store.keys.live(TASK), "no run", state)
    await stage.due()
    assert await publish(stage, [stage.slot(overlap="skip")]) == [Published()]
    [claimed] = await stage.store.runs.claim("A", "token", await stage.read(), lease_ms=1_000)
    assert isinstance(claimed, Claimed)


async def test_force_passes_a_pause_and_never_an_overlap(stage: Stage) -> None:
    """Somebody asked for this run by name: the pause is not meant for it, the overlap is."""
    item = await stage.waiting(overlap="skip")
    await stage.redis.hset(stage.store.keys.run(item.id), "force", "1")
    await pause(stage)
    assert await stage.store.timetable.requeue(stage.leader, [item]) == [Queued()]
    held = await stage.taken()
    await stage.store.runs.fail("A", [Failure(held, 0, "{}")])
    [again] = [due for due in await stage.store.timetable.window(stage.now_ms + 60_000) if due.is_run]
    await another(stage, "running")
    assert await stage.store.timetable.requeue(stage.leader, [again]) == [Ended("failed", "superseded")]


async def test_a_run_that_was_started_before_goes_on_although_its_task_is_paused(stage: Stage) -> None:
    """It was handed back, and then parked by a worker that does not know it: a pause stops no run in progress."""
    held = await stage.running()
    await stage.store.runs.hand_back("A", [held])
    await stage.store.runs.defer("B", await stage.read("B"), most=100, first_ms=0)
    await pause(stage)
    [item] = [due for due in await stage.store.timetable.window(stage.now_ms + 60_000) if due.is_run]
    assert await stage.store.timetable.requeue(stage.leader, [item]) == [Queued()]


@pytest.mark.parametrize(
    ("bring", "ended"), [("waiting", Ended("failed", "superseded")), ("parked", Ended("skipped", "overlap"))]
)
@pytest.mark.parametrize("state", ["queued", "running"])
async def test_a_run_of_a_task_that_does_not_overlap_ends_if_another_is_there(
    stage: Stage, bring: str, ended: Ended, state: str
) -> None:
    """A retry is superseded; a run that never started is skipped. The other one goes on."""
    item = await getattr(stage, bring)(overlap="skip")
    await another(stage, state)
    assert await stage.store.timetable.requeue(stage.leader, [item]) == [ended]
    assert await stage.verdicts() == [(ended.verdict, ended.reason)]
    assert await stage.live() == {"another run": state}


# -- reading ----------------------------------------------------------------------------------------------------------


async def test_the_window_is_read_in_pages_in_the_order_of_time(stage: Stage) -> None:
    """Tasks and runs, up to an instant, whatever the size of a page."""
    tasks = [f"group/{number}" for number in range(7)]
    for number, task in enumerate(tasks):
        await stage.due(task, in_ms=number)
    await stage.redis.zadd(stage.store.keys.due, {"r/group/x@1": stage.now_ms + 2})
    for page in (1, 2, 3, 100):
        found = await stage.store.timetable.window(stage.now_ms + 5, page=page)
        assert [item.at_ms - stage.now_ms for item in found] == [0, 1, 2, 2, 3, 4, 5]
        assert {item.id for item in found if item.is_run} == {"group/x@1"}


async def test_two_applications_on_one_redis_do_not_see_each_other(stage: Stage) -> None:
    """Their prefixes keep them apart."""
    before = await stage.snapshot()
    other = await Stage.set(Store.over(stage.store.transport, prefix="test two"))
    await other.running()
    assert await stage.snapshot() == before
    assert await stage.store.timetable.tasks() == {}
