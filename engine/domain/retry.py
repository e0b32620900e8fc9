"""Whether a failed run is tried again, and when. Decisions only: Redis executes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, final

from engine.domain.run import Reason, Verdict
from engine.domain.schedule import Schedule

_HOUR_MS: Final = 3_600_000
_RETRIES_OF_RARE_TASKS: Final = 10
"""For a task that sets no ``max_retries`` and whose slots are over an hour apart."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """A task's settings, with those of the Config where it has none of its own."""

    backoff_s: float
    backoff_max_s: float
    multiplier: float
    max_retries: int | None
    """None: 10 where slots are over an hour apart, else until the next slot. 0: never retry."""


@final
@dataclass(frozen=True, slots=True)
class Retry:
    """Try again ``delay_ms`` milliseconds from now."""

    delay_ms: int


@final
@dataclass(frozen=True, slots=True)
class GiveUp:
    """The failure is final; the run ends with this verdict."""

    verdict: Verdict
    reason: Reason


Decision: TypeAlias = Retry | GiveUp


def retry_delay_s(failures: int, backoff: float, backoff_max: float, multiplier: float) -> float:
    """Seconds to wait after the ``failures``-th failure, from 1.

    They are ``backoff * multiplier ** (failures - 1)``, at most ``backoff_max``.
    The cap holds for the first delay too, and a backoff of zero is zero for ever.
    """
    if backoff == 0:
        return 0.0
    try:
        return float(min(backoff * multiplier ** (failures - 1), backoff_max))
    except OverflowError:
        return float(backoff_max)


def after_failure(
    schedule: Schedule, policy: RetryPolicy, *, failures: int, slot_ms: int | None, now_ms: int
) -> Decision:
    """What to do after the ``failures``-th failure of a run, from 1, at the end of that attempt.

    ``slot_ms`` is the run's own slot, however long ago: the one after it ends the retries of a task that sets no
    ``max_retries``. A run that no slot asked for (None) has as many as a rare task, and none past the coming slot.
    """
    if policy.max_retries == 0:
        return GiveUp(Verdict.FAILED, Reason.RAISED)
    asked_at_ms = now_ms if slot_ms is None else slot_ms
    next_slot_ms = schedule.next_after(asked_at_ms)
    rare = _is_rare(schedule, asked_at_ms, next_slot_ms)
    allowed = policy.max_retries
    if allowed is None and (rare or slot_ms is None):
        allowed = _RETRIES_OF_RARE_TASKS
    if allowed is not None and failures > allowed:
        return GiveUp(Verdict.DEAD, Reason.RETRIES_SPENT)

    delay_ms = round(1_000 * retry_delay_s(failures, policy.backoff_s, policy.backoff_max_s, policy.multiplier))
    bounded_by_slot = policy.max_retries is None and not rare
    if bounded_by_slot and next_slot_ms is not None and now_ms + delay_ms >= next_slot_ms:
        return GiveUp(Verdict.FAILED, Reason.NEXT_SLOT)
    return Retry(delay_ms)


def _is_rare(schedule: Schedule, at_ms: int, next_slot_ms: int | None) -> bool:
    """Whether the slots around ``at_ms`` are over an hour apart.

    The distance between slots, and not that from now, so that one run is judged alike at each of its failures.
    """
    if next_slot_ms is None:
        return True
    latest_ms = schedule.latest_at_or_before(at_ms)
    return next_slot_ms - (at_ms if latest_ms is None else latest_ms) > _HOUR_MS
