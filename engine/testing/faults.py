"""A crash point of the run protocol, replayed against a task of the user's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio

from engine.domain.group import TaskGroup
from engine.domain.names import slot_run_id
from engine.errors import Crashed, EngineStateError, NotSettled, RedisUnavailable
from engine.testing.bodies import code_of
from engine.testing.harness import START
from engine.testing.instants import ms_of
from engine.testing.points import Act, Moment, Part, Place, places_of
from engine.testing.settings import config_from, parts_of, usual_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from engine.domain.task import Definition, Task
    from engine.testing.bodies import Start
    from engine.testing.cluster import Cluster, Member
    from engine.testing.harness import TroupeEngine
    from engine.testing.points import Point
    from engine.testing.settings import BodiesOn

__all__ = ["Fault"]

QUICK: Final[dict[str, Any]] = {
    "running_heartbeat_interval": 1.0,
    "leader_heartbeat_interval": 1.0,
    "leader_retry_interval": 1.0,
    "reconciliation_interval": 2.0,
    "shutdown_grace": 0.0,
}
"""A lease lasts three seconds, so that all is over before another slot of most tasks would be due."""

LEASE_S: Final = 3.0
BEFORE_MS: Final = 5_000
"""The clock starts so long before the slot."""

LONGEST_S: Final = 86_400.0


@final
class Fault:
    """One crash point, given to a test by the marker ``faults``: the test calls ``replay`` and looks at its effects.

    Args:
        engine: with which it is replayed; it has not been started.
        point: what happens, and when.
        function: that of the task, if the marker was given it.
    """

    def __init__(self, engine: TroupeEngine, point: Point, function: Callable[..., object] | None = None) -> None:
        self.name = point.name
        """As pytest shows it, such as ``killed before its claim``."""

        self._engine, self._point, self._function = engine, point, function
        self._task: str | None = None

    def replay(self, task: str | None = None, *, bodies_on: BodiesOn | None = None, **settings: Any) -> None:
        """Run one slot of a task on two workers, with the fault, until it has its verdict and all have calmed down.

        Of all tasks only this one is there, and only for its next slot after the start of 2026. Fails with pytest's
        ``skip`` if the function did not come to the point.

        Args:
            task: ``group/name``; not needed where the marker was given a function that one task has.
            bodies_on: as for ``TroupeEngine.start``.
            settings: of the Config. Leases last 3 s.

        Raises:
            EngineStateError: the engine runs already, or no or several tasks are meant.
            NotSettled: the run has no verdict after a day of virtual time.
        """
        found = self._find(task)
        self._task = f"{found.definition.group}/{found.name}"
        slot_ms = found.definition.schedule.next_after(ms_of(START, UTC))
        if slot_ms is None:
            raise NotSettled(f"task {self._task}", "it is never due")
        _, base = parts_of(self._engine.given)
        config = config_from(base, {**QUICK, **settings})
        self._engine.begin(
            [only(found, slot_ms)],
            config,
            start_ms=slot_ms - BEFORE_MS,
            workers=2,
            bodies_on=usual_loop(self._engine.given) if bodies_on is None else bodies_on,
        )
        play = Play(self._point, found, slot_ms)
        self._engine.perform(play.perform)
        if play.victim is None:
            import pytest

            pytest.skip(f"{self.name}: {self._task} did not come to this point")

    @property
    def log(self) -> list[Start]:
        """Each start of the function: run, attempt, fence, worker, and how it ended. Empty before ``replay``."""
        return self._engine.starts(self._task) if self._task is not None else []

    @property
    def starts(self) -> int:
        """How often the function was started."""
        return len(self.log)

    @property
    def fences(self) -> list[int]:
        """The fence of each start, in their order: each is greater than the one before."""
        return [start.fence for start in self.log]

    @property
    def verdict(self) -> str | None:
        """What became of the run: ``ran``, ``failed``, ``dead``."""
        if self._task is None:
            return None
        verdicts = self._engine.verdicts(self._task)
        return verdicts[0] if verdicts else None

    def _find(self, task: str | None) -> Task:
        groups, _ = parts_of(self._engine.given)
        known = {f"{group.name}/{one.name}": one for group in groups for one in group.declared}
        if task is None and self._function is not None:
            code = code_of(self._function)
            known = {name: one for name, one in known.items() if code_of(one.function) is code}
        elif task is not None:
            known = {name: one for name, one in known.items() if name == task}
        if len(known) != 1:
            names = ", ".join(known) or "none"
            raise EngineStateError("replay", f"name one task: replay('group/name'); those that are meant: {names}")
        [found] = known.values()
        return found


def only(task: Task, slot_ms: int) -> TaskGroup:
    """A group that has nothing but this task, which is due at that instant and then for a year no more."""
    own: Definition = task.definition
    moment = datetime.fromtimestamp(slot_ms / 1000, UTC)
    group = TaskGroup(own.group)
    group.add_task(
        f"{moment.second} {moment.minute} {moment.hour} {moment.day} {moment.month} *",
        own.kwargs,
        name=own.name,
        high_priority=own.high_priority,
        retry_backoff=own.retry_backoff,
        retry_backoff_max=own.retry_backoff_max,
        allow_parallel=own.allow_parallel,
        max_retries=own.max_retries,
        timeout=own.timeout,
    )(task.function)
    return group


@final
@dataclass(eq=False)
class Play:
    """The replay itself, in the trio run of the cluster. It is the ``Holder`` of functions and watches all scripts."""

    point: Point
    task: Task
    slot_ms: int
    victim: Member | None = None
    """To whom it was done; None: nothing was done yet."""

    recover: list[Callable[[], None]] = field(default_factory=list)
    """What ends the fault, when the run has its verdict."""

    @property
    def run_id(self) -> str:
        """The run to which it is done."""
        return slot_run_id(self.task.id, self.slot_ms)

    async def perform(self, cluster: Cluster) -> None:
        """Arm the fault, and let time pass until it is over."""
        self._cluster = cluster
        cluster.director = self
        if isinstance(self.point.at, Place | Part):
            cluster.bodies.holder = self
        until_s = trio.current_time() + LONGEST_S
        step_s = 1.0
        while not await self._has_verdict():
            if trio.current_time() > until_s:
                raise NotSettled(f"run {self.run_id}", "it has no verdict after a day of virtual time")
            await cluster.time.pass_until(trio.current_time() + step_s)
            step_s *= 1.1
        for end in self.recover:
            end()
        await cluster.time.pass_until(trio.current_time() + 3 * LEASE_S)

    async def _has_verdict(self) -> bool:
        return any(entry.run_id == self.run_id for entry in await self._cluster.store.ledger.all(self.task.id))

    # -- as the watcher of all scripts --------------------------------------------------------------------------------

    async def sends(self, member: Member, script: str, args: tuple[Any, ...]) -> None:
        """A member is about to have a script executed."""
        if self.point.before and self._is_it(script, args):
            await self._strike(member)

    async def executed(self, member: Member, script: str, args: tuple[Any, ...]) -> None:
        """It was executed."""
        if not self.point.before and self._is_it(script, args):
            await self._strike(member)

    def _is_it(self, script: str, args: tuple[Any, ...]) -> bool:
        at = self.point.at
        return self.victim is None and isinstance(at, Moment) and script in at.value and self.run_id in args

    async def _strike(self, member: Member) -> None:
        self.victim, cluster = member, self._cluster
        match self.point.act:
            case Act.KILL:
                member.die()
                await trio.lowlevel.checkpoint()  # from which it never returns
            case Act.LOSE_REPLY:
                member.cable.cut()
                cluster.later(LEASE_S / 6, member.cable.join)
                raise RedisUnavailable("the connection is lost")
            case Act.AWAY:
                cluster.lose_redis()
                cluster.later(LEASE_S * 2, cluster.regain_redis)
                raise RedisUnavailable("Redis is away")
            case _:
                raise AssertionError(self.point)

    # -- as the holder of functions -----------------------------------------------------------------------------------

    def where(self, start: Start) -> tuple[CodeType, int] | None:
        """See ``Holder``."""
        if self.victim is not None or start.run_id != self.run_id:
            return None
        at = self.point.at
        if isinstance(at, Part):
            places = places_of(self.task.function)
            if not places:
                return None
            at = places[round(at.value * (len(places) - 1))]
        return (at.code, at.line) if isinstance(at, Place) else None

    def strike(self, member: Member, start: Start) -> bool:  # noqa: ARG002  # as Holder has it
        """See ``Holder``."""
        self.victim = member
        match self.point.act:
            case Act.KILL:
                member.die()
            case Act.STALL:
                member.freeze()
                self.recover.append(member.thaw)
            case Act.CUT_OFF:
                member.cable.cut()
                self.recover.append(member.cable.join)
                return True
            case Act.STOP:
                self._cluster.start_soon(partial(_exit, member))
            case Act.CRASH:
                member.supervision.crash("execution.consumer", Crashed("execution.consumer"))
                self.recover.append(member.crashes.clear)
                return True
            case _:
                raise AssertionError(self.point)
        return False


async def _exit(member: Member) -> None:
    """Stop in order, and end with all that does not heed it."""
    await member.stop()
    member.die()
