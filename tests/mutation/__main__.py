"""How many of a sample of small faults the fast tests notice.

    python -m tests.mutation --each 25 --seed 1

Each fault is put into a copy of the checkout, where the tests of that part run until one fails. Those that nobody
notices are printed: some change nothing that could be seen, the others want a test.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Final

from tests.mutation.mutants import ROOT, Mutant, all_mutants

LIMIT_S: Final = 240
"""Tests that take so long have noticed: something spins or waits for ever."""

_STORE: Final = (
    "runs",
    "timetable",
    "leases",
    "operations",
    "catalog",
    "election",
    "ledger",
    "survey",
    "repeats",
    "retelling",
    "presence",
)
TESTS: Final = {
    "domain": ["tests/unit/domain", "tests/unit/actors/test_agenda.py", "tests/unit/actors/test_dynamic_tasks.py"],
    "lua": [*(f"tests/store/test_{name}.py" for name in _STORE), "tests/store/test_refusals.py", "-k", "in-process"],
}
COPIED: Final = ("engine", "actors", "integrations", "tests", "docs", "pyproject.toml", "README.md", "SECURITY.md")


def copy_to(folder: Path) -> Path:
    """What the tests need of the checkout."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def passes(checkout: Path, part: str) -> bool:
    """Do all tests of a part pass in that copy?"""
    command = [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", "--numprocesses", "0", *TESTS[part]]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def survives(mutant: Mutant, part: str, checkouts: Queue[Path]) -> bool:
    """Does nobody notice it?"""
    checkout = checkouts.get()
    path = checkout / mutant.path.relative_to(ROOT)
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.text, encoding="utf-8")
        return passes(checkout, part)
    finally:
        path.write_text(before, encoding="utf-8")
        checkouts.put(checkout)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--each", type=int, default=25, help="faults of each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    begun_s, rest = time.monotonic(), random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="troupe-mutation-") as directory:
        checkouts: Queue[Path] = Queue()
        for number in range(given.jobs):
            checkouts.put(copy_to(Path(directory) / str(number)))
        for part, mutants in all_mutants().items():
            chosen = rest.sample(mutants, min(given.each, len(mutants)))
            with ThreadPoolExecutor(given.jobs) as pool:
                unnoticed = list(pool.map(lambda one, part=part: survives(one, part, checkouts), chosen))
            left = [mutant for mutant, survived in zip(chosen, unnoticed, strict=True) if survived]
            noticed = len(chosen) - len(left)
            print(
                f"{part}: {noticed} of {len(chosen)} noticed ({noticed / len(chosen):.0%}), of {len(mutants):,} in all"
            )
            for mutant in left:
                print(f"  unnoticed: {mutant.name}")
            sys.stdout.flush()
    print(f"seed {given.seed}, {time.monotonic() - begun_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
