"""An actor's alarm rings once, at the instant it was last set to."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from actors.timer import Timer
from engine.runtime import Actor, Child, Mailbox

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage


class Sleeper(Actor[str]):
    """Notes when its timer rings."""

    def __init__(self, rang_s: list[float], timers: list[Timer[str]]) -> None:
        self.rang_s, self.timers = rang_s, timers

    async def started(self) -> None:
        self.timers.append(Timer(self.context, "ring"))

    async def receive(self, message: str) -> None:
        if message == "end":
            self.context.finish()
        else:
            self.rang_s.append(trio.current_time())


class Bedside:
    """A sleeper, its mailbox and its timers, the newest last."""

    def __init__(self) -> None:
        self.mailbox = Mailbox[str]("sleeper")
        self.rang_s: list[float] = []
        self.timers: list[Timer[str]] = []


@pytest.fixture
async def bedside(stage: Stage) -> Bedside:
    bedside = Bedside()
    await stage.actor(Child("sleeper", partial(Sleeper, bedside.rang_s, bedside.timers), bedside.mailbox))
    return bedside


async def test_it_rings_once_when_it_is_time(autojump_clock: MockClock, stage: Stage, bedside: Bedside) -> None:
    """And is silent until set again."""
    bedside.timers[0].after(5)
    await stage.until(100)
    bedside.timers[0].after(5)
    await stage.until(200)
    assert bedside.rang_s == [5, 105]


async def test_it_can_be_moved_earlier(autojump_clock: MockClock, stage: Stage, bedside: Bedside) -> None:
    """The former instant is forgotten."""
    bedside.timers[0].after(50)
    await stage.until(10)
    bedside.timers[0].after(5)
    await stage.until(100)
    assert bedside.rang_s == [15]


async def test_it_can_be_moved_later(autojump_clock: MockClock, stage: Stage, bedside: Bedside) -> None:
    """The former instant passes in silence."""
    bedside.timers[0].after(5)
    await stage.until(4)
    bedside.timers[0].after(5)
    await stage.until(100)
    assert bedside.rang_s == [9]


async def test_it_can_be_stopped(autojump_clock: MockClock, stage: Stage, bedside: Bedside) -> None:
    """And set again afterwards."""
    bedside.timers[0].after(5)
    bedside.timers[0].stop()
    await stage.until(100)
    bedside.timers[0].after(-1)
    await stage.until(101)
    assert bedside.rang_s == [100]


async def test_it_dies_with_its_actor(autojump_clock: MockClock, stage: Stage, bedside: Bedside) -> None:
    """The successor hears nothing of it."""
    bedside.timers[0].after(5)
    bedside.mailbox.tell("end")
    await stage.until(100)
    assert len(bedside.timers) == 2
    assert bedside.rang_s == []
