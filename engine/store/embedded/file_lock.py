"""Advisory locks on files, released by the kernel when their holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final
from weakref import WeakSet

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_POLL_S: Final = 0.01
_OPEN: Final[WeakSet[FileLock]] = WeakSet()


@final
class FileLock:
    """One open lock file: at most one of shared, exclusive, or nothing is held through it.

    It uses flock, not lockf, since an flock belongs to the open file: two engines in one process exclude each
    other as two processes do, and a lock can be handed to a child process with its descriptor. Descriptors
    are not inherited across exec (PEP 446), and a fork closes its copies, so no child keeps a lock by
    accident.

    Raises OSError where the file cannot be opened or the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = False
        self._file = path.open("ab", buffering=0)
        _OPEN.add(self)

    @property
    def closed(self) -> bool:
        """Nothing is held any more, and nothing can be."""
        return self._file.closed

    def fileno(self) -> int:
        """Give the descriptor, to hand the lock to a child process."""
        return self._file.fileno()

    def try_shared(self) -> bool:
        """Hold the lock together with other sharers; False when someone holds it alone."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Hold the lock alone; False when anyone else holds it, and then our own shared hold is gone too."""
        return self._try(fcntl.LOCK_EX)

    def names_its_path(self) -> bool:
        """Tell whether the path still leads to this file: not when the directory was removed or replaced."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock up, even if a child in the middle of an exec still has a copy of the descriptor."""
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def close(self) -> None:
        """Drop our descriptor only: the lock stays with whoever was handed a copy."""
        self._file.close()

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            self.held = False
        else:
            self.held = True
        return self.held


@asynccontextmanager
async def holding(path: Path) -> AsyncIterator[None]:
    """Hold the lock at ``path`` alone, waiting as long as it takes. A cancelled wait leaves nothing.

    It polls: a thread in a blocking flock could not be cancelled, and would take the lock later, for nobody.
    """
    lock = FileLock(path)
    try:
        while not (lock.try_exclusive() and lock.names_its_path()):
            lock.release()
            await trio.sleep(_POLL_S)
            lock = FileLock(path)
        yield
    finally:
        lock.release()


def _close_copies() -> None:
    for lock in _OPEN:
        lock.close()


os.register_at_fork(after_in_child=_close_copies)
