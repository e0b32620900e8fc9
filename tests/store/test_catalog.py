"""declare, retire, withdrawn tasks, pause and resume, and hearing of what changed."""

from __future__ import annotations

import pytest

from engine.store.catalog import _DECLARE, Pause
from engine.store.presence import Account
from engine.store.session import Deposed
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, forget_in_part

DETAILS = '{"who":"me","n":[],"since":1795344932000123}'
"""With what Lua's JSON would change: it is opaque there."""


# -- declare ----------------------------------------------------------------------------------------------------------


async def test_a_set_counts_from_its_last_page_on(stage: Stage) -> None:
    """Until then nobody sees half of it; then everybody hears of it once."""
    catalog, keys = stage.store.catalog, stage.store.keys
    pages = [f'{{"page":{number},"none":[]}}' for number in range(12)]
    names = [keys.declared("d1"), keys.declarations, keys.version, keys.events, keys.unused, keys.dynamic]
    names += [keys.workers, keys.declared("")]
    for number, page in enumerate(pages[:-1]):
        assert await catalog.session.call(_DECLARE, names, "d1", number, page, len(pages), 0, "", "") == "page"
    assert (await catalog.contents()).sets == ()
    assert await catalog.version() == 0
    assert await stage.entries(keys.events) == []
    assert await catalog.declare("d1", pages)
    [found] = (await catalog.contents()).sets
    assert (found.digest, found.pages) == ("d1", tuple(pages))
    assert abs(found.first_seen_ms - stage.now_ms) < 60_000
    assert await catalog.version() == 1
    assert await stage.entries(keys.events) == [{"event": "declared", "what": "d1"}]


async def test_half_a_set_ends_by_itself_and_a_whole_one_does_not(stage: Stage) -> None:
    """A process that dies between two pages leaves nothing behind for ever."""
    catalog, keys = stage.store.catalog, stage.store.keys
    names = [keys.declared("d1"), keys.declarations, keys.version, keys.events, keys.unused, keys.dynamic]
    names += [keys.workers, keys.declared("")]
    await catalog.session.call(_DECLARE, names, "d1", 0, "page", 2, 0, "", "")
    assert 0 < await stage.redis.ttl(keys.declared("d1")) <= 600
    await catalog.declare("d1", ["page", "last"])
    assert await stage.redis.ttl(keys.declared("d1")) == -1


async def test_a_known_set_keeps_the_time_when_it_was_first_seen(stage: Stage) -> None:
    """So a process that restarts with an old version reverts nothing."""
    catalog = stage.store.catalog
    await catalog.declare("d1", ["page"])
    await stage.redis.hset(stage.store.keys.declarations, "d1", 5)
    before = await stage.snapshot()
    assert not await catalog.declare("d1", ["page"])
    assert await stage.snapshot() == before
    assert [found.first_seen_ms for found in (await catalog.contents()).sets] == [5]


async def test_pages_that_are_known_are_not_read_again(stage: Stage) -> None:
    """The content of a digest never changes: who knows it is told only that it is there."""
    catalog = stage.store.catalog
    await catalog.declare("d1", ["page"])
    await catalog.declare("d2", ["other"])
    found = {found.digest: found.pages for found in (await catalog.contents({"d1"})).sets}
    assert found == {"d1": (), "d2": ("other",)}


# -- retire -----------------------------------------------------------------------------------------------------------


async def test_a_set_that_no_worker_has_for_long_enough_is_forgotten(stage: Stage) -> None:
    """Since when is noted in Redis, so that it does not begin anew with each leader; other sets stay."""
    catalog, keys = stage.store.catalog, stage.store.keys
    for digest in ("d1", "d2"):
        await catalog.declare(digest, ["page"])
    assert await catalog.retire(stage.leader, ["d1", "d2"], after_ms=60_000) == ["unused", "unused"]
    since_ms = int(await stage.redis.hget(keys.unused, "d1"))
    assert abs(since_ms - stage.now_ms) < 60_000
    await stage.redis.hset(keys.unused, "d1", since_ms - 60_000)
    assert await catalog.retire(stage.leader, ["d1", "d2"], after_ms=60_000) == ["retired", "unused"]
    contents = await catalog.contents()
    assert [found.digest for found in contents.sets] == ["d2"]
    assert contents.version == 3
    assert await stage.redis.exists(keys.declared("d1"), keys.declared("d2")) == 1
    assert set(await stage.redis.hgetall(keys.unused)) == {"d2"}
    assert (await stage.entries(keys.events))[-1] == {"event": "retired", "what": "d1"}


@pytest.mark.parametrize("used_by", ["", "A", "B"])
async def test_a_set_that_another_replaces_goes_at_once_unless_somebody_else_has_it(stage: Stage, used_by: str) -> None:
    """Or each change of a worker's dynamic tasks would leave a set behind for as long as retired ones are kept."""
    catalog, keys = stage.store.catalog, stage.store.keys
    await catalog.declare("d1", ["page"])
    await stage.redis.hset(keys.unused, "d1", 1)
    if used_by:
        said = Account(extras="d1").to_json()
        await stage.store.leases.beat(used_by, [], lease_ms=LEASE_MS, details=said, draining=False)
    assert await catalog.declare("d2", ["another"], replaces="d1", worker="A")
    found = {one.digest for one in (await catalog.contents()).sets}
    if used_by == "B":
        assert found == {"d1", "d2"}
    else:
        assert found == {"d2"}
        assert await stage.redis.exists(keys.declared("d1")) == 0
        assert await stage.redis.hgetall(keys.unused) == {}


@pytest.mark.parametrize("returns", ["presence", "declaration"])
async def test_a_set_whose_worker_is_back_is_in_use(stage: Stage, returns: str) -> None:
    """Whatever the leader has seen: the script looks, in the same step."""
    catalog = stage.store.catalog
    await catalog.declare("d1", ["page"])
    await stage.redis.hset(stage.store.keys.unused, "d1", 1)
    if returns == "presence":
        details = Account(digest="d1").to_json()
        await stage.store.leases.beat("A", [], lease_ms=LEASE_MS, details=details, draining=False)
        assert await catalog.retire(stage.leader, ["d1"], after_ms=60_000) == ["used"]
        assert await stage.redis.hgetall(stage.store.keys.unused) == {}
    else:
        assert not await catalog.declare("d1", ["page"])
        assert await catalog.retire(stage.leader, ["d1"], after_ms=60_000) == ["unused"]


@pytest.mark.parametrize("said", ['{"digest":"d2","extras":"d1"}', '{"digest":"d1","extras":"d2"}', '{"later":["d1"]}'])
async def test_a_set_is_in_use_when_a_presence_names_it_anywhere(stage: Stage, said: str) -> None:
    """A worker may have several; whatever a newer version calls them."""
    catalog = stage.store.catalog
    for digest in ("d1", "d"):
        await catalog.declare(digest, ["page"])
        await stage.redis.hset(stage.store.keys.unused, digest, 1)
    await stage.store.leases.beat("A", [], lease_ms=LEASE_MS, details=said, draining=False)
    assert await catalog.retire(stage.leader, ["d1", "d"], after_ms=60_000) == ["used", "retired"]


async def test_retiring_what_is_not_there_changes_nothing(stage: Stage) -> None:
    """No event, no new version."""
    before = await stage.snapshot()
    assert await stage.store.catalog.retire(stage.leader, ["d1"], after_ms=1) == ["gone"]
    assert await stage.store.catalog.dismiss(stage.leader, 0, [TASK]) == [0]
    assert await stage.snapshot() == before


async def test_only_the_leader_retires_and_dismisses(stage: Stage) -> None:
    """By epoch, as everything that it writes."""
    await stage.store.catalog.declare("d1", ["page"])
    await stage.due()
    await stage.store.election.elect("leader", "a new candidacy", lease_ms=LEASE_MS)
    before = await stage.snapshot()
    with pytest.raises(Deposed):
        await stage.store.catalog.retire(stage.leader, ["d1"], after_ms=1)
    with pytest.raises(Deposed):
        await stage.store.catalog.dismiss(stage.leader, 1, [TASK])
    assert await stage.snapshot() == before


# -- withdrawn tasks, which processes declare and an operator removed --------------------------------------------------


async def withdraw(stage: Stage, *tasks: str) -> None:
    for task in tasks:
        assert await stage.store.operations.forget(task, f"withdraw {task}", who="me", declared=True) == 0


async def withdrawn(stage: Stage) -> set[str]:
    return set((await stage.store.catalog.contents()).withdrawn)


@pytest.mark.parametrize("known", [False, True])
async def test_a_declaration_brings_back_the_tasks_that_it_readmits(stage: Stage, *, known: bool) -> None:
    """Those alone, in one step with its last page; everybody hears of it once, also when the set was known."""
    catalog = stage.store.catalog
    if known:
        await catalog.declare("d1", ["page", "last"])
    await withdraw(stage, TASK, OTHER)
    version, events = await catalog.version(), len(await stage.entries(stage.store.keys.events))
    assert await catalog.declare("d1", ["page", "last"], readmit=[TASK, "group/none"])
    assert await withdrawn(stage) == {OTHER}
    assert await catalog.version() == version + 1
    assert (await stage.entries(stage.store.keys.events))[events:] == [{"event": "declared", "what": "d1"}]
    assert not await catalog.declare("d1", ["page", "last"], readmit=[TASK])
    assert await catalog.version() == version + 1


async def test_a_declaration_that_readmits_nothing_leaves_removed_tasks_removed(stage: Stage) -> None:
    """A process that starts, and declares them as ever, brings nothing back."""
    await withdraw(stage, TASK)
    assert await stage.store.catalog.declare("d1", ["page"])
    assert await withdrawn(stage) == {TASK}


async def test_only_a_withdrawn_task_is_readmitted(stage: Stage) -> None:
    """Not one that Redis keeps, and none whose removal is in progress."""
    catalog, operations = stage.store.catalog, stage.store.operations
    await operations.define(TASK, "{}", "define", who="me")
    for ago_ms in range(3):
        await stage.queued(OTHER, ago_ms=ago_ms)
    await forget_in_part(stage.store, OTHER, most=2, declared=True)
    before = await stage.redis.hgetall(stage.store.keys.dynamic)
    await catalog.declare("d1", ["page"], readmit=[TASK, OTHER])
    assert await stage.redis.hgetall(stage.store.keys.dynamic) == before


async def test_a_task_that_was_withdrawn_after_the_caller_looked_is_not_readmitted(stage: Stage) -> None:
    """What comes late, or is repeated, does not undo what an operator did since: whatever the task was before."""
    catalog, operations = stage.store.catalog, stage.store.operations
    await operations.define(OTHER, "{}", "define", who="me")
    as_of = await catalog.version()
    await withdraw(stage, TASK, OTHER)
    assert await catalog.declare("d1", ["page"], readmit=[TASK, OTHER], as_of=as_of)  # a new set
    assert await withdrawn(stage) == {TASK, OTHER}
    assert await catalog.declare("d1", ["page"], readmit=[TASK, OTHER], as_of=await catalog.version())
    assert await withdrawn(stage) == set()


async def test_more_tasks_than_fit_into_a_call_are_readmitted_in_several(stage: Stage) -> None:
    """At most 500 in each."""
    tasks = [f"group/{number}" for number in range(1_001)]
    await stage.redis.hset(stage.store.keys.dynamic, mapping=dict.fromkeys(tasks[:1_000], "0|-"))
    assert await stage.store.catalog.declare("d1", ["page", "last"], readmit=tasks)
    assert await withdrawn(stage) == set()
    assert [found.pages for found in (await stage.store.catalog.contents()).sets] == [("page", "last")]


async def test_the_mark_of_a_withdrawn_task_is_dropped_and_nothing_else(stage: Stage) -> None:
    """Nothing that exists changes by it, so nobody reads the catalog again."""
    catalog = stage.store.catalog
    await withdraw(stage, TASK, OTHER)
    await stage.store.operations.define("group/kept", "{}", "define", who="me")
    for ago_ms in range(3):
        await stage.queued("group/going", ago_ms=ago_ms)
    await forget_in_part(stage.store, "group/going", most=2, declared=True)
    before = await catalog.contents()
    asked = [TASK, "group/kept", "group/going", "group/none"]
    assert await catalog.drop_withdrawn(stage.leader, before.version, asked) == ["dropped", "gone", "gone", "gone"]
    after = await catalog.contents()
    assert after.withdrawn == (OTHER,)
    assert (after.version, after.dynamic, after.forgotten) == (before.version, before.dynamic, before.forgotten)
    assert after.dynamic == {"group/kept": "{}"}
    assert after.forgotten == ("group/going",)


async def test_a_withdrawn_task_is_not_dropped_on_an_older_catalog_or_by_who_does_not_lead(stage: Stage) -> None:
    """A set may name it by now."""
    catalog = stage.store.catalog
    await withdraw(stage, TASK)
    version = await catalog.version()
    await catalog.declare("d1", ["page"])
    assert await catalog.drop_withdrawn(stage.leader, version, [TASK]) == ["changed"]
    with pytest.raises(Deposed):
        await catalog.drop_withdrawn("another", version + 1, [TASK])
    assert await withdrawn(stage) == {TASK}


async def test_more_withdrawn_tasks_than_fit_into_a_call_are_dropped_in_several(stage: Stage) -> None:
    """At most 500 in each, all on the same catalog."""
    tasks = [f"group/{number}" for number in range(501)]
    await stage.redis.hset(stage.store.keys.dynamic, mapping=dict.fromkeys(tasks, "0|-"))
    assert await stage.store.catalog.drop_withdrawn(stage.leader, 0, tasks) == ["dropped"] * 501
    assert await stage.store.catalog.drop_withdrawn(stage.leader, 0, []) == []
    assert await withdrawn(stage) == set()


# -- dismiss ----------------------------------------------------------------------------------------------------------


async def test_a_dismissed_task_leaves_due_and_its_runs_end_with_a_verdict(stage: Stage) -> None:
    """Those that never started are skipped, retries fail; its pause and ledger stay, and a running one goes on."""
    catalog, keys = stage.store.catalog, stage.store.keys
    await stage.waiting(ago_ms=5, delay_ms=600_000)
    running = await stage.running(ago_ms=4)
    await stage.parked(first_ms=600_000)
    await stage.queued(ago_ms=3)
    await stage.due(OTHER)
    await catalog.pause([TASK], "pause", until_ms=None, details=DETAILS, who="me")
    assert await catalog.dismiss(stage.leader, await catalog.version(), [TASK, "group/none"]) == [3, 0]
    assert sorted(await stage.verdicts()) == [("failed", "no worker"), *[("skipped", "no worker")] * 2]
    assert await stage.live() == {running.run_id: "running"}
    assert await stage.redis.zrange(keys.due, 0, -1) == [f"t/{OTHER}"]
    assert await stage.in_stream() == [running.run_id]
    assert set((await catalog.contents()).paused) == {TASK}
    assert (await stage.entries(keys.events))[-1] == {"event": "dismissed", "what": TASK, "who": ""}


async def test_a_task_is_not_dismissed_on_an_older_catalog(stage: Stage) -> None:
    """It may have been declared again meanwhile."""
    catalog = stage.store.catalog
    await stage.queued()
    version = await catalog.version()
    await catalog.declare("d1", ["page"])
    before = await stage.snapshot()
    assert await catalog.dismiss(stage.leader, version, [TASK]) == [None]
    assert await stage.snapshot() == before


async def test_twelve_hundred_tasks_are_dismissed_in_pages(stage: Stage) -> None:
    """At most 500 in one call."""
    tasks = [f"group/{number}" for number in range(1_200)]
    await stage.redis.zadd(stage.store.keys.due, {f"t/{task}": 5 for task in tasks})
    assert await stage.store.catalog.dismiss(stage.leader, 0, tasks) == [0] * 1_200
    assert await stage.store.timetable.tasks() == {}


async def test_seven_hundred_runs_end_in_two_calls(stage: Stage) -> None:
    """At most 500 in one call; the task leaves due with the last of them."""
    for number in range(700):
        await stage.queued(ago_ms=number + 1)
    assert await stage.store.catalog.dismiss(stage.leader, 0, [TASK, OTHER]) == [700, 0]
    assert await stage.live() == {}
    assert await stage.in_stream() == []
    assert await stage.store.timetable.tasks() == {}


# -- pause and resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("until_ms", [None, 1_795_344_932_123])
async def test_a_pause_is_kept_with_its_end_and_its_details_as_they_were_given(
    stage: Stage, until_ms: int | None
) -> None:
    """Everybody hears of it by the version and the event."""
    catalog = stage.store.catalog
    assert await catalog.pause([TASK], "op", until_ms=until_ms, details=DETAILS, who="me") == [True]
    assert (await catalog.contents()).paused == {TASK: Pause(until_ms, DETAILS)}
    assert await catalog.version() == 1
    [event] = await stage.entries(stage.store.keys.events)
    assert event == {"event": "paused", "what": TASK, "who": "me", "until": f"{until_ms or 0}", "details": DETAILS}


async def test_resuming_ends_a_pause(stage: Stage) -> None:
    """Of that task alone, once."""
    catalog = stage.store.catalog
    for task in (TASK, OTHER):
        await catalog.pause([task], f"pause {task}", until_ms=None, details=DETAILS, who="me")
    assert await catalog.resume([TASK], "resume", who="me") == [True]
    assert set((await catalog.contents()).paused) == {OTHER}
    assert await catalog.version() == 3
    assert (await stage.entries(stage.store.keys.events))[-1] == {"event": "resumed", "what": TASK, "who": "me"}
    assert await catalog.resume([TASK], "another operation", who="me") == [False]
    assert await catalog.version() == 3


async def test_many_tasks_are_paused_and_resumed_at_once(stage: Stage) -> None:
    """One event and one new version for all that changed; each is answered, in order, and asked twice changes once."""
    catalog = stage.store.catalog
    await catalog.pause([OTHER], "one", until_ms=None, details=DETAILS, who="me")
    tasks = [TASK, OTHER, "group/third", TASK]
    replies = await catalog.pause(tasks, "all", until_ms=None, details=DETAILS, who="ada")
    assert replies == [True, False, True, False]
    assert set((await catalog.contents()).paused) == set(tasks)
    assert await catalog.version() == 2
    [_, event] = await stage.entries(stage.store.keys.events)
    assert (event["event"], event["what"], event["who"]) == ("paused", f"{TASK} group/third", "ada")
    assert await catalog.resume([TASK, "group/none", OTHER], "resume", who="bob") == [True, False, True]
    assert set((await catalog.contents()).paused) == {"group/third"}
    assert await catalog.version() == 3
    event = (await stage.entries(stage.store.keys.events))[-1]
    assert event == {"event": "resumed", "what": f"{TASK} {OTHER}", "who": "bob"}


async def test_more_tasks_than_fit_into_a_call_are_paused_in_several(stage: Stage) -> None:
    """At most 500 in each; a repeat of all of them gets the first answers, whatever has happened since."""
    catalog = stage.store.catalog
    tasks = [f"group/{number}" for number in range(1_001)]
    await catalog.pause(tasks[600:601], "one", until_ms=None, details=DETAILS, who="me")
    before = stage.store.transport.statistics().commands_sent
    first = await catalog.pause(tasks, "all", until_ms=None, details=DETAILS, who="me")
    assert stage.store.transport.statistics().commands_sent - before == 3
    assert [task for task, changed in zip(tasks, first, strict=True) if not changed] == [tasks[600]]
    named = " ".join(event["what"] for event in (await stage.entries(stage.store.keys.events))[1:])
    assert named.split(" ") == [*tasks[:600], *tasks[601:]]
    assert await catalog.resume(tasks, "resume", who="me") == [True] * 1_001
    after = await stage.snapshot()
    assert await catalog.pause(tasks, "all", until_ms=None, details=DETAILS, who="me") == first
    assert await stage.snapshot() == after


async def test_pausing_no_task_asks_nothing_of_redis(stage: Stage) -> None:
    """And changes nothing."""
    before = stage.store.transport.statistics().commands_sent
    assert await stage.store.catalog.pause([], "op", until_ms=None, details=DETAILS, who="me") == []
    assert stage.store.transport.statistics().commands_sent == before


async def test_the_catalog_tells_which_pauses_are_in_force(stage: Stage) -> None:
    """A pause that has ended by itself stays in Redis until the leader removes it, and nobody obeys it."""
    catalog, now_ms = stage.store.catalog, stage.now_ms
    for name, until_ms in {"ended": now_ms, "later": now_ms + 1, "open": None}.items():
        await catalog.pause([f"group/{name}"], name, until_ms=until_ms, details=DETAILS, who="me")
    paused = (await catalog.contents()).paused
    assert {task_id for task_id, pause in paused.items() if not pause.has_ended(now_ms)} == {
        "group/later",
        "group/open",
    }


async def test_a_pause_in_just_the_same_way_changes_nothing(stage: Stage) -> None:
    """And one in another way replaces it."""
    catalog = stage.store.catalog
    await catalog.pause([TASK], "one", until_ms=None, details=DETAILS, who="me")
    assert await catalog.pause([TASK], "two", until_ms=None, details=DETAILS, who="me") == [False]
    assert await catalog.version() == 1
    assert await catalog.pause([TASK], "three", until_ms=77, details=DETAILS, who="me") == [True]
    assert (await catalog.contents()).paused == {TASK: Pause(77, DETAILS)}
    assert await catalog.version() == 2


async def test_the_answer_to_an_operation_is_kept_for_ten_minutes(stage: Stage) -> None:
    """For its repeat; then it ends by itself."""
    await stage.store.catalog.pause([TASK], "op/ä", until_ms=None, details=DETAILS, who="me")
    key = stage.store.keys.once("op/ä")
    assert await stage.redis.get(key) == "1"
    assert 0 < await stage.redis.ttl(key) <= 600


# -- news -------------------------------------------------------------------------------------------------------------


async def test_news_are_heard_from_where_the_reader_began(stage: Stage) -> None:
    """Events for everybody, wake-ups for who asks for them; nothing twice, and nothing from before."""
    catalog = stage.store.catalog
    await catalog.pause([TASK], "before", until_ms=None, details=DETAILS, who="me")
    for wake in (False, True):
        ids = await catalog.start(wake=wake)
        assert await catalog.news(ids, block_ms=10) == ([], ids)
        await catalog.pause([TASK], f"pause {wake}", until_ms=5 + wake, details=DETAILS, who="me")
        await stage.waiting(ago_ms=10 + wake)
        found, ids = await catalog.news(ids, block_ms=10_000)
        assert sorted(event.name for event in found) == (["paused", "wake"] if wake else ["paused"])
        assert await catalog.news(ids, block_ms=10) == ([], ids)
        for item in await stage.store.timetable.window(2**52):
            await stage.redis.zrem(stage.store.keys.due, f"r/{item.id}")


async def test_what_changed_lately_can_be_read_with_who_changed_it(stage: Stage) -> None:
    """The newest first, no more than asked for, each with its instant."""
    catalog = stage.store.catalog
    assert await catalog.recent_events(count=10) == []
    await catalog.pause([TASK], "one", until_ms=None, details=DETAILS, who="ada")
    await catalog.resume([TASK], "two", who="bob")
    await catalog.note("restarted", "engine.scheduling.leader", who="eve")
    told = await catalog.recent_events(count=2)
    assert [(one.name, one.fields["what"], one.fields["who"]) for one in told] == [
        ("restarted", "engine.scheduling.leader", "eve"),
        ("resumed", TASK, "bob"),
    ]
    assert all(abs(one.at_ms - stage.now_ms) < 60_000 for one in told)
    assert [one.name for one in await catalog.recent_events(count=10)] == ["restarted", "resumed", "paused"]


async def test_events_are_kept_in_bounds_whoever_writes_them(stage: Stage) -> None:
    """About a thousand."""
    for number in range(1_300):
        await stage.store.catalog.note("restarted", f"{number}", who="eve")
    assert 1_000 <= await stage.redis.xlen(stage.store.keys.events) < 1_200
