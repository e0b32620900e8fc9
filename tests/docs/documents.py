"""README, CONTRIBUTING and docs as the tests read them: code blocks, commands in the text, headings, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md")),
]

PROGRAMS = ("make", "pip", "python", "python3", "troupe", "redis-cli", "rm", "docker", "apt-get", "export", ".ci/run")
"""What a command in the middle of a sentence begins with."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>\S*)[^`]*$")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<text>.+?) *$", re.MULTILINE)


@final
@dataclass(frozen=True, slots=True)
class Snippet:
    """A code block, or a command in the middle of a sentence."""

    page: str
    """Relative to the repository."""

    line: int
    language: str
    """What the fence says; ``indented`` and ``inline`` for what has none."""

    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def snippets(page: Path, text: str | None = None) -> Iterator[Snippet]:
    """Everything on a page that a reader could copy and run."""
    name = page.relative_to(ROOT).as_posix()
    prose: list[tuple[int, str]] = []
    lines = list(enumerate((page.read_text(encoding="utf-8") if text is None else text).splitlines(), start=1))
    at = 0
    while at < len(lines):
        number, content = lines[at]
        if fence := _FENCE.match(content):
            end = next(i for i in range(at + 1, len(lines)) if lines[i][1].strip() == fence["fence"])
            block = "\n".join(line for _, line in lines[at + 1 : end])
            yield Snippet(name, number, fence["language"] or "unnamed", block)
            at = end + 1
        elif content.startswith("    ") and (at == 0 or not lines[at - 1][1].strip()):
            end = at
            while end < len(lines) and (lines[end][1].startswith("    ") or not lines[end][1].strip()):
                end += 1
            block = "\n".join(line[4:] for _, line in lines[at:end]).strip("\n")
            yield Snippet(name, number, "indented", block)
            at = end
        else:
            prose.append((number, content))
            at += 1
    for number, content in prose:
        for code in _INLINE.findall(content):
            if code.split()[0] in PROGRAMS:
                yield Snippet(name, number, "inline", code)


def links(page: Path) -> Iterator[tuple[int, str]]:
    """The targets of a page's links, with their lines."""
    for number, content in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        for found in _LINK.finditer(_INLINE.sub("", content)):
            yield number, found["target"]


def anchors(page: Path) -> set[str]:
    """What can stand behind ``#`` in a link to this page, as GitHub and mkdocs make it from the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}
