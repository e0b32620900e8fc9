"""How docs/testing.md is tried out: its files are put into a folder, and pytest runs there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.docs.documents import ROOT, Snippet, snippets
from tests.docs.programs import environment, shell
from tests.docs.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BLOCKS"]

PAGE = ROOT / "docs" / "testing.md"
NAME = PAGE.relative_to(ROOT).as_posix()
FILES = [snippet for snippet in snippets(PAGE) if snippet.language == "python"]
FAILING = 'def test_too_many(advance, assert_ran):\n    advance(days=2)\n    assert_ran("shop/bill", times=3)\n'


def name_of(snippet: Snippet) -> str:
    """The first line of a block names its file."""
    return snippet.text.partition("\n")[0].removeprefix("# ")


@contextmanager
def project(workshop: Workshop) -> Iterator[Path]:
    """A folder with all files of the page."""
    folder = workshop.folder("testing")
    for snippet in FILES:
        (folder / name_of(snippet)).write_text(snippet.text + "\n", encoding="utf-8")
    yield folder


def pytest(workshop: Workshop, *args: str) -> str:
    """What it prints, with no other plugin, since loading all takes seconds; it must end well."""
    folder = workshop.keep("testing", lambda: project(workshop))
    env = environment(workshop.folder("home"), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = f"{sys.executable} -m pytest -p engine.testing.plugin -p no:cacheprovider {' '.join(args)}"
    return shell(command, folder=folder, env=env)


def file(snippet: Snippet, workshop: Workshop) -> None:
    """The tests in it pass; a file without tests is what the others need."""
    if not name_of(snippet).startswith("test_"):
        return
    printed = pytest(workshop, name_of(snippet))
    assert " passed" in printed
    assert " failed" not in printed
    assert " skipped" not in printed


def failing(snippet: Snippet, workshop: Workshop) -> None:
    """A test that expects something else prints just this."""
    folder = workshop.keep("testing", lambda: project(workshop))
    (folder / "failing.py").write_text(FAILING, encoding="utf-8")
    printed = pytest(workshop, "failing.py || true")
    shown = [line.removeprefix("E       ").rstrip() for line in printed.splitlines() if line.startswith("E   ")]
    assert shown == snippet.text.splitlines()


BLOCKS: list[tuple[str, str, Callable[[Snippet, Workshop], None]]] = [
    *((NAME, f"# {name_of(snippet)}", file) for snippet in FILES),
    (NAME, "AssertionError: ", failing),
]
