"""Each fault of the replaced system, and each guarantee, has a test, and a page names it."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.documents import ROOT

PAGE = ROOT / "docs" / "known-faults.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (\d|[A-Z])", line)]
GUARANTEES = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE.read_text(encoding="utf-8") + GUARANTEES)))


@cache
def functions_of(file: str) -> frozenset[str]:
    """The test functions of a module, as pytest finds them."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def test_every_fault_has_a_row_with_a_test() -> None:
    """Thirty that were found by reading, in order, and six that were seen when it ran."""
    numbers = [int(row.split("|")[1]) for row in ROWS if row[2].isdigit()]
    assert numbers == list(range(1, 31))
    assert len(ROWS) == 36
    assert [row for row in ROWS if "::test_" not in row] == []


def test_every_guarantee_names_tests_that_try_to_break_it() -> None:
    """All nine."""
    rows = [line for line in GUARANTEES.splitlines() if re.match(r"\| G\d ", line)]
    assert [row[2:4] for row in rows] == [f"G{number}" for number in range(1, 10)]
    assert [row for row in rows if "::test_" not in row] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_test_is_there(name: str) -> None:
    """Renamed or removed, it would keep nobody from anything."""
    file, _, test = name.partition("::")
    assert test in functions_of(file)
