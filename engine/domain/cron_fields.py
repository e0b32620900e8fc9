"""A cron expression as the sets of numbers that it names.

croniter reads the expression. What it reads differently from the cron that people know, or differently from
one of its releases to the next, is refused here with what to write instead; docs/cron.md has the list, and a
test reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, final

from croniter import CroniterError, croniter

from engine.errors import InvalidSchedule

LAST: Final = 0
"""The ordinal of "the last such weekday of the month" (``L5``); 1 to 5 are the first to the fifth."""

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_SPANS: Final = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day-of-month": (1, 31),
    "month": (1, 12),
    "day-of-week": (0, 6),
}
_NAMES: Final = dict(
    zip(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
        range(1, 13),
        strict=True,
    )
) | dict(zip(("sun", "mon", "tue", "wed", "thu", "fri", "sat"), range(7), strict=True))
_LENGTHS: Final = dict.fromkeys((1, 3, 5, 7, 8, 10, 12), (31,)) | dict.fromkeys((4, 6, 9, 11), (30,)) | {2: (28, 29)}
"""Days in each month."""
_LONGEST_EXPRESSION: Final = 1_000
"""Characters. Every second and every minute spelled out take 340."""

_RANGE: Final = re.compile(r"(\w+)-(\w+)(?:/\d+)?")
_STEP: Final = re.compile(r"(\w+|\*)/(\d+)")
_LAST_WEEKDAY_SUFFIX: Final = re.compile(r"([0-7])l")
_WEEKDAY_SUFFIX: Final = re.compile(r"\d+w|w\d+")
_RANDOM: Final = re.compile(r"[hr](\(.*\))?(/.*)?")


@final
@dataclass(frozen=True, slots=True)
class CronFields:
    """What each field allows, sorted. Weekdays count from Sunday = 0."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    days: frozenset[int]
    last_day: bool
    """``L`` in the day of month."""
    last_working_day: bool
    """``LW`` in the day of month: the last Monday to Friday of the month."""
    weekdays: frozenset[int]
    nth_weekdays: frozenset[tuple[int, int]]
    """``5#2`` as (5, 2), and ``L5`` as (5, LAST)."""
    both_days: bool
    """Day of month and of week must both agree: one of them begins with ``*``. Else either is enough."""
    fixed_time: bool
    """Neither minute nor hour begins with ``*``: the run belongs to a time of day, not to an interval."""

    def names_day(self, day: int, first_weekday: int, length: int) -> bool:
        """Whether a day is named in a month of ``length`` days; the 1st is ``first_weekday``, Monday = 0."""
        weekday = (first_weekday + day) % 7
        last_working_day = length - max(0, (first_weekday + length - 1) % 7 - 4)
        by_day = (
            day in self.days or (self.last_day and day == length) or (self.last_working_day and day == last_working_day)
        )
        by_weekday = (
            weekday in self.weekdays
            or (weekday, (day + 6) // 7) in self.nth_weekdays
            or ((weekday, LAST) in self.nth_weekdays and day + 7 > length)
        )
        return (by_day and by_weekday) if self.both_days else (by_day or by_weekday)


def parse(expression: str) -> CronFields:
    """Read five fields, six with the seconds first, or an alias such as ``@hourly``.

    Raises:
        InvalidSchedule: no cron expression, or one that can never fire or would mean something else.
    """
    texts = _split(expression)
    for field, text in texts.items():
        for item in text.split(","):
            _refuse_traps(expression, field, item)
    month_days = texts["day-of-month"].split(",")
    plain_days = [item for item in month_days if item != "lw"]
    weekdays = [_LAST_WEEKDAY_SUFFIX.sub(r"l\1", item) for item in texts["day-of-week"].split(",")]
    nth_weekdays = [item for item in weekdays if "#" in item or "l" in item]
    plain_weekdays = [item for item in weekdays if item not in nth_weekdays]
    readable = texts | {"day-of-month": ",".join(plain_days) or "*"}
    try:
        # croniter refuses a list of both kinds of weekday, so it is given one kind at a time.
        seconds, minutes, hours, days, months, days_of_week = _expand(readable, plain_weekdays)[0]
        nth = _expand(readable, nth_weekdays)[1]
    except CroniterError as error:
        culprit = _culprit(readable | {"day-of-week": ",".join(weekdays)})
        if (beyond := _beyond(culprit, texts.get(culprit, ""))) is not None:
            raise InvalidSchedule(expression, culprit, *beyond) from error
        raise InvalidSchedule(expression, culprit, "is not valid cron", _SYNTAX) from error

    fields = CronFields(
        seconds=_numbers(seconds, "second"),
        minutes=_numbers(minutes, "minute"),
        hours=_numbers(hours, "hour"),
        months=_numbers(months, "month"),
        days=frozenset(_numbers(days, "day-of-month")) if plain_days else frozenset(),
        last_day="l" in plain_days,
        last_working_day="lw" in month_days,
        weekdays=frozenset(day % 7 for day in _numbers(days_of_week, "day-of-week")) if plain_weekdays else frozenset(),
        nth_weekdays=frozenset(
            (weekday % 7, LAST if ordinal == "l" else ordinal)
            for weekday, ordinals in nth.items()
            for ordinal in ordinals
        ),
        both_days=any(texts[field].startswith(("*", "?")) for field in ("day-of-month", "day-of-week")),
        fixed_time=not any(texts[field].startswith("*") for field in ("minute", "hour")),
    )
    _refuse_never(expression, fields)
    return fields


_SYNTAX: Final = "write five fields, as in '30 6 * * 1-5', or six with the seconds first"


def _split(expression: str) -> dict[str, str]:
    """The fields by name, in lower case, seconds first; '0' where the expression has none."""
    text = expression.strip().lower()
    if len(text) > _LONGEST_EXPRESSION or not text.isascii():
        raise InvalidSchedule(
            expression[:80],
            "expression",
            f"is not ASCII text of at most {_LONGEST_EXPRESSION} characters",
            _SYNTAX,
        )
    if text == "@reboot":
        raise InvalidSchedule(
            expression,
            "expression",
            "names no instant",
            "give the cron of its later runs and run_on_first_start=True",
        )
    if text.startswith("@") and text not in _ALIASES:
        raise InvalidSchedule(expression, "expression", "is no alias", f"write one of {', '.join(_ALIASES)}")
    parts = _ALIASES.get(text, text).split()
    if len(parts) == 7:
        raise InvalidSchedule(
            expression,
            "year",
            "has seven fields",
            "leave the year out, and remove the task when its time is over",
        )
    if len(parts) not in (5, 6):
        raise InvalidSchedule(expression, "expression", f"has {len(parts)} fields", _SYNTAX)
    return dict(zip(_SPANS, parts if len(parts) == 6 else ["0", *parts], strict=True))


def _refuse_traps(expression: str, field: str, item: str) -> None:
    """Refuse what croniter would accept and read otherwise than it looks."""
    if _RANDOM.fullmatch(item):
        instead = "write the number itself, so that every process and every restart agrees on it"
        raise InvalidSchedule(expression, field, f"{item!r} is drawn by chance or by hash", instead)
    if field == "day-of-month" and _WEEKDAY_SUFFIX.fullmatch(item):
        instead = "write LW for the last working day, or a weekday such as 1#3 in the day-of-week field"
        raise InvalidSchedule(expression, field, f"{item!r} (the nearest weekday) is not supported", instead)
    first, last = _SPANS[field]
    if first == 1 and any(number == "0" * len(number) for number in re.findall(r"\d+", item.partition("/")[0])):
        raise InvalidSchedule(expression, field, f"{item!r} has 0 in it", f"write {first} to {last}")
    bounds = _RANGE.fullmatch(item)
    if bounds and (
        _value(bounds[1]) == _value(bounds[2]) or (field == "day-of-week" and _is_sunday_twice(*bounds.groups()))
    ):
        instead = f"write {bounds[1]!r} for that value alone, or '*' for every {field}"
        raise InvalidSchedule(expression, field, f"{item!r} begins where it ends", instead)
    if (stepped := _STEP.fullmatch(item)) is None or int(stepped[2]) == 0:
        return
    start, step = stepped[1], int(stepped[2])
    if step > last - first + 1:
        alone = str(first) if start == "*" else start
        instead = f"write {alone!r}, which is what it amounts to; a longer interval needs the next field as well"
        raise InvalidSchedule(expression, field, f"the step of {item!r} is longer than the field", instead)
    value = _value(start)
    if start == "*" or value is None:
        return
    if value == last:
        raise InvalidSchedule(expression, field, f"{item!r} starts at the last value", f"write {start!r}")
    if field == "day-of-week" and value > 0 and (7 - value) % step == 0:
        with_sunday = ",".join(str(day % 7) for day in range(value, 8, step))
        instead = f"write {with_sunday!r} with Sunday, or '{value}-6/{step}' without"
        raise InvalidSchedule(expression, field, f"{item!r} may or may not include Sunday (0 and 7)", instead)


def _is_sunday_twice(first: str, last: str) -> bool:
    """From 7 to 0; from 0 to 7 is the whole week."""
    return _value(first) == 7 and _value(last) == 0


def _value(text: str) -> int | None:
    return int(text) if text.isdigit() else _NAMES.get(text)


def _refuse_never(expression: str, fields: CronFields) -> None:
    """Refuse days that never come. In 400 years each month begins on each weekday, leap or not."""
    lengths = {length for month in fields.months for length in _LENGTHS[month]}
    if any(
        fields.names_day(day, first_weekday, length)
        for length in lengths
        for first_weekday in range(7)
        for day in range(1, length + 1)
    ):
        return
    raise InvalidSchedule(
        expression,
        "day-of-month",
        "never comes in the months and weekdays given",
        f"write a day up to {max(lengths)} that can be such a weekday, or L for the last day of the month",
    )


def _expand(texts: dict[str, str], weekdays: list[str]) -> tuple[list[list[Any]], dict[Any, set[Any]]]:
    """The numbers of each field in our order, and the ordinals by weekday, as croniter reads them.

    croniter is given five fields only, the seconds in the place of the minutes: with six, its release 6.0 does
    not take 7 for Sunday.
    """
    second, *others, _ = texts.values()
    seconds = croniter.expand(f"{second} * * * *")[0][0]
    expanded, nth = croniter.expand(" ".join([*others, ",".join(weekdays) or "*"]))
    return [seconds, *expanded], nth


def _culprit(texts: dict[str, str]) -> str:
    """The first field that croniter refuses when all others are ``*``."""
    for field, text in texts.items():
        places = ["*"] * 5
        places[max(list(_SPANS).index(field) - 1, 0)] = text
        if not croniter.is_valid(" ".join(places)):
            return field
    return "expression"


def _beyond(field: str, text: str) -> tuple[str, str] | None:
    """What is wrong and what to write, if a number of this field is larger than all that it knows."""
    if field not in _SPANS:
        return None
    first, last = _SPANS[field]
    last = 7 if field == "day-of-week" else last  # 7 is Sunday, too
    values = (number for item in text.split(",") for number in re.findall(r"\d+", item.partition("/")[0]))
    found = next((number for number in values if int(number) > last), None)
    return None if found is None else (f"{found} is too large", f"write {first} to {last}")


def _numbers(values: list[Any], field: str) -> tuple[int, ...]:
    first, last = _SPANS[field]
    if "*" in values:
        return tuple(range(first, last + 1))
    return tuple(sorted({value for value in values if isinstance(value, int)}))
