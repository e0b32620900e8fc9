"""The bridge between the engine's trio thread and the application's loop: runs go over, ends come back, in batches.

A thread crossing costs far more than what crosses, so each side collects what is for the other and wakes it once.
Waking must not block and may do nothing but set an event: a task group cannot be used from an asyncio callback, and
anyio's BlockingPortal cannot be called from a thread in which trio runs.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, final

import anyio
import trio

from engine.domain.run import RunContext
from engine.errors import EngineStateError, HostGone
from integrations.fastapi.bodies import open_bodies
from integrations.fastapi.foreign import explained
from integrations.fastapi.stall import Pulse, watch_pulse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from integrations.fastapi.bodies import Bodies

__all__ = ["Bridge"]

log = logging.getLogger("fastapi.task-manager.runner")

T = TypeVar("T")

PULSE_S = 1.0
"""How often the host is asked for a sign of life, and how late it may be."""

ENDS_WITHIN_S = 10.0
"""A body that has not ended so long after its cancellation is reported. It is waited for all the same."""


@final
@dataclass(slots=True, eq=False)
class _Call:
    """One body on its way over the bridge."""

    function: Callable[[], Awaitable[object]]
    run: RunContext
    begin_until_s: float = math.inf
    """On trio's clock; then it goes back."""

    done: trio.Event = field(default_factory=trio.Event)
    begun: bool = False
    withdrawn: bool = False
    stopped: bool = False
    """The engine asked for its end."""

    cancelled: bool = False
    """The body has ended because of that."""

    cancel: Callable[[], object] | None = None
    """Cancels its task on the host's side, as long as that goes on."""

    error: BaseException | None = None


@final
@dataclass(slots=True, eq=False)
class _Stop:
    """The engine wants this body to end."""

    call: _Call


@final
@dataclass(slots=True, eq=False)
class _Question:
    """Something that somebody on the host's side wants done in the engine's thread."""

    operation: Callable[[], Awaitable[Any]]
    wake: Callable[[], None]
    """Sets the event for which whoever asked waits, on whatever loop that is."""

    value: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        with suppress(RuntimeError):  # nobody waits any more: the loop is closed, or the trio run has finished
            self.wake()


_ToHost: TypeAlias = _Call | _Stop | Pulse
_ToEngine: TypeAlias = _Call | _Question | Pulse


@final
class Bridge:
    """Made on the host's loop, for one life of one engine.

    Args:
        begin_within_s: a run that the host has not begun by then goes back to the engine: at most a lease.
        on_host_gone: called once, in any thread, when the host has ended; a dead host must not leave a leader behind.
        pulse_s: how often the host is asked for a sign of life, and how late it may be.
    """

    def __init__(self, *, begin_within_s: float, on_host_gone: Callable[[], None], pulse_s: float = PULSE_S) -> None:
        self._begin_within_s, self._on_host_gone, self._pulse_s = begin_within_s, on_host_gone, pulse_s
        self._lock = threading.Lock()
        self._to_host: deque[_ToHost] = deque()
        self._to_engine: deque[_ToEngine] = deque()
        self._host_woken = self._engine_woken = False
        self._wake_host = _waker(self._ring)
        self._host_thread = threading.get_ident()
        self._bell = anyio.Event()
        self._serving = anyio.CancelScope(shield=True)
        self._going: set[_Call] = set()
        """Begun, and not yet ended."""

        self._sent: deque[_Call] = deque()
        """What the host had not begun when that was last looked at, in order, and some that it had."""

        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._host_gone = False
        """The host takes nothing more: its task has ended, or its loop is closed."""

        self._engine_gone = False
        """The engine takes nothing more: its thread ends."""

    # -- the engine's side: called in the trio thread -----------------------------------------------------------------

    async def run(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run a body on the host's loop. Raises what it raises; returns or raises only when it has ended.

        Cancelled, the body is cancelled; what it then does counts as if it had run here.

        Raises:
            HostGone: the host did not begin it in time, or has ended: give the run back.
        """
        call = _Call(function, RunContext.current(), trio.current_time() + self._begin_within_s)
        self._sent.append(call)
        self._send_to_host(call)
        try:
            await call.done.wait()
        except trio.Cancelled:
            if self._withdraw(call):
                raise
            self._send_to_host(_Stop(call))
            with trio.CancelScope(shield=True):
                await self._wait_ended(call)
            if call.cancelled:
                raise
        if call.error is not None:
            raise call.error

    async def attend(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer questions, and watch the host's pulse, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery, self._token = nursery, trio.lowlevel.current_trio_token()
            try:
                nursery.start_soon(self._watch_host)
                nursery.start_soon(self._withdraw_late)
                self._drain_to_engine()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # here, since it closes when its last task has ended, and takes no more

    def hang_up(self) -> None:
        """The engine's thread ends: nobody waits for an answer any more, and bodies have nobody to report to."""
        with self._lock:
            self._engine_gone = True
            left, self._to_engine = self._to_engine, deque()
            going = list(self._going)
        for item in left:
            if isinstance(item, _Question):
                item.error = EngineStateError("ask", "the engine has ended")
                item.answer()
        for call in going:
            self._send_to_host(_Stop(call))

    def _withdraw(self, call: _Call) -> bool:
        """Take a call back that the host has not begun. Under the lock under which the host takes it."""
        with self._lock:
            if call.begun or call.done.is_set():
                return False
            call.withdrawn = True
            return True

    async def _withdraw_late(self) -> None:
        """Give back what the host does not begin in time. One watch for all: a deadline for each would cost each."""
        while True:
            self._forget_begun()
            late_s = self._sent[0].begin_until_s if self._sent else trio.current_time() + self._begin_within_s
            await trio.sleep_until(late_s)
            while self._sent and self._sent[0].begin_until_s <= trio.current_time():
                call = self._sent.popleft()
                if self._withdraw(call):
                    call.error = HostGone("the application's loop did not begin it in time")
                    call.done.set()

    def _forget_begun(self) -> None:
        """The host begins them in the order in which they were sent."""
        while self._sent and (self._sent[0].begun or self._sent[0].withdrawn or self._sent[0].done.is_set()):
            self._sent.popleft()

    async def _wait_ended(self, call: _Call) -> None:
        with trio.move_on_after(ENDS_WITHIN_S):
            await call.done.wait()
        if not call.done.is_set():
            log.warning(
                "Run %s goes on %g s after it was cancelled, and is waited for: let CancelledError (asyncio) or "
                "Cancelled (trio) out of its body",
                *(call.run.run_id, ENDS_WITHIN_S),
            )
            await call.done.wait()

    def _send_to_host(self, item: _ToHost) -> None:
        with self._lock:
            self._to_host.append(item)
            ring, self._host_woken = not self._host_woken, True
            gone = self._host_gone
        if gone:
            self._refuse()
        elif ring:
            self._knock()

    def _knock(self) -> None:
        """Wake the host. That this fails is how an end without a farewell shows."""
        try:
            self._wake_host()
        except RuntimeError:  # asyncio: the loop is closed; trio: the run has finished
            self._abandon()

    def _drain_to_engine(self) -> None:
        with self._lock:
            items, self._to_engine = self._to_engine, deque()
            self._engine_woken = False
        self._forget_begun()
        for item in items:
            match item:
                case _Call():
                    item.done.set()
                case Pulse():
                    item.seen.set()
                case _Question() if self._nursery is not None:
                    self._nursery.start_soon(self._answer, item)
                case _Question():
                    item.error = EngineStateError("ask", "the engine has ended")
                    item.answer()

    async def _answer(self, question: _Question) -> None:
        question.error = EngineStateError("ask", "the engine ended before it could answer")
        try:
            question.value = await question.operation()
            question.error = None
        except Exception as error:  # noqa: BLE001  # it belongs to whoever asked, and is raised there
            question.error = error
        finally:
            question.answer()

    async def _watch_host(self) -> None:
        await watch_pulse(
            self._host_thread,
            send=self._send_to_host,
            knock=self._knock,
            is_gone=lambda: self._host_gone,
            pulse_s=self._pulse_s,
        )
        self._abandon()

    # -- the host's side: called on the application's loop ------------------------------------------------------------

    async def serve(self) -> None:
        """Begin what comes over the bridge, in a task group of its own, until ``close``.

        Shielded: an application that is cancelled goes on serving an engine that drains.
        """
        try:
            with self._serving:
                async with open_bodies() as bodies:
                    stops = self._stop_detector()
                    while True:
                        await self._bell.wait()
                        self._bell = anyio.Event()
                        self._take_over(bodies, stops)
        finally:
            self._abandon()

    def close(self) -> None:
        """End ``serve``, and with it the bodies that are still going."""
        self._serving.cancel()

    async def ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do something in the engine's thread, and wait for it, on any loop. Cancelled: it is done all the same.

        Raises:
            EngineStateError: the engine does not run.
        """
        answered = anyio.Event()
        question = _Question(operation, _waker(answered.set))
        if not self._send_to_engine(question):
            raise EngineStateError("ask", "the engine does not run")
        await answered.wait()
        if question.error is not None:
            raise question.error
        value: T = question.value
        return value

    def _ring(self) -> None:
        self._bell.set()

    def _take_over(self, bodies: Bodies, stops: Callable[[], bool]) -> None:
        with self._lock:
            items, self._to_host = self._to_host, deque()
            self._host_woken = False
            for item in items:
                if isinstance(item, _Call) and not item.withdrawn:
                    item.begun = True
                    self._going.add(item)
        for item in items:
            match item:
                case _Call():
                    if item.begun:
                        item.cancel = bodies.start(
                            partial(self._body, item, stops),
                            name=item.run.run_id,
                            never_begun=partial(self._never_begun, item),
                        )
                case _Stop():
                    item.call.stopped = True
                    if item.call.cancel is not None:
                        item.call.cancel()
                case Pulse():
                    self._send_to_engine(item)

    async def _body(self, call: _Call, stops: Callable[[], bool]) -> None:
        with call.run.entered():
            try:
                await call.function()
            except GeneratorExit:  # thrown away with a loop that was closed; there is nothing to ask any more
                call.error = HostGone("the application's loop has ended")
                raise
            except BaseException as error:
                cancelled = _is_cancellation(error)
                if call.stopped:
                    call.cancelled, call.error = cancelled, error
                elif stops():
                    call.error = HostGone("the application stops")
                else:  # also a CancelledError that nobody asked for
                    call.error = explained(error)
                    return  # whatever a run raises ends at the run
                if cancelled:
                    raise
            finally:
                call.cancel = None  # which knows this coroutine, and would leave it to the garbage collector
                self._send_to_engine(call, if_going=True)

    def _never_begun(self, call: _Call) -> None:
        """Its task was cancelled, before the first step perhaps: as if the body had been, at its first await."""
        with self._lock:
            if call not in self._going:
                return
        call.cancel = None
        call.cancelled = call.stopped
        if not call.stopped:
            call.error = HostGone("the application stops")
        self._send_to_engine(call, if_going=True)

    def _send_to_engine(self, item: _ToEngine, *, if_going: bool = False) -> bool:
        """False: the engine's thread has ended. ``if_going``: a call that ended, unless it was given up before."""
        with self._lock:
            if if_going:
                if item not in self._going:
                    return True
                self._going.remove(item)
            if self._engine_gone:
                return False
            self._to_engine.append(item)
            ring, self._engine_woken = not self._engine_woken, True
        if ring and self._token is not None:
            with suppress(trio.RunFinishedError):  # what it waited for is dealt with by hang_up
                self._token.run_sync_soon(self._drain_to_engine)
        return True

    def _stop_detector(self) -> Callable[[], bool]:
        """Made in the host's task; of a body that ended badly it says whether the host stops.

        Either a scope around them is cancelled (anyio says so by a deadline that has always been over), or ``serve`` is
        closed, or somebody has cancelled the host's own asyncio task, as ``asyncio.run`` does at its end with each.
        """
        if trio.lowlevel.in_trio_task():
            return lambda: anyio.current_effective_deadline() == -math.inf
        import asyncio

        host = asyncio.current_task()
        return lambda: self._serving.cancel_called or (host is not None and host.cancelling() > 0)

    # -- the end ------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """In the child of a fork nobody is at the other end; the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
        self._token = self._nursery = None
        self._host_gone = self._engine_gone = True

    def _abandon(self) -> None:
        """The host does nothing more: what it has not begun goes back, now and from now on.

        So does what it has not ended: its task never got to run, or stands still for ever on a closed loop.
        """
        with self._lock:
            known, self._host_gone = self._host_gone, True
            left, self._going = self._going, set()
        for call in left:
            call.error = HostGone("the application's loop has ended")
            self._send_to_engine(call)
        self._refuse()
        if not known:
            self._on_host_gone()

    def _refuse(self) -> None:
        with self._lock:
            items, self._to_host = self._to_host, deque()
        for item in items:
            match item:
                case _Call():
                    item.error = HostGone("the application's loop has ended")
                    self._send_to_engine(item)
                case Pulse():
                    self._send_to_engine(item)
                case _Stop():
                    pass


def _waker(ring: Callable[[], None]) -> Callable[[], None]:
    """What calls this on the current loop, from any thread, without blocking. RuntimeError: the loop has ended."""
    if trio.lowlevel.in_trio_task():
        token = trio.lowlevel.current_trio_token()
        return lambda: token.run_sync_soon(ring, idempotent=True)
    import asyncio

    loop = asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(ring)

    return wake


def _is_cancellation(error: BaseException) -> bool:
    """Is it nothing but the backend's cancellation? Nurseries and task groups may wrap it."""
    kind = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return error.split(kind)[1] is None
    return isinstance(error, kind)
