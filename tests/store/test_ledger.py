"""The ledger: each slot is covered by exactly one verdict, and neighbours that did not run share one entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.store.inprocess import InProcess
from engine.store.runs import Hold
from engine.store.session import Done
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
    await stage.store.catalog.pause(TASK, "pause", until_ms=None, details="{}")
    for _ in range(5):
        await pass_slot(stage)
    await miss(stage, 3)
    await miss(stage, 2)
    await stage.store.catalog.resume(TASK, "resume")
    assert await pass_slot(stage, cap=0) == Skipped("queue full")
    assert await pass_slot(stage, cap=0) == Skipped("queue full")
    assert ranges(await stage.store.ledger.all(TASK), first_ms) == [
        ("skipped", 0, 4, 5),
        ("missed", 5, 9, 5),
        ("skipped", 10, 11, 2),
    ]
    assert ranges(await stage.store.ledger.newest(TASK, count=1), first_ms) == [("skipped", 10, 11, 2)]
    assert await stage.store.ledger.all(OTHER) == []


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
                await stage.store.catalog.pause(TASK, f"pause {number}", until_ms=None, details="{}")
                assert await pass_slot(stage) == Skipped("paused")
                await stage.store.catalog.resume(TASK, f"resume {number}")
            case "no room":
                assert await pass_slot(stage, cap=0) == Skipped("queue full")
            case _:
                assert await pass_slot(stage) == Published()
                entries = await stage.read()
                if step == "refuse":
                    await stage.store.catalog.pause(TASK, f"pause {number}", until_ms=None, details="{}")
                    await stage.store.runs.claim("A", f"{number}", entries, lease_ms=1_000)
                    await stage.store.catalog.resume(TASK, f"resume {number}")
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
