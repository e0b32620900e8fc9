"""Our reading of cron against cronsim's, instant by instant; each difference is in docs/cron.md."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import islice, product
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim, CronSimError

from engine.domain.schedule import Schedule
from engine.errors import InvalidSchedule
from tests.unit.domain.instants import between

DOCS = Path(__file__).parents[3] / "docs"

_PLAIN = """
* * * * *|*/5 * * * *|*/7 * * * *|0 0 * * *|30 6 * * 1-5|59 23 31 12 *|0 0 29 2 *|0 0 1 1 *|0 12 * * MON
0 9 * * mon-fri|0 0 L * *|0 0 LW * *|0 0 L 2 *|0 0 15,L * *|0 0 * * 5L|0 0 * * 1#1|0 0 * * 1#5
0 0 * * 1,5#2|0 0 1 * 5#2|0 0 * 2 mon#5|0 0 1-7 * 1|0 0 */2 * 1|0 0 1-31 * 1|0 0 1 * */2|0 0 31 * *
0 0 30 * *|0 0 13 * 5|0 0 * * 0,7|0 0 * * 7|0 0 * * 0-7|0 0 * JAN,JUL *|0 0 1 */3 *|0 0 1 2/3 *
10-50/20 * * * *|5/15 * * * *|0 0-23/6 * * *|1,2,3,5,8,13 * * * *|0 4 8-14 * *|* * * * * *|*/10 * * * * *
30 * * * * *|0 0 * * * *|15,45 30 6 * * 1-5|0 0 0 1 1 *|5-10 0 0 L * *|59 59 23 31 12 *
""".replace("\n", "|")
_MINUTES = ("0", "*/10", "15,45", "7-22/3")
_HOURS = ("*", "*/4", "9-17", "0,12", "23")
_DAYS = ("* * *", "1 * *", "L * *", "* * 1-5", "1,15 * 1", "*/2 * 1", "* 2 *", "29 2 *")

EXPRESSIONS = tuple(
    dict.fromkeys(
        [text for text in _PLAIN.split("|") if text] + [" ".join(parts) for parts in product(_MINUTES, _HOURS, _DAYS)]
    )
)[:200]


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of docs/cron.md, a list of cells each."""
    section = (DOCS / "cron.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


START = datetime(2026, 1, 31, 23, 59, 30, tzinfo=UTC)
START_MS = int(START.timestamp()) * 1_000
FAR_MS = int(datetime(5000, 1, 1, tzinfo=UTC).timestamp()) * 1_000

DIFFERENCES = table("Differences from cronsim")


def ours(expression: str, count: int = 50) -> list[int]:
    return between(Schedule.parse(expression), START_MS, FAR_MS, count)


def cronsims(expression: str, count: int = 50) -> list[int]:
    return [int(found.timestamp()) * 1_000 for found in islice(CronSim(expression, START), count)]


def code(cell: str) -> str:
    found = re.search(r"`([^`]*)`", cell)
    assert found is not None, f"no code in {cell!r}"
    return found[1]


def test_there_are_two_hundred_expressions() -> None:
    """The comparison below is as wide as the documentation says."""
    assert len(set(EXPRESSIONS)) == 200


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_has_the_instants_that_cronsim_gives_it(expression: str) -> None:
    """Whatever both accept means the same in both, for the first 50 instants."""
    assert ours(expression) == cronsims(expression)


@pytest.mark.parametrize(
    "expression",
    [e for e in EXPRESSIONS if "LW" not in e and "5L" not in e and "5#2" not in e and not e.startswith("0 0 */2")],
)
def test_the_walk_finds_what_croniter_finds(expression: str) -> None:
    """What croniter reads we walk, and its own steps give the same instants.

    Left out is what it cannot read (LW, 5L, lists with #); day rules with a star follow Debian's cron.
    """
    walk = croniter(expression, START, second_at_beginning=True, implement_cron_bug=True, max_years_between_matches=400)
    assert ours(expression, 20) == [int(walk.get_next()) * 1_000 for _ in range(20)]


@pytest.mark.parametrize(("expression", "here", "there"), [(code(row[0]), row[1], row[2]) for row in DIFFERENCES])
def test_the_table_of_differences_is_true(expression: str, here: str, there: str) -> None:
    """Each row says what we do and what cronsim does, in words that can be checked."""
    if here.startswith("refused"):
        with pytest.raises(InvalidSchedule) as caught:
            Schedule.parse(expression)
        assert code(here) in caught.value.instead
    else:
        assert here.startswith("as ")
        assert ours(expression) == ours(code(here))

    if there == "refused":
        with pytest.raises(CronSimError):
            CronSim(expression, START)
    elif there == "never":
        with pytest.raises(StopIteration):
            next(CronSim(expression, START))
    else:
        assert there.startswith("as ")
        assert cronsims(expression) == cronsims(code(there))


@pytest.mark.parametrize("row", table("Daylight saving"), ids=lambda row: f"{code(row[0])} {row[2]}")
def test_the_table_of_daylight_saving_is_true(row: list[str]) -> None:
    """The runs of one day around a change, here and in cronsim."""
    expression, zone, here, there = code(row[0]), ZoneInfo(code(row[1])), row[3], row[4]
    midnight = datetime.fromisoformat(row[2]).replace(tzinfo=zone)
    day_after = (midnight + timedelta(days=1)).replace(tzinfo=zone)
    after_ms, until_ms = (int(day.timestamp()) * 1_000 - 1 for day in (midnight, day_after))

    found = between(Schedule.parse(expression, zone.key), after_ms, until_ms, 100)
    local = [f"{datetime.fromtimestamp(ms / 1_000, zone):%H:%M:%S%z}" for ms in found]
    walk = CronSim(expression, midnight - timedelta(seconds=1))
    theirs = [ms for ms in (int(one.timestamp()) * 1_000 for one in islice(walk, 100)) if after_ms < ms <= until_ms]

    wanted = re.findall(r"\d\d:\d\d:\d\d[+-]\d{4}", here)
    if "then" in here or "among" in here:
        at = local.index(wanted[0])
        assert local[at : at + len(wanted)] == wanted
    else:
        assert local == wanted
    match there:
        case "the same":
            assert theirs == found
        case "both":
            assert theirs == [found[0], found[0] + 3_600_000]
        case "not that day":
            assert theirs == []
        case _:
            pytest.fail(f"the table says {there!r}, which nothing here checks")
