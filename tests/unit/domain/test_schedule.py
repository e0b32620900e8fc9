"""Instants: order, agreement of the ways to ask, zones, refusals, speed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain import zones
from engine.domain.schedule import Schedule
from engine.errors import InvalidSchedule
from tests.unit.domain.instants import between

ZONES = (
    "UTC",
    "Europe/Rome",
    "America/New_York",
    "America/Havana",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Asia/Kathmandu",
)
EXPRESSIONS = (
    "* * * * *",
    "*/15 * * * *",
    "30 */2 * * *",
    "30 2 * * *",
    "0,30 1-3 * * *",
    "0 0 * * *",
    "45 23 L * *",
    "0 3 * * 0",
    "0 0 1,15 * 1",
    "*/20 30 2 * * *",
    "7 */10 * * * *",
    "0 12 29 2 *",
)
instants = st.integers(min_value=0, max_value=int(datetime(2060, 1, 1, tzinfo=UTC).timestamp()) * 1_000)
schedules = st.builds(Schedule, st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES))


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000


def changes_near(zone: str, year: int) -> list[int]:
    """The first instants, in seconds, at which a zone's periods begin in a year."""
    start = int(datetime(year, 1, 2, tzinfo=UTC).timestamp())
    return [period.start_s for period in islice(zones.periods_from(zone, start), 1, 4)]


@given(schedules, instants)
def test_the_next_instant_is_later_and_the_latest_at_its_own_time(schedule: Schedule, at: int) -> None:
    """next_after and latest_at_or_before are inverse to each other, and nothing lies between."""
    following = schedule.next_after(at)
    assert following is not None
    assert following > at
    assert schedule.is_instant(following)
    assert schedule.latest_at_or_before(following) == following
    before = schedule.latest_at_or_before(following - 1)
    assert before is None or before <= at
    if before is not None:
        assert schedule.next_after(before) == following


@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES[1:]),
    st.sampled_from((2011, 2018, 2026, 2050)),
    st.data(),
)
def test_around_a_change_of_the_clocks_all_ways_to_ask_agree(
    expression: str, zone: str, year: int, data: st.DataObject
) -> None:
    """Around a change, forward, backward and count see the same strictly growing instants."""
    centre = data.draw(st.sampled_from(changes_near(zone, year)))
    after_ms = (centre + data.draw(st.integers(-7_200, 7_200))) * 1_000
    schedule = Schedule(expression, zone)
    forward = between(schedule, after_ms, after_ms + 40 * 86_400_000, 60)
    assert forward == sorted(set(forward))
    if not forward:
        return
    backward = [forward[-1]]
    while len(backward) < len(forward):
        earlier = schedule.latest_at_or_before(backward[-1] - 1)
        assert earlier is not None
        backward.append(earlier)
    assert backward[::-1] == forward
    assert schedule.count(after_ms, forward[-1]) == len(forward)
    assert schedule.count(forward[0], forward[-1]) == len(forward) - 1


@given(st.sampled_from(ZONES[1:]), instants)
def test_an_interval_runs_whenever_the_clock_on_the_wall_says_so(zone: str, at: int) -> None:
    """For an expression with a star, an instant is due exactly if its local time is named."""
    second = at // 1_000
    local = datetime.fromtimestamp(second, ZoneInfo(zone))
    named = local.minute % 15 == 0 and local.second == 0
    assert Schedule("*/15 * * * *", zone).is_instant(second * 1_000) is named


@given(st.sampled_from(ZONES), st.integers(2000, 2050), st.integers(0, 23), st.integers(0, 59))
def test_a_daily_task_runs_once_a_day_in_every_zone(zone: str, year: int, hour: int, minute: int) -> None:
    """Neither the skipped nor the repeated hour drops or doubles a time of day; Samoa lost a day in 2011."""
    start = int(datetime(year, 1, 1, tzinfo=ZoneInfo(zone)).timestamp()) * 1_000 - 1
    end = int(datetime(year + 1, 1, 1, tzinfo=ZoneInfo(zone)).timestamp()) * 1_000 - 1
    days = 366 if year % 4 == 0 else 365
    count = Schedule(f"{minute} {hour} * * *", zone).count(start, end)
    assert count == days - (zone == "Pacific/Apia" and year == 2011 and (hour, minute) == (0, 0))


def test_ten_days_of_seconds_are_counted_at_once() -> None:
    """Counting costs by months, not by instants: 864,000 of them take less than a tenth of a second."""
    schedule = Schedule("* * * * * *", "Europe/Rome")
    start = ms("2026-03-20T00:00+00:00")
    began = time.perf_counter()
    assert schedule.count(start, start + 864_000_000) == 864_000
    assert time.perf_counter() - began < 0.1


def test_ten_thousand_tasks_with_one_expression_share_the_computation() -> None:
    """Equal schedules answer from one timetable: ten thousand questions take far less than a second."""
    at = ms("2026-01-01T00:00+00:00")
    began = time.perf_counter()
    office = "*/5 9-17 * * 1-5"
    answers = {Schedule(office, "Europe/Rome").next_after(at + offset) for offset in range(10_000)}
    assert answers == {ms("2026-01-01T09:00+01:00")}
    assert time.perf_counter() - began < 1


def test_outside_of_the_years_that_we_know_there_are_no_instants() -> None:
    """Before 1970 and after 9990 the answer is None, not an error."""
    for zone in ("UTC", "Asia/Tokyo"):
        yearly = Schedule("0 0 1 1 *", zone)
        assert yearly.latest_at_or_before(-1) is None
        assert yearly.next_after(ms("1970-01-01T00:00+00:00") - 10**9) is not None
        assert yearly.next_after(10**18) is None
        assert yearly.latest_at_or_before(10**18) is not None


def test_milliseconds_are_not_lost() -> None:
    """An instant is due from its own millisecond on, and no millisecond earlier."""
    schedule = Schedule("* * * * *")
    at = ms("2026-01-01T00:01+00:00")
    assert schedule.next_after(at - 1) == at
    assert schedule.next_after(at) == at + 60_000
    assert schedule.latest_at_or_before(at - 1) == at - 60_000
    assert not schedule.is_instant(at + 1)


def test_white_space_and_letter_case_do_not_matter() -> None:
    """What a person types is normalised, so that equal schedules are equal."""
    assert Schedule.parse("  0  9 * * MON-fri ") == Schedule("0 9 * * MON-fri")
    at = ms("2026-01-01T00:00+00:00")
    assert Schedule.parse("0 9 * * MON").next_after(at) == Schedule.parse("0 9 * * mon").next_after(at)


@pytest.mark.parametrize(
    ("expression", "field"),
    [
        ("", "expression"),
        ("* * * *", "expression"),
        ("* * * * * * * *", "expression"),
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day-of-month"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "day-of-week"),
        ("* * * foo *", "month"),
        ("61 * * * * *", "second"),
        ("*/0 * * * *", "minute"),
        ("1,,2 * * * *", "minute"),
        ("-1 * * * *", "minute"),
        ("1-2-3 * * * *", "minute"),
        ("0 0 * * 1#6", "day-of-week"),
        ("0 0 * * 7-0", "day-of-week"),
        ("@every 5m", "expression"),
        ("\N{FULLWIDTH DIGIT ONE} * * * *", "expression"),
        ("0," * 1_000 + "0 * * * *", "expression"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_field(expression: str, field: str) -> None:
    """The error names the field and says what to write; it is raised when the schedule is made."""
    with pytest.raises(InvalidSchedule) as caught:
        Schedule.parse(expression)
    assert caught.value.field == field
    assert "write" in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("61 * * * *", "minute: 61 is too large; write 0 to 59"),
        ("60 0 * * * *", "second: 60 is too large; write 0 to 59"),
        ("0 7-24/2 * * *", "hour: 24 is too large; write 0 to 23"),
        ("0 0 1,32 * *", "day-of-month: 32 is too large; write 1 to 31"),
        ("0 0 1 13 *", "month: 13 is too large; write 1 to 12"),
        ("0 0 * * 8", "day-of-week: 8 is too large; write 0 to 7"),
    ],
)
def test_a_number_too_large_is_answered_with_the_bounds_of_its_field(expression: str, said: str) -> None:
    """Rather than with how cron is written in general."""
    with pytest.raises(InvalidSchedule) as caught:
        Schedule.parse(expression)
    assert str(caught.value) == f"cron {expression!r}, {said}"


@pytest.mark.parametrize("expression", ["0-59-59 * * * *", "0 0 7-7-7 * *", "0 0 * * 7-7-7"])
def test_what_is_wrong_with_a_field_is_not_the_largest_number_that_it_knows(expression: str) -> None:
    """Something else is: it is not called too large."""
    with pytest.raises(InvalidSchedule) as caught:
        Schedule.parse(expression, "UTC")
    assert "too large" not in str(caught.value)


@given(st.text(alphabet="0123456789*/,-#LWHRlw? @jansu", max_size=30))
def test_any_text_gives_a_schedule_or_a_typed_error(text: str) -> None:
    """No input reaches the user as somebody else's exception, and what is accepted can fire."""
    try:
        schedule = Schedule.parse(text)
    except InvalidSchedule:
        return
    assert schedule.next_after(0) is not None


@pytest.mark.parametrize(
    ("zone", "nearest"),
    [
        ("Europe/Roma", "Europe/Rome"),
        ("america/new york", "America/New_York"),
        ("utc", "UTC"),
        ("../UTC", None),
    ],
)
def test_an_unknown_zone_is_answered_with_the_nearest(zone: str, nearest: str | None) -> None:
    """Only IANA names are zones; neither paths nor names that mean something else on each host."""
    with pytest.raises(InvalidSchedule) as caught:
        Schedule.parse("* * * * *", zone)
    assert caught.value.field == "timezone"
    if nearest is not None:
        assert nearest in caught.value.instead


@pytest.mark.parametrize("zone", ["localtime", "Factory", "right/UTC", "posixrules"])
def test_a_zone_that_differs_between_hosts_is_refused(zone: str) -> None:
    """The leader may run anywhere: a schedule means the same wherever it is computed."""
    with pytest.raises(InvalidSchedule):
        Schedule("* * * * *", zone)
