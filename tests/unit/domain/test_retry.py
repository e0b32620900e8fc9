"""Backoff and the end of retries."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.retry import GiveUp, Retry, RetryPolicy, after_failure, retry_delay_s
from engine.domain.run import REASONS, Reason, Verdict
from engine.domain.schedule import Schedule

NOON_MS = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()) * 1_000
DAILY, HOURLY, MINUTELY = Schedule("0 12 * * *"), Schedule("0 * * * *"), Schedule("* * * * *")


def policy(max_retries: int | None = None, backoff_s: float = 1.0) -> RetryPolicy:
    return RetryPolicy(backoff_s=backoff_s, backoff_max_s=60.0, multiplier=2.0, max_retries=max_retries)


def test_delays_double_up_to_the_cap() -> None:
    """The documented sequence: 1, 2, 4, 8, 16, 32, 60, 60 seconds."""
    assert [retry_delay_s(n, 1.0, 60.0, 2.0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@given(st.integers(1, 10_000), st.floats(0, 86_400), st.floats(0, 86_400), st.floats(1, 1_000))
def test_a_delay_never_exceeds_the_cap_nor_shrinks(failures: int, backoff: float, longest: float, by: float) -> None:
    """The cap holds for the first delay too, zero stays zero, and ten thousand failures do not overflow."""
    delay = retry_delay_s(failures, backoff, longest, by)
    assert 0 <= delay <= longest
    assert delay <= retry_delay_s(failures + 1, backoff, longest, by)
    if backoff == 0:
        assert delay == 0


@pytest.mark.parametrize("schedule", [DAILY, MINUTELY])
def test_zero_retries_is_a_failure_at_once(schedule: Schedule) -> None:
    """max_retries=0 never retries, and the verdict is failed rather than dead."""
    decision = after_failure(schedule, policy(0), failures=1, slot_ms=NOON_MS, now_ms=NOON_MS)
    assert decision == GiveUp(Verdict.FAILED, Reason.RAISED)


def test_a_run_is_dead_when_its_retries_are_spent() -> None:
    """max_retries=3 is four attempts."""
    for failures in (1, 2, 3):
        assert isinstance(after_failure(DAILY, policy(3), failures=failures, slot_ms=NOON_MS, now_ms=NOON_MS), Retry)
    decision = after_failure(DAILY, policy(3), failures=4, slot_ms=NOON_MS, now_ms=NOON_MS)
    assert decision == GiveUp(Verdict.DEAD, Reason.RETRIES_SPENT)


def test_a_daily_task_is_retried_ten_times_at_any_hour() -> None:
    """Slots over an hour apart: ten retries, even when the next slot has come nearer than that."""
    just_before_next = NOON_MS + 86_400_000 - 600_000
    for now_ms in (NOON_MS + 1, just_before_next):
        assert isinstance(after_failure(DAILY, policy(), failures=10, slot_ms=NOON_MS, now_ms=now_ms), Retry)
        spent = after_failure(DAILY, policy(), failures=11, slot_ms=NOON_MS, now_ms=now_ms)
        assert spent == GiveUp(Verdict.DEAD, Reason.RETRIES_SPENT)


def test_a_frequent_task_is_retried_until_its_next_slot() -> None:
    """Slots an hour apart or less: as many retries as fit, none at the next slot or after it."""

    def decided(schedule: Schedule, failures: int, after_ms: int) -> object:
        return after_failure(schedule, policy(), failures=failures, slot_ms=NOON_MS, now_ms=NOON_MS + after_ms)

    assert decided(HOURLY, 5_000, 0) == Retry(60_000)
    assert decided(MINUTELY, 6, 27_999) == Retry(32_000)
    assert decided(MINUTELY, 6, 28_000) == GiveUp(Verdict.FAILED, Reason.NEXT_SLOT)


def test_a_body_that_outlasts_the_next_slot_is_not_retried() -> None:
    """The slot after the run's own ends its retries, not the slot after each attempt, which never comes nearer."""
    decision = after_failure(MINUTELY, policy(), failures=1, slot_ms=NOON_MS, now_ms=NOON_MS + 90_000)
    assert decision == GiveUp(Verdict.FAILED, Reason.NEXT_SLOT)


def test_max_retries_is_kept_whatever_the_next_slot() -> None:
    """Who sets a number gets that many; a slot that takes the retry's place is another matter."""
    decision = after_failure(MINUTELY, policy(3), failures=1, slot_ms=NOON_MS, now_ms=NOON_MS + 90_000)
    assert decision == Retry(1_000)


def test_a_run_that_no_slot_asked_for_is_retried_ten_times_before_the_coming_slot() -> None:
    """A trigger has no slot of its own to measure from."""
    first = after_failure(MINUTELY, policy(), failures=1, slot_ms=None, now_ms=NOON_MS)
    late = after_failure(MINUTELY, policy(), failures=1, slot_ms=None, now_ms=NOON_MS + 59_500)
    spent = after_failure(MINUTELY, policy(), failures=11, slot_ms=None, now_ms=NOON_MS)
    assert first == Retry(1_000)
    assert late == GiveUp(Verdict.FAILED, Reason.NEXT_SLOT)
    assert spent == GiveUp(Verdict.DEAD, Reason.RETRIES_SPENT)


@given(
    st.sampled_from([DAILY, HOURLY, MINUTELY]),
    st.none() | st.integers(0, 20),
    st.integers(1, 30),
    st.none() | st.integers(0, 10**13),
    st.integers(0, 10**13),
)
def test_a_reason_belongs_to_its_verdict(
    schedule: Schedule, max_retries: int | None, failures: int, slot_ms: int | None, now_ms: int
) -> None:
    """Whatever is decided can be written into the ledger."""
    match after_failure(schedule, policy(max_retries), failures=failures, slot_ms=slot_ms, now_ms=now_ms):
        case GiveUp(verdict, reason):
            assert reason in REASONS[verdict]
        case Retry(delay_ms):
            assert 0 <= delay_ms <= 60_000
