"""Forks of a process in which an engine runs: the child has copies of its memory and its files, and none of its life.

Of the threads only the one that forks goes on in the child. Where that is the engine's own, the child stands in the
middle of the engine's loop; everywhere else it has what looks like a running engine, in which nothing moves.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, final
from weakref import WeakSet

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["given_up_by_children", "in_children", "no_way_back"]

log = logging.getLogger("fastapi.task-manager.runner")

EX_SOFTWARE: Final = 70


class HasFileno(Protocol):
    """A socket, or anything else with a descriptor."""

    def fileno(self) -> int:
        """The descriptor, or -1 when it is closed."""


_files: Final[WeakSet[HasFileno]] = WeakSet()
_callbacks: Final[set[Callable[[], None]]] = set()


def given_up_by_children(file: HasFileno) -> None:
    """Have children of a fork give up their copy of this file, without reading from it or writing to it.

    Two processes on one connection would take each other's replies; and a child that holds a copy, even idly, keeps
    the connection of a parent that has died.
    """
    _files.add(file)


@contextmanager
def in_children(forget: Callable[[], None]) -> Iterator[None]:
    """During the block: call ``forget`` in the child of every fork, in whatever thread that is made."""
    _callbacks.add(forget)
    try:
        yield
    finally:
        _callbacks.discard(forget)  # in the child it is not there any more


@contextmanager
def no_way_back() -> Iterator[None]:
    """For an engine that runs in this thread, during the block: no child comes back into its loop.

    A child that was forked in this very thread shares the loop with its parent, down to the kernel, and would lead and
    beat as its parent does. It ends as soon as it lets go of the task in which it was forked.
    """
    thread = threading.get_ident()

    def inherited() -> None:
        if threading.get_ident() == thread:
            trio.lowlevel.add_instrument(_Stillborn())

    with in_children(inherited):
        yield


@final
class _Stillborn(trio.abc.Instrument):
    """Ends this process before another task of its loop gets a turn."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """The task that forked has let go of the loop, in the child too."""
        log.critical(
            "A child that %s forked came back into the engine's loop, and is ended: leave it by os._exit(), or start "
            "it with multiprocessing",
            task.name,
        )
        os._exit(EX_SOFTWARE)


def _in_child() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in _files:
        if (descriptor := file.fileno()) >= 0:
            os.dup2(nothing, descriptor, inheritable=False)  # not closed: its number is still this object's
    os.close(nothing)
    _files.clear()
    inherited = list(_callbacks)
    _callbacks.clear()
    for callback in inherited:
        callback()


os.register_at_fork(after_in_child=_in_child)
