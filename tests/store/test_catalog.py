"""declare, retire, pause and resume, and hearing of what changed."""

from __future__ import annotations

import pytest

from engine.store.catalog import _DECLARE, Pause
from engine.store.presence import Account
from engine.store.session import Deposed
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage

DETAILS = '{"who":"me","n":[],"since":1795344932000123}'
"""With what Lua's JSON would change: it is opaque there."""


# -- declare ----------------------------------------------------------------------------------------------------------


async def test_a_set_counts_from_its_last_page_on(stage: Stage) -> None:
    """Until then nobody sees half of it; then everybody hears of it once."""
    catalog, keys = stage.store.catalog, stage.store.keys
    pages = [f'{{"page":{number},"none":[]}}' for number in range(12)]
    names = [keys.declared("d1"), keys.declarations, keys.version, keys.events, keys.unused]
    for number, page in enumerate(pages[:-1]):
        assert await catalog.session.call(_DECLARE, names, "d1", number, page, len(pages)) == "page"
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
    names = [keys.declared("d1"), keys.declarations, keys.version, keys.events, keys.unused]
    await catalog.session.call(_DECLARE, names, "d1", 0, "page", 2)
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
    """The content of a digest never changes."""
    catalog = stage.store.catalog
    await catalog.declare("d1", ["page"])
    known = {found.digest: found for found in (await catalog.contents()).sets}
    await stage.redis.delete(stage.store.keys.declared("d1"))
    assert [found.pages for found in (await catalog.contents(known)).sets] == [("page",)]


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


# -- dismiss ----------------------------------------------------------------------------------------------------------


async def test_a_dismissed_task_leaves_due_and_its_runs_end_with_a_verdict(stage: Stage) -> None:
    """Those that never started are skipped, retries fail; its pause and ledger stay, and a running one goes on."""
    catalog, keys = stage.store.catalog, stage.store.keys
    await stage.waiting(ago_ms=5, delay_ms=600_000)
    running = await stage.running(ago_ms=4)
    await stage.parked(first_ms=600_000)
    await stage.queued(ago_ms=3)
    await stage.due(OTHER)
    await catalog.pause(TASK, "pause", until_ms=None, details=DETAILS)
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
    assert await catalog.pause(TASK, "op", until_ms=until_ms, details=DETAILS)
    assert (await catalog.contents()).paused == {TASK: Pause(until_ms, DETAILS)}
    assert await catalog.version() == 1
    [event] = await stage.entries(stage.store.keys.events)
    assert event == {"event": "paused", "what": TASK, "details": f"{until_ms or 0}|{DETAILS}"}


async def test_resuming_ends_a_pause(stage: Stage) -> None:
    """Of that task alone, once."""
    catalog = stage.store.catalog
    for task in (TASK, OTHER):
        await catalog.pause(task, f"pause {task}", until_ms=None, details=DETAILS)
    assert await catalog.resume(TASK, "resume")
    assert set((await catalog.contents()).paused) == {OTHER}
    assert await catalog.version() == 3
    assert (await stage.entries(stage.store.keys.events))[-1] == {"event": "resumed", "what": TASK, "details": ""}
    assert not await catalog.resume(TASK, "another operation")
    assert await catalog.version() == 3


async def test_a_pause_in_just_the_same_way_changes_nothing(stage: Stage) -> None:
    """And one in another way replaces it."""
    catalog = stage.store.catalog
    await catalog.pause(TASK, "one", until_ms=None, details=DETAILS)
    assert not await catalog.pause(TASK, "two", until_ms=None, details=DETAILS)
    assert await catalog.version() == 1
    assert await catalog.pause(TASK, "three", until_ms=77, details=DETAILS)
    assert (await catalog.contents()).paused == {TASK: Pause(77, DETAILS)}
    assert await catalog.version() == 2


async def test_the_answer_to_an_operation_is_kept_for_ten_minutes(stage: Stage) -> None:
    """For its repeat; then it ends by itself."""
    await stage.store.catalog.pause(TASK, "op/ä", until_ms=None, details=DETAILS)
    key = stage.store.keys.once("op/ä")
    assert await stage.redis.get(key) == "1"
    assert 0 < await stage.redis.ttl(key) <= 600


# -- news -------------------------------------------------------------------------------------------------------------


async def test_news_are_heard_from_where_the_reader_began(stage: Stage) -> None:
    """Events for everybody, wake-ups for who asks for them; nothing twice, and nothing from before."""
    catalog = stage.store.catalog
    await catalog.pause(TASK, "before", until_ms=None, details=DETAILS)
    for wake in (False, True):
        ids = await catalog.start(wake=wake)
        assert await catalog.news(ids, block_ms=10) == ([], ids)
        await catalog.pause(TASK, f"pause {wake}", until_ms=5 + wake, details=DETAILS)
        await stage.waiting(ago_ms=10 + wake)
        found, ids = await catalog.news(ids, block_ms=10_000)
        assert sorted(event.name for event in found) == (["paused", "wake"] if wake else ["paused"])
        assert await catalog.news(ids, block_ms=10) == ([], ids)
        for item in await stage.store.timetable.window(2**52):
            await stage.redis.zrem(stage.store.keys.due, f"r/{item.id}")
