"""The points of a run at which a worker can be lost, and what is done to it there."""

from __future__ import annotations

import dis
import linecache
from dataclasses import dataclass
from enum import Enum, unique
from typing import TYPE_CHECKING, Final, final

from engine.domain.functions import is_async
from engine.testing.bodies import code_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

__all__ = ["Act", "Moment", "Part", "Place", "Point", "places_of", "points_for"]

MOST_CHARS = 50
"""Of a line of code, in the name of a point."""


@final
@unique
class Act(Enum):
    """What is done."""

    KILL = "its worker is killed, as by SIGKILL"
    LOSE_REPLY = "the connection is lost with the reply"
    AWAY = "Redis is away, for longer than a lease"
    STALL = "its worker stands still until another one has done the work, as after SIGSTOP"
    CUT_OFF = "its worker does not reach Redis until another one has done the work"
    STOP = "its worker is stopped in order, with no grace"
    CRASH = "the actor that executes it fails"


@final
@unique
class Moment(Enum):
    """When it is done, by what the worker tells Redis about the run."""

    PUBLISHED = ("publish",)
    CLAIM = ("claim",)
    END = ("complete", "fail")


@final
@unique
class Part(Enum):
    """Where in a function, if no line is given."""

    FIRST = 0.0
    HALFWAY = 0.5
    LAST = 1.0


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A line in the code of a function: for ``async def`` one with an await, at which it is suspended."""

    code: CodeType
    line: int

    @property
    def text(self) -> str:
        """What stands there; the number where the source is not at hand."""
        text = " ".join(linecache.getline(self.code.co_filename, self.line).split()) or f"line {self.line}"
        return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 1]}…"


@final
@dataclass(frozen=True, slots=True)
class Point:
    """A crash point."""

    name: str
    """As pytest shows it."""

    act: Act
    at: Moment | Place | Part
    before: bool = False
    """Before what the worker tells Redis is executed there, and not after."""


_IN_THE_BODY: Final = (
    Point("stalled in the body, for longer than its lease", Act.STALL, Part.HALFWAY),
    Point("cut off in the body, for longer than its lease", Act.CUT_OFF, Part.HALFWAY),
    Point("stopped in the body", Act.STOP, Part.HALFWAY),
    Point("its actor fails in the body", Act.CRASH, Part.HALFWAY),
)
_KILLED_SOMEWHERE: Final = (
    Point("killed in the body, near its beginning", Act.KILL, Part.FIRST),
    Point("killed in the body, halfway", Act.KILL, Part.HALFWAY),
    Point("killed in the body, near its end", Act.KILL, Part.LAST),
)
_BEFORE: Final = (
    Point("leader killed when it has published", Act.KILL, Moment.PUBLISHED),
    Point("killed before its claim", Act.KILL, Moment.CLAIM, before=True),
    Point("reply to its claim lost", Act.LOSE_REPLY, Moment.CLAIM),
    Point("killed between claim and body", Act.KILL, Moment.CLAIM),
)
_AFTER: Final = (
    Point("killed before its end is told", Act.KILL, Moment.END, before=True),
    Point("Redis away when its end is told", Act.AWAY, Moment.END, before=True),
    Point("reply to its end lost", Act.LOSE_REPLY, Moment.END),
    Point("killed when its end was told", Act.KILL, Moment.END),
)


def points_for(function: Callable[..., object] | None) -> list[Point]:
    """All crash points, in the order of a run; with a function, it is killed at each of its places."""
    if function is None:
        return [*_BEFORE, *_KILLED_SOMEWHERE, *_IN_THE_BODY, *_AFTER]
    places = places_of(function)
    word = "at" if is_async(function) else "before"
    killed = [Point(f"killed {word}: {place.text}", Act.KILL, place) for place in places]
    return [*_BEFORE, *killed, *(_IN_THE_BODY if places else ()), *_AFTER]


def places_of(function: Callable[..., object]) -> list[Place]:
    """Where a function can be held: an ``async def`` at its awaits, a ``def`` before each line but the first.

    Only in the function itself, not in what it calls.
    """
    code = code_of(function)
    if code is None:
        return []
    if is_async(function):
        awaits = {"GET_AWAITABLE", "GET_ANEXT", "BEFORE_ASYNC_WITH"}
        found = {one.positions.lineno for one in dis.get_instructions(code) if one.opname in awaits and one.positions}
        lines = sorted(line for line in found if line is not None)
    else:
        # The first is that of the def itself.
        lines = sorted({line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno})
        lines = lines[1:]
    return [Place(code, line) for line in lines]
