"""What Redis is told about the end of a body: a verdict, another try, or a hand-back. Decisions only."""

from __future__ import annotations

import traceback
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, TypeAlias

from actors.running import Returned, Stop, Stopped, TimedOut
from engine.domain.retry import GiveUp, RetryPolicy, after_failure
from engine.domain.run import Reason, Verdict
from engine.store.runs import Completion, Failure, Hold

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.running import BodyEnd, Running
    from engine.config import Config
    from engine.domain.task import Definition

Report: TypeAlias = Completion | Failure | Hold | None
"""What Redis is told: a hold alone is a hand-back, None is nothing."""

MAX_ERROR_CHARS = 500
"""What the ledger keeps of an error."""


def report(running: Running, end: BodyEnd, config: Config, *, worker: str, duration_s: float, now_ms: int) -> Report:
    """Decide what Redis is told. ``now_ms`` is Redis time at the end of the body."""

    def story(outcome: str, error: str = "") -> str:
        facts = (
            f'{{"attempt": {running.claimed.attempt}, "worker": {quoted(worker)}, "started_ms": {running.started_ms}'
        )
        return (
            f'{facts}, "duration_s": {round(duration_s, 6)}, "outcome": {quoted(outcome)}, "error": {quoted(error)}}}'
        )

    def complete(verdict: Verdict, reason: Reason | None = None, error: str = "") -> Completion:
        why = reason.value if reason else ""
        return Completion(running.hold, verdict.value, why, story(why or verdict.value, error))

    match end:
        case Returned(None):
            return complete(Verdict.RAN)
        case TimedOut():
            return complete(Verdict.FAILED, Reason.TIMED_OUT, f"not done after {running.timeout_s:g} s")
        case Stopped():
            if running.stop is Stop.LOST:
                return None
            return complete(Verdict.FAILED, Reason.CANCELLED) if running.stop is Stop.CANCELLED else running.hold
        case Returned(error):
            return _after_error(running, config, story, describe(error), now_ms)


def _after_error(
    running: Running, config: Config, story: Callable[[str, str], str], error: str, now_ms: int
) -> Completion | Failure:
    definition = running.task.definition
    decision = after_failure(
        definition.schedule,
        retry_policy(definition, config),
        failures=running.claimed.attempt,
        slot_ms=running.claimed.slot_ms,
        now_ms=now_ms,
    )
    if isinstance(decision, GiveUp):
        return Completion(running.hold, decision.verdict.value, decision.reason.value, story("failed", error))
    return Failure(running.hold, decision.delay_ms, story("failed", error))


def retry_policy(definition: Definition, config: Config) -> RetryPolicy:
    """The task's own settings, the Config's where it has none."""

    def own(value: float | None, default: float) -> float:
        return default if value is None else value

    return RetryPolicy(
        backoff_s=own(definition.retry_backoff, config.retry_backoff),
        backoff_max_s=own(definition.retry_backoff_max, config.retry_backoff_max),
        multiplier=config.retry_backoff_multiplier,
        max_retries=config.max_retries if definition.max_retries is None else definition.max_retries,
    )


def describe(error: BaseException | None) -> str:
    """What the ledger says about an error: type, text, and where it was raised."""
    if error is None:
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].filename}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {_text(error)}{where}"[:MAX_ERROR_CHARS]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as worse:  # noqa: BLE001  # whatever a run raises ends at the run, and this is code of the task
        return f"its text cannot be had: {type(worse).__name__}"
