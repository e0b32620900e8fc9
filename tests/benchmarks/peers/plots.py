"""The plots of docs/benchmarks.md, as SVG: ``python plots.py benchmarks.json FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "troupe"

import matplotlib.pyplot as plt  # noqa: E402 - the backend comes first


def save(figure: Any, folder: Path, name: str) -> None:
    """The same figures give the same file."""
    figure.tight_layout()
    figure.savefig(folder / f"benchmarks-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def drain(figures: list[dict[str, Any]], folder: Path) -> None:
    """Bars: runs a second of each system."""
    shown = [
        f
        for f in figures
        if (f["scenario"], f["case"], f["measure"]) == ("drain", "async, concurrency 50", "runs_per_s")
    ]
    shown.sort(key=lambda f: f["median"])
    figure, axes = plt.subplots(figsize=(7.5, 0.4 * len(shown) + 1))
    medians = [f["median"] for f in shown]
    errors = [
        [m - min(f["values"]) for m, f in zip(medians, shown, strict=True)],
        [max(f["values"]) - m for m, f in zip(medians, shown, strict=True)],
    ]
    colours = ["#2a6f97" if f["system"].startswith("Troupe") else "#adb5bd" for f in shown]
    axes.barh([f["system"] for f in shown], medians, xerr=errors, color=colours)
    axes.set_xlabel("runs a second, concurrency 50")
    save(figure, folder, "drain")


def by_tasks(figures: list[dict[str, Any]], folder: Path, scenario: str, measure: str, label: str) -> None:
    """Lines over the number of tasks, for the cases that end with it."""
    figure, axes = plt.subplots(figsize=(7.5, 3))
    systems = dict.fromkeys(f["system"] for f in figures if f["scenario"] == scenario)
    for system in systems:
        points = []
        for f in figures:
            if (f["scenario"], f["system"], f["measure"]) == (scenario, system, measure):
                words = f["case"].rsplit(", ", 1)[-1].split()
                if len(words) == 2 and words[1] == "tasks":
                    points.append((int(words[0].replace(",", "")), f["median"]))
        if points:
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=system)
    axes.set_xscale("log")
    axes.set_xlabel("tasks")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend()
    save(figure, folder, scenario)


def main(file: str, folder: str) -> None:
    """All of them."""
    figures = json.loads(Path(file).read_text(encoding="utf-8"))["figures"]
    drain(figures, Path(folder))
    by_tasks(figures, Path(folder), "lateness", "p99_ms", "99th percentile of lateness, ms")
    by_tasks(figures, Path(folder), "idle", "commands_per_s", "requests a second")


if __name__ == "__main__":
    main(*sys.argv[1:])
