"""A clock of our own for fakeredis, which has no setting for one.

fakeredis reads ``time.time()`` wherever Redis would read its clock: TIME, entry ids, expiry, idle times. Its modules
are given a stand-in for the ``time`` module that answers by the clock of the server whose command is being executed,
and by the real one for everybody else who uses fakeredis in this process.
"""

from __future__ import annotations

import sys
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

_governing: ContextVar[Callable[[], float]] = ContextVar("the wall clock of the fake server at work", default=time.time)


@final
class _Time:
    """Stands in for the ``time`` module."""

    def time(self) -> float:
        return _governing.get()()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


_STAND_IN = _Time()


def govern_fakeredis() -> None:
    """Put the stand-in into every module of fakeredis that is loaded. Idempotent."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fakeredis.") and vars(module).get("time") is time:
            module.time = _STAND_IN  # type: ignore[attr-defined] # a module's global, not declared anywhere


@final
class Governed:
    """A context manager: within its block, fakeredis takes ``wall()``, Unix seconds, for now."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._tokens: list[Token[Callable[[], float]]] = []

    def __enter__(self) -> None:
        self._tokens.append(_governing.set(self._wall))

    def __exit__(self, *exc_info: object) -> None:
        _governing.reset(self._tokens.pop())
