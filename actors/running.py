"""One run in progress on this worker: its body, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum, unique
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, final

import trio

from engine.domain.functions import function_name
from engine.errors import EngineStateError, HostGone, NotAwaited

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from actors.threads import ThreadCall, Threads
    from engine.domain.run import RunContext
    from engine.domain.task import Task
    from engine.store.runs import Claimed, Hold

T = TypeVar("T")

SAFE_SHARE = 5 / 6
"""Of a lease, counted from the sending of what renewed it: when so much has passed, it may be another's soon."""

_CALLERS = frozenset({"actors.running", "actors.threads", "engine.testing.bodies", "integrations.fastapi.bridge"})
"""Modules that call a body, here, on the loop of an application, and in tests."""


@final
@unique
class Stop(Enum):
    """Why a run in progress was told to stop."""

    CANCELLED = "somebody asked for it"
    LOST = "its lease was lost"
    DANGER = "this worker was cut off from Redis"
    SHUTDOWN = "this worker stops"
    CROWDED = "the other runs of this worker do not end"
    UNKNOWN = "its task is not, or no longer, what this worker knows"


@final
@unique
class Phase(Enum):
    """How far a claimed run has come."""

    CLAIMED = "its body has not begun"
    BODY = "its body is going"
    OVERDUE = "its time is over and its verdict is written; its thread goes on"
    ENDED = "its body has ended, and Redis does not know yet"


@final
@dataclass(slots=True, eq=False)
class Running:
    """A claimed run. It takes a slot of the worker's capacity until Redis knows how it ended, or is being told."""

    claimed: Claimed
    task: Task
    context: RunContext
    hold: Hold
    last_delivery: bool
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    stop: Stop | None = None
    """Why it was cancelled."""

    asked: Stop | None = None
    """Why it was last asked to stop; a thread cannot heed it."""

    phase: Phase = Phase.CLAIMED
    started_s: float = 0.0
    """Monotonic."""

    started_ms: int = 0
    """Redis time."""

    @property
    def run_id(self) -> str:
        """The run."""
        return self.claimed.run_id

    @property
    def cancellable(self) -> bool:
        """Threads are not, once they have begun."""
        return self.phase is Phase.CLAIMED or self.task.is_async

    @property
    def timeout_s(self) -> float:
        """How long an attempt may take; infinite where the task says nothing."""
        timeout = self.task.definition.timeout
        return float("inf") if timeout is None else timeout

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The arguments given with the run, else the task's own."""
        given: Mapping[str, Any] = json.loads(self.claimed.kwargs) if self.claimed.kwargs else self.task.kwargs
        return given

    def tell_to_stop(self, why: Stop) -> None:
        """Cancel the body, if it can be and has not ended; the first reason counts."""
        self.asked = why
        if self.cancellable and self.stop is None and self.phase is not Phase.ENDED:
            self.stop = why
            self.scope.cancel()


@final
@dataclass(frozen=True, slots=True)
class Returned:
    """The body ended by itself."""

    error: BaseException | None


@final
@dataclass(frozen=True, slots=True)
class TimedOut:
    """The time given to the task was over. The thread, if it is one, may still be going."""

    call: ThreadCall | None


@final
@dataclass(frozen=True, slots=True)
class Stopped:
    """The body was cancelled because this run was told to stop."""


BodyEnd: TypeAlias = Returned | TimedOut | Stopped


class Host(Protocol):
    """Where asynchronous bodies run: on the engine's own loop, or on that of the application around it."""

    async def run(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run a body to its end and raise what it raises. Cancelled: returns only when the body has ended.

        Raises:
            HostGone: it was not begun, or was cut short because the host ends: the run is handed back.
        """

    async def ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Called on the host's side: do something in the engine's trio run, and wait for it. Raises what that raises.

        Raises:
            EngineStateError: the engine does not run, or cannot be reached from where this is called.
        """


@final
class OwnLoop:
    """Bodies run on the engine's own loop."""

    async def run(self, function: Callable[[], Awaitable[object]]) -> None:
        """Await it here."""
        await function()

    async def ask(self, operation: Callable[[], Awaitable[T]]) -> T:  # noqa: ARG002  # as Host has it
        """There is no other side."""
        raise EngineStateError("perform", "call it in the trio run in which the engine runs")


async def perform(running: Running, threads: Threads, host: Host) -> BodyEnd:
    """Run the body to its end. Whatever it raises ends here, SystemExit and KeyboardInterrupt included.

    If cancelled from outside, an asynchronous body has ended when this raises; a thread goes on.
    """
    running.phase = Phase.BODY
    with running.context.entered():
        if not running.cancellable:
            return await _in_thread(threads.start(running, partial(_call_plain, running)), running.timeout_s)
        if running.task.definition.timeout is not None:
            running.scope.deadline = trio.current_time() + running.timeout_s
        try:
            with running.scope:
                await host.run(partial(_call, running))
        except HostGone:
            return Stopped()
        except BaseException as error:  # noqa: BLE001  # whatever a run raises ends at the run
            await trio.lowlevel.checkpoint_if_cancelled()  # from outside: no matter what its cleaning up raised
            if running.stop is not None:
                return Stopped()
            return TimedOut(None) if running.scope.cancel_called else Returned(error)
    if running.scope.cancelled_caught:
        return TimedOut(None) if running.stop is None else Stopped()
    return Returned(None)


async def rejoin(call: ThreadCall) -> BodyEnd:
    """Wait for a thread that a former Consumer started, as long as its task's time allows."""
    run = call.running
    return await _in_thread(call, run.started_s + run.timeout_s - trio.current_time())


async def _in_thread(call: ThreadCall, timeout_s: float) -> BodyEnd:
    with trio.move_on_after(max(0.0, timeout_s)):
        await call.done.wait()
    return Returned(call.error) if call.done.is_set() else TimedOut(call)


def _call(running: Running) -> Any:
    """Call the function: arguments that are none, or do not fit, fail here, where everything else does."""
    return running.task.function(**running.kwargs)


def _call_plain(running: Running) -> None:
    """Call a plain function; one that only makes a coroutine has done nothing, and must not count as done."""
    result = _call(running)
    if isawaitable(result):
        if isinstance(result, Coroutine):
            result.close()
        raise NotAwaited(function_name(running.task.function))


def exc_info_of(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """For the log, the error as its author knows it: from the task's own function on, if that was reached."""
    trace = start = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in _CALLERS:
            start = trace.tb_next or trace
        trace = trace.tb_next
    return type(error), error, start
