"""Catch-up: which slot is published, and which are missed."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from engine.domain.policy import CatchUp, Overlap, overlap_of
from engine.domain.schedule import Schedule
from engine.domain.slot import Due, Missed, catch_up
from tests.unit.domain.instants import between

MINUTE_MS = 60_000
NOON_MS = 1_767_268_800_000
MINUTELY = Schedule("* * * * *")


def decide(expected_ms: int, now_ms: int, schedule: Schedule = MINUTELY) -> Due:
    return catch_up(schedule, expected_ms, now_ms, CatchUp.LATEST)


def test_a_slot_that_is_not_due_is_left_alone() -> None:
    """A millisecond early is early."""
    assert decide(NOON_MS, NOON_MS - 1) == Due(None, None, NOON_MS)


def test_a_slot_that_is_due_is_published() -> None:
    """Nothing is missed as long as the next one has not come."""
    assert decide(NOON_MS, NOON_MS + MINUTE_MS - 1) == Due(None, NOON_MS, NOON_MS + MINUTE_MS)


def test_of_several_slots_the_last_runs_and_the_rest_are_one_entry() -> None:
    """Ten minutes down: ten slots came due, nine are missed, from the first to the ninth."""
    now_ms = NOON_MS + 9 * MINUTE_MS + 5
    missed = Missed(NOON_MS, NOON_MS + 8 * MINUTE_MS, 9)
    assert decide(NOON_MS, now_ms) == Due(missed, NOON_MS + 9 * MINUTE_MS, NOON_MS + 10 * MINUTE_MS)


def test_a_slot_of_an_older_expression_is_missed_and_never_published() -> None:
    """Where the expected time is no instant any more, it is recorded and the schedule goes on."""
    assert decide(NOON_MS + 1_000, NOON_MS + 2_000) == Due(
        Missed(NOON_MS + 1_000, NOON_MS + 1_000, 1), None, NOON_MS + MINUTE_MS
    )
    later = decide(NOON_MS + 1_000, NOON_MS + 2 * MINUTE_MS)
    assert later.missed == Missed(NOON_MS + 1_000, NOON_MS + MINUTE_MS, 2)
    assert later.publish_ms == NOON_MS + 2 * MINUTE_MS


def test_ten_days_of_seconds_are_decided_at_once() -> None:
    """The cost does not depend on how many slots were missed, and their number is exact."""
    began = time.perf_counter()
    due = decide(NOON_MS, NOON_MS + 864_000_000, Schedule("* * * * * *", "Europe/Rome"))
    assert due.missed == Missed(NOON_MS, NOON_MS + 864_000_000 - 1_000, 864_000)
    assert time.perf_counter() - began < 0.1


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 1-3 * * *"]),
    st.sampled_from(["UTC", "Europe/Rome"]),
    st.integers(0, 200 * 86_400),
    st.integers(0, 5 * 86_400),
)
def test_every_slot_up_to_now_is_covered_exactly_once(expression: str, zone: str, start_s: int, down_s: int) -> None:
    """Missed ones and the published one together are all slots from the expected one to now."""
    schedule = Schedule(expression, zone)
    expected_ms = schedule.next_after(NOON_MS + start_s * 1_000)
    assert expected_ms is not None
    now_ms = expected_ms + down_s * 1_000
    due = decide(expected_ms, now_ms, schedule)
    slots = between(schedule, expected_ms - 1, now_ms, 100_000)
    assert due.publish_ms == slots[-1]
    assert due.next_ms == schedule.next_after(now_ms)
    missed = slots[:-1]
    assert due.missed == (Missed(missed[0], missed[-1], len(missed)) if missed else None)


def test_the_overlap_policy_is_the_tasks_own_or_else_the_configs() -> None:
    """None inherits."""
    assert overlap_of(allow_parallel=None, default=True) is Overlap.ALLOW
    assert overlap_of(allow_parallel=None, default=False) is Overlap.SKIP
    assert overlap_of(allow_parallel=True, default=False) is Overlap.ALLOW
    assert overlap_of(allow_parallel=False, default=True) is Overlap.SKIP
