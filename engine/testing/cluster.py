"""A cluster in one trio program and in virtual time: workers, the Redis between them, and what they do not know of."""

from __future__ import annotations

import math
import random
from contextvars import copy_context
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final

import trio

from actors.running import Host
from engine.domain.run import belongs_to_run
from engine.errors import NotSettled
from engine.management import Management
from engine.runtime import Clock, Environment
from engine.store.cable import Cable
from engine.store.idle import IdleTime
from engine.store.inprocess import InProcess, InProcessServer
from engine.store.store import Store
from engine.testing.bodies import Bodies
from engine.testing.process import Process
from engine.testing.schedule import PROCESS, first_deadline_s
from engine.testing.virtual_time import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from concurrent.futures import Future
    from contextvars import Context

    from trio.testing import MockClock

    from engine.config import Config
    from engine.domain.group import TaskGroup

__all__ = ["Cluster", "Director", "Loop", "Member"]

T = TypeVar("T")

LONGEST_S = 86_400.0
"""How long an operation may take in virtual time."""


class Loop(Host, Protocol):
    """Where ``async def`` functions run, if not beside the actors."""

    def at_work(self) -> str | None:
        """As in ``World``."""

    def next_timer_s(self) -> float:
        """As in ``World``."""

    def moved(self) -> None:
        """As in ``World``."""

    def check_caller(self, operation: str) -> None:
        """Raises EngineStateError if the caller's thread is that of the loop, and would wait for itself."""

    def run_async(self, function: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run something on the loop, beside the functions."""

    def close(self) -> None:
        """No function is on it any more."""


@final
class Member(Process):
    """A process of the cluster, on a cable of its own."""

    def __init__(self, cluster: Cluster, number: int, config: Config) -> None:
        self.cable, self._loop = Cable(cluster.server, _Relay(cluster, self)), cluster.loop
        super().__init__(
            self.cable,
            cluster.environment(number),
            config,
            cluster.groups,
            number=number,
            host=cluster.loop,
            around=lambda function: cluster.bodies.around(self, function),
        )
        if cluster.redis_away:
            self.cable.cut()

    async def perform(self, operation: Callable[[Management], Awaitable[T]]) -> T:
        """See ``Process``; also for functions on another loop."""
        if self._loop is None or trio.lowlevel.in_trio_task():
            return await super().perform(operation)
        return await self._loop.ask(lambda: operation(self.management))

    def die(self) -> None:
        """See ``Process``; Redis hears no more of it."""
        super().die()
        self.cable.cut()


class Director(Protocol):
    """As ``Watcher``, of all members."""

    async def sends(self, member: Member, script: str, args: tuple[Any, ...]) -> None:
        """See ``Watcher``."""

    async def executed(self, member: Member, script: str, args: tuple[Any, ...]) -> None:
        """See ``Watcher``."""


@final
@dataclass(frozen=True, slots=True)
class _Relay:
    """The ``Watcher`` of one member."""

    cluster: Cluster
    member: Member

    async def sends(self, script: str, args: tuple[Any, ...]) -> None:
        if self.cluster.director is not None:
            await self.cluster.director.sends(self.member, script, args)

    async def executed(self, script: str, args: tuple[Any, ...]) -> None:
        if self.cluster.director is not None:
            await self.cluster.director.executed(self.member, script, args)


@final
class Cluster:
    """All of it. Every method is for tasks of its own trio run.

    Args:
        nursery: in which the processes live.
        clock: of the trio run.
        groups: what every process declares.
        config: of every process, unless it is given another.
        start_s: Unix seconds; the wall clock at the start, for the processes and for Redis.
        seed: of all chance.
        loop: where ``async def`` functions run; None: beside the actors.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        clock: MockClock,
        *,
        groups: Sequence[TaskGroup],
        config: Config,
        start_s: float,
        seed: int,
        loop: Loop | None = None,
    ) -> None:
        self._context = copy_context()
        self._nursery, self._clock, self._start_s, self._seed = nursery, clock, start_s, seed
        self.groups, self.config, self.loop = groups, config, loop
        self.server = InProcessServer(wall=self.wall_s)
        self.director: Director | None = None
        """Who is told of all scripts, before and after."""

        self.waits_for: str | None = None
        """What takes real time just now, for people."""

        self.bodies = Bodies(self.now_ms)
        self.redis_away = False
        """For every process; what a test asks of the cluster is answered all the same."""

        self.members: list[Member] = []
        """All there ever were."""

        ids = count(1)
        self.store = Store.over(InProcess(self.server), prefix=config.redis_key_prefix)
        self.management = Management(
            self.store, config, lambda: groups, new_id=lambda: f"{0xFFFFFFFF:08x}{next(ids):08x}"
        )
        self.time = VirtualTime(clock, self)
        self._idle = IdleTime(self.server, prefix=config.redis_key_prefix)
        self._operations = 0
        self._io_of_ours = _waiting_for_io()

    def wall_s(self) -> float:
        """Unix seconds. From any thread."""
        return self._start_s + self._clock.current_time()

    @property
    def elapsed_s(self) -> float:
        """Since the start. From any thread."""
        return self._clock.current_time()

    def now_ms(self) -> int:
        """The same in milliseconds."""
        return round(self.wall_s() * 1000)

    def environment(self, number: int) -> Environment:
        """Time, chance and ids of one process."""
        ids = count(1)
        return Environment(
            clock=Clock(wall=self.wall_s),
            random=random.Random(f"{self._seed} {number}"),  # noqa: S311 # nosec B311 # it shall be predictable
            new_id=lambda: f"{number:08x}{next(ids):08x}",
        )

    @property
    def moves(self) -> int:
        """Grows while something happens. From any thread."""
        commands = sum(member.cable.statistics().commands_sent for member in self.members)
        return self.time.steps + len(self.bodies.starts) + commands

    @property
    def leader(self) -> Member | None:
        """Who leads, as Redis knows it."""
        key = self._idle.leader()
        return next((member for member in self.alive if member.identity.key == key), None)

    def has_runs(self) -> bool:
        """Is a run queued or running?"""
        return self._idle.has_runs()

    @property
    def alive(self) -> list[Member]:
        """Those that have neither ended nor been killed."""
        return [member for member in self.members if not member.dead and not member.ended]

    async def join(self, config: Config | None = None) -> Member:
        """A new process."""
        member = Member(self, len(self.members) + 1, config or self.config)
        self.members.append(member)
        await self.perform(lambda: self._nursery.start(member.run))
        return member

    async def leave(self, member: Member) -> None:
        """It stops in order."""
        await self.perform(member.stop)

    def lose_redis(self) -> None:
        """Have Redis be away for everybody, with its data kept."""
        self.redis_away = True
        for member in self.alive:
            member.cable.cut()

    def regain_redis(self) -> None:
        """Have it be there again."""
        self.redis_away = False
        for member in self.alive:
            member.cable.join()

    def start_soon(self, function: Callable[[], Awaitable[object]]) -> None:
        """A task that belongs to no process."""
        self._context.copy().run(self._nursery.start_soon, function)

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call something then."""

        async def wait() -> None:
            await trio.sleep(seconds)
            call()

        self.start_soon(wait)

    async def perform(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do something, however long it takes in virtual time, and let happen what comes of it at once.

        Raises:
            NotSettled: it takes more than a day.
        """
        results: list[T] = []
        errors: list[Exception] = []

        async def do() -> None:
            try:
                results.append(await operation())
            except Exception as error:  # noqa: BLE001  # it belongs to whoever asked, and is raised there
                errors.append(error)

        self._operations += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(do)
                await self.time.pass_until(
                    trio.current_time() + LONGEST_S, enough=lambda: bool(results) or bool(errors)
                )
                nursery.cancel_scope.cancel()
        finally:
            self._operations -= 1
        if errors:
            raise errors[0]
        if not results:
            raise NotSettled("an operation", "it was not done after a day of virtual time; is there a worker?")
        return results[0]

    async def run_async(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run something where the ``async def`` functions run."""
        if self.loop is None:
            return await self.perform(function)
        future, done = self.loop.run_async(function), trio.Event()
        token = trio.lowlevel.current_trio_token()
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        await self.perform(done.wait)
        return future.result()

    def close(self) -> None:
        """All processes have ended."""
        if self.loop is not None:
            self.loop.close()

    def unwind(self) -> None:
        """Let go of every process, so that the program can end."""
        for member in self.members:
            member.thaw()
        for member in self.members:
            member.unwind()

    # -- as World -----------------------------------------------------------------------------------------------------

    def at_work(self) -> str | None:
        """See ``World``."""
        self.waits_for = self._at_work()
        return self.waits_for

    def _at_work(self) -> str | None:
        calls = [
            call
            for member in self.members
            if not member.dead
            for call in member.troupe.threads.still_going()
            if not call.done.is_set()
        ]
        others = trio.to_thread.current_default_thread_limiter().borrowed_tokens
        if len(calls) + others > sum(not member.dead for member in self.bodies.resting):
            names = ", ".join(call.running.run_id for call in calls)
            return f"the thread of run {names} is at work" if calls else "a thread that a run has started is at work"
        if _waiting_for_io() > self._io_of_ours:
            return "a run waits for a socket or a process"
        return self.loop.at_work() if self.loop is not None else None

    def next_timer_s(self) -> float:
        """See ``World``."""
        return self.loop.next_timer_s() if self.loop is not None else math.inf

    def idle_until_s(self) -> float:
        """See ``World``."""
        alive = self.alive
        if self._operations or any(member.frozen or not member.cable.is_up() for member in alive):
            return 0
        due_s = self._idle.next_due_ms([member.identity.key for member in alive]) / 1000 - self._start_s
        return min(due_s, self.next_timer_s(), first_deadline_s(_of_living_run))

    def moved(self) -> None:
        """See ``World``."""
        if self.loop is not None:
            self.loop.moved()

    def pass_unnoticed(self, seconds: float) -> None:
        """See ``World``."""
        self._idle.pass_unnoticed(round(seconds * 1000))


def _of_living_run(context: Context) -> bool:
    process = context.get(PROCESS)
    return belongs_to_run(context) and not (isinstance(process, Process) and process.dead)


def _waiting_for_io() -> int:
    """How many tasks wait for a file descriptor."""
    seen = trio.lowlevel.current_statistics().io_statistics
    names = ("tasks_waiting", "tasks_waiting_read", "tasks_waiting_write")
    return sum(getattr(seen, name, 0) for name in names)
