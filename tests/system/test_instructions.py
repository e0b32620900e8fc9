"""What the pure parts cost, in instructions of the processor: counted by callgrind, not timed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.system import instructions

if TYPE_CHECKING:
    from pathlib import Path

TIMES: Final = 1_000

MOST: Final = {
    "next_instant": 0.7,
    "shared_instant": 0.1,
    "plan_of_ten": 9.0,
    "report_of_a_run": 1.1,
    "keys_of_a_run": 0.2,
    "declaration": 4.5,
}
"""Of each thing, in units, about half again as much as was counted: interpreters differ a little."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed: apt install valgrind")
def test_what_is_computed_for_each_task_and_each_run_costs_few_instructions(tmp_path: Path) -> None:
    """Beside a small object that goes to JSON and back. The same on every machine, whatever else it does."""
    subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--dump-before=getpriority", f"--callgrind-out-file={tmp_path / 'out'}"),
            *(sys.executable, "-m", "tests.system.instructions", str(TIMES)),
        ],
        check=True,
        capture_output=True,
        timeout=600,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    counts = {}
    for number, thing in enumerate(instructions.THINGS, start=1):
        found = re.search(r"^totals: (\d+)$", (tmp_path / f"out.{2 * number}").read_text(), flags=re.MULTILINE)
        assert found is not None
        counts[thing.__name__] = int(found[1]) / TIMES
    unit = counts.pop("unit")
    assert counts.keys() == MOST.keys()
    assert {name: round(count / unit, 2) for name, count in counts.items() if count > MOST[name] * unit} == {}
