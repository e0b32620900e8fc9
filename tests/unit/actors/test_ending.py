"""What Redis is told about the end of a body: a decision about plain values."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from actors.ending import MAX_ERROR_CHARS, Report, describe, report, retry_policy
from actors.running import Phase, Returned, Running, Stop, Stopped, TimedOut
from engine.domain.run import RunContext
from engine.domain.task import Definition, Task
from engine.store.runs import Claimed, Completion, Failure, Hold
from tests.unit.actors.stage import at_ms, config

HOLD = Hold("g/t@1", 7, "token")


async def nothing() -> None:
    await trio.lowlevel.checkpoint()


def block() -> None:
    """A body for a thread."""


def running(function: Any = nothing, *, attempt: int = 1, **settings: Any) -> Running:
    """A run that was started a minute after the hour."""
    definition = Definition(group="g", name="t", function="f", **{"expression": "0 0 1 1 *", **settings})
    claimed = Claimed("g/t@1", 7, "g/t", at_ms(0), attempt, 0, "")
    context = RunContext(
        run_id="g/t@1", task_id="g/t", group="g", name="t", slot_ms=1, attempt=attempt, fence=7, worker_id="w"
    )
    run = Running(claimed=claimed, task=Task(definition, function), context=context, hold=HOLD, last_delivery=False)
    run.started_ms = at_ms(60)
    return run


def decide(run: Running, end: Returned | TimedOut | Stopped, **settings: Any) -> Report:
    return report(run, end, config(**settings), worker="w", duration_s=1.5, now_ms=at_ms(61.5))


def boom() -> Returned:
    return Returned(ValueError("boom"))


def test_a_body_that_returned_ran() -> None:
    """Its story has the attempt, the worker and the times."""
    completion = decide(running(), Returned(None))
    assert isinstance(completion, Completion)
    assert (completion.hold, completion.verdict, completion.reason) == (HOLD, "ran", "")
    assert json.loads(completion.story) == {
        "attempt": 1,
        "worker": "w",
        "started_ms": at_ms(60),
        "duration_s": 1.5,
        "outcome": "ran",
        "error": "",
    }


def test_a_body_that_raised_is_tried_again() -> None:
    """After the delay of its attempt."""
    failure = decide(running(attempt=3, retry_backoff=2.0), boom(), retry_backoff_multiplier=3)
    assert isinstance(failure, Failure)
    assert failure.delay_ms == 18_000
    assert json.loads(failure.story)["error"] == "ValueError: boom"


@pytest.mark.parametrize(
    ("settings", "attempt", "verdict_and_reason"),
    [
        ({"max_retries": 0}, 1, ("failed", "raised")),
        ({"max_retries": 2}, 3, ("dead", "max_retries")),
        (
            {"expression": "*/2 * * * *", "retry_backoff": 60.0, "retry_backoff_max": 60.0},
            1,
            ("failed", "next slot came first"),
        ),
    ],
)
def test_a_failure_without_a_retry_left_is_final(
    settings: dict[str, Any], attempt: int, verdict_and_reason: tuple[str, str]
) -> None:
    """Forbidden, spent, or too late."""
    completion = decide(running(attempt=attempt, **settings), boom())
    assert isinstance(completion, Completion)
    assert (completion.verdict, completion.reason) == verdict_and_reason


def test_a_body_past_its_time_failed() -> None:
    """For good."""
    completion = decide(running(timeout=5.0), TimedOut(None))
    assert isinstance(completion, Completion)
    assert (completion.verdict, completion.reason) == ("failed", "timed out")
    assert json.loads(completion.story)["error"] == "not done after 5 s"


@pytest.mark.parametrize(
    ("why", "told"), [(Stop.LOST, None), (Stop.DANGER, HOLD), (Stop.SHUTDOWN, HOLD), (Stop.CANCELLED, "cancelled")]
)
def test_a_body_that_was_stopped_ends_as_the_reason_says(why: Stop, told: Hold | str | None) -> None:
    """Lost: nothing is told. Cut off or stopping: handed back. Cancelled by somebody: that is its verdict."""
    run = running()
    run.tell_to_stop(why)
    decision = decide(run, Stopped())
    assert (decision.reason if isinstance(decision, Completion) else decision) == told


def test_the_first_reason_to_stop_counts() -> None:
    """A run that was lost is not handed back at the drain that follows."""
    run = running()
    run.tell_to_stop(Stop.LOST)
    run.tell_to_stop(Stop.SHUTDOWN)
    assert run.stop is Stop.LOST


def test_a_thread_can_be_stopped_only_before_it_began() -> None:
    """And nothing at all once it has ended."""
    run = running(block)
    run.phase = Phase.BODY
    run.tell_to_stop(Stop.SHUTDOWN)
    assert run.stop is None
    waiting = running(block)
    waiting.tell_to_stop(Stop.SHUTDOWN)
    assert waiting.stop is Stop.SHUTDOWN
    ended = running()
    ended.phase = Phase.ENDED
    ended.tell_to_stop(Stop.LOST)
    assert ended.stop is None


def test_arguments_given_with_the_run_replace_those_of_the_task() -> None:
    """Those of the task apply where none were given."""
    run = running(kwargs_json='{"a": 1}')
    assert run.kwargs == {"a": 1}
    run.claimed = Claimed("g/t@1", 7, "g/t", 1, 1, 0, '{"b": 2}')
    assert run.kwargs == {"b": 2}


def test_a_tasks_own_retry_settings_win() -> None:
    """Zero is a setting too."""
    own = retry_policy(running(retry_backoff=0.0, max_retries=0).task.definition, config(max_retries=9))
    assert (own.backoff_s, own.max_retries) == (0.0, 0)
    inherited = retry_policy(running().task.definition, config(retry_backoff=7, retry_backoff_max=8, max_retries=9))
    assert (inherited.backoff_s, inherited.backoff_max_s, inherited.max_retries) == (7, 8, 9)


def test_an_error_is_told_with_the_line_that_raised_it() -> None:
    """And cut where it is endless."""
    with pytest.raises(ValueError, match="x") as raised:
        raise ValueError("x" * 10_000)
    error = raised.value
    assert len(describe(error)) == MAX_ERROR_CHARS
    error.args = ("short",)
    assert describe(error).startswith("ValueError: short (")
    assert "test_ending.py:" in describe(error)
    assert describe(None) == ""


def test_an_error_whose_text_cannot_be_had_is_told_all_the_same() -> None:
    """The text is code of the task."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    assert describe(Mute()) == "Mute: its text cannot be had: SystemExit"
