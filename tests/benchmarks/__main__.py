"""The command of ``make bench``: measure Troupe and its peers in turn, and write what came of it."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.claims import CLAIMS
from tests.benchmarks.figures import Sitting, our_versions, this_machine
from tests.benchmarks.page import page, written
from tests.benchmarks.scenarios import SCENARIOS
from tests.benchmarks.trials import PEERS, ROOT, Trial, TrialFailed


def checkout_of(commit: str, stack: ExitStack) -> Path:
    """A checkout of that commit with the drivers of this one, gone with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="troupe-bench-"))) / "checkout"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    stack.callback(subprocess.run, [*git, "remove", "--force", str(folder)], check=True)
    shutil.rmtree(folder / "tests" / "benchmarks", ignore_errors=True)
    shutil.copytree(ROOT / "tests" / "benchmarks", folder / "tests" / "benchmarks")
    return folder


def chosen(trials: list[Trial], systems: list[str] | None) -> list[Trial]:
    """Those of the systems whose names begin so."""
    return [t for t in trials if systems is None or any(t.system.lower().startswith(s.lower()) for s in systems)]


def sit(given: argparse.Namespace, stack: ExitStack) -> tuple[Sitting, list[str]]:
    """Measure all that is asked for; with what could not be measured."""
    sitting = Sitting(machine=this_machine(), versions=our_versions(), rounds=given.rounds)
    others = {commit: checkout_of(commit, stack) for commit in given.compare or []}
    began_s, failed = time.monotonic(), list[str]()
    for scenario in SCENARIOS:
        if given.scenario and scenario.name not in given.scenario:
            continue
        trials = chosen(scenario.trials(given.quick), given.system)
        for number in range(min(given.rounds, scenario.rounds or given.rounds)):
            for trial in trials:
                if trial.peer and (not PEERS.exists() or others):
                    continue
                for commit, checkout in {"": ROOT, **others}.items():
                    if commit and trial.system.startswith("floor"):
                        continue
                    system = f"{trial.system} at {commit}" if commit else trial.system
                    now = f"{time.monotonic() - began_s:5.0f} s  round {number + 1}"
                    show(f"{now}  {scenario.name}: {trial.case}, {system}")
                    try:
                        sitting.add(scenario.name, trial.case, system, trial.measure(checkout))
                    except TrialFailed as failure:  # the others are worth knowing all the same
                        show(str(failure))
                        failed.append(f"{scenario.name}: {trial.case}, {system}")
    sitting.took_s = time.monotonic() - began_s
    return sitting, failed


def show(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """1 if a claim that was measured does not hold, 2 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: a first look")
    parser.add_argument("--rounds", type=int, help="of each trial; 5, quick 1")
    parser.add_argument("--scenario", action="append", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--system", action="append", help="those whose names begin so")
    parser.add_argument("--compare", action="append", metavar="COMMIT", help="measure Troupe as of that commit too")
    parser.add_argument("--write", action="store_true", help="docs/benchmarks.md, its plots and benchmarks.json")
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or (1 if given.quick else 5)
    with ExitStack() as stack:
        sitting, failed = sit(given, stack)
    for figure in sitting.figures:
        low, high = figure.spread
        show(
            f"{figure.scenario}: {figure.case}, {figure.system}: {figure.measure} {written(figure.median)} "
            f"({written(low)} to {written(high)})"
        )
    broken = 0
    for claim in CLAIMS:
        value = claim.value(sitting)
        if value is not None:
            broken += not claim.holds(value)
            verdict = "holds" if claim.holds(value) else "DOES NOT HOLD"
            show(f"{verdict:14} {claim.says}: {written(value)}, bound {written(claim.bound)}")
    if given.write:
        docs = ROOT / "docs"
        (docs / "benchmarks.json").write_text(sitting.to_json(), encoding="utf-8")
        (docs / "benchmarks.md").write_text(page(sitting), encoding="utf-8")
        plots = str(ROOT / "tests" / "benchmarks" / "peers" / "plots.py")
        subprocess.run([str(PEERS), plots, str(docs / "benchmarks.json"), str(docs)], check=True)
    show(f"took {sitting.took_s / 60:.1f} minutes")
    for trial in failed:
        show(f"could not be measured: {trial}")
    return 2 if failed else int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
