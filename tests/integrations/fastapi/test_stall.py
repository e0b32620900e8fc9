"""Standing still: a process in which no thread ran says so afterwards, with the place at which it stood."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from integrations.fastapi import stall
from integrations.fastapi.stall import STANDSTILL_S, Pulse, Standstill, watch_pulse
from tests.integrations.fastapi import crossing
from tests.integrations.fastapi.application import hold_gil
from tests.integrations.fastapi.crossing import cross, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from integrations.fastapi.bridge import Bridge
    from tests.integrations.fastapi.crossing import Crossing, Loop

HELD_S = 1.4 * STANDSTILL_S
ASYNCIO: Loop = ("asyncio", {})


def wait_with_gil(seconds: float) -> None:
    """As C code does that forgets to let go of it."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # waits with the GIL


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one, what computes for a second takes many, and gets a small share of them."""
    monkeypatch.setattr(crossing, "LIMIT_S", 50.0)
    monkeypatch.setattr(stall, "BUSY", 0.05)


async def quietly_until(condition: Callable[[], object]) -> None:
    """On the engine's side: while it waits, its thread does too."""
    with trio.fail_after(crossing.LIMIT_S):
        while not condition():  # noqa: ASYNC110  # another thread makes it true
            await trio.sleep(0.05)


@pytest.fixture
def reports(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was reported so far about standing still."""
    caplog.set_level(logging.WARNING, "fastapi.task-manager.runner")
    return lambda: [message for message in caplog.messages if "stood still" in message or "own thread" in message]


def reported(reports: Callable[[], list[str]], loop: Loop, block: Callable[[], object], *, pulse_s: float = 0.2) -> str:
    """What is reported first when the application's loop is made to do this."""

    async def host(_: Crossing) -> None:
        await anyio.sleep(0.3)  # the engine's thread has looked at the clock
        block()

    async def side(_: Bridge) -> None:
        await quietly_until(reports)

    cross(loop, side, host=host, pulse_s=pulse_s)
    return reports()[0]


def test_c_code_that_computes_and_holds_the_gil_is_found_in_its_thread(
    loop: Loop, reports: Callable[[], list[str]]
) -> None:
    """The engine's thread is next to run, before the line that held the GIL is over."""
    report = reported(reports, loop, lambda: hold_gil(HELD_S))
    assert report.startswith("The whole process stood still for ")
    assert "C code held the GIL, in thread MainThread; it was here:" in report
    assert 'pattern.match("a" * int(' in report
    assert "in host" in report


def test_so_is_a_run_that_holds_it_from_its_first_moment(loop: Loop, reports: Callable[[], list[str]]) -> None:
    """It takes the GIL from an engine that has something to do in every moment, so in the middle of a step."""

    async def body() -> None:
        hold_gil(HELD_S)

    async def side(bridge: Bridge) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until, reports)
            await bridge.run(body)

    cross(loop, side, pulse_s=0.2)
    report = reports()[0]
    assert "C code held the GIL, in thread MainThread; it was here:" in report
    assert 'pattern.match("a" * int(' in report


async def test_it_is_noted_before_the_engine_takes_another_step(reports: Callable[[], list[str]]) -> None:
    """Which may let the GIL go, and then the thread that held it moves on."""
    before: list[int] = []

    async def stand_still() -> None:
        before.append(len(reports()))
        time.sleep(STANDSTILL_S + 0.1)  # noqa: ASYNC251  # as the engine's thread does when it does not get the GIL
        await trio.lowlevel.checkpoint()

    standstill = Standstill(threading.get_ident())
    trio.lowlevel.add_instrument(standstill)
    try:
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand_still)
            nursery.start_soon(stand_still)
    finally:
        trio.lowlevel.remove_instrument(standstill)
    assert before == [0, 1]
    assert len(reports()) == 2


def test_so_is_a_thread_that_is_not_the_loop_s(reports: Callable[[], list[str]]) -> None:
    """A plain route, a plain task, or any other."""

    def block() -> None:
        thread = threading.Thread(target=hold_gil, args=(HELD_S,), name="the one")
        thread.start()
        thread.join()

    report = reported(reports, ASYNCIO, block)
    assert "C code held the GIL, in thread the one; it was here:" in report
    assert 'pattern.match("a" * int(' in report
    assert "thread.join()" not in report


def test_where_nobody_computed_the_places_of_all_are_shown(loop: Loop, reports: Callable[[], list[str]]) -> None:
    """The process may have been stopped as well, and the report says no more than is known."""
    stop = threading.Event()
    others = [threading.Thread(target=stop.wait) for _ in range(3)]
    for thread in others:
        thread.start()
    try:
        report = reported(reports, loop, lambda: wait_with_gil(HELD_S))
    finally:
        stop.set()
        for thread in others:
            thread.join()
    assert "C code held the GIL without computing, or the process was stopped or starved" in report
    loop_s, rest = report.split("Other threads:\n")
    assert "waits with the GIL" in loop_s
    assert any(" in wait" in line and int(line.split()[0]) >= 3 for line in rest.splitlines())


def test_where_clocks_of_threads_are_not_to_be_had_the_same_is_shown(
    reports: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's line is there all the same."""
    monkeypatch.setattr(stall, "_thread_clocks_s", dict)
    report = reported(reports, ASYNCIO, lambda: hold_gil(HELD_S))
    assert "The application's loop was here:" in report
    assert 'pattern.match("a" * int(' in report


async def test_a_process_that_stood_still_is_not_a_loop_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The loop had no time in which it could have. Here what stands still is the thread that watches."""
    pulses: list[Pulse] = []

    def send(pulse: Pulse) -> None:
        pulses.append(pulse)
        if len(pulses) != 2:
            pulse.seen.set()

    async with trio.open_nursery() as nursery:
        watch = partial(watch_pulse, send=send, knock=lambda: None, is_gone=lambda: False, pulse_s=1.0)
        nursery.start_soon(watch, threading.get_ident())
        await until(lambda: len(pulses) == 2)
        time.sleep(1.5)  # noqa: ASYNC251  # longer than the loop has for its answer
        await trio.sleep(0.1)
        pulses[1].seen.set()
        await until(lambda: len(pulses) == 3)
        nursery.cancel_scope.cancel()
    assert "has not answered" not in caplog.text
    assert "is back" not in caplog.text


async def test_a_host_that_ends_while_it_is_asked_is_not_back(caplog: pytest.LogCaptureFixture) -> None:
    """Its end shows when it is knocked at, and is reported by whoever notices."""
    asked: list[Pulse] = []

    def knock() -> None:
        asked[0].seen.set()

    await watch_pulse(threading.get_ident(), send=asked.append, knock=knock, is_gone=lambda: asked != [], pulse_s=0.02)
    assert "has not answered for 0.0 s" in caplog.text
    assert "is back" not in caplog.text


def test_a_loop_that_is_blocked_is_no_process_that_stands_still(
    reports: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Only the loop is reported."""

    async def host(_: Crossing) -> None:
        await anyio.lowlevel.checkpoint()
        time.sleep(HELD_S)  # noqa: ASYNC251  # this is what it is for

    async def side(_: Bridge) -> None:
        await quietly_until(lambda: "is back after" in caplog.text)

    cross(ASYNCIO, side, host=host, pulse_s=0.2)
    assert "has not answered for 0.2 s" in caplog.text
    assert reports() == []


def test_an_engine_s_thread_that_computes_is_not_taken_for_a_standstill(reports: Callable[[], list[str]]) -> None:
    """Every other thread goes on meanwhile, and it can only be the engine's own doing."""

    async def side(_: Bridge) -> None:
        await trio.sleep(0.3)
        end_s = time.thread_time() + HELD_S
        while time.thread_time() < end_s:
            pass
        await quietly_until(reports)

    cross(ASYNCIO, side, pulse_s=0.2)
    [report] = reports()
    assert report.startswith("The engine's own thread computed for ")


@pytest.mark.parametrize(
    ("before_s", "after_s", "found"),
    [
        ({}, {}, None),
        ({1: 5.0, 2: 1.0}, {1: 5.2, 2: 2.5}, 2),
        ({1: 5.0}, {1: 5.1, 2: 1.2}, 2),  # a thread that has begun since
        ({1: 5.0, 2: 1.0}, {1: 5.9, 2: 1.9}, None),
        ({1: 5.0, 2: 1.0}, {1: 6.0}, 1),  # one that has ended
    ],
)
def test_the_thread_that_computed_is_the_one_that_computed_enough(
    before_s: dict[int, float], after_s: dict[int, float], found: int | None
) -> None:
    """Since the last look at its clock."""
    assert stall._computed(before_s, after_s, at_least_s=1.0) == found
