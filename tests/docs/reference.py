"""docs/reference.md, made from the docstrings of the public names.

python -m tests.docs.reference   writes the page
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import is_dataclass
from functools import cached_property
from textwrap import indent
from typing import Any

import engine
from engine.domain.task import Definition
from tests.docs.documents import ROOT

PAGE = ROOT / "docs" / "reference.md"

HEAD = """\
# Reference

What `from engine import ...` gives. This page is made from the docstrings: `python -m tests.docs.reference` writes it,
and a test compares it with them. Every setting of a `Config` is in [configuration.md](configuration.md).
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(name, getattr(engine, name)).rstrip("\n") + "\n" for name in engine.__all__)])


def section(name: str, kind: type) -> str:
    """A heading, what it is, and what can be done with it."""
    parts = [f"## {name}\n", markdown(inspect.getdoc(kind) or "")]
    if made_by(kind):
        parts.insert(1, f"`{name}{made_by(kind)}`\n")
    rows = [row for member in public(kind) if (row := entry(kind, member))]
    if rows:
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def made_by(kind: type) -> str:
    """How to make one, or for an error what it derives from; nothing for what only the engine makes."""
    if issubclass(kind, Exception):
        return f"({', '.join(base.__name__ for base in kind.__bases__)})"
    return "" if is_dataclass(kind) else f"({parameters(kind.__init__)})"


def public(kind: type) -> list[str]:
    """The names of the class itself, in the order of the source, with annotated fields."""
    own = [name for name in {**inspect.get_annotations(kind), **vars(kind)} if not name.startswith("_")]
    settings = getattr(kind, "model_fields", {})
    pydantics = {"model_config", "settings_customise_sources"}
    return [name for name in own if name not in settings and name not in pydantics]


def entry(kind: type, name: str) -> str:
    """One member as an item of a list."""
    found = inspect.getattr_static(kind, name, None)
    if isinstance(found, property | cached_property):
        return item(name, inspect.getdoc(found))
    function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
    if inspect.isfunction(function):
        prefix = "await " if inspect.iscoroutinefunction(function) else ""
        docs = inspect.getdoc(function) or ""
        what = item(f"{prefix}{name}({parameters(function)})", docs.partition("\n\n")[0])
        return what + about_parameters(function) + below(docs.partition("\n\n")[2])
    return item(name, field_docs(kind).get(name))


def item(what: str, docs: str | None) -> str:
    """Code and what it is."""
    first, _, more = (docs or "").partition("\n\n")
    about = " ".join(first.split())
    return f"- `{what}`" + (f": {markdown(about).strip()}" if about else "") + below(more)


def below(docs: str) -> str:
    """The rest of a docstring, as paragraphs of the item above."""
    return "\n\n" + indent(markdown(docs), "  ") if docs else ""


def parameters(function: Any) -> str:
    """Names and defaults, without types, which a reader finds where he needs them."""
    shown = inspect.signature(function)
    plain = [
        one.replace(annotation=inspect.Parameter.empty)
        for one in shown.parameters.values()
        if one.name not in {"self", "cls"}
    ]
    return str(inspect.Signature([one for one in plain if one.name != "task_status"]))[1:-1]


def about_parameters(function: Any) -> str:
    """What a Definition says of the parameters that declare one."""
    if "high_priority" not in inspect.signature(function).parameters:
        return ""
    known = field_docs(Definition)
    return "".join(f"\n  {item(name, known[name])}" for name in inspect.signature(function).parameters if name in known)


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings under annotated fields."""
    [definition] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(before.target, ast.Name)
            found[before.target.id] = inspect.cleandoc(str(after.value.value))
    return found


def markdown(docs: str) -> str:
    """A docstring as Markdown: code in single backticks, sections as lists."""
    lines = []
    for line in re.sub(r"``(.+?)``", r"`\1`", docs).splitlines():
        if heading := re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [f"**{heading[1]}**", ""]
        elif section_item := re.fullmatch(r"    (\w[\w, ]*): (.*)", line):
            lines.append(f"- `{section_item[1]}`: {section_item[2]}")
        else:
            lines.append(re.sub(r"^    +", "  ", line))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
