"""Every script can be called again: replies get lost, and a command can run after its own retry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.store.election import Elected, Held, Lost
from engine.store.leases import Beat
from engine.store.runs import Claimed, Failure, Fenced, Gone, Stale
from engine.store.session import Done
from engine.store.timetable import Moved
from tests.store.scenario import LEASE_MS, TASK, Snapshot, Stage, completion, hold
from tests.store.transitions import ALL, SAME, Transition, matches, replies_to

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BY_NAME = {transition.name: transition for transition in ALL}


def comparable(transition: Transition, stage: Stage, found: Snapshot) -> Snapshot:
    """A snapshot without what a repeat is meant to change: beat and claim renew leases, a beat the presence too."""
    if transition.name not in ("beat", "claim"):
        return found
    times = (stage.store.keys.leases, stage.store.keys.workers_seen)
    return {key: (kind, set(value) if key in times else value) for key, (kind, value) in found.items()}


@pytest.mark.parametrize("transition", ALL, ids=lambda transition: transition.name)
async def test_a_script_whose_reply_was_dropped_is_called_again_and_changes_nothing(
    stage: Stage, transition: Transition
) -> None:
    """It acts once; the repeat, with the same arguments, finds it done and says so as its header has it."""
    call = await transition.arrange(stage, [TASK])
    before = await stage.snapshot()
    [first] = replies_to(await call())
    assert matches(first, transition.reply), first
    after = await stage.snapshot()
    if transition.name != "renew":  # which changes only how long the lease lasts
        assert after != before
    for _ in range(2):
        [again] = replies_to(await call())
        assert matches(again, first if transition.again is SAME else transition.again), again
        assert comparable(transition, stage, await stage.snapshot()) == comparable(transition, stage, after)


# -- late, after what could follow -------------------------------------------------------------------------------------


async def published_again(stage: Stage) -> None:
    await stage.queued(ago_ms=500)


async def taken(stage: Stage) -> None:
    await stage.taken("B", token="B's")


async def taken_and_completed(stage: Stage) -> None:
    await stage.store.runs.complete("B", [completion(await stage.taken("B", token="B's"))])


async def taken_and_failed(stage: Stage) -> None:
    held = await stage.taken("B", token="B's")
    await stage.store.runs.fail("B", [Failure(_later(held), 600_000, "{}")])


async def taken_and_handed_back(stage: Stage) -> None:
    await stage.store.runs.hand_back("B", [_later(await stage.taken("B", token="B's"))])


async def taken_and_reclaimed(stage: Stage) -> None:
    lease = await stage.lease(await stage.taken("B", token="B's"))
    await stage.store.leases.reclaim(stage.leader, [lease], max_deliveries=3, story="{}")


async def put_aside(stage: Stage) -> None:
    await stage.store.runs.defer("B", await stage.read("B"), most=100, first_ms=600_000)


async def released(stage: Stage) -> None:
    await stage.store.runs.release(await stage.read("B"))


async def requeued(stage: Stage) -> None:
    [item] = [item for item in await stage.store.timetable.window(stage.now_ms + 60_000) if item.is_run]
    await stage.store.timetable.requeue(stage.leader, [item])


async def requeued_and_taken(stage: Stage) -> None:
    await requeued(stage)
    await taken(stage)


async def requeued_taken_and_failed(stage: Stage) -> None:
    await requeued(stage)
    await taken_and_failed(stage)


async def requeued_taken_and_completed(stage: Stage) -> None:
    await requeued(stage)
    await taken_and_completed(stage)


async def superseded(stage: Stage) -> None:
    record = stage.store.keys.run(await _the_run(stage))
    await stage.redis.hset(record, "overlap", "skip")
    await stage.queued(overlap="skip", ago_ms=0)


async def completed(stage: Stage) -> None:
    await stage.store.runs.complete("A", [completion(await _held(stage))])


async def failed(stage: Stage) -> None:
    await stage.store.runs.fail("A", [Failure(await _held(stage), 600_000, "{}")])


async def handed_back(stage: Stage) -> None:
    await stage.store.runs.hand_back("A", [await _held(stage)])


async def handed_back_and_taken(stage: Stage) -> None:
    await handed_back(stage)
    await taken(stage)


async def abandoned(stage: Stage) -> None:
    await stage.store.runs.abandon("A", await _held(stage), reason="timed out", story="{}")


async def reclaimed(stage: Stage) -> None:
    lease = await stage.lease(await _held(stage))
    await stage.store.leases.reclaim(stage.leader, [lease], max_deliveries=3, story="{}")


async def reclaimed_and_taken(stage: Stage) -> None:
    await reclaimed(stage)
    await taken(stage)


async def beaten(stage: Stage) -> None:
    held = await _held(stage)
    await stage.store.leases.beat("A", [(held.run_id, held.fence)], lease_ms=LEASE_MS, details="{}", draining=False)


async def released_while_running(stage: Stage) -> None:
    await stage.store.runs.release(await stage.store.runs.unclaimed("A"))


async def rescheduled(stage: Stage) -> None:
    due_ms = await stage.due_ms(f"t/{TASK}")
    assert due_ms is not None
    await stage.redis.zadd(stage.store.keys.due, {f"t/{TASK}": due_ms + 1_000})


async def renewed(stage: Stage) -> None:
    leader = await stage.redis.get(stage.store.keys.leader)
    await stage.store.election.renew(leader, lease_ms=LEASE_MS)


async def resigned(stage: Stage) -> None:
    assert await stage.store.election.resign(await stage.redis.get(stage.store.keys.leader))


async def succeeded_by_another(stage: Stage) -> None:
    leader = await stage.redis.get(stage.store.keys.leader)
    if leader:
        await stage.store.election.resign(leader)
    assert isinstance(await stage.store.election.elect("other", "its nonce", lease_ms=LEASE_MS), Elected)


async def paused_otherwise(stage: Stage) -> None:
    assert await stage.store.catalog.pause(
        [TASK], "another", until_ms=stage.now_ms, details='{"who": "me"}', who="me"
    ) == [True]


async def paused_for_good(stage: Stage) -> None:
    assert await stage.store.catalog.pause([TASK], "another", until_ms=None, details="{}", who="me") == [True]


async def resumed_otherwise(stage: Stage) -> None:
    assert await stage.store.catalog.resume([TASK], "another", who="me") == [True]


async def defined_otherwise(stage: Stage) -> None:
    found = await stage.store.operations.dynamic(TASK)
    await stage.store.operations.define(TASK, "other", "another", who="", replaces=found.revision if found else None)


async def forgotten(stage: Stage) -> None:
    assert await stage.store.operations.forget(TASK, "forget", who="") == 0


async def withdrawn(stage: Stage) -> None:
    await stage.store.operations.forget(TASK, "withdraw", who="", declared=True)


async def withdrawn_again(stage: Stage) -> None:
    assert await stage.store.operations.forget(TASK, "withdraw again", who="", declared=True) == 0


async def published_and_completed(stage: Stage) -> None:
    await stage.store.runs.complete("A", [completion(await stage.running(ago_ms=0))])


async def readmitted(stage: Stage) -> None:
    assert await stage.store.catalog.declare("another", ["page"], readmit=[TASK])


async def cleared_again(stage: Stage) -> None:
    await stage.store.ledger.clear([TASK], "another", who="")


async def drained(stage: Stage) -> None:
    await stage.store.leases.beat("A", [], lease_ms=1, details="{}", draining=True)


async def seen_again(stage: Stage) -> None:
    await stage.store.leases.beat("A", [], lease_ms=1, details="{}", draining=False)
    await stage.redis.zincrby(stage.store.keys.workers_seen, 1, "A")  # within the same millisecond, perhaps


async def _the_run(stage: Stage) -> str:
    [run_id] = await stage.live()
    return run_id


async def _held(stage: Stage) -> Any:
    record = await stage.record(await _the_run(stage))
    return hold_of(await _the_run(stage), record)


def hold_of(run_id: str, record: dict[str, str]) -> Any:
    """The hold that worker A has on a run."""
    return hold(
        Claimed(run_id, int(record["fence"]), record["task"], None, 1, 0, ""),
    )


def _later(held: Any) -> Any:
    """The same hold, with the token of another end than that of the script under test."""
    return type(held)(held.run_id, held.fence, "a later end")


async def written_by_another_version(stage: Stage) -> None:
    await stage.redis.hset(stage.store.keys.meta, "schema", "2")


LATE: dict[str, dict[Callable[[Stage], Awaitable[None]], Any]] = {
    "adopt": {
        completed: "ended",
        failed: "kept",
        handed_back: "newer",
        handed_back_and_taken: "newer",
        reclaimed: "newer",
        reclaimed_and_taken: "newer",
        abandoned: "kept",
        beaten: "kept",
    },
    "adopt, over a forgotten claim": {completed: "ended", handed_back: "newer", reclaimed_and_taken: "newer"},
    "adopt, ended": {published_again: "ended"},
    "adopt, dead": {published_again: "ended"},
    "adopt, tried again": {published_again: "kept"},
    "enter": {},
    "enter, with nothing left": {},
    "enter, after one that knew nothing": {},
    "restore": {},
    "told": {},
    "told, before others": {},
    "publish": dict.fromkeys(
        (taken, taken_and_completed, taken_and_failed, put_aside, released, published_again, rescheduled), Moved
    ),
    "publish, superseding": dict.fromkeys((taken, taken_and_completed, put_aside, rescheduled), Moved),
    "publish, skipping": dict.fromkeys((resumed_otherwise, rescheduled), Moved),
    "move, passing over": dict.fromkeys((published_again, rescheduled), Moved),
    "move, rescheduling": dict.fromkeys((published_again, rescheduled), Moved),
    "enroll": dict.fromkeys((published_again, rescheduled), "known"),
    "enroll, starting": dict.fromkeys((taken, taken_and_completed, taken_and_failed, rescheduled), "known"),
    "requeue": {
        taken: Moved(None),
        taken_and_completed: Moved(None),
        taken_and_failed: Moved,
        taken_and_handed_back: Moved(None),
        taken_and_reclaimed: Moved(None),
        put_aside: Moved,
        released: Moved(None),
    },
    "requeue, refusing": {resumed_otherwise: Moved(None)},
    "claim": {
        completed: Stale(),
        failed: Stale(),
        handed_back: Stale(),
        handed_back_and_taken: Stale(),
        reclaimed: Stale(),
        reclaimed_and_taken: Stale(),
        abandoned: SAME,
        beaten: SAME,
        released_while_running: SAME,
    },
    "claim, refusing": {resumed_otherwise: Stale()},
    "complete": {published_again: Gone()},
    "complete, dead": {published_again: Gone()},
    "fail": {
        requeued: Gone(),
        requeued_and_taken: Gone(),
        requeued_taken_and_failed: Fenced(),
        requeued_taken_and_completed: Gone(),
        superseded: Gone(),
    },
    "hand_back": {
        taken: Done(),
        taken_and_completed: Gone(),
        taken_and_failed: Fenced(),
        taken_and_handed_back: Fenced(),
        taken_and_reclaimed: Done(),
        put_aside: Done(),
        released: Done(),
    },
    "abandon": {completed: Gone(), handed_back: Gone(), failed: Gone(), reclaimed: Gone(), beaten: Done()},
    "begin": {
        completed: Gone(),
        handed_back: Fenced(),
        failed: Fenced(),
        reclaimed: Fenced(),
        reclaimed_and_taken: Fenced(),
        abandoned: Done(),
    },
    "defer": {requeued: Stale(), requeued_and_taken: Stale(), requeued_taken_and_completed: Stale()},
    "release": dict.fromkeys((taken, taken_and_completed, taken_and_failed, put_aside, released), "dropped"),
    "reclaim": dict.fromkeys(
        (taken, taken_and_completed, taken_and_failed, taken_and_handed_back, put_aside, released), None
    ),
    "reclaim, dead": {published_again: None},
    "agree": {written_by_another_version: "2"},
    "elect": {renewed: Elected, resigned: Held, succeeded_by_another: Held},
    "renew": {resigned: Lost, succeeded_by_another: Lost},
    "resign": {succeeded_by_another: False},
    "beat": {
        completed: Beat,
        failed: Beat,
        handed_back: Beat,
        reclaimed_and_taken: Beat,
        abandoned: Beat,
        drained: Beat,
    },
    "bury": {seen_again: "alive"},
    "declare": {paused_otherwise: False},
    "declare, in place of another": {paused_otherwise: False},
    "declare, readmitting": dict.fromkeys((paused_otherwise, withdrawn_again, defined_otherwise), False),
    "declare, readmitting into a known set": dict.fromkeys((withdrawn_again, defined_otherwise), False),
    "drop_withdrawn": {withdrawn_again: "changed", defined_otherwise: "changed"},
    "strike": {published_again: 0},
    "retire": {paused_otherwise: "gone"},
    "retire, noting": {paused_otherwise: "unused"},
    "dismiss": {paused_otherwise: None},
    "pause": {paused_otherwise: SAME, resumed_otherwise: SAME},
    "resume": {paused_otherwise: SAME},
    "unpause": {paused_for_good: 0},
    "set_aside": {published_again: None},
    "tidy": {published_again: frozenset()},
    "tidy, mending": {published_again: frozenset()},
    "trigger": dict.fromkeys(
        (taken, taken_and_completed, taken_and_failed, put_aside, released, paused_otherwise), SAME
    ),
    "trigger, superseding": dict.fromkeys((taken, taken_and_completed, put_aside), SAME),
    "trigger, refusing": {resumed_otherwise: SAME},
    "cancel": {published_again: SAME},
    "cancel, asking": dict.fromkeys((completed, failed, handed_back, reclaimed, abandoned, beaten), SAME),
    "cancel, finding nothing": {published_again: SAME},
    "reset_retry": dict.fromkeys((requeued, requeued_and_taken, requeued_taken_and_failed, superseded), SAME),
    "revive": dict.fromkeys((taken, taken_and_completed, taken_and_failed, paused_otherwise), SAME),
    "discard": {published_again: SAME},
    "clear": dict.fromkeys((published_and_completed, cleared_again, withdrawn), SAME),
    "define": dict.fromkeys((defined_otherwise, forgotten, withdrawn), SAME),
    "forget": dict.fromkeys((completed, defined_otherwise, withdrawn_again), SAME),
    "forget, withdrawing": dict.fromkeys((completed, defined_otherwise, readmitted), SAME),
}
"""For each script: what could follow it, and what its late repeat is told then."""


def test_the_table_of_late_repeats_is_complete() -> None:
    """A new script does not slip through."""
    assert set(LATE) == set(BY_NAME)


@pytest.mark.parametrize(
    ("name", "follow"),
    [
        pytest.param(name, follow, id=f"{name} late, after {follow.__name__}")
        for name, followers in LATE.items()
        for follow in followers
    ],
)
async def test_a_script_that_runs_again_late_changes_nothing(
    stage: Stage, name: str, follow: Callable[[Stage], Awaitable[None]]
) -> None:
    """Others have acted on the same run or task since: the repeat must not undo, redo or count anything."""
    transition = BY_NAME[name]
    call = await transition.arrange(stage, [TASK])
    [first] = replies_to(await call())
    assert matches(first, transition.reply), first
    await follow(stage)
    before = comparable(transition, stage, await stage.snapshot())
    [late] = replies_to(await call())
    wanted = LATE[name][follow]
    assert matches(late, first if wanted is SAME else wanted), late
    assert comparable(transition, stage, await stage.snapshot()) == before
