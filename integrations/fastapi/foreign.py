"""What becomes of a task that calls asyncio under a server that runs trio, put into words that help."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING

import trio

from engine.errors import WrongLoop

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["explained", "wants_asyncio"]

_FOREIGN_AWAIT = re.compile(r"trio\.run received unrecognized yield message (None\b|<\w*(Future|Task)\b)")
"""Trio's words for an await of what asyncio makes: ``asyncio.sleep(0)`` gives None, all else a future or a task."""


def explained(error: BaseException) -> BaseException:
    """A WrongLoop in its place if it is asyncio's for want of a loop, or is a group with one; else itself.

    For the task on the host's loop that is called in.
    """
    if not trio.lowlevel.in_trio_task() or not wants_asyncio(error):
        return error
    better = WrongLoop().with_traceback(error.__traceback__)
    better.__cause__ = error
    return better


def wants_asyncio(error: BaseException) -> bool:
    """Is it what comes of calling asyncio on trio's loop, or a group with such an error?"""
    if isinstance(error, BaseExceptionGroup):
        return any(wants_asyncio(inner) for inner in error.exceptions)
    modules = _modules(error.__traceback__)
    if "trio._threads" in modules:  # it comes from a thread, in which there is no loop under any server
        return False
    match error:
        case RuntimeError():
            return str(error) == "no running event loop"
        case TypeError():
            return _FOREIGN_AWAIT.match(str(error)) is not None
        case AttributeError():  # what asyncio's queues, locks and events do before Python 3.12
            return error.name == "create_future" and error.obj is None and modules[-1].startswith("asyncio.")
    return False


def _modules(trace: TracebackType | None) -> list[str]:
    """Of the frames that an error passed, the outermost first."""
    return [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)]
