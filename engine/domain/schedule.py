"""When a task is due: a cron expression in a time zone, as instants in milliseconds since the epoch, UTC.

Daylight saving follows Debian's cron. An expression whose minute or hour begins with ``*`` means an
interval: it runs at each instant whose wall time it names, so in the repeated hour it runs in both, and a
skipped hour has no instants. Any other names times of day: a time that a change skips runs once, at the first
moment after it, and a time that occurs twice runs the first time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, final

from engine.domain import zones
from engine.domain.calendar import LAST_YEAR, Calendar
from engine.domain.cron_fields import parse
from engine.domain.zones import Period
from engine.errors import InvalidSchedule

_LAST_S: Final = int(datetime(LAST_YEAR, 12, 1, tzinfo=UTC).timestamp())
_ALWAYS_UTC: Final = Period(start_s=-1, end_s=_LAST_S, offset_s=0, offset_before_s=0)


@final
@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron expression in a time zone. Equal when both texts are; made only of what can fire.

    Instants are whole seconds from 1970 to the year 9990. Equal schedules share one timetable, which
    remembers its last answer, so ten thousand tasks with one expression cost one computation per instant.

    Raises:
        InvalidSchedule: the expression or the zone is refused; the text says what to write instead.
    """

    expression: str
    timezone: str = "UTC"
    _timetable: _Timetable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_timetable", _timetable(self.expression, self.timezone))

    @classmethod
    def parse(cls, expression: str, timezone: str = "UTC") -> Schedule:
        """A schedule from what a person typed: white space around and between the fields does not matter.

        Raises:
            InvalidSchedule: see the class.
        """
        return cls(" ".join(expression.split()), timezone)

    def next_after(self, ms: int) -> int | None:
        """The first instant strictly after ``ms``; None where there is none before the year 9990."""
        return self._timetable.next_after(ms)

    def latest_at_or_before(self, ms: int) -> int | None:
        """The last instant that is not after ``ms``; None where there was none since 1970."""
        return self._timetable.latest_at_or_before(ms)

    def is_instant(self, ms: int) -> bool:
        """Whether the schedule is due exactly at ``ms``."""
        return self._timetable.latest_at_or_before(ms) == ms

    def count(self, after_ms: int, until_ms: int) -> int:
        """How many instants are after ``after_ms`` and not after ``until_ms``. Exact; costs O(months)."""
        return self._timetable.count(after_ms, until_ms)


@final
class _Timetable:
    """The instants of one expression in one zone, with the last gap between two of them.

    Each period of the zone owns the named wall times from ``_first_wall`` to its end, and one that a change
    skipped falls on the period's first second. For times of day the owned stretches neither overlap nor leave
    a hole, so the rule of the module's docstring holds by construction.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        fields = parse(expression)
        self._calendar = Calendar(fields)
        self._fixed_time = fields.fixed_time
        self._timezone = timezone
        self._gap: tuple[int, int] = (1, 0)
        """The second is an instant, none lies between: the answer to every question in [first, second)."""
        self._reach: tuple[int, int] = (1, 0)
        """The first is an instant, and none lies after it up to and with the second."""

    def next_after(self, ms: int) -> int | None:
        start, end = self._gap
        if start <= ms < end:
            return end
        second = self._next_after_s(max(ms // 1_000, -1))
        if second is None:
            return None
        self._gap = (ms, second * 1_000)  # replaced whole: threads may share it
        return second * 1_000

    def latest_at_or_before(self, ms: int) -> int | None:
        start, end = self._reach
        if start <= ms <= end:
            return start
        second = self._latest_s(min(ms // 1_000, _LAST_S - 1))
        if second is None:
            return None
        following = self.next_after(ms)
        self._reach = (second * 1_000, ms if following is None else following - 1)
        return second * 1_000

    def count(self, after_ms: int, until_ms: int) -> int:
        after_s, until_s = max(after_ms // 1_000, -1), min(until_ms // 1_000, _LAST_S - 1)
        total = 0
        for period in self._periods_from(after_s + 1):
            if period.start_s > until_s:
                break
            first = max(period.start_s, after_s + 1)
            end = min(period.end_s, until_s + 1)
            total += self._calendar.count(first + period.offset_s, end + period.offset_s)
            skipped_from, skipped_to = self._first_wall(period), period.start_s + period.offset_s
            if (
                first == period.start_s
                and self._calendar.count(skipped_from, skipped_to)
                and not self._calendar.count(skipped_to, skipped_to + 1)
            ):
                total += 1  # all that the change skipped is one instant, unless its first second is named anyway
            if not self._fixed_time:
                continue
            repeated_to = min(period.start_s + period.offset_before_s, end + period.offset_s)
            total -= self._calendar.count(first + period.offset_s, repeated_to)
        return total

    def _next_after_s(self, second: int) -> int | None:
        searched_from = found = None
        for period in self._periods_from(second):
            first = self._first_wall(period)
            wanted = max(first, second + period.offset_s + 1) if period.start_s <= second else first
            if searched_from is None or found is None or not searched_from <= wanted <= found:
                searched_from, found = wanted, self._calendar.at_or_after(wanted)
            if found is None:
                return None
            if found < period.end_s + period.offset_s:
                return max(found - period.offset_s, period.start_s)
        return None

    def _latest_s(self, second: int) -> int | None:
        searched_to = found = None
        for period in self._periods_back_from(second):
            end = min(second + 1, period.end_s) + period.offset_s
            if searched_to is None or found is None or not found < end <= searched_to:
                searched_to, found = end, self._calendar.before(end)
            if found is None:
                return None
            if found >= self._first_wall(period):
                return max(found - period.offset_s, period.start_s)
        return None

    def _first_wall(self, period: Period) -> int:
        """The first wall second whose instant lies in ``period``."""
        return period.start_s + (period.offset_before_s if self._fixed_time else period.offset_s)

    def _periods_from(self, second: int) -> Iterator[Period]:
        if second >= _LAST_S:
            return iter(())
        return iter((_ALWAYS_UTC,)) if self._timezone == "UTC" else zones.periods_from(self._timezone, max(second, 0))

    def _periods_back_from(self, second: int) -> Iterator[Period]:
        if second < 0:
            return iter(())
        return iter((_ALWAYS_UTC,)) if self._timezone == "UTC" else zones.periods_back_from(self._timezone, second)


@lru_cache(maxsize=4_096)
def _timetable(expression: str, timezone: str) -> _Timetable:
    if timezone != "UTC" and timezone not in zones.zone_names():
        nearest = zones.nearest_zone(timezone)
        instead = f"write {nearest!r}" if nearest else "write an IANA name such as 'Europe/Rome'"
        raise InvalidSchedule(expression, "timezone", f"{timezone!r} is no time zone", instead)
    return _Timetable(expression, timezone)
