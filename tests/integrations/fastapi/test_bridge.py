"""The bridge: bodies cross to the application's loop, and every one of them comes back, however the two sides end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from engine.domain.run import RunContext
from engine.errors import EngineStateError, HostGone
from integrations.fastapi import bridge as bridge_module
from integrations.fastapi.bridge import Bridge
from integrations.fastapi.stall import FRAMES
from tests.integrations.fastapi.crossing import LIMIT_S, RUN, Crossing, cross, in_thread, outcome, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.integrations.fastapi.crossing import Loop

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour")


class Boom(Exception):
    """What a task raises."""


async def succeed() -> None:
    await anyio.lowlevel.checkpoint()


# -- there and back ---------------------------------------------------------------------------------------------------


def test_a_body_runs_on_the_loop_of_the_host(loop: Loop) -> None:
    """In its thread and under its library, as the run that it is."""
    seen: list[object] = []

    async def body() -> None:
        await anyio.lowlevel.checkpoint()
        seen.extend([threading.current_thread(), trio.lowlevel.in_trio_run(), RunContext.current()])

    async def side(bridge: Bridge) -> None:
        await bridge.run(body)

    cross(loop, side)
    assert seen == [threading.current_thread(), loop[0] == "trio", RUN]


@pytest.mark.parametrize("error", [Boom(), SystemExit(3), KeyboardInterrupt()])
def test_what_a_body_raises_is_raised_where_it_was_called(loop: Loop, error: BaseException) -> None:
    """And ends there: the host goes on, whatever it is."""

    async def body() -> None:
        raise error

    async def side(bridge: Bridge) -> BaseException | None:
        raised = await outcome(bridge.run(body))
        await bridge.run(succeed)
        return raised

    assert cross(loop, side) is error


def test_contextvars_of_the_host_are_visible_to_bodies(loop: Loop) -> None:
    """Those that were set before it began to serve, as a lifespan does."""
    seen: list[str] = []

    async def body() -> None:
        seen.append(COLOUR.get())

    async def side(bridge: Bridge) -> None:
        await bridge.run(body)

    token = COLOUR.set("green")
    try:
        cross(loop, side)
    finally:
        COLOUR.reset(token)
    assert seen == ["green"]


def test_no_wake_up_is_lost_among_many_runs(loop: Loop) -> None:
    """Runs that come one after another and all at once, while others end: each is started, each end arrives."""
    ended = 0

    async def body() -> None:
        nonlocal ended
        await anyio.lowlevel.checkpoint()
        ended += 1

    async def side(bridge: Bridge) -> None:
        async def some(count: int) -> None:
            for _ in range(count):
                await bridge.run(body)

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(some, 10)

    cross(loop, side)
    assert ended == 2_000


# -- a host that is late ----------------------------------------------------------------------------------------------


def test_a_run_that_the_host_does_not_begin_in_time_goes_back(loop: Loop) -> None:
    """It is taken back: the host, when it is free again, does not begin it."""
    blocked, free, begun = threading.Event(), threading.Event(), []

    async def block(_: Crossing) -> None:
        blocked.set()
        assert free.wait(LIMIT_S)

    async def body() -> None:
        begun.append(1)

    async def side(bridge: Bridge) -> object:
        await until(blocked.is_set)
        error = await outcome(bridge.run(body))
        free.set()
        while isinstance(await outcome(bridge.run(succeed)), HostGone):
            pass
        return error

    assert isinstance(cross(loop, side, host=block, begin_within_s=0.05), HostGone)
    assert begun == []


def test_a_run_that_has_begun_may_take_longer_than_its_beginning(loop: Loop) -> None:
    """The limit is for the beginning alone."""

    async def body() -> None:
        await anyio.sleep(0.1)

    async def side(bridge: Bridge) -> bool:
        await bridge.run(body)
        return True

    assert cross(loop, side, begin_within_s=0.05)


def test_a_blocked_loop_is_reported_once_with_its_stack(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """The innermost frames, down to the line that blocks; then that it is back."""
    blocked, free = threading.Event(), threading.Event()

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            free.wait(LIMIT_S)  # the line that blocks

    async def block(_: Crossing) -> None:
        blocked.set()
        deep(FRAMES)

    async def side(_: Bridge) -> None:
        await until(blocked.is_set)
        await until(lambda: caplog.messages)
        with trio.move_on_after(0.3):  # several pulses
            await until(lambda: caplog.messages[1:])
        free.set()
        await until(lambda: caplog.messages[1:])

    with caplog.at_level(logging.WARNING, "fastapi.task-manager.runner"):
        cross(loop, side, host=block, pulse_s=0.1)
    stall, back = caplog.messages
    assert "has not answered for 0.1 s" in stall
    assert "the line that blocks" in stall
    assert stall.count('File "') <= FRAMES
    assert "in cross" not in stall
    assert back.startswith("The application's loop is back after")


# -- cancellation -----------------------------------------------------------------------------------------------------


async def run_until_begun_then_cancel(bridge: Bridge, body: Callable[[], Awaitable[object]]) -> object:
    """Whether the call was cancelled (None), or what it returned or raised."""
    begun = threading.Event()
    result: object = None

    async def announced() -> None:
        begun.set()
        await body()

    async with trio.open_nursery() as nursery:

        async def call() -> None:
            nonlocal result
            try:
                await bridge.run(announced)
                result = "returned"
            except Boom as error:
                result = error

        nursery.start_soon(call)
        await until(begun.is_set)
        nursery.cancel_scope.cancel()
    return result


def test_a_cancelled_run_has_ended_when_the_call_does(loop: Loop) -> None:
    """The body is cancelled and cleans up first."""
    cleaned = []

    async def body() -> None:
        try:
            await anyio.sleep(LIMIT_S)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            cleaned.append(1)

    async def side(bridge: Bridge) -> object:
        return await run_until_begun_then_cancel(bridge, body), list(cleaned)

    assert cross(loop, side) == (None, [1])


@pytest.mark.parametrize("error", [None, Boom()])
def test_what_a_body_makes_of_its_cancellation_counts(loop: Loop, error: Exception | None) -> None:
    """One that has done its work has succeeded, one that raises has failed: as on the engine's own loop."""

    async def body() -> None:
        try:
            await anyio.sleep(LIMIT_S)
        except anyio.get_cancelled_exc_class():
            if error is not None:
                raise error from None

    async def side(bridge: Bridge) -> object:
        return await run_until_begun_then_cancel(bridge, body)

    assert cross(loop, side) == (error or "returned")


def test_a_body_that_ignores_its_cancellation_is_named_and_waited_for(
    loop: Loop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else can be done: it goes on, so the run is not free for others."""
    monkeypatch.setattr(bridge_module, "ENDS_WITHIN_S", 0.02)

    async def body() -> None:
        with anyio.CancelScope(shield=True):
            await until(lambda: caplog.messages)

    async def side(bridge: Bridge) -> object:
        return await run_until_begun_then_cancel(bridge, body)

    assert cross(loop, side) == "returned"
    [message] = caplog.messages
    assert message.startswith(f"Run {RUN.run_id} goes on 0.02 s after it was cancelled, and is waited for")


def test_a_run_that_is_cancelled_before_the_host_takes_it_never_begins(loop: Loop) -> None:
    """It does not wait for the host either, which may be blocked."""
    blocked, free, begun = threading.Event(), threading.Event(), []

    async def block(_: Crossing) -> None:
        blocked.set()
        assert free.wait(LIMIT_S)

    async def body() -> None:
        begun.append(1)

    async def side(bridge: Bridge) -> None:
        await until(blocked.is_set)
        with trio.move_on_after(0.01) as scope:
            await bridge.run(body)
        assert scope.cancelled_caught
        free.set()
        await bridge.run(succeed)

    cross(loop, side, host=block)
    assert begun == []


# -- questions --------------------------------------------------------------------------------------------------------


def test_the_host_is_answered_from_the_thread_of_the_engine(loop: Loop) -> None:
    """With what the operation returns or raises there."""
    told: list[object] = []

    async def where() -> object:
        return threading.current_thread()

    async def fail() -> None:
        raise Boom

    async def host(crossing: Crossing) -> None:
        told.append(await crossing.bridge.ask(where))
        with pytest.raises(Boom):
            await crossing.bridge.ask(fail)
        told.append("failed")

    async def side(_: Bridge) -> object:
        await until(lambda: len(told) == 2)
        return threading.current_thread()

    assert cross(loop, side, host=host) == told[0]


def test_questions_can_come_from_another_loop_than_the_host_s(loop: Loop) -> None:
    """A thread of its own with a loop of its own may ask for health too."""

    async def answer() -> int:
        return 42

    async def side(bridge: Bridge) -> int:
        ask = in_thread(lambda: anyio.run(bridge.ask, answer, backend=loop[0]))
        return await trio.to_thread.run_sync(ask)

    assert cross(loop, side) == 42


def test_a_question_in_flight_at_the_end_is_answered_with_the_end(loop: Loop) -> None:
    """And so is one that comes later: nobody waits for ever."""
    heard, told = threading.Event(), []

    async def never() -> None:
        heard.set()
        await trio.sleep_forever()

    async def host(crossing: Crossing) -> None:
        for _ in range(3):
            with pytest.raises(EngineStateError, match=r"ended|does not run"):
                await crossing.bridge.ask(never)
            told.append(1)

    async def side(_: Bridge) -> None:
        await until(heard.is_set)

    cross(loop, side, host=host)
    assert told == [1, 1, 1]


# -- the end ----------------------------------------------------------------------------------------------------------


def test_runs_go_back_when_the_host_ends(loop: Loop) -> None:
    """Those that are going are cancelled first; one that comes later is not even begun."""
    cancelled: list[int] = []
    begun = threading.Event()

    async def body() -> None:
        begun.set()
        try:
            await anyio.sleep(LIMIT_S)
        finally:
            cancelled.append(1)

    async def host(crossing: Crossing) -> None:
        await until(begun.is_set)
        crossing.bridge.close()

    async def side(bridge: Bridge) -> list[object]:
        return [await outcome(bridge.run(body)) for _ in range(2)]

    errors = cross(loop, side, host=host)
    assert [type(error) for error in errors] == [HostGone, HostGone]
    assert cancelled == [1]


def test_an_application_that_is_cancelled_serves_the_engine_until_it_has_ended(loop: Loop) -> None:
    """Runs in progress are the engine's to stop, which gives them their grace."""
    cancelled = threading.Event()

    async def body() -> None:
        await until(cancelled.is_set)

    async def side(bridge: Bridge) -> str:
        await bridge.run(body)
        await bridge.run(succeed)
        return "both ran"

    async def main() -> str:
        crossing = Crossing(begin_within_s=LIMIT_S, pulse_s=LIMIT_S)
        join = in_thread(crossing.engine, side)
        async with anyio.create_task_group() as group:
            group.start_soon(crossing.bridge.serve)
            group.cancel_scope.cancel()
            cancelled.set()
            with anyio.CancelScope(shield=True):
                answer: str = await anyio.to_thread.run_sync(join)
            crossing.bridge.close()
        return answer

    assert anyio.run(main, backend=loop[0], backend_options=loop[1]) == "both ran"


def test_a_host_that_has_ended_before_the_engine_began_is_told_of(loop: Loop) -> None:
    """Or the engine would lead without anybody to run its tasks."""

    async def main() -> Crossing:
        crossing = Crossing(begin_within_s=LIMIT_S, pulse_s=LIMIT_S)
        async with anyio.create_task_group() as group:
            group.start_soon(crossing.bridge.serve)
            crossing.bridge.close()
        return crossing

    async def side(bridge: Bridge) -> object:
        return await outcome(bridge.run(succeed))

    crossing = anyio.run(main, backend=loop[0], backend_options=loop[1])
    assert crossing.host_gone.is_set()
    assert isinstance(in_thread(crossing.engine, side)(), HostGone)


def test_bodies_end_when_the_engine_is_gone_without_asking(loop: Loop) -> None:
    """Their leases end too; a second start must not meet them."""
    begun, ended = threading.Event(), threading.Event()

    async def body() -> None:
        begun.set()
        try:
            await anyio.sleep(LIMIT_S)
        finally:
            ended.set()

    async def side(bridge: Bridge) -> None:
        bridge._send_to_host(bridge_module._Call(body, RUN))
        await until(begun.is_set)

    async def main() -> None:
        crossing = Crossing(begin_within_s=LIMIT_S, pulse_s=LIMIT_S)
        async with anyio.create_task_group() as group:
            group.start_soon(crossing.bridge.serve)
            await anyio.to_thread.run_sync(in_thread(crossing.engine, side))
            await until(ended.is_set)
            crossing.bridge.close()

    anyio.run(main, backend=loop[0], backend_options=loop[1])


@pytest.mark.parametrize("by", ["raising", "cancelling itself"])
def test_a_cancelled_error_that_nobody_asked_for_is_a_failure(asyncio_loop: Loop, by: str) -> None:
    """Not a hand-back: it would come back for ever."""

    async def body() -> None:
        if by == "raising":
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(LIMIT_S)

    async def side(bridge: Bridge) -> object:
        error = await outcome(bridge.run(body))
        await bridge.run(succeed)
        return error

    assert isinstance(cross(asyncio_loop, side), asyncio.CancelledError)


@pytest.mark.filterwarnings("ignore:coroutine 'Bridge._body' was never awaited")  # anyio's, of the task without a step
@pytest.mark.parametrize("when", ["taken", "begun"])
def test_runs_go_back_when_every_task_of_the_loop_is_cancelled(asyncio_loop: Loop, when: str) -> None:
    """As asyncio.run does at its end, uvicorn's at a second Ctrl-C. Some tasks have then never had a step."""
    begun = threading.Event()

    async def body() -> None:
        begun.set()
        await asyncio.sleep(LIMIT_S)

    async def side(bridge: Bridge) -> object:
        return await outcome(bridge.run(body))

    async def main() -> tuple[object, bool]:
        crossing = Crossing(begin_within_s=LIMIT_S, pulse_s=LIMIT_S)
        serving = asyncio.ensure_future(crossing.bridge.serve())
        join = in_thread(crossing.engine, side)
        await until((lambda: crossing.bridge._going) if when == "taken" else begun.is_set)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([serving])
        return await anyio.to_thread.run_sync(join), crossing.host_gone.is_set()

    error, gone = anyio.run(main, backend=asyncio_loop[0], backend_options=asyncio_loop[1])
    assert isinstance(error, HostGone)
    assert gone
    assert begun.is_set() == (when == "begun")
    gc.collect()  # here, where that warning is expected


def test_a_loop_that_is_closed_without_a_farewell_is_noticed(asyncio_loop: Loop) -> None:
    """By the next wake-up: what is going there never ends, and goes back."""
    begun = threading.Event()

    async def body() -> None:
        begun.set()
        await asyncio.sleep(LIMIT_S)

    async def side(bridge: Bridge) -> list[object]:
        return [await outcome(bridge.run(body)) for _ in range(2)]

    async def main() -> tuple[Crossing, object, Callable[[], list[object]]]:
        crossing = Crossing(begin_within_s=LIMIT_S, pulse_s=0.02)
        serving = asyncio.ensure_future(crossing.bridge.serve())
        join = in_thread(crossing.engine, side)
        await until(begun.is_set)
        return crossing, (serving, asyncio.all_tasks()), join

    if asyncio_loop[1]:
        import uvloop

        closed: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        closed = asyncio.new_event_loop()
    closed.set_exception_handler(lambda *_: None)  # its tasks complain that they are destroyed while pending
    crossing, _tasks, join = closed.run_until_complete(main())
    closed.close()
    assert [type(error) for error in join()] == [HostGone, HostGone]
    assert crossing.host_gone.is_set()
