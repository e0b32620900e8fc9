"""Which wall-clock times a cron expression names: the next one, the one before, how many.

Times here are wall seconds: seconds since 1970-01-01 00:00 as if the wall clock had no zone and never
changed. croniter only reads the expression. It takes some 20 µs an instant and cannot count, and a
per-second task that was down for ten days has 864,000 instants to account for; here both are arithmetic on
sorted tuples.
"""

from __future__ import annotations

import calendar
from bisect import bisect_left
from datetime import date
from typing import Final, final

from engine.domain.cron_fields import CronFields

_DAY_S: Final = 86_400
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
FIRST_YEAR: Final = 1970
LAST_YEAR: Final = 9_990
"""Instants after it do not exist for us: far enough, and no date overflows."""


@final
class Calendar:
    """The wall seconds that one expression names. Immutable but for a memo of at most 28 kinds of month."""

    def __init__(self, fields: CronFields) -> None:
        self._fields = fields
        self._per_minute = len(fields.seconds)
        self._per_hour = len(fields.minutes) * self._per_minute
        self._per_day = len(fields.hours) * self._per_hour
        self._days_by_month_shape: dict[tuple[int, int], tuple[int, ...]] = {}

    def at_or_after(self, wall_s: int) -> int | None:
        """The first named time that is not before ``wall_s``, or None after the last year."""
        day, second = divmod(wall_s, _DAY_S)
        rank = self._times_before(second)
        if rank == self._per_day:
            day, rank = day + 1, 0
        found = self._day_at_or_after(day)
        if found is None:
            return None
        return found * _DAY_S + self._time(rank if found == day else 0)

    def before(self, wall_s: int) -> int | None:
        """The last named time before ``wall_s``, or None before the first year."""
        day, second = divmod(wall_s, _DAY_S)
        rank = self._times_before(second)
        if rank == 0:
            day, rank = day - 1, self._per_day
        found = self._day_at_or_before(day)
        if found is None:
            return None
        return found * _DAY_S + self._time(rank - 1 if found == day else self._per_day - 1)

    def count(self, since_s: int, until_s: int) -> int:
        """How many named times t there are with ``since_s <= t < until_s``. Costs O(months)."""
        if since_s >= until_s:
            return 0
        first_day, first_second = divmod(since_s, _DAY_S)
        last_day, last_second = divmod(until_s, _DAY_S)
        whole = self._count_days(first_day, last_day) * self._per_day
        head = self._times_before(first_second) if self._count_days(first_day, first_day + 1) else 0
        tail = self._times_before(last_second) if self._count_days(last_day, last_day + 1) else 0
        return whole - head + tail

    def _times_before(self, second: int) -> int:
        """How many times of a day lie before ``second``, counted from its midnight."""
        hour, rest = divmod(second, 3_600)
        minute, second = divmod(rest, 60)
        fields = self._fields
        at_hour = bisect_left(fields.hours, hour)
        rank = at_hour * self._per_hour
        if at_hour < len(fields.hours) and fields.hours[at_hour] == hour:
            at_minute = bisect_left(fields.minutes, minute)
            rank += at_minute * self._per_minute
            if at_minute < len(fields.minutes) and fields.minutes[at_minute] == minute:
                rank += bisect_left(fields.seconds, second)
        return rank

    def _time(self, rank: int) -> int:
        """The ``rank``-th time of a day, from 0, in seconds from its midnight."""
        hour, rest = divmod(rank, self._per_hour)
        minute, second = divmod(rest, self._per_minute)
        fields = self._fields
        return fields.hours[hour] * 3_600 + fields.minutes[minute] * 60 + fields.seconds[second]

    def _day_at_or_after(self, day: int) -> int | None:
        start = date.fromordinal(_EPOCH_ORDINAL + day)
        year, month, from_day = start.year, start.month, start.day
        while year <= LAST_YEAR:
            days = self._days_of(year, month)
            at = bisect_left(days, from_day)
            if at < len(days):
                return date(year, month, days[at]).toordinal() - _EPOCH_ORDINAL
            year, month, from_day = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
        return None

    def _day_at_or_before(self, day: int) -> int | None:
        start = date.fromordinal(_EPOCH_ORDINAL + day)
        year, month, to_day = start.year, start.month, start.day
        while year >= FIRST_YEAR - 1:  # west of Greenwich, 1970 begins in 1969
            days = self._days_of(year, month)
            at = bisect_left(days, to_day + 1)
            if at > 0:
                return date(year, month, days[at - 1]).toordinal() - _EPOCH_ORDINAL
            year, month, to_day = (year, month - 1, 31) if month > 1 else (year - 1, 12, 31)
        return None

    def _count_days(self, first: int, end: int) -> int:
        """How many days d are named with ``first <= d < end``, in days since 1970-01-01."""
        total = 0
        while first < end:
            start = date.fromordinal(_EPOCH_ORDINAL + first)
            length = calendar.monthrange(start.year, start.month)[1]
            next_month = first + length - start.day + 1
            days = self._days_of(start.year, start.month)
            until = length + 1 if next_month <= end else start.day + end - first
            total += bisect_left(days, until) - bisect_left(days, start.day)
            first = next_month
        return total

    def _days_of(self, year: int, month: int) -> tuple[int, ...]:
        """The named days of one month: they depend on its first weekday and its length alone."""
        if month not in self._fields.months:
            return ()
        shape = calendar.monthrange(year, month)
        days = self._days_by_month_shape.get(shape)
        if days is None:
            days = tuple(day for day in range(1, shape[1] + 1) if self._fields.names_day(day, *shape))
            self._days_by_month_shape[shape] = days
        return days
