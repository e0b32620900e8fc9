"""What is decoded is JSON, and nothing from outside becomes code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = sorted(path for top in ("engine", "actors", "integrations") for path in (ROOT / top).rglob("*.py"))

MAKES_CODE: Final = frozenset(
    {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "code", "codeop"}
)
BUILT_IN: Final = frozenset({"eval", "exec", "compile", "__import__"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_decodes_anything_that_could_be_code(path: Path) -> None:
    """Neither pickle nor its relatives, nor text that is run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                assert not {name.name.partition(".")[0] for name in names} & MAKES_CODE, f"line {node.lineno}"
            case ast.ImportFrom(module=str(module)):
                assert module.partition(".")[0] not in MAKES_CODE, f"line {node.lineno}"
            case ast.Call(func=ast.Name(id=name)):
                assert name not in BUILT_IN, f"line {node.lineno}"
            case _:
                pass


def test_modules_are_only_imported_by_names_that_people_give() -> None:
    """The command line (``troupe run app:engine``), the entry points, and our own lazy names; never what Redis says."""
    found = {str(path.relative_to(ROOT)) for path in SOURCES if "import_module" in path.read_text(encoding="utf-8")}
    lazy = {"engine/__init__.py", "engine/testing/__init__.py"}
    assert found <= lazy | {"engine/cli.py"}, found


def test_tests_that_the_page_names_exist() -> None:
    """A claim whose test has gone is only a claim."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).is_file()] == []
