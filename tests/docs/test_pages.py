"""What the pages say of each other and of the code: links, the reference, the examples."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

import engine
from tests.docs import reference
from tests.docs.documents import PAGES, ROOT, anchors, links
from tests.docs.programs import environment, started

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docs.workshop import Workshop

EXAMPLES = {
    "quickstart.py": ("tick    slot", "greet   hello Ada", "flaky   worked the second time"),
}
"""What each program in docs/examples prints within a minute."""

SERVED = {"tutorial_first.py", "tutorial_shop.py"}
"""Those that are run by a server: see tests/integrations/fastapi/test_examples_on_servers.py."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_at_what_exists(page: Path) -> None:
    """Files, and headings in them. Addresses of other sites are not asked for."""
    broken = []
    for line, target in links(page):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.is_relative_to(ROOT) or not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(f"{page.name}:{line}: {target}")
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    """By following links."""
    seen: set[Path] = set()
    left = [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        left += [(page.parent / target.partition("#")[0]).resolve() for _, target in links(page) if "://" not in target]
    assert seen >= set(PAGES)


def test_the_reference_is_what_the_docstrings_say() -> None:
    """Of every public name. To bring it in line: python -m tests.docs.reference"""
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page()
    headings = [line.removeprefix("## ") for line in reference.page().splitlines() if line.startswith("## ")]
    assert headings == engine.__all__


def test_every_error_that_a_public_name_announces_is_public_too() -> None:
    """So that it can be caught with what ``from engine import`` gives."""
    announced = {
        name
        for section in re.findall(r"\*\*Raises\*\*\n\n((?: *- .*\n|  +.*\n)+)", reference.page())
        for names in re.findall(r"^ *- `([\w, ]+)`:", section, flags=re.MULTILINE)
        for name in names.split(", ")
    }
    assert "TaskTypeError" in announced
    assert announced - set(engine.__all__) == {"SystemExit"}


def test_every_example_says_here_what_it_prints() -> None:
    """A new one needs a line in EXAMPLES."""
    assert {path.name for path in (ROOT / "docs" / "examples").glob("*.py")} == EXAMPLES.keys() | SERVED


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_stops_when_it_is_asked_to(name: str, workshop: Workshop) -> None:
    """In an empty home, until Ctrl-C, and then with exit code 0 and no error."""
    home = workshop.folder("home")
    command = f"{sys.executable} {ROOT / 'docs' / 'examples' / name}"
    with started(command, folder=home, env=environment(home)) as program:
        program.wait_for(*EXAMPLES[name])
        assert program.interrupt() == 0, program.printed
        assert "Traceback (most recent call last)" not in program.printed.partition("Signal SIGINT")[2]
