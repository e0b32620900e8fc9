"""A calm world: days and years in which hardly anything happens but what is due.

The actors are those of every other test, on the same scripts; what is elided is only what they would do to find out
that nothing has happened, most of which is configuration: beats, renewals and searches are far apart. Beyond that a
read that finds nothing waits for an hour instead of being answered with nothing and asked again, and the coordinator
looks an hour ahead instead of ten seconds. The way of a slot to its verdict is the product's own, command by command,
and the oracle of the seeds judges it.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, final
from unittest.mock import patch

import trio
from trio.testing import MockClock

from engine.domain.group import TaskGroup
from engine.domain.run import RunContext
from engine.errors import RedisUnavailable
from engine.management import Match
from engine.runtime import ChildFailed, Clock, Environment
from engine.store.inprocess import InProcess
from engine.store.transport import Lane
from tests.simulation.effects import EffectLog, Start
from tests.simulation.oracle import Oracle, Rhythm, Violation
from tests.simulation.swift import Direct, swift_lanes, swift_server
from tests.unit.actors.stage import EPOCH_S, Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from engine.runtime import SupervisorEvent

IDLE_S = 3_600.0
"""How long a read that finds nothing waits, and how far the coordinator looks ahead."""

FAILS_ONE_IN = 50
"""One start in so many raises, and is tried again."""


@final
@dataclass(frozen=True, slots=True)
class Routine:
    """What a calm world does."""

    tasks: Mapping[str, tuple[str, Rhythm]]
    """Name -> cron expression, and the slots that it means."""

    settings: Mapping[str, Any]
    engines: int
    lasts_s: float
    body_s: float = 1.0
    """The longest time that a body takes."""

    declare: Callable[[CalmProcess, TaskGroup], None] = lambda _process, _group: None
    """What processes declare beyond the tasks above."""

    plan: Callable[[CalmWorld], Awaitable[None]] | None = None
    """What else happens meanwhile."""


@final
@dataclass(slots=True)
class Ended:
    """What is kept of a process that has ended: nothing that holds on to it."""

    dead: bool


@final
class CalmProcess(Worker):
    """One engine, whose commands take no time."""

    def __init__(self, world: CalmWorld, number: int, version: int, settings: Mapping[str, Any]) -> None:
        self.world, self.number, self.version = world, number, version
        self.dead = False
        self.line = InProcess(world.server)
        for lane in self.line._lanes.values():
            self._listen_in(lane)
        ids = count(1)
        environment = Environment(
            clock=Clock(wall=lambda: EPOCH_S + trio.current_time()),
            random=random.Random(number),
            new_id=lambda: f"{number:08x}{next(ids):08x}",
        )
        self.group = TaskGroup("g")
        for name, (expression, _) in world.routine.tasks.items():
            self.group.add_task(expression, name=name)(self.body)
        world.routine.declare(self, self.group)
        self.assemble(self.line, environment, number, (self.group,), {**world.routine.settings, **settings})

    def _listen_in(self, lane: Any) -> None:
        lane._connection = Direct(lane._connection)
        execute, read = lane.execute, lane._read

        def heard(args: tuple[Any, ...]) -> Any:
            if self.dead:
                raise RedisUnavailable("killed")
            try:
                reply = execute(args)
            except Exception as refusal:
                self.world.oracle.executed(f"p{self.number}", args, None, refusal)
                raise
            self.world.oracle.executed(f"p{self.number}", args, reply, None)
            return reply

        lane.execute = heard
        lane._read = lambda args, _block_s: read(args, IDLE_S)

    def kill(self) -> None:
        """End with no last word."""
        self.dead = True
        self._life.cancel()
        self.world.has_ended(self)

    async def leave(self) -> None:
        """End in order."""
        await self.stop()
        self.world.has_ended(self)

    def _heard(self, event: SupervisorEvent) -> None:
        if isinstance(event, ChildFailed) and not self.dead:
            self.world.oracle.violate("G0", f"p{self.number}: an actor crashed: {event}")

    async def body(self) -> None:
        """Take some time; fail now and then."""
        with self.effect() as start:
            chance = random.Random(f"{start.run_id} {start.fence}")
            await trio.sleep(chance.uniform(0, self.world.routine.body_s))
            if not chance.randrange(FAILS_ONE_IN):
                raise RuntimeError(start.run_id)

    @contextmanager
    def effect(self) -> Iterator[Start]:
        """What the block does is in the log of effects, as every body's doing is."""
        run, world = RunContext.current(), self.world
        start = Start(run.run_id, run.task_id, run.fence, run.slot_ms, run.attempt, self.number, trio.current_time())
        world.effects.started(start)
        try:
            yield start
            start.outcome = "returned"
        except trio.Cancelled:
            start.outcome = "cancelled"
            raise
        except Exception:
            start.outcome = "raised"
            raise
        finally:
            if not self.dead:
                start.ended_s = trio.current_time()


@final
@dataclass
class CalmWorld:
    """The engines of a routine, their Redis, and the judge."""

    routine: Routine
    nursery: trio.Nursery
    redis_ahead_s: float = 0.0
    effects: EffectLog = field(default_factory=EffectLog)
    processes: list[CalmProcess | Ended] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = swift_server(lambda: EPOCH_S + trio.current_time())
        self._spy = swift_lanes(self.server)[Lane.COMMANDS]
        lease_s = 3 * float(self.routine.settings["running_heartbeat_interval"])
        rhythms = {f"g/{name}": rhythm for name, (_, rhythm) in self.routine.tasks.items()}
        self.oracle = Oracle(self, lease_s=lease_s, slots=rhythms)
        self.effects.on_start = self.oracle.body_starts

    def note(self, line: str) -> None:
        """Nobody keeps a trace of a year."""

    def look(self, command: tuple[Any, ...]) -> Any:
        """What Redis would answer."""
        return self._spy.execute(command)

    async def join(self, version: int = 1, **settings: Any) -> CalmProcess:
        """One more engine."""
        process = CalmProcess(self, len(self.processes) + 1, version, settings)
        self.processes.append(process)
        await self.nursery.start(process.run)
        return process

    def alive(self) -> list[CalmProcess]:
        """The oldest first."""
        return [process for process in self.processes if isinstance(process, CalmProcess)]

    def has_ended(self, process: CalmProcess) -> None:
        """Let go of it."""
        self.processes[process.number - 1] = Ended(process.dead)

    async def live(self) -> None:
        """From the first start to the verdict of the judge."""
        for _ in range(self.routine.engines):
            await self.join()
        if self.routine.plan is not None:
            self.nursery.start_soon(self.routine.plan, self)
        await trio.sleep_until(self.routine.lasts_s)
        await self.alive()[0].management.pause(Match(), who="end")
        with trio.move_on_after(10 * self.oracle.lease_s):
            while self.oracle.left_over():  # noqa: ASYNC110 - anything may change it
                await trio.sleep(1)
        self.oracle.judge(self.oracle.left_over())
        self.nursery.cancel_scope.cancel()


def live(routine: Routine) -> CalmWorld:
    """Live through it."""
    world: CalmWorld | None = None

    async def main() -> None:
        nonlocal world
        async with trio.open_nursery() as nursery:
            world = CalmWorld(routine, nursery)
            nursery.start_soon(world.live)

    with patch("actors.coordinator.WINDOW_MS", round(IDLE_S * 1000)):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert world is not None
    return world


__all__ = ["CalmWorld", "Rhythm", "Routine", "Violation", "live"]
