"""Where an embedded Redis lives: its private directory, its socket, its locks and its log."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, final

from engine.errors import EmbeddedRedisDirectoryError

SOCKET_PATH_MAX_BYTES: Final = 103
"""The shortest limit among the systems we run on: macOS has 104 bytes with the closing zero, Linux 108."""

# Not $TMPDIR, since all processes must find the same socket. Others can write there, so the owner is checked.
_SHORT_ROOT: Final = Path("/tmp")  # noqa: S108 # nosec B108
_LOG_TAIL_BYTES: Final = 2000


@final
@dataclass(frozen=True, slots=True)
class Place:
    """The paths of one embedded Redis. All follow from ``directory``, so all processes agree on them."""

    directory: Path

    @property
    def socket(self) -> Path:
        """The server's only way in; outside ``directory`` when its path would be too long for a socket."""
        socket = self.directory / "redis.sock"
        if len(os.fsencode(socket)) <= SOCKET_PATH_MAX_BYTES:
            return socket
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return _SHORT_ROOT / f"troupe-{os.geteuid()}-{digest}" / "redis.sock"

    @property
    def gate(self) -> Path:
        """Lock held alone, and briefly, by whoever joins or leaves."""
        return self.directory / "gate.lock"

    @property
    def participants(self) -> Path:
        """Lock shared by every process that uses the server, for as long as it does."""
        return self.directory / "participants.lock"

    @property
    def alive(self) -> Path:
        """Lock held by the server itself, from before its first instruction until the kernel has ended it."""
        return self.directory / "server.lock"

    @property
    def pid_file(self) -> Path:
        """Written by the server, for people: nothing here is decided by it."""
        return self.directory / "redis.pid"

    @property
    def log(self) -> Path:
        """What the server printed since it was started; the one before is kept beside it."""
        return self.directory / "redis.log"

    @property
    def multi_part_data(self) -> Path:
        """The append-only directory of Redis 7.0 and newer. Older servers ignore it and would start empty."""
        return self.directory / "appendonlydir"

    def prepare(self) -> None:
        """Make the directory, private to this user.

        Raises:
            EmbeddedRedisDirectoryError: it cannot be made or written to, or is open to others.
        """
        _make_private(self.directory)

    def prepare_socket(self) -> None:
        """Make the directory of a socket that lies outside; under the gate, as ``forget_socket`` removes it.

        Raises:
            EmbeddedRedisDirectoryError: as ``prepare``.
        """
        if self.socket.parent != self.directory:
            _make_private(self.socket.parent)

    def begin_log(self) -> BinaryIO:
        """Open the log of a server about to start, and keep that of the one before."""
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")

    def log_tail(self) -> str:
        """Return the last lines that the server printed, for an error message."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def forget_socket(self) -> None:
        """Remove the directory of a socket that lies outside, once its server has ended."""
        if self.socket.parent != self.directory:
            with suppress(OSError):  # nothing depends on it: the next server finds it and uses it
                self.socket.unlink(missing_ok=True)
                self.socket.parent.rmdir()


def place_at(directory: Path | None) -> Place:
    """Prepare the given directory, or else ``troupe`` in the user's state directory (XDG Base Directory).

    Raises:
        EmbeddedRedisDirectoryError: see ``Place.prepare``; also when there is no home directory to be found.
    """
    wanted = directory or _state_home() / "troupe"
    try:
        place = Place(wanted.expanduser().resolve())
    except (OSError, RuntimeError) as exc:  # a loop of links; ~ without a home
        raise EmbeddedRedisDirectoryError(wanted, str(exc)) from exc
    place.prepare()
    return place


def _state_home() -> Path:
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    return given if given.is_absolute() else Path("~/.local/state")  # the specification: ignore a relative one


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as exc:
        raise EmbeddedRedisDirectoryError(directory, exc.strerror or str(exc)) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise EmbeddedRedisDirectoryError(directory, "it is a link, and only a directory can be private")
    if found.st_uid != os.geteuid():
        raise EmbeddedRedisDirectoryError(
            directory, f"it belongs to user {found.st_uid} and this process runs as user {os.geteuid()}"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise EmbeddedRedisDirectoryError(
            directory, f"others have access to it (mode {stat.S_IMODE(found.st_mode):04o}): chmod 700 it"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise EmbeddedRedisDirectoryError(directory, "it is not writable")
