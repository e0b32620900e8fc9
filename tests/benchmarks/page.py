"""docs/benchmarks.md, made from a sitting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.claims import CLAIMS
from tests.benchmarks.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.benchmarks.figures import Figure, Sitting

HEAD = """# Benchmarks

`make bench` measures Troupe beside other systems, each on the same work in turn, on a Redis of its own on loopback,
and writes this page and [benchmarks.json](benchmarks.json). Each figure is the median of {rounds} rounds, with the
lowest and the highest of them. Figures move with the machine, and from one hour to the next: compare those of one
sitting.

| | |
|---|---|
{machine}
| versions | {versions} |
| took | {minutes:.0f} minutes |

## What is claimed

| claim | bound | seen | |
|---|---|---|---|
{claims}
"""


def written(value: float) -> str:
    """With three digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def claims_of(sitting: Sitting) -> Iterable[str]:
    """A row for each that was measured."""
    for claim in CLAIMS:
        value = claim.value(sitting)
        if value is not None:
            bound = f"{'at least' if claim.at_least else 'at most'} {written(claim.bound)}"
            verdict = "holds" if claim.holds(value) else "**does not hold**"
            yield f"| {claim.says} | {bound} | {written(value)} | {verdict} |"


def table(figures: Sequence[Figure]) -> Iterable[str]:
    """A row for each case and system, a column for each measure."""
    measures = list(dict.fromkeys(figure.measure for figure in figures))
    yield f"| case | system | {' | '.join(measures)} |"
    yield f"|---|---|{'---|' * len(measures)}"
    for case, system in dict.fromkeys((figure.case, figure.system) for figure in figures):
        cells = []
        for measure in measures:
            found = [f for f in figures if (f.case, f.system, f.measure) == (case, system, measure)]
            cells.append(cell(found[0]) if found else "")
        yield f"| {case} | {system} | {' | '.join(cells)} |"


def cell(figure: Figure) -> str:
    """The median, and the spread."""
    low, high = figure.spread
    return written(figure.median) if low == high else f"{written(figure.median)} ({written(low)} to {written(high)})"


def page(sitting: Sitting) -> str:
    """The whole page."""
    parts = [
        HEAD.format(
            rounds=sitting.rounds,
            machine="\n".join(f"| {name} | {what} |" for name, what in sitting.machine.items()),
            versions=", ".join(f"{name} {number}" for name, number in sitting.versions.items()),
            minutes=sitting.took_s / 60,
            claims="\n".join(claims_of(sitting)),
        )
    ]
    for scenario in SCENARIOS:
        figures = [figure for figure in sitting.figures if figure.scenario == scenario.name]
        if figures:
            parts.append(f"## {scenario.title}\n\n{scenario.says}\n\n" + "\n".join(table(figures)) + "\n")
            if scenario.name in PLOTS:
                parts.append(f"![{scenario.title}](benchmarks-{scenario.name}.svg)\n")
    return "\n".join(parts)


PLOTS = ("drain", "lateness", "idle")
"""The scenarios of which there is a plot."""
