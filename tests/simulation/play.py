"""One story, from its first step to the verdict of the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import trio
from trio.testing import MockClock

from engine.testing.schedule import governed
from tests.simulation.story import SAVED
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.oracle import Violation
    from tests.simulation.story import Story

TWO_MINUTES_S = 118.0
QUIET_S = 50.0
"""By then is over what goes on when the faults end: a lease, its reclaim, a retry, the steps of a clock."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a story."""

    story: Story
    violation: Violation | None
    trace: str
    """A digest of all that happened: every command with its reply, every start and end of a body, and when."""
    starts: int
    commands: int
    lasted_s: float
    """In virtual time."""
    lines: tuple[str, ...] = ()
    """All that happened, if it was asked for."""


def play(story: Story, *, keep_lines: bool = False) -> Outcome:
    """Play it. The same story gives the same outcome, in any process."""
    world: World | None = None
    lasted_s = 0.0

    async def main() -> None:
        nonlocal world, lasted_s
        async with trio.open_nursery() as nursery:
            world = World(story, nursery)
            world.keep_lines = keep_lines
            world.start_soon(_perform, world)
        lasted_s = trio.current_time()

    with governed(story.seed):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert world is not None
    return Outcome(
        story,
        world.oracle.found,
        world.trace(),
        len(world.effects.starts),
        world.commands,
        lasted_s,
        tuple(world.lines),
    )


async def _perform(world: World) -> None:
    try:
        for _ in range(2):
            await world.join(2)
        for step in world.story.steps:
            if step.kind in SAVED:
                world.start_soon(world.save, step)
        for step in world.story.steps:
            await trio.sleep_until(step.at_s)
            await world.do(step)
        await trio.sleep_until(world.story.ends_s)
        world.note("quiet")
        await world.become_quiet(min(TWO_MINUTES_S, trio.current_time() + QUIET_S))
    finally:
        world.end()
