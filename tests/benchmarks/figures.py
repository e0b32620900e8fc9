"""What was measured: figures of many rounds, and the sitting in which they were taken."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

PACKAGES = ("trio", "anyio", "redis", "hiredis", "croniter", "fastapi", "uvicorn")
"""Whose versions matter to Troupe's figures."""


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """One measure of one system in one case of a scenario, a value for each round."""

    scenario: str
    case: str
    system: str
    measure: str
    """Its last word is the unit: ``runs_per_s``, ``p99_ms``."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest round."""
        return min(self.values), max(self.values)


@final
@dataclass(slots=True)
class Sitting:
    """All figures of one run of the command, on one machine."""

    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    took_s: float = 0.0
    figures: list[Figure] = field(default_factory=list)

    def add(self, scenario: str, case: str, system: str, measures: dict[str, float]) -> None:
        """One round of one trial."""
        for measure, value in measures.items():
            for at, known in enumerate(self.figures):
                if (known.scenario, known.case, known.system, known.measure) == (scenario, case, system, measure):
                    self.figures[at] = Figure(scenario, case, system, measure, (*known.values, value))
                    break
            else:
                self.figures.append(Figure(scenario, case, system, measure, (value,)))

    def find(self, scenario: str, case: str, system: str, measure: str) -> Figure | None:
        """The figure, if it was taken."""
        wanted = (scenario, case, system, measure)
        return next((f for f in self.figures if (f.scenario, f.case, f.system, f.measure) == wanted), None)

    def median(self, scenario: str, case: str, system: str, measure: str) -> float | None:
        """Of that figure, if it was taken."""
        found = self.find(scenario, case, system, measure)
        return None if found is None else found.median

    def scenarios(self) -> list[str]:
        """In the order in which they were taken."""
        return list(dict.fromkeys(figure.scenario for figure in self.figures))

    def to_json(self) -> str:
        """One object; `from_json` reads it."""
        told = asdict(self)
        for figure in told["figures"]:
            figure["median"] = statistics.median(figure["values"])
        return json.dumps(told, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sitting:
        """What `to_json` wrote."""
        told: dict[str, Any] = json.loads(text)
        figures = [
            Figure(f["scenario"], f["case"], f["system"], f["measure"], tuple(f["values"])) for f in told["figures"]
        ]
        return cls(told["machine"], told["versions"], told["rounds"], told["took_s"], figures)


def this_machine() -> dict[str, str]:
    """What the figures depend on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor,
        "cores": str(cores),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "day": datetime.now(UTC).date().isoformat(),
    }


def our_versions() -> dict[str, str]:
    """Of what Troupe stands on."""
    return {package: version(package) for package in PACKAGES}
