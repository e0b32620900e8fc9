"""Loops of asyncio on which an engine in virtual time has the ``async def`` functions of its tasks run: for tests."""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, Unpack, final

import trio

from engine.domain.run import RunContext
from engine.errors import EngineStateError
from engine.testing.schedule import PROCESS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from concurrent.futures import Executor, Future

    from engine.testing.process import Process

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

__all__ = ["AsyncioLoop", "VirtualLoop"]

QUIET_S: Final = 0.05
"""Real seconds without news after which sockets that are open are taken for idle."""

NUDGE_S: Final = 1e-6
"""So much later than asked for, so that no timer is missed by a rounding."""

_graves: list[Coroutine[Any, Any, object]] = []
"""Functions whose process was killed. Kept, since a coroutine that is thrown away executes its ``finally``."""


class AsyncioLoop:
    """A loop that runs already, in another thread than the engine's: that of an asynchronous test, or of a TestClient.

    Virtual time stands still while a function is at work there, and the functions see real time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._going: set[_Body] = set()
        self._asked: set[Future[Any]] = set()
        """What the test itself runs on the loop."""

        self._token = trio.lowlevel.current_trio_token()

    # -- as Host ------------------------------------------------------------------------------------------------------

    async def run(self, function: Callable[[], Awaitable[object]]) -> None:
        """See ``Host``."""
        body = _Body(function, RunContext.current(), PROCESS.get(), self)
        self._going.add(body)
        self.post(body.begin)
        try:
            await body.done.wait()
        except trio.Cancelled:
            self.post(body.cancel)
            with trio.CancelScope(shield=True):
                await body.done.wait()
            if isinstance(body.error, asyncio.CancelledError):
                raise
        finally:
            self._going.discard(body)
        if body.error is not None:
            raise body.error

    async def ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        """See ``Host``."""
        answered: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def answer(give: Callable[[], None]) -> None:
            if not answered.done():  # it may have been cancelled meanwhile
                give()

        async def do() -> None:
            try:
                value = await operation()
            except Exception as error:  # noqa: BLE001  # it belongs to whoever asked, and is raised there
                self.post(partial(answer, partial(answered.set_exception, error)))
            else:
                self.post(partial(answer, partial(answered.set_result, value)))

        self.report(partial(trio.lowlevel.spawn_system_task, do))
        return await answered

    # -- as Loop ------------------------------------------------------------------------------------------------------

    def at_work(self) -> str | None:
        """See ``World``."""
        if self._asked or any(not body.stands_still for body in self._going):
            return "a run is at work on the loop of asyncio that the test has given"
        return None

    def next_timer_s(self) -> float:
        """See ``World``."""
        return math.inf

    def moved(self) -> None:
        """See ``World``."""

    def check_caller(self, operation: str) -> None:
        """Called in the thread of a test that wants something of the engine, and will wait for it.

        Raises:
            EngineStateError: it would wait for itself.
        """
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            raise EngineStateError(
                operation,
                "the functions run on this loop, which would stand still meanwhile; write "
                f"await asyncio.to_thread(troupe_engine.{operation}, …)",
            )

    def run_async(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        """Run something on the loop, beside the functions."""
        future = asyncio.run_coroutine_threadsafe(function(), self._loop)
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def close(self) -> None:
        """Let go of it."""
        for body in list(self._going):
            self.post(body.cancel)

    # -- what both kinds share ----------------------------------------------------------------------------------------

    def post(self, call: Callable[[], object]) -> None:
        """Have something called on the loop. From any thread."""
        self._loop.call_soon_threadsafe(call)

    def report(self, call: Callable[[], object]) -> None:
        """Have something called in the engine's thread, unless that has ended."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """On the loop."""
        return self._loop.create_task(coroutine)


@final
class VirtualLoop(AsyncioLoop):
    """A loop of its own, in virtual time: ``asyncio.sleep`` and timeouts take no real time.

    What takes real time is waited for: threads until they are done, sockets until they have been quiet for a moment,
    since nobody can see whether a function waits for one.

    Args:
        now_s: the virtual clock. From any thread.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._now_s = now_s
        self._posted = self._seen = 0
        self._idle: tuple[int, float, float] | None = None
        """Seen so many posts, next timer, and since when in real time; None: at work."""

        self._own = _Loop(now_s, self._note_idle, self._note_work)
        super().__init__(self._own)
        self._thread = threading.Thread(target=self._live, name="asyncio in virtual time", daemon=True)
        self._thread.start()

    def at_work(self) -> str | None:
        """See ``World``."""
        with self._lock:
            idle = self._idle if self._idle is not None and self._idle[0] == self._posted else None
        if idle is None:
            return "the loop of asyncio is at work"
        if self._own.in_threads:
            return "a thread that a run has started on the loop of asyncio is at work"
        if self._own.has_sockets and (self._going or self._asked) and time.monotonic() - idle[2] < QUIET_S:
            return "a run may be waiting for a socket"
        return None

    def next_timer_s(self) -> float:
        """See ``World``."""
        with self._lock:
            return math.inf if self._idle is None else self._idle[1]

    def moved(self) -> None:
        """See ``World``."""
        if self.next_timer_s() <= self._now_s():
            self.post(_nothing)

    def check_caller(self, operation: str) -> None:
        """Nobody else is on this loop."""

    def run_async(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        """See ``AsyncioLoop``."""
        with self._lock:
            self._posted += 1
        future = super().run_async(function)
        self._own.call_soon_threadsafe(self._count)
        return future

    def close(self) -> None:
        """End it, with all that is on it."""
        self.post(self._own.stop)
        self._thread.join(timeout=QUIET_S * 100)

    def post(self, call: Callable[[], object]) -> None:
        """See ``AsyncioLoop``."""
        with self._lock:
            self._posted += 1
        self._own.call_soon_threadsafe(partial(self._obey, call))

    def _obey(self, call: Callable[[], object]) -> None:
        self._count()
        call()

    def _count(self) -> None:
        with self._lock:
            self._seen += 1

    def _note_idle(self, timeout_s: float | None) -> None:
        next_s = math.inf if timeout_s is None else self._now_s() + timeout_s + NUDGE_S
        with self._lock:
            self._idle = self._seen, next_s, time.monotonic()

    def _note_work(self) -> None:
        with self._lock:
            self._idle = None

    def _live(self) -> None:
        asyncio.set_event_loop(self._own)
        try:
            self._own.run_forever()
            left = asyncio.all_tasks(self._own)
            for task in left:
                task.cancel()
            self._own.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._own.run_until_complete(self._own.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._own.close()


def _nothing() -> None:
    """Only wakes the loop."""


@final
class _Selector(selectors.DefaultSelector):
    """Says when the loop has nothing to do, and then waits for real things alone: timers come by waking it."""

    def __init__(self, idle: Callable[[float | None], None], work: Callable[[], None]) -> None:
        super().__init__()
        self._tell_idle, self._tell_work = idle, work

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        self._tell_idle(timeout)
        found = super().select(None)
        self._tell_work()
        return found


@final
class _Loop(asyncio.SelectorEventLoop):
    def __init__(
        self, now_s: Callable[[], float], idle: Callable[[float | None], None], work: Callable[[], None]
    ) -> None:
        self._now = now_s
        self._own_selector = _Selector(idle, work)
        self.in_threads = 0
        super().__init__(self._own_selector)

    def time(self) -> float:
        return self._now()

    @property
    def has_sockets(self) -> bool:
        """Besides the one by which it is woken."""
        return len(self._own_selector.get_map()) > 1

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Count what is going on in threads."""
        self.in_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._left_thread)
        return future

    def _left_thread(self, _: object) -> None:
        self.in_threads -= 1


@final
class _Body:
    """One function on the loop."""

    def __init__(
        self, function: Callable[[], Awaitable[object]], run: RunContext, process: Any, loop: AsyncioLoop
    ) -> None:
        self._function, self._run, self._loop = function, run, loop
        self._process: Process | None = process
        self.done = trio.Event()
        self.error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def stands_still(self) -> bool:
        """With its process."""
        return self._process is not None and self._process.frozen

    def begin(self) -> None:
        """On the loop."""
        self._task = self._loop.create_task(self._live())

    def cancel(self) -> None:
        """On the loop."""
        if self._task is not None:
            self._task.cancel()

    async def _live(self) -> None:
        try:
            with self._run.entered():
                await _Gated(self._function, self)
        except BaseException as error:  # noqa: BLE001  # whatever a run raises ends at the run
            self.error = error
        finally:
            self._loop.report(self.done.set)

    def thawed(self) -> Generator[Any, Any, None]:
        """Wait until the process goes on; for ever if it is dead."""
        future = asyncio.get_running_loop().create_future()
        if self._process is not None:
            self._process.when_thawed.append(lambda: self._loop.post(partial(future.set_result, None)))
        yield from future


@final
class _Gated:
    """A coroutine that goes on only while its process does."""

    def __init__(self, function: Callable[[], Awaitable[object]], body: _Body) -> None:
        self._function, self._body = function, body

    def __await__(self) -> Generator[Any, Any, object]:
        coroutine: Any = self._function()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                asked = coroutine.throw(error) if error is not None else coroutine.send(value)
            except StopIteration as end:
                return end.value
            try:
                value, error = (yield asked), None
            except BaseException as thrown:  # noqa: BLE001  # what is thrown in is for the coroutine
                value, error = None, thrown
            while self._body.stands_still:
                try:
                    yield from self._body.thawed()
                except asyncio.CancelledError:
                    _graves.append(coroutine)  # its process is dead, or the test is over
                    raise
