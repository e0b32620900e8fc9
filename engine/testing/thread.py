"""The thread in which a cluster lives in virtual time, and how a test in another thread gets something done there."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import EngineStateError, NotSettled, TroupeError
from engine.testing.schedule import governed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from engine.testing.cluster import Cluster

__all__ = ["VirtualThread"]

T = TypeVar("T")

UNWINDS_WITHIN_S = 10.0
"""Real seconds that the end may take. What is still at work then is left behind, in a thread that ends with Python."""

RUNS_FUNCTIONS = frozenset({"advance", "run_due", "trigger", "run_async", "stop_worker"})
"""Calls that wait for what they have started."""

LAST_MOMENT_S = 0.5
"""Real seconds for a call that is given up to end."""


@final
class VirtualThread:
    """Lives from its making to ``close``. Nothing happens in it between two calls.

    Args:
        make: makes the cluster, in the trio run.
        seed: from which the order of tasks follows.
        patience_s: how long, in real seconds, a call may wait for something that does not move.
    """

    def __init__(self, make: Callable[[trio.Nursery, MockClock], Cluster], *, seed: int, patience_s: float) -> None:
        self._make, self._seed, self._patience_s = make, seed, patience_s
        made: concurrent.futures.Future[Cluster] = concurrent.futures.Future()
        self.thread = threading.Thread(target=self._live, args=(made,), name="troupe in virtual time", daemon=True)
        self.thread.start()
        self.cluster = made.result()

    def call(self, operation: Callable[[Cluster], Awaitable[T]], *, name: str = "perform") -> T:
        """Do something there, and return when it is done and all that comes of it at once has happened.

        Raises:
            EngineStateError: called in that thread itself, or after the end.
            NotSettled: it waits for something that has not moved for ``patience_s`` real seconds.
        """
        if threading.current_thread() is self.thread:
            raise EngineStateError(name, "a task's function cannot drive the time in which it runs")
        if self.cluster.loop is not None and name in RUNS_FUNCTIONS:
            self.cluster.loop.check_caller(name)
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        scope = trio.CancelScope()

        async def perform() -> None:
            answer = partial(future.set_exception, EngineStateError(name, "the engine has ended, or this was given up"))
            try:
                with scope:
                    answer = partial(future.set_result, await operation(self.cluster))
            except Exception as error:  # noqa: BLE001  # it belongs to whoever asked, and is raised there
                answer = partial(future.set_exception, error)
            finally:
                answer()  # with no turn after it: whoever asked may ask again at once, and each turn draws chance

        try:
            self._token.run_sync_soon(trio.lowlevel.spawn_system_task, perform)
        except trio.RunFinishedError:
            raise EngineStateError(name, "the engine has ended") from None
        moved = self.cluster.moves
        while not concurrent.futures.wait([future], timeout=self._patience_s).done:
            if self.cluster.moves == moved:
                what = self._standing()
                self._token.run_sync_soon(scope.cancel)
                concurrent.futures.wait([future], timeout=LAST_MOMENT_S)
                raise NotSettled(what, f"nothing has moved for {self._patience_s:g} s of real time (patience_s)")
            moved = self.cluster.moves
        return future.result()

    def close(self) -> bool:
        """Unwind everything. False: something goes on, and is left behind."""
        try:
            self._token.run_sync_soon(self._close)
        except trio.RunFinishedError:
            return True
        self.thread.join(UNWINDS_WITHIN_S)
        return not self.thread.is_alive()

    def _live(self, made: concurrent.futures.Future[Cluster]) -> None:
        self._clock = MockClock()
        try:
            with governed(self._seed):
                trio.run(self._main, made, clock=self._clock)
        except BaseException as error:
            if made.done():
                raise
            made.set_exception(error)

    async def _main(self, made: concurrent.futures.Future[Cluster]) -> None:
        self._token, self._closing = trio.lowlevel.current_trio_token(), trio.Event()
        await wait_all_tasks_blocked()  # until trio's own tasks are in place, of which the cluster takes note
        async with trio.open_nursery() as nursery:
            try:
                cluster = self._make(nursery, self._clock)
            except TroupeError as error:  # out of here it would be in a group
                made.set_exception(error)
                return
            made.set_result(cluster)
            await self._closing.wait()
            self._clock.autojump_threshold = 0  # whatever cleans up in virtual time
            cluster.unwind()
            nursery.cancel_scope.cancel()
        cluster.close()

    def _close(self) -> None:
        self._closing.set()

    def _standing(self) -> str:
        """What is at work, and where it stands."""
        cluster, frames = self.cluster, sys._current_frames()  # noqa: SLF001  # the only way to look into a thread
        where = [
            f"run {start.run_id} stands in {found}"
            for start in cluster.bodies.starts
            if not start.outcome and (found := _line_of(frames.get(start.thread)))
        ]
        what = cluster.waits_for or "something does not come to rest at this instant"
        return f"{what} ({'; '.join(where)})" if where else what


def _line_of(frame: FrameType | None) -> str | None:
    """The line of the task's own function, which is what was called by the module ``bodies``."""
    found = None
    while frame is not None:
        if frame.f_globals.get("__name__") == "engine.testing.bodies" and found is not None:
            return found
        code = frame.f_code
        found = f"{code.co_filename}:{frame.f_lineno} ({code.co_name})"
        frame = frame.f_back
    return None
