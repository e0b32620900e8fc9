"""What Redis is told about the end of a body: a verdict, another try, or a hand-back. Decisions only."""

from __future__ import annotations

import traceback
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Final, TypeAlias, final

from actors.running import Returned, Stop, Stopped, TimedOut
from engine.domain.retry import GiveUp, RetryPolicy, after_failure
from engine.domain.run import Reason, Verdict
from engine.store.runs import Completion, Failure, Hold

if TYPE_CHECKING:
    from actors.running import BodyEnd, Running
    from engine.config import Config
    from engine.domain.task import Definition

Report: TypeAlias = Completion | Failure | Hold | None
"""What Redis is told: a hold alone is a hand-back, None is nothing."""

_RAN: Final = Verdict.RAN.value

MAX_ERROR_CHARS = 500
"""What the ledger keeps of an error."""


def report(running: Running, end: BodyEnd, config: Config, *, worker: str, duration_s: float, now_ms: int) -> Report:
    """Decide what Redis is told. ``now_ms`` is Redis time at the end of the body."""
    attempt = _Attempt(running, worker, duration_s)
    match end:
        case Returned(None):
            return Completion(running.hold, _RAN, "", attempt.story(_RAN))
        case TimedOut():
            return attempt.failed(Reason.TIMED_OUT, f"not done after {running.timeout_s:g} s")
        case Stopped():
            if running.stop is Stop.LOST:
                return None
            return attempt.failed(Reason.CANCELLED) if running.stop is Stop.CANCELLED else running.hold
        case Returned(error):
            return _after_error(attempt, config, describe(error), now_ms)


@final
class _Attempt:
    """What is told about an attempt, however it ended."""

    __slots__ = ("_duration_s", "_worker", "running")

    def __init__(self, running: Running, worker: str, duration_s: float) -> None:
        self.running, self._worker, self._duration_s = running, worker, duration_s

    def story(self, outcome: str, error: str = "") -> str:
        """One line of JSON."""
        run = self.running
        said = quoted(error) if error else '""'
        return (
            f'{{"attempt": {run.claimed.attempt}, "worker": {quoted(self._worker)}, "started_ms": {run.started_ms}, '
            f'"duration_s": {round(self._duration_s, 6)}, "outcome": {quoted(outcome)}, "error": {said}}}'
        )

    def failed(self, reason: Reason, error: str = "") -> Completion:
        """For good."""
        return Completion(self.running.hold, Verdict.FAILED.value, reason.value, self.story(reason.value, error))


def _after_error(attempt: _Attempt, config: Config, error: str, now_ms: int) -> Completion | Failure:
    running = attempt.running
    definition = running.task.definition
    decision = after_failure(
        definition.schedule,
        retry_policy(definition, config),
        failures=running.claimed.attempt,
        slot_ms=running.claimed.slot_ms,
        now_ms=now_ms,
    )
    story = attempt.story("failed", error)
    if isinstance(decision, GiveUp):
        return Completion(running.hold, decision.verdict.value, decision.reason.value, story)
    return Failure(running.hold, decision.delay_ms, story)


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
