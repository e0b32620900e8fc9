"""The mutator makes faults that parse, one at a time."""

from __future__ import annotations

import ast
import difflib
from typing import TYPE_CHECKING

from tests.mutation.mutants import in_lua, in_python

if TYPE_CHECKING:
    from pathlib import Path


def test_of_python_each_operator_and_number_is_changed_by_itself(tmp_path: Path) -> None:
    """What is left parses, and differs in one line."""
    path = tmp_path / "some.py"
    source = "def f(a, b):\n    if a < b and (not b):\n        return a + 1\n    return a == 2\n"
    path.write_text(source)
    found = list(in_python(path))
    assert {mutant.what for mutant in found} == {
        *("Lt is LtE", "And is Or", "a negation is gone", "Add is Sub", "1 is 2", "Eq is NotEq", "2 is 3"),
    }
    for mutant in found:
        ast.parse(mutant.text)
        before = ast.unparse(ast.parse(source)).splitlines()
        changed = difflib.ndiff(before, mutant.text.splitlines())
        assert sum(line.startswith("- ") for line in changed) == 1, mutant.what


def test_of_a_script_comments_and_texts_stay(tmp_path: Path) -> None:
    """Operators and numbers change; a call of Redis on a line of its own is left out."""
    path = tmp_path / "some.lua"
    path.write_text("-- a < b and 5\nif a <= 5 and b ~= 'x < 7' then\n  redis.call('DEL', KEYS[1])\nend\n")
    found = {mutant.what.partition(":")[0]: mutant.text for mutant in in_lua(path)}
    assert set(found) == {"'<=' is '<'", "'5' is '6'", "'and' is 'or'", "'~=' is '=='", "left out"}
    assert "redis.call" not in found["left out"]
    assert "'x < 7'" in found["'5' is '6'"]
