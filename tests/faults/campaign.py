"""All faults, two at a time, and the table of what came of them."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from tests.faults.apart import play_apart, play_here, until_told
from tests.faults.families import clocks, crashes, deployment, failover, forgetting, network, redis
from tests.faults.scenario import Row, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ALL: Final = [
    scenario
    for family in (crashes, network, redis, forgetting, failover, clocks, deployment)
    for scenario in family.SCENARIOS
]
COLUMNS: Final[Sequence[tuple[str, Callable[[Row], str]]]] = (
    ("fault", lambda row: row.fault),
    ("injected", lambda row: str(row.injected)),
    ("slots expected", lambda row: str(row.slots)),
    ("verdicts", lambda row: str(row.verdicts)),
    ("doubled", lambda row: str(row.doubled)),
    ("lost", lambda row: str(row.lost)),
    ("forgotten", lambda row: str(row.forgotten)),
    ("told again", lambda row: str(row.retold)),
    ("led again after", lambda row: _seconds(row.led_s)),
    ("goes on after", lambda row: _seconds(row.resumed_s)),
)


def _seconds(found: Sequence[float]) -> str:
    return f"{max(found):.1f} s" if found and math.isfinite(max(found)) else "never" if found else ""


def _finite(found: Sequence[float]) -> list[float]:
    """As JSON has numbers: -1 for never."""
    return [seconds if math.isfinite(seconds) else -1.0 for seconds in found]


def _word(row: Row) -> str:
    return "not played" if row.skipped else "VIOLATED" if row.violations else ""


async def play_all(
    scenarios: Sequence[Scenario], *, jobs: int, times: int | None, tell: Callable[[Row], None]
) -> list[Row]:
    """So many at a time, each in a directory of its own, which is kept if its row is violated."""
    rows: dict[str, Row] = {}
    left = iter(sorted(scenarios, key=lambda one: -one.takes_s))  # the longest first, so that none is left over alone

    async def worker() -> None:
        for scenario in left:
            directory = Path(tempfile.mkdtemp(prefix="troupe-faults-"))
            try:
                row = rows[scenario.name] = await play_apart(scenario, directory, times or scenario.times)
            except trio.Cancelled:
                shutil.rmtree(directory)
                raise
            if row.violations:
                row.notes.append(f"logs: {directory}")
            else:
                shutil.rmtree(directory)
            tell(row)

    async with until_told(), trio.open_nursery() as nursery:
        for _ in range(jobs):
            nursery.start_soon(worker)
    return [rows[scenario.name] for scenario in scenarios if scenario.name in rows]


def markdown(rows: Sequence[Row]) -> str:
    """The table, for people and for pages."""
    lines = [[name for name, _ in COLUMNS], *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown) + "\n"


def _cells(row: Row) -> list[str]:
    shown = [show(row) for _, show in COLUMNS]
    return [shown[0], "not played", *("" for _ in shown[2:])] if row.skipped else shown


def _tell(row: Row) -> None:
    line = f"{row.took_s:5.0f} s  {row.fault}  {row.skipped or _word(row) or 'holds'}\n"
    sys.stdout.write(line + "".join(f"         ! {text}\n" for text in row.violations))
    sys.stdout.write("".join(f"           {text}\n" for text in row.notes))
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what was asked for; 1 if the rule of a row is violated, 2 if nothing was chosen."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("-k", dest="chosen", default="", help="only faults whose names contain this")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--times", type=int, help="inject each fault so often (default: as often as it says itself)")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--json", type=Path, help="write the rows there, with what was seen")
    parser.add_argument("--apart", nargs=3, metavar=("NAME", "DIRECTORY", "TIMES"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.apart:
        name, directory, times = given.apart
        return play_here(next(one for one in ALL if one.name == name), Path(directory), int(times))
    chosen = [scenario for scenario in ALL if given.chosen.lower() in scenario.name.lower()]
    if given.list or not chosen:
        sys.stdout.write(
            "".join(f"{scenario.name}\n" for scenario in chosen) or f"no fault is named {given.chosen!r}\n"
        )
        return 0 if chosen else 2
    begun_s = time.monotonic()
    rows = trio.run(lambda: play_all(chosen, jobs=given.jobs, times=given.times, tell=_tell))
    table = markdown(rows)
    took_s = time.monotonic() - begun_s
    violated = [row for row in rows if row.violations]
    sys.stdout.write(f"\n{table}\n{len(rows)} faults in {took_s:.0f} s, {len(violated)} violated\n")
    if given.markdown:
        given.markdown.write_text(table, encoding="utf-8")
    if given.json:
        shown = [asdict(replace(row, resumed_s=_finite(row.resumed_s), led_s=_finite(row.led_s))) for row in rows]
        given.json.write_text(
            json.dumps({"took_s": round(took_s, 1), "rows": shown}, indent=2) + "\n", encoding="utf-8"
        )
    return 1 if violated or len(rows) < len(chosen) else 0
