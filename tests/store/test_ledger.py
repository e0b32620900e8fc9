"""The ledger: each slot is covered by exactly one verdict, and neighbours that did not run share one entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.store.inprocess import InProcess
from engine.store.ledger import Cleared
from engine.store.runs import Hold
from engine.store.session import Broken, Done
from engine.store.store import Store
from engine.store.timetable import Move, Published, Skipped, Slot
from tests.store.scenario import OTHER, TASK, Stage, completion

if TYPE_CHECKING:
    from engine.store.ledger import LedgerEntry

STEP_MS = 1_000
"""Between two slots."""

SLOTS = 40


async def go_to_the_first_slot(stage: Stage, task: str = TASK) -> int:
    """The task's next slot is so long ago that all of its slots are due; that slot."""
    first_ms = stage.now_ms - SLOTS * STEP_MS
    await stage.redis.zadd(stage.store.keys.due, {f"t/{task}": first_ms})
    return first_ms


async def pass_slot(stage: Stage, task: str = TASK, *, overlap: str = "allow", cap: int = 100) -> Published | Skipped:
    """Publish the task's open slot; its successor is the next one."""
    due_ms = await stage.due_ms(f"t/{task}")
    assert due_ms is not None
    slot = Slot(task, due_ms, due_ms + STEP_MS, "low", overlap)
    [reply] = await stage.store.timetable.publish(stage.leader, [slot], queue_cap=cap)
    assert isinstance(reply, Published | Skipped)
    return reply


async def miss(stage: Stage, count: int, task: str = TASK) -> None:
    """Pass over some slots together."""
    due_ms = await stage.due_ms(f"t/{task}")
    assert due_ms is not None
    last_ms = due_ms + (count - 1) * STEP_MS
    move = Move(task, due_ms, last_ms + STEP_MS, count=count, last_ms=last_ms)
    assert await stage.store.timetable.move(stage.leader, [move]) == [Done()]


def ranges(entries: list[LedgerEntry], first_ms: int) -> list[tuple[str, int | None, int | None, int]]:
    """Verdict, first and last slot by their numbers, and how many."""

    def number(at_ms: int | None) -> int | None:
        return None if at_ms is None else (at_ms - first_ms) // STEP_MS

    return [(entry.verdict, number(entry.from_ms), number(entry.to_ms), entry.count) for entry in entries]


async def test_neighbouring_slots_that_did_not_run_for_one_reason_share_an_entry(stage: Stage) -> None:
    """A task that is paused for a year costs one entry; another reason, or verdict, begins another."""
    first_ms = await go_to_the_first_slot(stage)
    await stage.store.catalog.pause([TASK], "pause", until_ms=None, details="{}", who="me")
    for _ in range(5):
        await pass_slot(stage)
    await miss(stage, 3)
    await miss(stage, 2)
    await stage.store.catalog.resume([TASK], "resume", who="me")
    assert await pass_slot(stage, cap=0) == Skipped("queue full")
    assert await pass_slot(stage, cap=0) == Skipped("queue full")
    assert ranges(await stage.store.ledger.all(TASK), first_ms) == [
        ("skipped", 0, 4, 5),
        ("missed", 5, 9, 5),
        ("skipped", 10, 11, 2),
    ]
    assert ranges(await stage.store.ledger.newest(TASK, count=1), first_ms) == [("skipped", 10, 11, 2)]
    assert await stage.store.ledger.all(OTHER) == []


async def test_neighbours_that_did_not_run_for_different_reasons_do_not_share_an_entry(stage: Stage) -> None:
    """The ledger says of each slot why it did not run."""
    first_ms = await go_to_the_first_slot(stage)
    assert await pass_slot(stage, cap=0) == Skipped("queue full")
    await stage.store.catalog.pause([TASK], "pause", until_ms=None, details="{}", who="me")
    assert await pass_slot(stage, cap=0) == Skipped("paused")
    entries = await stage.store.ledger.all(TASK)
    assert ranges(entries, first_ms) == [("skipped", 0, 0, 1), ("skipped", 1, 1, 1)]
    assert [entry.reason for entry in entries] == ["queue full", "paused"]


async def test_slots_on_both_sides_of_one_that_still_runs_do_not_share_an_entry(stage: Stage) -> None:
    """Its verdict is not written yet: a range over it would cover it twice."""
    first_ms = await go_to_the_first_slot(stage)
    await pass_slot(stage, cap=0)
    assert await pass_slot(stage, cap=1) == Published()
    assert await pass_slot(stage, cap=1) == Skipped("queue full")
    assert ranges(await stage.store.ledger.all(TASK), first_ms) == [("skipped", 0, 0, 1), ("skipped", 2, 2, 1)]
    await stage.store.runs.complete("A", [completion(await stage.taken())])
    assert ranges(await stage.store.ledger.all(TASK), first_ms)[-1] == ("ran", 1, 1, 1)


async def test_a_verdict_between_two_slots_parts_them(stage: Stage) -> None:
    """The ledger stays in the order in which it was decided."""
    first_ms = await go_to_the_first_slot(stage)
    assert await pass_slot(stage, overlap="skip") == Published()
    assert await pass_slot(stage, overlap="skip") == Skipped("overlap")
    assert await pass_slot(stage, overlap="skip") == Skipped("overlap")
    await stage.store.runs.complete("A", [completion(await stage.taken())])
    await pass_slot(stage, cap=0)
    assert ranges(await stage.store.ledger.all(TASK), first_ms) == [
        ("skipped", 1, 2, 2),
        ("ran", 0, 0, 1),
        ("skipped", 3, 3, 1),
    ]


async def test_the_ledger_keeps_about_as_many_verdicts_as_it_is_told(stage: Stage) -> None:
    """Redis trims whole nodes of a hundred entries: at least the length, and not much more."""
    store = Store.over(stage.store.transport, prefix="test", ledger_length=10)
    few = Stage(store, stage.leader, stage.now_ms)
    for number in range(300):
        await few.queued(ago_ms=1_000 - number)
    runs = await few.claim(await few.read())
    await store.runs.complete("A", [completion(Hold(run.run_id, run.fence, "end")) for run in runs])
    assert 10 <= len(await store.ledger.all(TASK)) <= 10 + 100
    assert (await store.ledger.newest(TASK, count=1))[0].run_id == runs[-1].run_id


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["run", "start", "pause", "no room", "refuse"]),
        st.integers(min_value=1, max_value=4),  # slots missed together
    ),
    max_size=SLOTS // 4,
)


@settings(deadline=None, max_examples=100)
@given(steps=STEPS)
def test_whatever_happens_each_slot_is_covered_exactly_once(steps: list[str | int]) -> None:
    """G2, by any sequence of runs, skips and misses, with runs that end late."""
    trio.run(check_coverage, steps)


async def check_coverage(steps: list[str | int]) -> None:
    stage = await Stage.set(Store.over(InProcess(), prefix="test"))
    first_ms = await go_to_the_first_slot(stage)
    passed, open_ends = 0, []
    for number, step in enumerate(steps):
        passed += step if isinstance(step, int) else 1
        match step:
            case int():
                await miss(stage, step)
            case "pause":
                await stage.store.catalog.pause([TASK], f"pause {number}", until_ms=None, details="{}", who="me")
                assert await pass_slot(stage) == Skipped("paused")
                await stage.store.catalog.resume([TASK], f"resume {number}", who="me")
            case "no room":
                assert await pass_slot(stage, cap=0) == Skipped("queue full")
            case _:
                assert await pass_slot(stage) == Published()
                entries = await stage.read()
                if step == "refuse":
                    await stage.store.catalog.pause([TASK], f"pause {number}", until_ms=None, details="{}", who="me")
                    await stage.store.runs.claim("A", f"{number}", entries, lease_ms=1_000)
                    await stage.store.catalog.resume([TASK], f"resume {number}", who="me")
                    continue
                [run] = await stage.claim(entries, token=f"{number}")
                end = completion(Hold(run.run_id, run.fence, "end"))
                if step == "run":
                    await stage.store.runs.complete("A", [end])
                else:
                    open_ends.append(end)
    await stage.store.runs.complete("A", open_ends)
    covered: list[int] = []
    for _, first, last, count in ranges(await stage.store.ledger.all(TASK), first_ms):
        assert first is not None
        assert last is not None
        assert last - first + 1 == count
        covered += range(first, last + 1)
    assert sorted(covered) == list(range(passed))


# -- statistics that are cleared ---------------------------------------------------------------------------------------


async def ran(stage: Stage, task: str = TASK) -> str:
    """A run that ended well; the id of its verdict."""
    await stage.store.runs.complete("A", [completion(await stage.running(task))])
    [entry] = await stage.store.ledger.newest(task, count=1)
    return entry.entry_id


async def test_clearing_notes_the_newest_verdict_and_the_instant(stage: Stage) -> None:
    """What was there is hidden, what comes is not; the verdicts themselves stay, and other tasks have theirs."""
    ledger = stage.store.ledger
    first, newest, other = await ran(stage), await ran(stage), await ran(stage, OTHER)
    before = await ledger.all(TASK)
    [cleared, empty] = await ledger.clear([TASK, "group/none"], "clear", who="ada")
    assert isinstance(cleared, Cleared)
    assert isinstance(empty, Cleared)
    assert (cleared.entry_id, empty.entry_id) == (newest, "0-0")
    assert 0 <= await stage.store.leases.redis_ms() - cleared.at_ms < 60_000
    assert await ledger.cleared(TASK) == cleared
    assert await ledger.cleared("group/none") == empty
    assert await ledger.cleared(OTHER) is None
    later = await ran(stage)
    assert [cleared.hides(entry) for entry in (first, newest, later)] == [True, True, False]
    assert not empty.hides(other)
    assert (await ledger.all(TASK))[:2] == before
    event = (await stage.entries(stage.store.keys.events))[-1]
    assert event == {"event": "statistics cleared", "what": f"{TASK} group/none", "who": "ada"}


def test_verdicts_are_compared_by_their_numbers() -> None:
    """As Redis orders them: by instant, then by number, neither of them as text."""
    cleared = Cleared("1000-9", 0)
    assert [cleared.hides(entry) for entry in ("999-10", "1000-8", "1000-9")] == [True] * 3
    assert [cleared.hides(entry) for entry in ("1000-10", "1001-0", "10000-0")] == [False] * 3


async def test_the_repeat_of_a_clearing_hides_nothing_that_came_since(stage: Stage) -> None:
    """It gets the first answer; another operation clears again."""
    ledger = stage.store.ledger
    await ran(stage)
    first = await ledger.clear([TASK], "clear", who="me")
    newest = await ran(stage)
    assert await ledger.clear([TASK], "clear", who="me") == first
    assert [await ledger.cleared(TASK)] == first
    [again] = await ledger.clear([TASK], "again", who="me")
    assert isinstance(again, Cleared)
    assert again.entry_id == newest


async def test_statistics_of_more_tasks_than_fit_into_a_call_are_cleared_in_several(stage: Stage) -> None:
    """Each with its answer, in order; a broken one stops no other, and a repeat gets the same."""
    tasks = [f"group/{number}" for number in range(501)]
    newest = await ran(stage, tasks[500])
    await stage.redis.set(stage.store.keys.ledger(tasks[7]), "not ours")
    before = stage.store.transport.statistics().commands_sent
    first = await stage.store.ledger.clear(tasks, "clear", who="me")
    assert stage.store.transport.statistics().commands_sent - before in (2, 3)  # the script may be unknown to Redis
    assert [place for place, reply in enumerate(first) if isinstance(reply, Broken)] == [7]
    assert [reply.entry_id for reply in first if isinstance(reply, Cleared)] == ["0-0"] * 499 + [newest]
    assert await stage.redis.hlen(stage.store.keys.cleared) == 500
    assert await stage.store.ledger.clear(tasks, "clear", who="me") == first


async def test_a_forgotten_task_is_cleared_no_longer(stage: Stage) -> None:
    """One of that name made since begins anew."""
    await stage.store.operations.define(TASK, "{}", "define", who="me")
    await stage.store.ledger.clear([TASK, OTHER], "clear", who="me")
    await stage.store.operations.forget(TASK, "forget", who="me")
    assert await stage.store.ledger.cleared(TASK) is None
    assert await stage.store.ledger.cleared(OTHER) is not None
