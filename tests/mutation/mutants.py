"""Small faults in the domain and in the scripts: each a whole file with one thing changed."""

from __future__ import annotations

import ast
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
DOMAIN: Final = ROOT / "engine" / "domain"
SCRIPTS: Final = ROOT / "engine" / "store" / "lua"

_COMPARED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_COUNTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}
_IN_LUA: Final = {
    "==": "~=",
    "~=": "==",
    "<=": "<",
    ">=": ">",
    "<": "<=",
    ">": ">=",
    "and": "or",
    "or": "and",
    "+": "-",
    "-": "+",
    "true": "false",
    "not": "",
}
_LUA_TOKEN: Final = re.compile(
    r"(?P<skip>--[^\n]*|'(?:[^'\\\n]|\\.)*'|\.\.)|(?P<operator>==|~=|<=|>=|<|>| [+-] |\b(?:and|or|not|true)\b)"
    r"|(?P<number>(?<![\w.\[])\d+(?![\w.\]]))"
)
_LUA_CALL: Final = re.compile(r" *redis\.call\([^\n]*\)")


@final
@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault."""

    path: Path
    line: int
    what: str
    """For people."""

    text: str
    """The whole file with the fault."""

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.what}"


def in_python(path: Path) -> Iterator[Mutant]:
    """Comparisons, boolean and arithmetic operators, negations and numbers, each changed by itself."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    for number, node in enumerate(nodes):
        for what, change in _changes(node):
            other = deepcopy(tree)
            change(list(ast.walk(other))[number])
            yield Mutant(path, getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(other)))


def _changes(node: ast.AST) -> list[tuple[str, _Change]]:
    match node:
        case ast.Compare(ops=[operator, *_]) if type(operator) in _COMPARED:
            new = _COMPARED[type(operator)]
            return [(f"{type(operator).__name__} is {new.__name__}", _Change("ops", lambda old: [new(), *old[1:]]))]
        case ast.BoolOp(op=operator):
            other = ast.Or if isinstance(operator, ast.And) else ast.And
            return [(f"{type(operator).__name__} is {other.__name__}", _Change("op", lambda _: other()))]
        case ast.BinOp(op=operator, left=left) if type(operator) in _COUNTED and not isinstance(left, ast.JoinedStr):
            counted = _COUNTED[type(operator)]
            return [(f"{type(operator).__name__} is {counted.__name__}", _Change("op", lambda _: counted()))]
        case ast.UnaryOp(op=ast.Not()):
            return [("a negation is gone", _Change("op", lambda _: ast.UAdd()))]
        case ast.Constant(value=bool(value)):
            return [(f"{value} is {not value}", _Change("value", lambda old: not old))]
        case ast.Constant(value=int(value)):
            return [(f"{value} is {value + 1}", _Change("value", lambda old: old + 1))]
        case _:
            return []


@final
@dataclass(frozen=True, slots=True)
class _Change:
    field: str
    new: object

    def __call__(self, node: ast.AST) -> None:
        assert callable(self.new)
        setattr(node, self.field, self.new(getattr(node, self.field)))


def in_lua(path: Path) -> Iterator[Mutant]:
    """Operators and numbers, each changed by itself, and each call of Redis on a line of its own left out."""
    source = path.read_text(encoding="utf-8")
    for found in _LUA_TOKEN.finditer(source):
        line = source.count("\n", 0, found.start()) + 1
        if found["operator"]:
            old = found["operator"].strip()
            new = found["operator"].replace(old, _IN_LUA[old])
        elif found["number"]:
            old, new = found["number"], str(int(found["number"]) + 1)
        else:
            continue
        text = source[: found.start()] + new + source[found.end() :]
        yield Mutant(path, line, f"{old!r} is {new.strip()!r}: {source.splitlines()[line - 1].strip()[:90]}", text)
    lines = source.splitlines(keepends=True)
    for number, content in enumerate(lines):
        if _LUA_CALL.fullmatch(content.rstrip("\n")) and content.count("(") == content.count(")"):
            text = "".join(lines[:number] + lines[number + 1 :])
            yield Mutant(path, number + 1, f"left out: {content.strip()[:90]}", text)


def all_mutants() -> dict[str, list[Mutant]]:
    """Of the domain and of the scripts."""
    return {
        "domain": [mutant for path in sorted(DOMAIN.glob("*.py")) for mutant in in_python(path)],
        "lua": [mutant for path in sorted(SCRIPTS.glob("*.lua")) for mutant in in_lua(path)],
    }
