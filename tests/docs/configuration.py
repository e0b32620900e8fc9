"""The table of docs/configuration.md, made from the docstrings of the settings.

python -m tests.docs.configuration   writes it into the page
"""

from __future__ import annotations

import json
import re

from engine.config import Config
from tests.docs.documents import ROOT
from tests.docs.reference import field_docs, markdown

PAGE = ROOT / "docs" / "configuration.md"

HEAD = """\
| Name | Default | Unit | What it changes |
|---|---|---|---|
"""


def table() -> str:
    """A row for each setting, in the order of the source."""
    return HEAD + "".join(map(row, Config.model_fields))


def row(name: str) -> str:
    """Name, default, unit and docstring."""
    field = Config.model_fields[name]
    extra = field.json_schema_extra
    unit = f"{extra['unit']} " if isinstance(extra, dict) else ""
    default = json.dumps(field.default) if isinstance(field.default, str) else repr(field.default)
    effect = " ".join(markdown(field_docs(Config)[name]).split())
    return f"| `{name}` | `{default}` | {unit}| {effect} |\n"


def page(text: str) -> str:
    """The page with the table of now."""
    return re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: table(), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
