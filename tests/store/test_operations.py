"""trigger, cancel, reset_retry, revive, discard, define, forget: what operators do, once for each request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from engine.domain.names import trigger_run_id
from engine.store import operations
from engine.store.operations import Accepted, Changed, Defined, Dynamic, Refused, Taken, Trigger, Unchanged
from engine.store.runs import Claimed, Completion, Failure, Gone, Hold, Waiting
from engine.store.session import Broken
from engine.store.timetable import Due, Moved, Queued
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, completion, expect, forget_in_part, hold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.store.operations import DefineReply, TriggerReply

WHO = "ada@example.org"
DEFINITION = '{"kwargs":{"a|b":[],"n":12345678901234567890}}'


def trigger(task: str = TASK, unique: str = "one", *, overlap: str = "allow", priority: str = "low") -> Trigger:
    return Trigger(trigger_run_id(task, unique), priority, overlap)


async def ask(stage: Stage, *triggers: Trigger, queue_cap: int = 100_000) -> list[TriggerReply]:
    return await stage.store.operations.trigger(triggers, who=WHO, queue_cap=queue_cap)


async def events(stage: Stage, name: str) -> list[tuple[str, str]]:
    """What was done under this name, and by whom, the oldest first."""
    entries = await stage.entries(stage.store.keys.events)
    return [(fields["what"], fields["who"]) for fields in entries if fields["event"] == name]


async def nothing_left_of(stage: Stage, *run_ids: str) -> None:
    """No key and no index knows these runs."""
    snapshot = await stage.snapshot()
    keys = stage.store.keys
    kept = {keys.events, keys.wake, keys.dead, *(key for key in snapshot if ":ledger:" in key or ":once:" in key)}
    assert not [
        key for key, value in snapshot.items() for run_id in run_ids if run_id in key + repr(value) and key not in kept
    ]


async def pause(stage: Stage, *, until_ms: int | None = None) -> None:
    await stage.store.catalog.pause([TASK], "pause", until_ms=until_ms, details="{}", who="me")


# -- trigger ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", ["high", "low"])
async def test_a_trigger_queues_a_run_that_has_no_slot(stage: Stage, priority: str) -> None:
    """It is a run like any other, but for its empty slot and what was given with it, which no script reads."""
    kwargs = '{"empty":[],"large":12345678901234567890}'
    asked = replace(trigger(priority=priority), kwargs=kwargs)
    assert await ask(stage, asked) == [Accepted()]
    record = await stage.record(asked.run_id)
    assert await stage.in_stream(priority) == [asked.run_id]
    assert await stage.live() == {asked.run_id: "queued"}
    assert record == {
        "state": "queued",
        "entry": record["entry"],
        "task": TASK,
        "slot": "",
        "attempt": "1",
        "deliveries": "0",
        "fence": "0",
        "priority": priority,
        "overlap": "allow",
        "kwargs": kwargs,
    }
    [claimed] = await stage.claim(await stage.read(priority=priority))
    assert (claimed.slot_ms, claimed.kwargs, claimed.attempt) == (None, kwargs, 1)
    await stage.store.runs.complete("A", [completion(hold(claimed))])
    [entry] = await stage.store.ledger.all(TASK)
    assert (entry.verdict, entry.run_id, entry.from_ms, entry.count) == ("ran", asked.run_id, None, 1)
    await nothing_left_of(stage, asked.run_id)


async def test_triggers_are_in_the_events_with_who_asked(stage: Stage) -> None:
    """One event for a call; the refused ones are not in it."""
    await pause(stage)
    await ask(stage, trigger(OTHER), trigger(), trigger(OTHER, "two"))
    assert await events(stage, "triggered") == [(f"{OTHER}@t-one {OTHER}@t-two", WHO)]


async def test_a_paused_task_is_not_triggered(stage: Stage) -> None:
    """The caller is told; there is no run, and no verdict of one. A pause that is over forbids nothing."""
    await pause(stage, until_ms=stage.now_ms + 600_000)
    assert await ask(stage, trigger()) == [Refused("paused")]
    assert (await stage.live(), await stage.verdicts(), await stage.in_stream()) == ({}, [], [])
    assert await events(stage, "triggered") == []
    await stage.redis.hset(stage.store.keys.paused, TASK, f"{stage.now_ms - 1}|{{}}")
    assert await ask(stage, trigger(unique="two")) == [Accepted()]
    record = await stage.record(trigger(unique="two").run_id)
    assert not {"force", "kwargs"} & record.keys()  # none were given


async def test_force_passes_a_pause_from_the_trigger_to_the_last_try(stage: Stage) -> None:
    """Neither claim nor requeue refuse the run afterwards."""
    await pause(stage)
    assert await ask(stage, replace(trigger(), force=True)) == [Accepted()]
    held = await stage.taken()
    [reply] = await stage.store.runs.fail("A", [Failure(held, 0, "{}")])
    due = Due(held.run_id, expect(Waiting, reply).due_ms, is_run=True)
    assert await stage.store.timetable.requeue(stage.leader, [due]) == [Queued()]
    await stage.taken()


async def queued(stage: Stage) -> str:
    return await stage.queued(overlap="skip")


async def running(stage: Stage) -> str:
    return (await stage.running(overlap="skip")).run_id


async def parked(stage: Stage) -> str:
    return (await stage.parked(overlap="skip", first_ms=600_000)).id


async def waiting(stage: Stage) -> str:
    return (await stage.waiting(overlap="skip", delay_ms=600_000)).id


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("predecessor", [queued, running, parked])
async def test_overlap_refuses_a_trigger_with_or_without_force(
    stage: Stage, predecessor: Callable[[Stage], Awaitable[str]], *, force: bool
) -> None:
    """A task that does not overlap itself is not run twice at the same time, whoever wants it."""
    run_id = await predecessor(stage)
    assert await ask(stage, replace(trigger(overlap="skip"), force=force)) == [Refused("overlap")]
    assert set(await stage.live()) == {run_id}
    assert await ask(stage, trigger(unique="two", overlap="allow")) == [Accepted()]


async def test_a_trigger_supersedes_a_waiting_retry(stage: Stage) -> None:
    """As a slot does: what waits for another try gives way, with a verdict."""
    retry = await waiting(stage)
    asked = trigger(overlap="skip")
    assert await ask(stage, asked) == [Accepted()]
    assert await stage.live() == {asked.run_id: "queued"}
    assert await stage.verdicts() == [("failed", "superseded")]
    await nothing_left_of(stage, retry)


async def test_where_runs_overlap_a_trigger_leaves_the_retry_alone(stage: Stage) -> None:
    """They are independent of each other."""
    retry = await stage.waiting(delay_ms=600_000)
    assert await ask(stage, trigger()) == [Accepted()]
    assert await stage.live() == {retry.id: "waiting", trigger().run_id: "queued"}
    assert await stage.due_ms(f"r/{retry.id}") == retry.at_ms


async def test_a_full_queue_refuses_what_is_over_its_cap(stage: Stage) -> None:
    """The runs of the same call count, each in its own stream."""
    replies = await ask(
        stage, *(trigger(unique=f"{i}") for i in range(3)), trigger(unique="high", priority="high"), queue_cap=2
    )
    assert replies == [Accepted(), Accepted(), Refused("queue full"), Accepted()]
    assert len(await stage.in_stream()) == 2


async def test_triggers_in_one_call_see_each_other(stage: Stage) -> None:
    """Of a task that does not overlap itself one is queued, and one request that is there twice makes one run."""
    replies = await ask(stage, *(trigger(unique=name, overlap="skip") for name in ("one", "two", "one")))
    assert replies == [Accepted(), Refused("overlap"), Accepted()]
    assert await stage.in_stream() == [trigger().run_id]


async def test_the_answer_to_a_trigger_is_kept_for_ten_minutes(stage: Stage) -> None:
    """For its repeat; then it goes by itself. The run itself answers for as long as it lives."""
    await pause(stage)
    await ask(stage, trigger(), trigger(OTHER))
    for asked in (trigger(), trigger(OTHER)):
        assert 0 < await stage.redis.ttl(stage.store.keys.once(asked.run_id)) <= 600
        await stage.redis.delete(stage.store.keys.once(asked.run_id))
    assert await ask(stage, trigger(OTHER)) == [Accepted()]
    assert await stage.in_stream() == [trigger(OTHER).run_id]


@pytest.mark.parametrize("part", ["record", "live", "ledger", "once"])
async def test_a_broken_task_does_not_stop_the_triggers_of_others(stage: Stage, part: str) -> None:
    """Its keys hold what Troupe did not write; they are left as they are."""
    keys, asked = stage.store.keys, trigger()
    key = {
        "record": keys.run(asked.run_id),
        "live": keys.live(TASK),
        "ledger": keys.ledger(TASK),
        "once": keys.once(asked.run_id),
    }[part]
    await stage.redis.execute_command("RPUSH", key, "not ours")
    before = await stage.snapshot()
    replies = await ask(stage, trigger(OTHER), asked, trigger(OTHER, "two"))
    assert [type(reply) for reply in replies] == [Accepted, Broken, Accepted]
    after = await stage.snapshot()
    assert {name: value for name, value in after.items() if TASK in name} == {
        name: value for name, value in before.items() if TASK in name
    }


async def test_a_trigger_of_an_unknown_priority_is_broken(stage: Stage) -> None:
    """Found while nothing is written yet."""
    before = await stage.snapshot()
    [reply] = await ask(stage, trigger(priority="urgent"))
    assert "priority" in expect(Broken, reply).why
    assert await stage.snapshot() == before


async def test_more_triggers_than_fit_into_a_call_take_several(stage: Stage) -> None:
    """Each with its answer, in order."""
    asked = [trigger(unique=f"{i}") for i in range(501)]
    assert await ask(stage, *asked, queue_cap=500) == [Accepted()] * 500 + [Refused("queue full")]
    assert await stage.in_stream() == [one.run_id for one in asked[:500]]


async def test_the_repeat_of_many_triggers_gets_the_answers_of_the_first_time(stage: Stage) -> None:
    """All calls again, in any state since: what was refused stays refused, and nothing is queued twice."""
    asked = [trigger(f"group/{i}", overlap="skip") for i in range(1_100)]
    paused = [one.run_id.partition("@")[0] for one in (asked[3], asked[700])]
    await stage.store.catalog.pause(paused, "pause", until_ms=None, details="{}", who="me")
    asked.append(trigger("group/5", "again", overlap="skip"))  # in the third call; the first has queued one
    first = await ask(stage, *asked)
    refused = {place: reply for place, reply in enumerate(first) if reply != Accepted()}
    assert refused == {3: Refused("paused"), 700: Refused("paused"), 1_100: Refused("overlap")}
    await stage.store.catalog.resume(paused, "resume", who="me")
    await cancel(stage, asked[5].run_id)
    before = await stage.snapshot()
    assert await ask(stage, *asked) == first
    assert await stage.snapshot() == before


# -- cancel -----------------------------------------------------------------------------------------------------------


async def cancel(stage: Stage, *run_ids: str, operation: str = "cancel") -> list[str | Broken]:
    return await stage.store.operations.cancel(run_ids, operation, who=WHO)


@pytest.mark.parametrize("state", [queued, waiting, parked])
async def test_a_run_that_is_not_running_ends_when_it_is_cancelled(
    stage: Stage, state: Callable[[Stage], Awaitable[str]]
) -> None:
    """With its verdict, and nothing of it is left; what a worker has read of it is stale."""
    run_id = await state(stage)
    entries = await stage.read()
    assert await cancel(stage, run_id, "group/task@1") == ["ended", "gone"]
    assert await stage.verdicts() == [("failed", "cancelled")]
    assert await events(stage, "cancelled") == [(run_id, WHO)]
    await nothing_left_of(stage, run_id)
    if entries:
        assert await stage.claim([]) == []
        [reply] = await stage.store.runs.claim("A", "late", entries, lease_ms=LEASE_MS)
        assert not isinstance(reply, Claimed)


async def test_a_running_run_is_asked_to_stop(stage: Stage) -> None:
    """Its worker hears of it with the next beat, and its verdict is the one that the worker gives it."""
    held = await stage.running()
    other = await stage.running(OTHER)
    assert await cancel(stage, held.run_id) == ["asked"]
    assert await stage.live() == {held.run_id: "running"}
    leases = [(held.run_id, held.fence), (other.run_id, other.fence)]
    beat = await stage.store.leases.beat("A", leases, lease_ms=LEASE_MS, details="{}", draining=False)
    assert beat.stop == {(held.run_id, held.fence)}
    await stage.store.runs.complete("A", [completion(held, "ran")])
    assert await stage.verdicts() == [("ran", "")]
    await nothing_left_of(stage, held.run_id)


async def fails(stage: Stage, held: Hold) -> None:
    assert await stage.store.runs.fail("A", [Failure(held, 0, '{"attempt": 1}')]) == [Gone()]


async def is_handed_back(stage: Stage, held: Hold) -> None:
    await stage.store.runs.hand_back("A", [held])


async def is_lost(stage: Stage, held: Hold) -> None:
    lease = await stage.lease(held)
    await stage.store.leases.reclaim(stage.leader, [lease], max_deliveries=3, story='{"attempt": 1}')


@pytest.mark.parametrize("ends", [fails, is_handed_back, is_lost])
async def test_a_run_that_was_asked_to_stop_is_not_started_again(
    stage: Stage, ends: Callable[[Stage, Hold], Awaitable[None]]
) -> None:
    """Whatever becomes of its attempt: no retry, no other worker takes it over."""
    held = await stage.running()
    await cancel(stage, held.run_id)
    await ends(stage, held)
    assert await stage.verdicts() == [("failed", "cancelled")]
    [entry] = await stage.store.ledger.all(TASK)
    assert len(entry.story) == (0 if ends is is_handed_back else 1)
    await nothing_left_of(stage, held.run_id)


async def test_a_run_that_is_named_twice_ends_once(stage: Stage) -> None:
    """In one call: two answers, one verdict."""
    run_id = await stage.queued()
    assert await cancel(stage, run_id, run_id) == ["ended", "ended"]
    assert await stage.verdicts() == [("failed", "cancelled")]


async def test_a_broken_run_stops_no_other_and_can_be_cancelled_when_it_is_mended(stage: Stage) -> None:
    """Only what was done is kept for the repeat."""
    runs = [await stage.queued(task) for task in (TASK, OTHER)]
    record = stage.store.keys.run(runs[0])
    await stage.redis.hdel(record, "attempt")
    replies = await cancel(stage, *runs)
    assert "incomplete" in expect(Broken, replies[0]).why
    assert replies[1] == "ended"
    await stage.redis.hset(record, "attempt", 1)
    assert await cancel(stage, *runs) == ["ended", "ended"]
    assert await stage.verdicts(OTHER) == await stage.verdicts(TASK) == [("failed", "cancelled")]
    assert await events(stage, "cancelled") == [(runs[1], WHO), (runs[0], WHO)]


async def test_the_answer_to_an_operation_is_kept_for_ten_minutes(stage: Stage) -> None:
    """Also where nothing was done, and for each call of an operation that takes several."""
    runs = [f"{TASK}@{i}" for i in range(501)]
    assert await cancel(stage, *runs) == ["gone"] * 501
    for operation in ("cancel", "cancel:1"):
        assert 0 < await stage.redis.ttl(stage.store.keys.once(operation)) <= 600


# -- reset_retry ------------------------------------------------------------------------------------------------------


async def reset(stage: Stage, *tasks: str, operation: str = "reset") -> list[int | Broken]:
    return await stage.store.operations.reset_retry(tasks, operation, who=WHO)


async def test_a_retry_that_waits_becomes_due_now_and_the_coordinator_hears_of_it(stage: Stage) -> None:
    """Other runs of the task, other tasks and the task's own slot stay when they are."""
    other = await stage.waiting(OTHER, delay_ms=600_000)
    parked = await stage.parked(first_ms=60_000)
    retry = await stage.waiting(delay_ms=600_000, ago_ms=2)
    slot_ms = await stage.due_ms(f"t/{TASK}")
    assert await reset(stage, TASK) == [1]
    due_ms = await stage.due_ms(f"r/{retry.id}")
    assert due_ms is not None
    assert stage.now_ms <= due_ms < retry.at_ms
    assert (await stage.entries(stage.store.keys.wake))[-1] == {"due": f"r/{retry.id}", "at": f"{due_ms}"}
    assert await stage.due_ms(f"r/{other.id}") == other.at_ms
    assert await stage.due_ms(f"r/{parked.id}") == parked.at_ms
    assert await stage.due_ms(f"t/{TASK}") == slot_ms
    assert await events(stage, "retries reset") == [(TASK, WHO)]
    assert await stage.store.timetable.requeue(stage.leader, [Due(retry.id, due_ms, is_run=True)]) == [Queued()]


async def test_a_retry_that_is_due_already_is_left_where_it_is(stage: Stage) -> None:
    """It would only lose its place; a task with nothing to reset answers 0."""
    retry = await stage.waiting()
    assert await reset(stage, TASK, OTHER) == [0, 0]
    assert await stage.due_ms(f"r/{retry.id}") == retry.at_ms
    assert await events(stage, "retries reset") == []


async def test_many_retries_take_several_calls(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all of which the repeat gets the same answer."""
    monkeypatch.setattr(operations, "MAX_ITEMS", 2)
    retries = [await stage.waiting(delay_ms=600_000, ago_ms=ago_ms) for ago_ms in range(5)]
    retries += [await stage.waiting(OTHER, delay_ms=600_000)]
    assert await reset(stage, TASK, OTHER, TASK) == [5, 1, 5]
    assert [what for what, _ in await events(stage, "retries reset")] == [TASK, TASK, f"{TASK} {OTHER}"]
    after = await stage.snapshot()
    assert all([(await stage.due_ms(f"r/{retry.id}") or 0) < retry.at_ms - 60_000 for retry in retries])
    assert await reset(stage, TASK, OTHER, TASK) == [5, 1, 5]
    assert await stage.snapshot() == after


async def test_a_broken_task_stops_no_other_reset(stage: Stage) -> None:
    """Its index is left as it is."""
    await stage.waiting(delay_ms=600_000)
    await stage.redis.set(stage.store.keys.live(OTHER), "not ours")
    replies = await reset(stage, OTHER, TASK)
    assert [type(reply) for reply in replies] == [Broken, int]


async def test_the_repeat_of_many_resets_gets_the_answers_of_the_first_time(stage: Stage) -> None:
    """At most 500 tasks in a call, each with its answer in order; retries that failed again since are left alone."""
    tasks = [f"group/{i}" for i in range(501)]
    assert await ask(stage, *(trigger(task) for task in tasks[1:])) == [Accepted()] * 500
    held = [hold(claimed) for claimed in await stage.claim(await stage.read())]
    await stage.store.runs.fail("A", [Failure(one, 600_000, "{}") for one in held])
    reset = stage.store.operations.reset_retry
    assert await reset(tasks, "reset", who=WHO) == [0] + [1] * 500
    due = await stage.store.timetable.window(stage.now_ms + 60_000)
    assert len(due) == 500
    await stage.redis.zadd(stage.store.keys.due, {f"r/{due[0].id}": stage.now_ms + 600_000})
    before = await stage.snapshot()
    assert await reset(tasks, "reset", who=WHO) == [0] + [1] * 500
    assert await stage.snapshot() == before


# -- dead runs --------------------------------------------------------------------------------------------------------


async def died(stage: Stage, *triggers: Trigger, story: str = '{"n": 1}') -> list[str]:
    """Dead runs, one for each trigger; their entries, the oldest first."""
    for asked in triggers:
        await ask(stage, asked)
        held = await stage.taken()
        await stage.store.runs.complete("A", [Completion(held, "dead", "max_retries", story)])
    return [dead.entry_id for dead in await stage.store.operations.dead(count=100)][::-1]


async def revive(
    stage: Stage, entry_id: str, *, task: str = TASK, operation: str = "revive", queue_cap: int = 100
) -> TriggerReply:
    run_id = trigger_run_id(task, f"again-{operation}")
    return await stage.store.operations.revive(entry_id, run_id, operation, who=WHO, queue_cap=queue_cap)


async def test_dead_runs_are_read_with_their_story_the_newest_first(stage: Stage) -> None:
    """Whole, for whoever decides about them."""
    await died(stage, trigger(), replace(trigger(OTHER), kwargs='{"a":[]}'))
    newest, oldest = await stage.store.operations.dead(count=5)
    assert [newest] == await stage.store.operations.dead(count=1)
    assert (oldest.task_id, oldest.kwargs, oldest.slot_ms) == (TASK, "", None)
    assert (newest.run_id, newest.task_id, newest.kwargs) == (trigger(OTHER).run_id, OTHER, '{"a":[]}')
    assert (newest.reason, newest.attempt, newest.deliveries, newest.story) == ("max_retries", 1, 0, ('{"n": 1}',))
    assert newest.at_ms >= stage.now_ms


async def test_a_dead_run_is_revived_as_a_run_of_its_own(stage: Stage) -> None:
    """From the first attempt, with the same arguments; its slot has had its verdict. It leaves the dead."""
    held = await stage.running(priority="high", overlap="skip")
    await stage.redis.hset(stage.store.keys.run(held.run_id), mapping={"kwargs": '{"a":[]}', "attempt": 7, "force": 1})
    await stage.store.runs.complete("A", [completion(held, "dead", "max_retries")])
    [dead] = await stage.store.operations.dead(count=5)
    assert dead.slot_ms == stage.now_ms - 1
    assert await revive(stage, dead.entry_id) == Accepted()
    assert await stage.store.operations.dead(count=5) == []
    run_id = f"{TASK}@t-again-revive"
    record = await stage.record(run_id)
    assert record == {
        "state": "queued",
        "entry": record["entry"],
        "task": TASK,
        "slot": "",
        "attempt": "1",
        "deliveries": "0",
        "fence": "0",
        "priority": "high",
        "overlap": "skip",
        "kwargs": '{"a":[]}',
    }
    assert await stage.in_stream("high") == [run_id]
    assert await events(stage, "revived") == [(run_id, WHO)]


async def test_a_dead_run_that_may_not_run_now_stays_among_the_dead(stage: Stage) -> None:
    """Nothing forbids it for ever: it can be tried again."""
    [entry_id] = await died(stage, trigger(overlap="skip"))
    await pause(stage)
    assert await revive(stage, entry_id) == Refused("paused")
    await stage.store.catalog.resume([TASK], "resume", who="me")
    assert await revive(stage, entry_id, operation="2", queue_cap=0) == Refused("queue full")
    await stage.queued(overlap="skip")
    assert await revive(stage, entry_id, operation="3") == Refused("overlap")
    assert len(await stage.store.operations.dead(count=5)) == 1
    await stage.store.runs.complete("A", [completion(await stage.taken())])
    assert await revive(stage, entry_id, operation="4") == Accepted()
    assert await revive(stage, entry_id, operation="5") == Refused("gone")


async def test_a_revived_run_supersedes_a_waiting_retry(stage: Stage) -> None:
    """As a trigger does."""
    [entry_id] = await died(stage, trigger(overlap="skip"))
    await waiting(stage)
    assert await revive(stage, entry_id) == Accepted()
    assert await stage.verdicts() == [("dead", "max_retries"), ("failed", "superseded")]


@pytest.mark.parametrize("entry_id", ["1-1", "no id"])
async def test_a_dead_run_is_revived_only_from_an_entry_of_its_task(stage: Stage, entry_id: str) -> None:
    """An entry that is none is gone; what is no id, or is another task's, is refused before anything is written."""
    assert isinstance(await revive(stage, entry_id), Refused if entry_id == "1-1" else Broken)
    [mine] = await died(stage, trigger())
    before = await stage.snapshot()
    reply = await revive(stage, mine, task=OTHER, operation="other")
    assert "is not of the task" in expect(Broken, reply).why
    assert await stage.snapshot() == before


async def test_dead_runs_are_discarded_one_by_one(stage: Stage) -> None:
    """The others stay; what is there no more is gone, and says so."""
    first, second, third = await died(stage, trigger(), trigger(unique="2"), trigger(unique="3"))
    discard = stage.store.operations.discard
    assert await discard([first, "1-1", third], "one", who=WHO) == ["discarded", "gone", "discarded"]
    assert [dead.entry_id for dead in await stage.store.operations.dead(count=5)] == [second]
    assert await events(stage, "discarded") == [(f"{first} {third}", WHO)]
    replies = await discard(["no id", second], "two", who=WHO)
    assert [type(reply) for reply in replies] == [Broken, str]


# -- define -----------------------------------------------------------------------------------------------------------


async def define(
    stage: Stage, definition: str = DEFINITION, operation: str = "define", replaces: int | None = None
) -> DefineReply:
    return await stage.store.operations.define(TASK, definition, operation, who=WHO, replaces=replaces)


async def test_a_task_that_is_defined_is_in_the_catalog_as_it_was_given(stage: Stage) -> None:
    """No script reads the definition: what it says, and how it is written, stays. Everybody hears of it."""
    version = await stage.store.catalog.version()
    defined = expect(Defined, await define(stage))
    contents = await stage.store.catalog.contents()
    assert (contents.version, contents.dynamic, contents.forgotten) == (version + 1, {TASK: DEFINITION}, ())
    assert await stage.store.operations.dynamic(TASK) == Dynamic(defined.revision, DEFINITION)
    assert await events(stage, "defined") == [(TASK, WHO)]


async def test_the_same_definition_again_changes_nothing(stage: Stage) -> None:
    """Whether the caller wanted to replace one or not."""
    revision = expect(Defined, await define(stage)).revision
    for operation, replaces in (("2", None), ("3", revision), ("4", revision + 5)):
        assert await define(stage, operation=operation, replaces=replaces) == Unchanged(revision)
    assert await stage.store.catalog.version() == 1
    assert len(await events(stage, "defined")) == 1


async def test_a_definition_is_replaced_by_who_has_seen_it_and_by_nobody_else(stage: Stage) -> None:
    """Two who edit the same revision: the second is told, and nothing of the first is lost."""
    first = expect(Defined, await define(stage)).revision
    assert await define(stage, "{}", "blind") == Taken(first)
    second = expect(Defined, await define(stage, "{}", "edit", first)).revision
    assert second > first
    assert await define(stage, "[]", "late edit", first) == Changed(second)
    assert await stage.store.operations.dynamic(TASK) == Dynamic(second, "{}")
    assert len(await events(stage, "defined")) == 2


async def test_what_was_removed_is_not_edited_back_into_being(stage: Stage) -> None:
    """And a task defined anew has no revision that its predecessor of that name had."""
    first = expect(Defined, await define(stage)).revision
    await forget(stage)
    assert await define(stage, "{}", "edit", first) == Changed(0)
    assert expect(Defined, await define(stage, "{}", "anew")).revision > first


async def test_a_definition_that_is_not_ours_is_left_alone(stage: Stage) -> None:
    """A value without a revision: the answer says so, and nothing is written."""
    await stage.redis.hset(stage.store.keys.dynamic, TASK, "not ours")
    before = await stage.snapshot()
    match await define(stage):
        case Broken(why):
            assert "not ours" in why
        case reply:
            raise AssertionError(reply)
    assert await stage.snapshot() == before


# -- forget -----------------------------------------------------------------------------------------------------------


async def forget(stage: Stage, task: str = TASK, operation: str = "forget") -> int | Broken | None:
    return await stage.store.operations.forget(task, operation, who=WHO)


async def test_a_forgotten_task_leaves_nothing(stage: Stage) -> None:
    """Definition, due instant, pause, ledger, and each run that has not begun; one event tells of all of it."""
    await define(stage)
    runs = [
        (await stage.parked(first_ms=600_000)).id,
        (await stage.waiting(ago_ms=2, delay_ms=600_000)).id,
        await stage.queued(ago_ms=3),
        await stage.queued(ago_ms=4, priority="high"),
    ]
    await stage.read()
    await stage.store.runs.complete("A", [completion(await stage.running(OTHER))])
    held = await stage.running(ago_ms=5)
    await stage.store.runs.complete("A", [completion(held)])
    await pause(stage)
    other = await stage.store.ledger.all(OTHER)
    version = await stage.store.catalog.version()
    assert await forget(stage) == 4
    await nothing_left_of(stage, *runs)
    snapshot, keys = await stage.snapshot(), stage.store.keys
    known = {key for key, value in snapshot.items() if TASK in key + repr(value)}
    assert known <= {keys.events, keys.wake}
    assert await events(stage, "forgotten") == [(TASK, WHO)]
    assert (await stage.store.catalog.contents()).version == version + 1
    assert await stage.store.ledger.all(OTHER) == other


async def test_a_task_that_was_not_made_at_run_time_is_not_forgotten(stage: Stage) -> None:
    """Code declares it: its pause, its ledger and its runs are no business of this operation."""
    run_id = await stage.queued()
    await pause(stage)
    before = await stage.snapshot()
    assert await forget(stage) is None
    after = await stage.snapshot()
    assert after.pop(stage.store.keys.once("forget")) == ("string", "unknown")
    assert after == before
    assert run_id in await stage.live()


async def is_completed(stage: Stage, held: Hold) -> None:
    await stage.store.runs.complete("A", [completion(held)])


async def dies(stage: Stage, held: Hold) -> None:
    await stage.store.runs.complete("A", [completion(held, "dead", "max_retries")])


async def is_lost_the_last_time(stage: Stage, held: Hold) -> None:
    lease = await stage.lease(held)
    await stage.store.leases.reclaim(stage.leader, [lease], max_deliveries=1, story="{}")


async def is_abandoned_and_returns(stage: Stage, held: Hold) -> None:
    await stage.store.runs.abandon("A", held, reason="timed out", story="{}")
    assert await stage.verdicts() == []
    await stage.store.runs.complete("A", [completion(held, "failed", "timed out")])


@pytest.mark.parametrize(
    "ends", [is_completed, dies, fails, is_handed_back, is_lost, is_lost_the_last_time, is_abandoned_and_returns]
)
async def test_the_end_of_a_run_whose_task_was_forgotten_leaves_nothing(
    stage: Stage, ends: Callable[[Stage, Hold], Awaitable[None]]
) -> None:
    """It goes on undisturbed; then no verdict, no retry, no dead run, and nobody takes it over."""
    await define(stage)
    held = await stage.running()
    assert await forget(stage) == 0
    beat = await stage.store.leases.beat(
        "A", [(held.run_id, held.fence)], lease_ms=LEASE_MS, details="{}", draining=False
    )
    assert not beat.lost | beat.stop
    await ends(stage, held)
    await nothing_left_of(stage, held.run_id)
    assert await stage.verdicts() == []
    assert await stage.store.operations.dead(count=5) == []
    assert await stage.redis.execute_command("EXISTS", stage.store.keys.live(TASK)) == 0


async def test_a_task_with_many_runs_is_forgotten_in_several_calls(stage: Stage) -> None:
    """At most 500 runs in each; the caller hears the sum, and so does its repeat."""
    await define(stage)
    held = await stage.running()
    await ask(stage, *(trigger(unique=f"{i}") for i in range(1_203)))
    assert await forget(stage) == 1_203
    assert await stage.live() == {held.run_id: "running"}
    assert await stage.in_stream() == [held.run_id]  # whose entry is acknowledged at its end
    assert await stage.store.operations.dynamic(TASK) is None
    assert len(await events(stage, "forgotten")) == 1
    assert await forget(stage) == 1_203


@pytest.fixture
async def begun(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a task with a running run and four queued ones, two were dealt with; then the caller died. How many ended."""
    await define(stage)
    await stage.running(ago_ms=5)
    for ago_ms in range(4):
        await stage.queued(ago_ms=ago_ms)
    await pause(stage)
    monkeypatch.setattr(operations, "MAX_ITEMS", 2)
    ended = await forget_in_part(stage.store, TASK, most=2)
    assert len(await stage.live()) == 5 - ended
    return ended


async def test_a_task_that_is_being_forgotten_is_in_no_catalog(stage: Stage, begun: int) -> None:
    """It has no definition, no pause and no due instant any longer, but its name is taken until all of it is gone."""
    contents = await stage.store.catalog.contents()
    assert (contents.dynamic, contents.forgotten, contents.paused) == ({}, (TASK,), {})
    assert contents.version == 3  # defined, paused, forgotten
    assert await stage.due_ms(f"t/{TASK}") is None
    revision = expect(Taken, await define(stage, operation="anew")).revision
    assert await define(stage, operation="edit", replaces=revision) == Taken(revision)


@pytest.mark.parametrize("operation", ["forget", "another"])
async def test_a_removal_that_was_interrupted_goes_on_and_frees_the_name(
    stage: Stage, begun: int, operation: str
) -> None:
    """By its repeat, or by another operation; each counts what it ended itself."""
    version = await stage.store.catalog.version()
    assert await forget(stage, operation=operation) == (4 if operation == "forget" else 4 - begun)
    contents = await stage.store.catalog.contents()
    assert (contents.dynamic, contents.forgotten) == ({}, ())
    assert contents.version > version
    assert set((await stage.live()).values()) == {"running"}
    assert await events(stage, "forgotten") == [(TASK, "")]
    assert isinstance(await define(stage, operation="anew"), Defined)


async def test_whoever_leads_can_finish_a_removal(stage: Stage, begun: int) -> None:
    """It touches nothing but what is begun: a task of that name made since is safe from it."""
    finish = stage.store.operations.finish_forgetting
    assert await finish(TASK) == 4 - begun
    assert (await stage.store.catalog.contents()).forgotten == ()
    assert await finish(TASK) is None
    await define(stage, operation="anew")
    before = await stage.snapshot()
    assert await finish(TASK) is None
    assert await stage.snapshot() == before


async def test_the_repeat_of_a_removal_spares_a_task_that_was_made_since(stage: Stage, begun: int) -> None:
    """Also when its caller never heard of its end, since somebody else finished it."""
    await stage.store.operations.finish_forgetting(TASK)
    await define(stage, operation="anew")
    before = await stage.snapshot()
    assert await forget(stage) == begun
    assert await stage.snapshot() == before


async def test_many_running_runs_are_marked_in_several_calls(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, or it would never end; none of them leaves a verdict."""
    monkeypatch.setattr(operations, "MAX_ITEMS", 2)
    await define(stage)
    runs = [await stage.running(ago_ms=ago_ms) for ago_ms in range(5)]
    with trio.fail_after(30):
        assert await forget(stage) == 0
    assert await stage.store.operations.dynamic(TASK) is None
    await stage.store.runs.complete("A", [completion(held) for held in runs])
    assert await stage.verdicts() == []


async def test_a_late_leader_cannot_publish_a_slot_of_a_forgotten_task(stage: Stage) -> None:
    """The due instant is gone."""
    await define(stage)
    await stage.due()
    await forget(stage)
    replies = await stage.store.timetable.publish(stage.leader, [stage.slot()], queue_cap=100)
    assert replies == [Moved(None)]
    assert await stage.live() == {}


async def test_a_run_whose_record_was_lost_does_not_keep_its_task(stage: Stage) -> None:
    """What names it goes."""
    await define(stage)
    retry = await stage.waiting(delay_ms=600_000)
    await stage.redis.delete(stage.store.keys.run(retry.id))
    assert await forget(stage) == 1
    await nothing_left_of(stage, retry.id)


@pytest.mark.parametrize("how", ["a hole", "another type"])
async def test_a_task_with_a_broken_run_is_not_half_forgotten(stage: Stage, how: str) -> None:
    """Nothing is written until it is mended."""
    await define(stage)
    await stage.queued(ago_ms=2)
    record = stage.store.keys.run(await stage.queued())
    if how == "a hole":
        await stage.redis.hdel(record, "fence")
    else:
        await stage.redis.delete(record)
        await stage.redis.set(record, "not ours")
    before = await stage.snapshot()
    assert isinstance(await forget(stage), Broken)
    assert await stage.snapshot() == before


# -- forget, of what processes declare ---------------------------------------------------------------------------------


async def withdraw(stage: Stage, operation: str = "forget") -> int | Broken | None:
    return await stage.store.operations.forget(TASK, operation, who=WHO, declared=True)


@pytest.mark.parametrize("kept_in_redis", [False, True])
async def test_a_task_that_processes_declare_is_withdrawn_when_it_is_forgotten(
    stage: Stage, *, kept_in_redis: bool
) -> None:
    """All that it has goes as that of any other, and a mark stays that hides it from whoever reads the catalog."""
    if kept_in_redis:
        await define(stage)
    await stage.store.runs.complete("A", [completion(await stage.running(ago_ms=5))])
    held = await stage.running(ago_ms=3)
    run_id = await stage.queued()
    await stage.store.ledger.clear([TASK], "clear", who=WHO)
    await pause(stage)
    version = await stage.store.catalog.version()
    assert await withdraw(stage) == 1
    contents = await stage.store.catalog.contents()
    assert (contents.withdrawn, contents.dynamic, contents.forgotten, contents.paused) == ((TASK,), {}, (), {})
    assert contents.version == version + 1
    assert await stage.store.operations.dynamic(TASK) is None
    await stage.store.runs.complete("A", [completion(held)])
    await nothing_left_of(stage, run_id, held.run_id)
    keys = stage.store.keys
    known = {key for key, value in (await stage.snapshot()).items() if TASK in key + repr(value)}
    assert known <= {keys.events, keys.wake, keys.dynamic}
    assert await events(stage, "forgotten") == [(TASK, WHO)]


async def test_what_is_withdrawn_is_not_withdrawn_again(stage: Stage) -> None:
    """Whoever asks is told that there is no such task; who asked the first time hears the first answer."""
    await stage.queued()
    assert await withdraw(stage) == 1
    before = await stage.redis.hgetall(stage.store.keys.dynamic)
    assert await withdraw(stage, "another") is None
    assert await forget(stage, operation="a third") is None
    assert await withdraw(stage) == 1
    assert await stage.redis.hgetall(stage.store.keys.dynamic) == before
    assert len(await events(stage, "forgotten")) == 1


async def test_a_withdrawn_task_can_be_defined_as_a_new_one(stage: Stage) -> None:
    """It has no revision to be replaced, and the definition takes the place of the mark."""
    await withdraw(stage)
    assert await define(stage, operation="edit", replaces=1) == Changed(0)
    defined = expect(Defined, await define(stage))
    contents = await stage.store.catalog.contents()
    assert (contents.dynamic, contents.withdrawn) == ({TASK: DEFINITION}, ())
    assert await stage.store.operations.dynamic(TASK) == Dynamic(defined.revision, DEFINITION)
    assert await forget(stage, operation="forget it") == 0
    assert (await stage.store.catalog.contents()).withdrawn == ()


@pytest.fixture
async def half_withdrawn(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task with four queued runs, two have ended; then the caller died."""
    for ago_ms in range(4):
        await stage.queued(ago_ms=ago_ms)
    monkeypatch.setattr(operations, "MAX_ITEMS", 2)
    assert await forget_in_part(stage.store, TASK, most=2, declared=True) == 2


async def by_its_repeat(stage: Stage) -> int | Broken | None:
    return await withdraw(stage)


async def by_another_operation(stage: Stage) -> int | Broken | None:
    return await forget(stage, operation="another")


async def by_the_leader(stage: Stage) -> int | Broken | None:
    return await stage.store.operations.finish_forgetting(TASK)


@pytest.mark.parametrize(("finished", "ended"), [(by_its_repeat, 4), (by_another_operation, 2), (by_the_leader, 2)])
async def test_a_removal_that_ends_as_withdrawn_does_so_whoever_finishes_it(
    stage: Stage, half_withdrawn: None, finished: Callable[[Stage], Awaitable[int | Broken | None]], ended: int
) -> None:
    """Until then the task is being forgotten, and its name is taken."""
    contents = await stage.store.catalog.contents()
    assert (contents.withdrawn, contents.forgotten, contents.dynamic) == ((), (TASK,), {})
    standing = expect(Dynamic, await stage.store.operations.dynamic(TASK))
    assert standing.definition == ""
    for operation, replaces in (("anew", None), ("edit", standing.revision)):
        assert await define(stage, operation=operation, replaces=replaces) == Taken(standing.revision)
    assert await finished(stage) == ended
    after = await stage.store.catalog.contents()
    assert (after.withdrawn, after.forgotten, after.dynamic) == ((TASK,), (), {})
    assert after.version > contents.version
    assert await stage.live() == {}
    assert await by_the_leader(stage) is None
    assert (await stage.store.catalog.contents()).withdrawn == (TASK,)


async def test_a_removal_that_was_begun_otherwise_ends_as_withdrawn_if_somebody_sees_a_declaration(
    stage: Stage, begun: int
) -> None:
    """The one who knows more has it."""
    assert await withdraw(stage, "another") == 4 - begun
    contents = await stage.store.catalog.contents()
    assert (contents.withdrawn, contents.forgotten) == ((TASK,), ())
