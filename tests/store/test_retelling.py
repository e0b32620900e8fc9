"""Redis forgot, and is told: which history it goes on with, and what a worker's memory may change there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.errors import RedisUnavailable
from engine.store.election import Elected, OtherHistory
from engine.store.history import ENTER
from engine.store.operations import Accepted, Trigger
from engine.store.retelling import Retried, Tables, Told
from engine.store.runs import Completion, Failure, Hold
from engine.store.session import Deposed, Done
from engine.store.store import Store
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, completion, expect
from tests.store.transitions import adoption, begun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.retelling import Adopted, Adoption


async def enter(store: Store, server: str, new: str, told: str = "", *, lease_ms: int = LEASE_MS) -> tuple[str, str]:
    """As a new connection to this server does."""
    found, word = await ENTER(store.transport.commands, store.history.names, [server, new, told, lease_ms])
    return found, word


async def adopt(stage: Stage, *told: Adoption, worker: str = "A", tables: Tables | None = None) -> Sequence[Adopted]:
    return await stage.store.retelling.adopt(worker, told, lease_ms=LEASE_MS, tables=tables or Tables(0))


def memory(stage: Stage, held: Hold, *, attempt: int = 1) -> Adoption:
    """What worker A remembers of a run that it claimed."""
    return replace(adoption(stage, TASK), hold=held, attempt=attempt)


# -- which history ----------------------------------------------------------------------------------------------------


async def test_the_first_worker_names_the_history_and_the_others_join_it(store: Store) -> None:
    """On one server, that is: a reconnect alone begins nothing, and leaders go on."""
    assert await enter(store, "server", "first") == ("first", "new")
    won = await store.election.elect("worker", "nonce", lease_ms=LEASE_MS, history="first")
    assert await enter(store, "server", "second") == ("first", "kept")
    assert await enter(store, "server", "third", "first") == ("first", "kept")
    assert expect(Elected, won).value == await store.transport.commands.get(store.keys.leader)


async def test_another_server_begins_another_history_and_nobody_leads(store: Store) -> None:
    """It may lack what the former one acknowledged: not even who led there can write."""
    await enter(store, "server", "first")
    await store.election.elect("worker", "nonce", lease_ms=LEASE_MS, history="first")
    assert await enter(store, "another", "second", "first") == ("second", "begun")
    assert await store.election.leader() is None
    with pytest.raises(RedisUnavailable, match="RECOVERING"):
        await store.election.elect("worker", "nonce", lease_ms=LEASE_MS, history="second")


async def test_a_redis_that_lost_all_keys_is_known_by_whoever_remembers(store: Store) -> None:
    """Also if a worker that remembers nothing came first, and only once."""
    await enter(store, "server", "first")
    await store.transport.commands.flushall()
    assert await enter(store, "server", "second") == ("second", "new")
    await store.election.elect("new worker", "nonce", lease_ms=LEASE_MS, history="second")
    assert await enter(store, "server", "third", "first") == ("second", "reopened")
    assert await store.election.leader() is None
    assert await enter(store, "server", "fourth", "first") == ("second", "kept")


async def test_who_comes_much_later_begins_nothing(store: Store) -> None:
    """It was cut off through two restarts; the others have told what they knew long since."""
    await enter(store, "one", "first")
    await enter(store, "two", "second", "first")
    await enter(store, "three", "third", "second")
    assert await enter(store, "three", "fourth", "first") == ("third", "kept")


async def test_nobody_leads_in_a_history_that_does_not_know_what_he_remembers(store: Store) -> None:
    """FLUSHALL leaves connections as they are: a leader finds out when it stands for election again."""
    await enter(store, "server", "first")
    await store.transport.commands.flushall()
    assert await store.election.elect("w", "n", lease_ms=LEASE_MS, history="first") == OtherHistory("")
    await enter(store, "server", "second", "first")
    assert await store.election.elect("w", "n", lease_ms=LEASE_MS, history="first") == OtherHistory("second")


async def test_a_beat_renews_nothing_in_another_history(stage: Stage) -> None:
    """What it says of runs there proves nothing, and its former time is the proof of what was lost."""
    held = await stage.running()
    before = await stage.snapshot()
    answer = await stage.store.leases.beat(
        "A", [(held.run_id, 1)], lease_ms=LEASE_MS, details="{}", draining=False, history="other"
    )
    assert (answer.history, answer.lost) == ("", frozenset())
    assert await stage.snapshot() == before


async def test_while_redis_is_told_nothing_new_begins(stage: Stage) -> None:
    """No claim, since what Redis kept may be a run that goes on elsewhere; no change that a memory would undo."""
    await stage.queued()
    entries = await stage.read()
    await begun(stage)
    before = await stage.snapshot()
    store = stage.store
    for refused in (
        lambda: store.runs.claim("A", "token", entries, lease_ms=LEASE_MS),
        lambda: store.catalog.pause([TASK], "pause", until_ms=None, details="{}", who="me"),
        lambda: store.catalog.resume([TASK], "resume", who="me"),
        lambda: store.operations.define(TASK, "{}", "define", who="me"),
        lambda: store.operations.forget(TASK, "forget", who="me"),
        lambda: store.catalog.declare("digest", ["page"], readmit=[TASK], as_of=9),
    ):
        with pytest.raises(RedisUnavailable, match="RECOVERING"):
            await refused()
    assert await stage.snapshot() == before
    [reply] = await store.operations.trigger([Trigger(f"{TASK}@t-1", "low", "allow")], who="me", queue_cap=10)
    assert reply == Accepted()
    assert await store.catalog.declare("digest", ["page"])


async def test_the_seat_is_free_when_all_have_told(stage: Stage) -> None:
    """Those that any of them knows of: whoever was there may have a run that Redis forgot."""
    await begun(stage)
    told = stage.store.retelling.told
    assert await told("new", "A", floor_ms=0, beats=0, count=0, others=["B", "C"]) == Told(None)
    assert await told("new", "B", floor_ms=0, beats=0, count=0, others=["A"]) == Told(None)
    with pytest.raises(RedisUnavailable):
        await stage.store.election.elect("A", "nonce", lease_ms=LEASE_MS, history="new")
    assert await told("new", "C", floor_ms=0, beats=0, count=0, others=[]) == Told(None)
    won = await stage.store.election.elect("A", "nonce", lease_ms=LEASE_MS, history="new")
    assert isinstance(won, Elected)
    assert await told("old", "A", floor_ms=0, beats=0, count=0, others=[]) is None


async def test_the_seat_is_free_after_a_lease_whoever_has_not_told(store: Store) -> None:
    """A worker that died with its memory is not waited for any longer."""
    await enter(store, "one", "first")
    await enter(store, "two", "second", "first", lease_ms=1)
    elected: object = None
    while not isinstance(elected, Elected):
        try:
            elected = await store.election.elect("w", "n", lease_ms=LEASE_MS, history="second")
        except RedisUnavailable:
            continue
    assert elected.value


# -- what was lost ----------------------------------------------------------------------------------------------------


async def lost(stage: Stage) -> list[dict[str, str]]:
    found = await stage.entries(stage.store.keys.events)
    return [fields for fields in found if fields["event"] == "history_lost"]


async def test_an_acknowledged_beat_that_redis_does_not_know_shows_since_when_it_forgot(stage: Stage) -> None:
    """The event has cause and window, and comes once, whoever else has lost something."""
    first, second = await begun(stage, "A", "B", kept=1)
    assert (first.beats, second.beats) == (1, 2)
    told = stage.store.retelling.told
    assert await told("new", "A", floor_ms=0, beats=1, count=0, others=["B"]) == Told(None)
    assert await lost(stage) == []
    assert await told("new", "B", floor_ms=0, beats=2, count=0, others=["C"]) == Told(first.redis_ms)
    [event] = await lost(stage)
    assert event["what"] == "it was restarted, or another server took over"
    assert (int(event["from"]), event["who"]) == (first.redis_ms, "B")
    assert int(event["to"]) >= stage.now_ms
    assert await told("new", "B", floor_ms=0, beats=2, count=3, others=["C"]) == Told(first.redis_ms)
    assert await told("new", "C", floor_ms=0, beats=0, count=1, others=[]) == Told(first.redis_ms)
    assert len(await lost(stage)) == 1


async def test_a_restart_that_lost_nothing_is_no_loss(stage: Stage) -> None:
    """All beats are counted, and nobody had anything to tell. One that was answered to nobody is no matter.

    Nor is it that the clock of Redis stepped back, or that a worker was buried.
    """
    await begun(stage, "A", "B", "A")
    await stage.store.leases.bury("B", seen_ms=stage.now_ms)
    await stage.redis.zadd(stage.store.keys.workers_seen, {"A": 1})
    told = stage.store.retelling.told
    assert await told("new", "A", floor_ms=0, beats=1, count=0, others=[]) == Told(None)
    assert await told("new", "B", floor_ms=0, beats=2, count=0, others=[]) == Told(None)
    assert await lost(stage) == []


async def test_where_no_beat_is_left_all_is_lost(stage: Stage) -> None:
    """FLUSHALL: also if a worker that remembers nothing was the first, and has beaten since."""
    await enter(stage.store, "server", "first")
    leases, told = stage.store.leases, stage.store.retelling.told
    for _ in range(3):
        await leases.beat("new", [], lease_ms=LEASE_MS, details="{}", draining=False, history="first")
    assert await enter(stage.store, "server", "second", "remembered") == ("first", "reopened")
    assert await told("first", "A", floor_ms=0, beats=2, count=0, others=[]) == Told(0)


# -- runs -------------------------------------------------------------------------------------------------------------


async def test_a_forgotten_run_in_progress_is_its_workers_again(stage: Stage) -> None:
    """With its lease, under the same fence: its end is accepted as if nothing had been lost."""
    told = adoption(stage, TASK)
    assert await adopt(stage, told) == ["told"]
    assert (await stage.record(told.hold.run_id))["state"] == "running"
    assert (await stage.lease(told.hold)).fence == told.hold.fence
    assert await stage.store.runs.complete("A", [completion(told.hold)]) == [Done()]
    assert await stage.verdicts() == [("ran", "")]


async def test_a_run_whose_claim_was_forgotten_is_taken_out_of_the_queue(stage: Stage) -> None:
    """Nobody else starts it: its entry is gone, also for who has read it."""
    run_id = await stage.queued()
    entries = await stage.read("B")
    held = Hold(run_id, stage.now_ms, "token")
    assert await adopt(stage, memory(stage, held)) == ["told"]
    assert await stage.in_stream() == []
    assert [type(one).__name__ for one in await stage.store.runs.claim("B", "t", entries, lease_ms=LEASE_MS)] == [
        "Stale"
    ]


async def test_a_run_that_redis_took_for_waiting_is_in_progress_again(stage: Stage) -> None:
    """Its second attempt was queued and claimed in the time that is lost."""
    due = await stage.waiting(delay_ms=600_000)
    record = await stage.record(due.id)
    held = Hold(due.id, int(record["fence"]) + 5, "token")
    assert await adopt(stage, memory(stage, held, attempt=2)) == ["told"]
    assert await stage.due_ms(f"r/{due.id}") is None
    assert (await stage.record(due.id))["attempt"] == "2"
    assert await stage.live() == {due.id: "running"}


async def test_a_run_that_redis_took_for_anothers_is_in_progress_again(stage: Stage) -> None:
    """It was reclaimed from B in the time that is lost: B's lease is gone, and B's end is refused."""
    theirs = await stage.running(worker="B")
    ours = Hold(theirs.run_id, theirs.fence + 5, "token")
    assert await adopt(stage, memory(stage, ours)) == ["told"]
    leases = await stage.redis.zrange(stage.store.keys.leases, 0, -1)
    assert leases == [f"{ours.run_id}#{ours.fence}"]
    [reply] = await stage.store.runs.complete("B", [completion(theirs)])
    assert type(reply).__name__ == "Fenced"


async def test_nothing_is_taken_from_who_had_the_run_since(stage: Stage) -> None:
    """A memory that comes too late, with a smaller fence, changes nothing."""
    held = await stage.running(worker="B")
    before = await stage.snapshot()
    former = Hold(held.run_id, held.fence - 1, "token")
    assert await adopt(stage, memory(stage, former)) == ["newer"]
    ended = replace(memory(stage, former), end=Completion(former, "ran", "", "{}"))
    assert await adopt(stage, ended) == ["newer"]
    assert await stage.snapshot() == before


async def test_a_run_that_has_its_verdict_is_not_begun_again(stage: Stage) -> None:
    """It was cancelled, say, while its worker was cut off."""
    held = await stage.running()
    await stage.store.operations.cancel([held.run_id], "cancel", who="me")
    await stage.store.runs.hand_back("A", [held])
    before = await stage.snapshot()
    assert await adopt(stage, memory(stage, held)) == ["ended"]
    assert await stage.snapshot() == before


@pytest.mark.parametrize(
    ("present", "then", "reply"),
    [
        (None, "3|{}", "ended"),
        ("3|", "3|{}", "told"),
        ("9|-", "3|{}", "ended"),
        ("9|-", None, "ended"),
        ("9|-", "9|-", "told"),
        ("8|[]", "3|{}", "told"),
        ("none of ours", "3|{}", "told"),
        (None, None, "told"),
    ],
)
@pytest.mark.parametrize("held", [False, True])
async def test_a_run_that_went_with_its_task_is_not_brought_back(
    stage: Stage, present: str | None, then: str | None, reply: str, *, held: bool
) -> None:
    """Redis has neither record nor verdict of it, and has forgotten nothing; its worker did not hear of the removal."""
    await begun(stage)
    if not held:
        await stage.store.retelling.told("new", "B", floor_ms=0, beats=0, count=0, others=[])
    if present is not None:
        await stage.redis.hset(stage.store.keys.dynamic, TASK, present)
    tables = Tables(7, dynamic={} if then is None else {TASK: then})
    await stage.redis.hset(stage.store.keys.generation, "restored", 8 if held else 7)
    in_progress, ended = adoption(stage, TASK), adoption(stage, OTHER, Completion(Hold("", 1, "t"), "ran", "", "{}"))
    assert await adopt(stage, in_progress, ended, tables=tables) == [reply, "told"]


async def test_a_run_of_a_task_that_is_about_to_be_told_is_brought_back(stage: Stage) -> None:
    """No newer memory counts, so this worker's does: that the task is nowhere proves nothing."""
    await begun(stage)
    assert await adopt(stage, adoption(stage, TASK), tables=Tables(7, dynamic={TASK: "3|{}"})) == ["told"]


async def test_an_end_that_was_forgotten_is_told_with_its_verdict(stage: Stage) -> None:
    """Redis has the claim still, or not even that: the slot has one verdict, and nothing of the run is left."""
    held = await stage.running()
    known = replace(memory(stage, held), end=Completion(held, "ran", "", "{}"))
    assert await adopt(stage, known) == ["told"]
    unknown = replace(adoption(stage, TASK), end=Completion(adoption(stage, TASK).hold, "failed", "raised", "{}"))
    assert await adopt(stage, unknown) == ["told"]
    assert await adopt(stage, known, unknown) == ["ended", "ended"]
    assert await stage.verdicts() == [("ran", ""), ("failed", "raised")]
    assert await stage.live() == {}
    assert await stage.in_stream() == []


@pytest.mark.parametrize("lost", [False, True])
async def test_an_end_whose_verdict_was_trimmed_is_not_told_again(stage: Stage, *, lost: bool) -> None:
    """A full ledger says that the run has ended, if it was written before anything was forgotten."""
    held = await stage.running()
    await stage.store.runs.complete("A", [completion(held)])
    store, oldest = Store.over(stage.store.transport, prefix="test", ledger_length=3), int(held.fence) + 1
    if not lost:
        await stage.redis.delete(ledger := stage.store.keys.ledger(TASK))
        for later in range(3):
            await stage.redis.xadd(ledger, {"verdict": "ran", "reason": "", "run": "later"}, id=f"{oldest + later}-0")
    await begun(stage)
    await stage.redis.hset(stage.store.keys.generation, "began", oldest + 10)
    if lost:
        await stage.redis.delete(stage.store.keys.ledger(TASK))
    told = [
        replace(memory(stage, held), end=Completion(held, "ran", "", "{}")),
        replace(memory(stage, held), end=Retried(oldest + 60_000, "{}")),
    ]
    for end in told:
        replies = await store.retelling.adopt("A", [end], lease_ms=LEASE_MS, tables=Tables(0))
        assert replies == (["told"] if lost and end is told[0] else ["ended"])
    assert len(await stage.verdicts()) == (1 if lost else 3)


async def test_a_failure_that_was_forgotten_waits_for_its_retry(stage: Stage) -> None:
    """Under the number of the next attempt, and once."""
    held = await stage.running()
    due_ms = stage.now_ms + 60_000
    told = replace(memory(stage, held), end=Retried(due_ms, '{"attempt":1}'))
    assert await adopt(stage, told) == ["told"]
    assert await adopt(stage, told) == ["kept"]
    assert await stage.due_ms(f"r/{held.run_id}") == due_ms
    record = await stage.record(held.run_id)
    assert (record["state"], record["attempt"], record["story"]) == ("waiting", "2", '{"attempt":1}')


async def test_a_failure_that_was_forgotten_does_not_wait_if_the_run_was_to_stop(stage: Stage) -> None:
    """Redis kept that somebody cancelled it."""
    held = await stage.running()
    await stage.store.operations.cancel([held.run_id], "cancel", who="me")
    told = replace(memory(stage, held), end=Retried(stage.now_ms + 60_000, '{"attempt":1}'))
    assert await adopt(stage, told) == ["told"]
    assert await stage.verdicts() == [("failed", "cancelled")]
    assert await stage.due_ms(f"r/{held.run_id}") is None


async def test_a_failure_that_redis_kept_is_not_told_again(stage: Stage) -> None:
    """The run waits already, or runs again elsewhere."""
    held = await stage.running()
    await stage.store.runs.fail("A", [Failure(held, 0, "{}")])
    before = await stage.snapshot()
    assert await adopt(stage, replace(memory(stage, held), end=Retried(stage.now_ms, "{}"))) == ["kept"]
    assert await stage.snapshot() == before


async def test_fences_grow_although_the_clock_of_the_new_server_is_behind(stage: Stage) -> None:
    """No fence that was given before, and is forgotten, was greater than what its workers took for the time."""
    run_id = await stage.queued()
    await begun(stage)
    ahead_ms = stage.now_ms + 3_600_000
    await stage.store.retelling.told("new", "A", floor_ms=ahead_ms, beats=0, count=0, others=[])
    held = await stage.taken()
    assert (held.run_id, held.fence) == (run_id, ahead_ms)
    won = await stage.store.election.elect("A", "nonce", lease_ms=LEASE_MS, history="new")
    assert expect(Elected, won).epoch == ahead_ms


# -- what operators decided -------------------------------------------------------------------------------------------


async def test_only_the_leader_strikes_off_what_was_told_and_only_slots_that_are_passed(stage: Stage) -> None:
    """A deposed one, who has read what some workers told, would take the note from whoever hears the others too."""
    keys, timetable = stage.store.keys, stage.store.timetable
    told = {f"{TASK}@1000": 1000, f"{TASK}@2000": 2000, "g/unknown@1000": 1000}
    await stage.redis.hset(keys.retold, mapping=told)
    await stage.redis.zadd(keys.due, {f"t/{TASK}": 2000})
    with pytest.raises(Deposed):
        await timetable.strike("another", told)
    assert await timetable.retold() == told
    assert await timetable.strike(stage.leader, told) == 1
    assert await timetable.retold() == {f"{TASK}@2000": 2000, "g/unknown@1000": 1000}
    assert await timetable.strike(stage.leader, {}) == 0


async def test_pauses_and_dynamic_tasks_are_as_they_were(stage: Stage) -> None:
    """What was made in the time that is lost is there again, and what was undone in it is not."""
    await begun(stage)
    keys = stage.store.keys
    await stage.redis.hset(keys.paused, mapping={"g/resumed": "0|{}", "g/paused": "0|before"})
    await stage.redis.hset(keys.dynamic, "g/edited", "1|{}")
    dynamic = {"g/made": "8|{}", "g/edited": "7|[]"}
    tables = Tables(9, dynamic=dynamic, paused={"g/paused": "0|after", "g/new": "0|{}"})
    assert await stage.store.retelling.restore("new", tables) == 5
    assert await stage.redis.hgetall(keys.dynamic) == dynamic
    assert await stage.redis.hgetall(keys.paused) == {"g/paused": "0|after", "g/new": "0|{}"}
    version = await stage.store.catalog.version()
    assert await stage.store.retelling.restore("new", tables) == 0
    assert await stage.store.catalog.version() == version


@pytest.mark.parametrize(
    ("present", "then", "wanted"),
    [
        ("3|{}", None, "3|"),
        ("3|", None, "3|"),
        ("3|>-", None, "3|>-"),
        ("9|-", None, None),
        ("none of ours", None, "|"),
        (None, "9|-", "9|>-"),
        ("3|{}", "9|-", "9|>-"),
        ("3|", "9|-", "9|>-"),
        ("3|>-", "9|-", "3|>-"),
        ("3|-", "9|-", "9|>-"),
        ("9|-", "9|-", "9|-"),
        ("3|{}", "4|", "4|"),
        ("3|", "9|{}", "9|{}"),
    ],
)
async def test_a_removal_that_redis_forgot_is_begun_again(
    stage: Stage, present: str | None, then: str | None, wanted: str | None
) -> None:
    """It has the runs of the task still, so a tombstone takes the place of the definition; told twice, once."""
    await begun(stage)
    key, restore = stage.store.keys.dynamic, stage.store.retelling.restore
    if present is not None:
        await stage.redis.hset(key, "g/t", present)
    tables = Tables(9, dynamic={} if then is None else {"g/t": then})
    assert await restore("new", tables) == (present != wanted)
    assert await restore("new", tables) == 0
    assert await stage.redis.hget(key, "g/t") == wanted


@pytest.mark.parametrize("dynamic", [{}, {TASK: "9|-"}])
async def test_what_a_removed_task_has_again_goes_with_the_rest_of_it(stage: Stage, dynamic: dict[str, str]) -> None:
    """Whoever goes on with the removal ends its runs, and marks those in progress, as the one that is forgotten did."""
    store = stage.store
    await store.operations.define(TASK, "{}", "define", who="me")
    held = await stage.running()
    await stage.queued(ago_ms=2_000)
    await stage.due(TASK)
    await begun(stage)
    assert await store.retelling.restore("new", Tables(9, dynamic=dynamic)) == 1
    await store.retelling.told("new", "A", floor_ms=0, beats=0, count=1, others=[])
    contents = await store.catalog.contents()
    assert (contents.dynamic, contents.forgotten, contents.withdrawn) == ({}, (TASK,), ())
    assert await store.operations.finish_forgetting(TASK) == 1
    assert await stage.live() == {held.run_id: "running"}
    assert await stage.due_ms(f"t/{TASK}") is None
    assert await store.runs.complete("A", [completion(held)]) == [Done()]
    assert await stage.verdicts() == []
    assert await stage.live() == {}
    assert (await store.catalog.contents()).withdrawn == tuple(dynamic)


async def test_of_several_memories_the_newest_counts(stage: Stage) -> None:
    """A worker that had not heard of the last change yet undoes nothing, whoever comes first."""
    await begun(stage)
    restore = stage.store.retelling.restore
    await restore("new", Tables(9, paused={"g/a": "0|{}"}))
    await restore("new", Tables(8, paused={"g/b": "0|{}"}))
    assert await stage.redis.hgetall(stage.store.keys.paused) == {"g/a": "0|{}"}
    await restore("new", Tables(10, paused={"g/c": "0|{}"}))
    assert await stage.redis.hgetall(stage.store.keys.paused) == {"g/c": "0|{}"}


async def test_a_memory_undoes_nothing_that_redis_kept(stage: Stage) -> None:
    """A pause was acknowledged and kept, and the worker lost its connection before it heard of it."""
    version = await stage.store.catalog.version()
    await stage.store.catalog.pause(["g/t"], "pause", until_ms=None, details="{}", who="me")
    await begun(stage)
    assert await stage.store.retelling.restore("new", Tables(version)) is None
    assert set(await stage.redis.hgetall(stage.store.keys.paused)) == {"g/t"}


async def test_what_was_decided_since_is_left(stage: Stage) -> None:
    """Too late, when all have told; and where one that knew nothing came first, only what is missing comes back."""
    store, keys = stage.store, stage.store.keys
    tables = Tables(9, dynamic={"g/t": "3|old"}, paused={"g/t": "0|{}"})
    await begun(stage)
    await store.retelling.told("new", "A", floor_ms=0, beats=0, count=0, others=[])
    assert await store.retelling.restore("new", tables) is None
    await stage.redis.flushall()
    await enter(store, "server", "second")
    await store.catalog.pause(["g/mine"], "pause", until_ms=None, details="{}", who="me")
    await store.operations.define("g/t", "new", "define", who="me")
    assert await enter(store, "server", "third", "new") == ("second", "reopened")
    assert await store.retelling.restore("second", tables) == 1
    assert set(await stage.redis.hgetall(keys.paused)) == {"g/mine", "g/t"}
    assert (await stage.redis.hget(keys.dynamic, "g/t")).endswith("|new")


async def test_a_task_has_its_due_instant_again_and_none_that_is_there_is_moved(stage: Stage) -> None:
    """Nobody ran a slot that came due while Redis was away, so it is open still."""
    due_ms = await stage.due("g/kept")
    await begun(stage)
    restore_due, then = stage.store.retelling.restore_due, {"g/kept": due_ms + 5_000, "g/lost": due_ms - 5_000}
    assert await restore_due("new", 9, then, passed_ms=due_ms - 1) == 1
    assert await stage.due_ms("t/g/kept") == due_ms
    assert await stage.due_ms("t/g/lost") == due_ms - 5_000


async def test_no_slot_that_tasks_were_moved_past_is_due_again(stage: Stage) -> None:
    """Whichever memory is told first: an earlier one moves nothing back, and a later one moves what is passed."""
    await begun(stage)
    now_ms, due, store = stage.now_ms, "t/g/t", stage.store
    for due_ms, passed_ms, brought_back, becomes_ms in (
        (now_ms + 1_000, 0, 1, now_ms + 1_000),
        (now_ms + 9_000, now_ms + 999, 0, now_ms + 1_000),
        (now_ms + 5_000, now_ms + 1_000, 1, now_ms + 5_000),
        (now_ms + 2_000, now_ms + 500, 0, now_ms + 5_000),
        (now_ms + 4_000, now_ms + 6_000, 0, now_ms + 5_000),
    ):
        assert await store.retelling.restore_due("new", 9, {"g/t": due_ms}, passed_ms=passed_ms) == brought_back
        assert await stage.due_ms(due) == becomes_ms
    assert await store.timetable.passed_ms() == now_ms + 6_000
