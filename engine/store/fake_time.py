"""A clock of our own for fakeredis, which has no setting for one.

fakeredis reads ``time.time()`` wherever Redis would read its clock: TIME, entry ids, expiry, idle times. Its modules
are given a stand-in for the ``time`` module that answers by the clock of the server whose command is being executed,
and by the real one for everybody else who uses fakeredis in this process.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


@contextmanager
def governed_by(wall: Callable[[], float]) -> Iterator[None]:
    """Within the block, fakeredis takes ``wall()``, Unix seconds, for now."""
    token = _governing.set(wall)
    try:
        yield
    finally:
        _governing.reset(token)
