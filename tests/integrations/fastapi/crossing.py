"""A bridge under test: an application's loop of any kind in this thread, and an engine's side in one of its own."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, final

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from engine.domain.run import RunContext
from integrations.fastapi.bridge import Bridge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

LIMIT_S: Final = 10.0
"""For what takes milliseconds on an idle machine."""

Loop: TypeAlias = tuple[str, dict[str, Any]]
"""A backend of anyio, with its options."""

LOOPS: Final = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]
"""What an application's loop can be."""

RUN: Final = RunContext(
    run_id="shop/bill@1",
    task_id="shop/bill",
    group="shop",
    name="bill",
    slot_ms=1,
    attempt=1,
    fence=1,
    worker_id="worker",
)

T = TypeVar("T")


@final
class Crossing:
    """Both sides of a bridge. Made on the host's loop."""

    def __init__(self, *, begin_within_s: float, pulse_s: float) -> None:
        self.host_gone = threading.Event()
        self.bridge = Bridge(begin_within_s=begin_within_s, on_host_gone=self.host_gone.set, pulse_s=pulse_s)

    def engine(self, side: Callable[[Bridge], Awaitable[T]]) -> T:
        """Run the engine's side to its end, in this thread."""

        async def main() -> T:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.bridge.attend)
                with trio.fail_after(LIMIT_S), RUN.entered():
                    answer = await side(self.bridge)
                nursery.cancel_scope.cancel()
            return answer

        try:
            return trio.run(main)
        finally:
            self.bridge.hang_up()


def cross(
    loop: Loop,
    side: Callable[[Bridge], Awaitable[T]],
    *,
    host: Callable[[Crossing], Coroutine[Any, Any, None]] | None = None,
    begin_within_s: float = LIMIT_S,
    pulse_s: float = LIMIT_S,
) -> T:
    """What the engine's side returns, while the host serves and does what else it is given to do."""

    async def main() -> T:
        crossing = Crossing(begin_within_s=begin_within_s, pulse_s=pulse_s)
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as group:
                group.start_soon(crossing.bridge.serve)
                join = in_thread(crossing.engine, side)
                if host is not None:
                    group.start_soon(host, crossing)
                try:
                    answer: T = await anyio.to_thread.run_sync(join)
                finally:
                    crossing.bridge.close()
        assert crossing.host_gone.is_set()
        return answer

    backend, options = loop
    return anyio.run(main, backend=backend, backend_options=options)


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks of any loop go on until this is true."""
    with anyio.fail_after(LIMIT_S):
        while not condition():
            await anyio.lowlevel.checkpoint()


def in_thread(function: Callable[..., T], *args: Any) -> Callable[[], T]:
    """Start it; what is returned waits for its end and has its answer."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001  # it is raised where the answer is wanted
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return lambda: future.result(LIMIT_S)


async def outcome(awaitable: Awaitable[T]) -> T | BaseException:
    """What it returns or raises, as a value. Not for cancellation by trio."""
    with suppress(trio.Cancelled):
        try:
            return await awaitable
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001  # it is what the test looks at
            return error
    raise AssertionError("cancelled")
