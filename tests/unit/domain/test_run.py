"""States, verdicts, and the context of a run."""

from __future__ import annotations

import contextvars
from threading import Thread

import pytest

from engine.domain.run import NEXT, REASONS, Reason, RunContext, RunState, Verdict
from engine.errors import NoCurrentRun

FINAL = {RunState.SUCCEEDED, RunState.FAILED, RunState.TIMED_OUT, RunState.CANCELLED, RunState.DEAD, RunState.SKIPPED}


def test_every_state_is_reached_and_every_run_can_end() -> None:
    """From the slot every state can be reached, and from each of them a final one; final states are final."""

    def reachable(start: RunState) -> set[RunState]:
        seen, left = {start}, [start]
        while left:
            for state in NEXT[left.pop()] - seen:
                seen.add(state)
                left.append(state)
        return seen

    assert reachable(RunState.SCHEDULED) == set(RunState)
    for state in RunState:
        assert reachable(state) & FINAL
    assert {state for state in RunState if not NEXT[state]} == FINAL


def test_every_verdict_has_its_reasons_and_every_reason_a_verdict() -> None:
    """A verdict without a reason is that the run ran."""
    assert set(REASONS) == set(Verdict)
    assert set().union(*REASONS.values()) == set(Reason)
    assert [verdict for verdict in Verdict if not REASONS[verdict]] == [Verdict.RAN]


CONTEXT = RunContext(
    run_id="g/t@0", task_id="g/t", group="g", name="t", slot_ms=0, attempt=1, fence=7, worker_id="host-1-abcd"
)


def test_the_current_run_is_known_inside_and_only_there() -> None:
    """Outside of a run the question is an error, not None."""
    with pytest.raises(NoCurrentRun):
        RunContext.current()
    with CONTEXT.entered():
        assert RunContext.current() is CONTEXT
    with pytest.raises(NoCurrentRun, match="no run is current"):
        RunContext.current()


def test_a_thread_knows_the_run_whose_context_it_was_given() -> None:
    """The context is carried as trio and anyio carry it: by copying the context variables."""
    found: list[RunContext] = []
    with CONTEXT.entered():
        context = contextvars.copy_context()
    thread = Thread(target=context.run, args=(lambda: found.append(RunContext.current()),))
    thread.start()
    thread.join()
    assert found == [CONTEXT]
