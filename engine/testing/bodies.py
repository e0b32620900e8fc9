"""What is put around the functions of tasks: it notes each start, and can hold a function where it stands."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

import trio

from engine.domain.functions import is_async
from engine.domain.run import RunContext
from engine.errors import AsyncioNeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from types import CodeType, FrameType

    from engine.testing.cluster import Member
    from engine.testing.process import Process

__all__ = ["Bodies", "Holder", "Start", "code_of"]


@final
@dataclass(eq=False, slots=True)
class Start:
    """One start of a task's function."""

    run_id: str
    task_id: str
    slot_ms: int | None
    attempt: int
    fence: int
    worker: str
    """The worker's id, as people see it."""

    at_ms: int
    outcome: str = ""
    """``returned``, ``raised`` or ``cancelled``; empty while it goes on, and for ever if its worker was killed."""

    thread: int = field(default=0, repr=False)
    """Which thread it is in."""


class Holder(Protocol):
    """Who may stop a function in the middle."""

    def where(self, start: Start) -> tuple[CodeType, int] | None:
        """The code and the line before which this start is to be held; None: it may pass. Called in any thread."""

    def strike(self, member: Member, start: Start) -> bool:
        """It has come there. Called once, in the trio run. May a thread go on? If not: when its process is thawed."""


_CANCELLATIONS = frozenset({"Cancelled", "CancelledError"})
"""Of trio and of asyncio."""


@final
class Bodies:
    """All starts of all functions of a cluster, in order."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms, self._token = now_ms, trio.lowlevel.current_trio_token()
        self.starts: list[Start] = []
        self.holder: Holder | None = None
        self.resting: list[Process] = []
        """One entry for each thread that waits for virtual time: the clock need not wait for it."""

    def around(self, member: Member, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched."""

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            start = self._begin(member)
            try:
                result = await self._stepped(member, start, function(*args, **kwargs))
            except BaseException as error:
                start.outcome = "cancelled" if type(error).__name__ in _CANCELLATIONS else "raised"
                if trio.lowlevel.in_trio_task() and _wants_asyncio(error):
                    raise AsyncioNeeded from error
                raise
            start.outcome = "returned"
            return result

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            start = self._begin(member)
            try:
                result = self._traced(member, start, lambda: function(*args, **kwargs))
            except BaseException:
                start.outcome = "raised"
                raise
            start.outcome = "returned"
            return result

        return awaited if is_async(function) else called

    def _begin(self, member: Member) -> Start:
        run = RunContext.current()
        start = Start(
            run_id=run.run_id,
            task_id=run.task_id,
            slot_ms=run.slot_ms,
            attempt=run.attempt,
            fence=run.fence,
            worker=member.name,
            at_ms=self._now_ms(),
            thread=threading.get_ident(),
        )
        self.starts.append(start)
        return start

    def _stepped(self, member: Member, start: Start, coroutine: Coroutine[Any, Any, Any]) -> Any:
        place = self.holder.where(start) if self.holder is not None else None
        if self.holder is None or place is None:
            return coroutine
        strike = functools.partial(self.holder.strike, member, start)
        if not trio.lowlevel.in_trio_task():  # but on a loop of asyncio
            strike = functools.partial(trio.from_thread.run_sync, strike, trio_token=self._token)
        return _Stepped(coroutine, place, strike)

    def _traced(self, member: Member, start: Start, call: Callable[[], Any]) -> Any:
        place = self.holder.where(start) if self.holder is not None else None
        if self.holder is None or place is None:
            return call()
        tracer = _Tracer(place, functools.partial(self._hold_thread, self.holder, member, start))
        former = sys.gettrace()
        sys.settrace(tracer)
        try:
            return call()
        finally:
            sys.settrace(former)

    def _hold_thread(self, holder: Holder, member: Member, start: Start) -> None:
        """In a worker thread. The thread of a process that dies is left where it stands: nothing of it runs again."""
        goes_on = threading.Event()

        def strike() -> None:
            if holder.strike(member, start):
                goes_on.set()
            elif not member.dead:
                self.resting.append(member)
                member.when_thawed.append(thawed)

        def thawed() -> None:
            self.resting.remove(member)
            goes_on.set()

        trio.from_thread.run_sync(strike)
        goes_on.wait()


def _wants_asyncio(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError | TypeError | AttributeError | BaseExceptionGroup):
        return False
    from integrations.fastapi.foreign import wants_asyncio  # it brings FastAPI with it

    return wants_asyncio(error)


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """The code of a task's function, under decorators that say what they wrap; None if it has none in Python."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner)
    if not hasattr(inner, "__code__"):
        inner = getattr(type(inner).__call__, "__func__", type(inner).__call__)
    code: CodeType | None = getattr(inner, "__code__", None)
    return code


@final
class _Stepped:
    """A coroutine that is told of each of its awaits."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], place: tuple[CodeType, int], strike: Callable[[], object]
    ) -> None:
        self._coroutine, self._place = coroutine, place
        self._strike: Callable[[], object] | None = strike

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                asked = self._coroutine.throw(error) if error is not None else self._coroutine.send(value)
            except StopIteration as end:
                return end.value
            if self._strike is not None and _line_in(self._coroutine, self._place[0]) == self._place[1]:
                strike, self._strike = self._strike, None
                strike()
            try:
                value, error = (yield asked), None
            except BaseException as thrown:  # noqa: BLE001  # what trio throws in is for the coroutine
                value, error = None, thrown


def _line_in(coroutine: Any, code: CodeType) -> int | None:
    """Where that code stands, in a coroutine that is suspended."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and frame.f_code is code:
            line: int = frame.f_lineno
            return line
        coroutine = getattr(coroutine, "cr_await", None)
    return None


@final
class _Tracer:
    """A trace function that calls ``reached`` once, before a line of some code is executed."""

    def __init__(self, place: tuple[CodeType, int], reached: Callable[[], None]) -> None:
        self._code, self._line = place
        self._reached: Callable[[], None] | None = reached

    def __call__(self, frame: FrameType, event: str, arg: object) -> _Tracer | None:  # noqa: ARG002
        if frame.f_code is not self._code:
            return None
        if event == "line" and frame.f_lineno == self._line and self._reached is not None:
            reached, self._reached = self._reached, None
            reached()
        return self
