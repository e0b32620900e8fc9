"""Tasks that call asyncio under a server that runs trio: they fail with a sentence that says so, and others do not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from engine.errors import WrongLoop
from tests.integrations.fastapi.crossing import LIMIT_S, cross, outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from integrations.fastapi.bridge import Bridge
    from tests.integrations.fastapi.crossing import Loop

Body: TypeAlias = "Callable[[], Awaitable[Any]]"

TRIO: Loop = ("trio", {})


async def in_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(asyncio.sleep, 1)


async def with_timeout() -> None:
    async with asyncio.timeout(1):
        await anyio.lowlevel.checkpoint()


async def running_loop() -> None:
    asyncio.get_running_loop()


async def future_of_another_loop() -> None:
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()


CALLS: dict[str, Body] = {
    "sleep": lambda: asyncio.sleep(1),
    "sleep(0)": lambda: asyncio.sleep(0),
    "get_running_loop": running_loop,
    "timeout": with_timeout,
    "to_thread": lambda: asyncio.to_thread(print),
    "Queue": lambda: asyncio.Queue[int]().get(),
    "Event": lambda: asyncio.Event().wait(),
    "Semaphore": lambda: asyncio.Semaphore(0).acquire(),
    "Future": future_of_another_loop,
    "inside a task group": in_group,
}


def failure(loop: Loop, body: Body) -> object:
    async def side(bridge: Bridge) -> object:
        return await outcome(bridge.run(body))

    return cross(loop, side)


@pytest.mark.parametrize("call", CALLS)
def test_a_task_that_calls_asyncio_on_trio_s_loop_is_told_of_the_server(call: str) -> None:
    """Whatever asyncio, or trio, made of it is the cause; the place in the task is the error's own."""
    error = failure(TRIO, CALLS[call])
    assert isinstance(error, WrongLoop)
    assert "server of this application runs trio" in str(error)
    assert "use anyio in the task, or serve the application with an asyncio worker" in str(error)
    cause = error.__cause__
    assert cause is not None
    assert not isinstance(cause, WrongLoop)
    assert error.__traceback__ is not None


async def other_runtime_error() -> None:
    raise RuntimeError("no running event loop of the circus")


async def other_type_error() -> None:
    raise TypeError("received unrecognized yield message None")


async def attribute_of_none() -> None:
    client: Any = None
    client.create_future()


async def loop_in_a_thread() -> None:
    await anyio.to_thread.run_sync(asyncio.get_running_loop)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (other_runtime_error, RuntimeError),
        (other_type_error, TypeError),
        (attribute_of_none, AttributeError),
        (loop_in_a_thread, RuntimeError),
    ],
)
def test_other_errors_stay_what_they_are(body: Body, kind: type[Exception]) -> None:
    """Though they look alike: the server is blamed for nothing that would fail under another one too."""
    assert type(failure(TRIO, body)) is kind


def test_asyncio_s_own_errors_under_asyncio_stay_what_they_are(asyncio_loop: Loop) -> None:
    """There the server is not the cause."""

    async def body() -> None:
        await anyio.to_thread.run_sync(asyncio.get_running_loop)

    error = failure(asyncio_loop, body)
    assert type(error) is RuntimeError
    assert failure(asyncio_loop, lambda: asyncio.wait_for(asyncio.sleep(0), LIMIT_S)) is None
