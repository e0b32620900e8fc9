"""Where the docs are tried out, and what it takes to try out each kind of command."""

from __future__ import annotations

import shutil
import sys
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, final

import redis

from tests.docs.documents import ROOT, snippets
from tests.docs.programs import BIN, Program, environment, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

T = TypeVar("T")

ADDRESS = "redis://localhost:6379/0"
"""What the docs call the address of Redis. A test cannot take the port that everybody's Redis has, so this is replaced
in everything that is tried out, by the address of a server that the tests start."""

AT_NIGHT, EACH_SECOND = '"0 3 * * *"', '"* * * * * *"'
"""The README's task runs at night; to see it run it is also tried out with a schedule that no reader would choose."""


@final
class Workshop:
    """A Redis, and folders as a reader has them."""

    def __init__(self, redis_url: str, folders: pytest.TempPathFactory) -> None:
        self.redis_url, self._folders = redis_url, folders
        self._kept: dict[str, Any] = {}
        self._open = ExitStack()

    def close(self) -> None:
        """End everything that was kept."""
        self._open.close()

    def keep(self, name: str, make: Callable[[], AbstractContextManager[T]]) -> T:
        """What is entered at its first use, and left at the end of all tests."""
        if name not in self._kept:
            self._kept[name] = self._open.enter_context(make())
        found: T = self._kept[name]
        return found

    def adapted(self, text: str) -> str:
        """The text of the docs, with the address of the server that is there."""
        return text.replace(ADDRESS, self.redis_url)

    def folder(self, name: str) -> Path:
        """A new, empty one. Its path is short, since a unix socket may have to lie in it."""
        return self._folders.mktemp(name)

    @cached_property
    def app(self) -> Path:
        """A folder with the README's ``app.py``."""
        return self._app("app", AT_NIGHT)

    @cached_property
    def hurried_app(self) -> Path:
        """The same with a task that is due each second."""
        return self._app("hurried", EACH_SECOND)

    def _app(self, name: str, schedule: str) -> Path:
        [block] = [one for one in snippets(ROOT / "README.md") if one.text.startswith("from engine import")]
        folder = self.folder(name)
        text = self.adapted(block.text).replace(AT_NIGHT, schedule)
        (folder / "app.py").write_text(text, encoding="utf-8")
        return folder

    @cached_property
    def clone(self) -> Path:
        """A copy of the repository in which everything is installed: its .venv is this one under another name.

        The tests in it are two small ones, or running them would run this one again.
        """
        folder = self.folder("clone")
        for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("engine", "actors", "integrations", "docs", "tests/docs", "tests/store", ".ci"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for test in folder.glob("tests/*/test_*.py"):
            test.unlink()
        (folder / "tests" / "unit").mkdir()
        (folder / "tests" / "unit" / "test_small.py").write_text(SMALL_TESTS, encoding="utf-8")
        (folder / ".venv").mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (folder / ".venv" / name).symlink_to(BIN.parent / name)
        for name in (".installed-embedded", ".installed-dev"):
            (folder / ".venv" / name).touch()
        return folder

    @contextmanager
    def first(self, command: str, *, folder: Path) -> Iterator[Program]:
        """The first program that uses this Redis, until the block ends."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()
        with started(command, folder=folder, env=environment(self.folder("home"))) as program:
            yield program

    @contextmanager
    def quickstart(self, home: Path) -> Iterator[Program]:
        """The quickstart, at work on the embedded Redis in this home, until the block ends."""
        command = f"{sys.executable} {ROOT / 'docs' / 'examples' / 'quickstart.py'}"
        with started(command, folder=home, env=environment(home)) as program:
            program.wait_for("tick")
            yield program
            assert program.interrupt() == 0, program.printed


SMALL_TESTS = '''\
"""Two tests, so that choosing one of them can be seen."""


def test_cron() -> None:
    """One."""


def test_other() -> None:
    """The other."""
'''
