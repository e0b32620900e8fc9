"""The table of a run's states is what the scripts do: no step more, and none less."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from engine.domain.run import NEXT, Reason, RunState, Verdict
from engine.store.store import Store
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, completion
from tests.store.transitions import ALL, Call

if TYPE_CHECKING:
    from engine.store.transport import Transport

Arrange: TypeAlias = Callable[[Stage, Sequence[str]], Awaitable[Call]]

ENDED: Final = {
    (Verdict.RAN.value, ""): RunState.SUCCEEDED,
    (Verdict.FAILED.value, Reason.TIMED_OUT.value): RunState.TIMED_OUT,
    (Verdict.FAILED.value, Reason.CANCELLED.value): RunState.CANCELLED,
}
"""The states that a verdict alone does not tell."""


def completed(verdict: Verdict, reason: str) -> Arrange:
    """Ready to end with this verdict."""

    async def arrange(stage: Stage, tasks: Sequence[str]) -> Call:
        held = await stage.running(tasks[0])
        return lambda: stage.store.runs.complete("A", [completion(held, verdict.value, reason)])

    return arrange


async def requeue_parked(stage: Stage, tasks: Sequence[str]) -> Call:
    parked = await stage.parked(tasks[0])
    return lambda: stage.store.timetable.requeue(stage.leader, [parked])


async def refuse_parked(stage: Stage, tasks: Sequence[str]) -> Call:
    call = await requeue_parked(stage, tasks)
    await stage.store.catalog.pause([tasks[0]], "pause", until_ms=None, details="{}", who="me")
    return call


async def cancel_parked(stage: Stage, tasks: Sequence[str]) -> Call:
    parked = await stage.parked(tasks[0])
    return lambda: stage.store.operations.cancel([parked.id], "cancel", who="somebody")


async def cancel_waiting(stage: Stage, tasks: Sequence[str]) -> Call:
    waiting = await stage.waiting(tasks[0])
    return lambda: stage.store.operations.cancel([waiting.id], "cancel", who="somebody")


async def refuse_what_was_handed_back(stage: Stage, tasks: Sequence[str]) -> Call:
    held = await stage.running(tasks[0], overlap="skip", ago_ms=2)
    await stage.store.runs.hand_back("A", [held])
    await stage.queued(tasks[0])
    handed_back, newer = await stage.read()
    await stage.claim([newer])
    return lambda: stage.store.runs.claim("A", "again", [handed_back], lease_ms=LEASE_MS)


async def dismiss_what_had_started(stage: Stage, tasks: Sequence[str]) -> Call:
    held = await stage.running(tasks[0])
    await stage.store.runs.hand_back("A", [held])
    await stage.store.runs.defer("A", await stage.read(), most=100, first_ms=0)
    return lambda: stage.store.catalog.dismiss(stage.leader, 0, tasks[:1])


ARRANGEMENTS: Final[Sequence[Arrange]] = (
    *(transition.arrange for transition in ALL if not transition.name.startswith("adopt")),
    *(completed(Verdict.FAILED, reason.value) for reason in (Reason.RAISED, Reason.TIMED_OUT, Reason.CANCELLED)),
    *(requeue_parked, refuse_parked, cancel_parked, cancel_waiting, refuse_what_was_handed_back),
    dismiss_what_had_started,
)
"""Every script where it acts, and what the table of scripts has no line for.

Not those that tell Redis again which steps it has forgotten.
"""


async def states(stage: Stage) -> dict[str, RunState]:
    """Where each run is, by record or by verdict. A slot that was refused when it was due has a verdict alone."""
    keys = stage.store.keys
    found: dict[str, RunState] = {}
    async for key in stage.redis.scan_iter(match=f"{keys.runs}*"):
        found[key.removeprefix(keys.runs)] = RunState(await stage.redis.hget(key, "state"))
    for task in (TASK, OTHER):
        for entry in await stage.store.ledger.all(task):
            if entry.verdict != Verdict.MISSED.value:
                run = entry.run_id or f"{task}, a slot"
                found[run] = ENDED.get((entry.verdict, entry.reason)) or RunState(entry.verdict)
    return found


def steps(before: dict[str, RunState], after: dict[str, RunState]) -> set[tuple[RunState, RunState]]:
    """What runs went through. A run that left without a verdict was a removed task's, which stops it."""
    taken = {(before.get(run, RunState.SCHEDULED), state) for run, state in after.items()}
    left = {(state, RunState.CANCELLED) for run, state in before.items() if run not in after and NEXT[state]}
    return {(state, to) for state, to in taken | left if state is not to}


async def test_the_table_has_the_steps_that_scripts_perform_and_no_others(transport: Transport) -> None:
    """Whoever reads NEXT knows what can happen; a policy that needs another step brings its script."""
    seen: set[tuple[RunState, RunState]] = set()
    for number, arrange in enumerate(ARRANGEMENTS):
        stage = await Stage.set(Store.over(transport, prefix=f"table-{number}"))
        call = await arrange(stage, [TASK, OTHER])
        before = await states(stage)
        await call()
        seen |= steps(before, await states(stage))
    assert seen == {(state, to) for state, following in NEXT.items() for to in following}
