"""The statistics of a task: the attempts that started, read from its ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from engine.config import Config
from engine.store.runs import Failure
from engine.store.timetable import Move
from engine.views import AttemptView, read_statistics
from tests.store.scenario import TASK, Stage, completion

if TYPE_CHECKING:
    from engine.store.runs import Hold
    from engine.store.store import Store

DAY_S = 86_400


def line(stage: Stage, *, ago_s: float = 1.0, attempt: int = 1, outcome: str = "ran", error: str = "") -> str:
    """A line of a run's story, as a worker writes it."""
    facts = {"worker": "service-host-1-abcd", "duration_s": 0.25, "outcome": outcome, "error": error}
    return json.dumps({"attempt": attempt, "started_ms": started_ms(stage, ago_s), **facts})


def started_ms(stage: Stage, ago_s: float) -> int:
    return stage.now_ms - round(ago_s * 1000)


async def ran(stage: Stage, *, ago_s: float = 1.0) -> None:
    """A run that ended well."""
    held = await stage.running(ago_ms=round(ago_s * 1000))
    await stage.store.runs.complete("A", [completion(held, story=line(stage, ago_s=ago_s))])


async def did_not_run(stage: Stage, *, slots: int = 1) -> None:
    """Neighbouring slots that were missed, under one verdict."""
    due_ms = stage.now_ms - 1_000
    await stage.redis.zadd(stage.store.keys.due, {f"t/{TASK}": due_ms})
    move = Move(TASK, due_ms, stage.now_ms + 3_600_000, count=slots, last_ms=due_ms)
    await stage.store.timetable.move(stage.leader, [move])


async def lost(stage: Stage, held: Hold) -> None:
    """The worker of a run is found lost, and the run is queued again."""
    story = json.dumps({"outcome": "lost", "seen_ms": stage.now_ms})
    await stage.store.leases.reclaim(stage.leader, [await stage.lease(held)], max_deliveries=3, story=story)


async def statistics(store: Store, *, history_runs: int = 500, expiration_s: int = DAY_S) -> list[AttemptView]:
    bounds = {"statistics_history_runs": history_runs, "statistics_redis_expiration": expiration_s}
    return await read_statistics(store, TASK, Config(redis_host="unused", **bounds))


async def ages_s(stage: Stage, **bounds: Any) -> list[float]:
    """How long ago the shown attempts started, in the order in which they are shown."""
    shown = await statistics(stage.store, **bounds)
    starts = [datetime.fromisoformat(attempt.started_at).timestamp() for attempt in shown if attempt.started_at]
    return [round(stage.now_ms / 1000 - start, 3) for start in starts]


async def test_a_task_that_never_ran_has_no_statistics(stage: Stage) -> None:
    """Its ledger does not exist yet."""
    assert await statistics(stage.store) == []


async def test_an_attempt_is_shown_with_all_that_is_known_of_it(stage: Stage) -> None:
    """In plain JSON types."""
    await ran(stage, ago_s=61.5)
    [shown] = await statistics(stage.store)
    start = datetime.fromtimestamp(started_ms(stage, 61.5) / 1000, UTC)
    assert shown.to_dict() == {
        "started_at": start.strftime("%Y-%m-%dT%H:%M:%S.") + f"{start.microsecond // 1000:03}Z",
        "at_ms": started_ms(stage, 61.5),
        "duration_s": 0.25,
        "outcome": "ran",
        "attempt": 1,
        "worker": "service-host-1-abcd",
        "error": None,
    }


async def test_each_attempt_of_a_run_counts_and_a_lost_one_has_the_number_of_its_successor(stage: Stage) -> None:
    """The newest first; a lost attempt has no start of its own, since its worker took it along."""
    first = await stage.running()
    story = line(stage, ago_s=30, outcome="failed", error="ValueError: 1")
    await stage.store.runs.fail("A", [Failure(first, 0, story)])
    [again] = [due for due in await stage.store.timetable.window(2**53) if due.is_run]
    await stage.store.timetable.requeue(stage.leader, [again])
    await lost(stage, await stage.taken("B"))
    third = await stage.taken("A", token="third")
    unfinished = await statistics(stage.store)  # it has no verdict yet
    await stage.store.runs.complete("A", [completion(third, story=line(stage, ago_s=-1, attempt=2))])

    shown = await statistics(stage.store)
    assert [(one.outcome, one.attempt, one.error) for one in shown] == [
        ("ran", 2, None),
        ("lost", 2, None),
        ("failed", 1, "ValueError: 1"),
    ]
    assert shown[1:] == unfinished
    assert (shown[1].started_at, shown[1].duration_s, shown[1].worker) == (None, None, None)
    assert await statistics(stage.store, history_runs=2) == shown[:2]


async def test_overlapping_runs_are_in_the_order_of_their_starts(stage: Stage) -> None:
    """Not in that of their ends, which is the ledger's."""
    for ago_s in (10, 40, 20):
        await ran(stage, ago_s=ago_s)
    assert await ages_s(stage) == [10, 20, 40]


async def test_slots_that_did_not_run_are_no_part_of_them(stage: Stage) -> None:
    """They have verdicts, and take no place of those that ran, however many there are."""
    for ago_s in (30, 20, 10):
        await ran(stage, ago_s=ago_s)
        for _ in range(3):
            await did_not_run(stage, slots=4)
    assert len(await stage.store.ledger.all(TASK)) > 6
    assert await ages_s(stage) == [10, 20, 30]
    assert await ages_s(stage, history_runs=2) == [10, 20]
    assert await ages_s(stage, history_runs=1) == [10]


@pytest.mark.parametrize(("history_runs", "shown"), [(1, [1.0]), (2, [1.0, 2.0]), (9, [1.0, 2.0, 3.0, 4.0])])
async def test_no_more_are_shown_than_asked_for(stage: Stage, history_runs: int, shown: list[float]) -> None:
    """The newest are."""
    for ago_s in (4, 3, 2, 1):
        await ran(stage, ago_s=ago_s)
    assert await ages_s(stage, history_runs=history_runs) == shown


async def test_attempts_from_before_the_expiration_are_not_shown(stage: Stage) -> None:
    """By their start; the time of the test itself is allowed for."""
    for ago_s in (500, 300, 10):
        await ran(stage, ago_s=ago_s)
    assert await ages_s(stage, expiration_s=1_000) == [10, 300, 500]
    assert await ages_s(stage, expiration_s=400) == [10, 300]
    assert await ages_s(stage, expiration_s=200) == [10]
    assert await ages_s(stage, expiration_s=5) == []
