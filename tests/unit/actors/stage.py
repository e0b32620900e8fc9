"""A stage for actors in virtual time: any number of workers, or single actors, over one Redis in this process."""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import trio
import trio.testing

from engine.config import Config
from engine.domain.group import TaskGroup
from engine.runtime import (
    Child,
    ChildFailed,
    Environment,
    Mailbox,
    Strategy,
    Supervision,
    Supervisor,
    SupervisorEvent,
    virtual_clock,
)
from engine.runtime.slot import ActorSlot
from engine.store.cable import Cable as PlainCable
from engine.store.election import Elected
from engine.store.inprocess import InProcessServer
from engine.store.store import Store
from engine.store.timetable import Enrolment, Published, Slot
from engine.store.transport import Lane
from engine.testing.process import Process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio.testing import MockClock

    from engine.store.ledger import LedgerEntry
    from engine.testing.process import GreetedTransport

M = TypeVar("M")
T = TypeVar("T")

EPOCH_S = 1_764_000_000.0
"""The wall clock when trio's is 0: a full hour, 2025-11-24 16:00 UTC."""

EPOCH_MS = round(EPOCH_S * 1000)


def at_ms(seconds: float) -> int:
    """Unix milliseconds at that instant of trio's clock."""
    return EPOCH_MS + round(seconds * 1000)


@cache
def config(**settings: Any) -> Config:
    """A Config; its Redis is the one in this process."""
    return Config(**{"redis_host": "in-process", "worker_service_name": "test", **settings})


def mail(mailbox: Mailbox[M]) -> list[M]:
    """Everything that waits in a mailbox whose reader is the test."""
    return [mailbox.take() for _ in range(mailbox.statistics().depth)]


class Cable(PlainCable):
    """One that remembers what went over it, and can be slow with replies."""

    def __init__(self, server: InProcessServer) -> None:
        super().__init__(server)
        self.late_s = 0.0
        """How long each reply of the first lane is on its way."""
        self.sent: list[tuple[float, tuple[Any, ...]]] = []
        """Every command of the first lane, in order, and when."""
        self.reads_of_runs = 0
        """Commands of the lane on which the worker waits for runs."""

    async def _request(self, lane: Lane, args: tuple[Any, ...], block_s: float) -> Any:
        if self.is_whole:
            if lane is Lane.COMMANDS:
                self.sent.append((trio.current_time(), args))
            self.reads_of_runs += lane is Lane.RUNS
        return await super()._request(lane, args, block_s)

    async def _execute(self, lane: Lane, args: tuple[Any, ...], block_s: float) -> Any:
        reply = await super()._execute(lane, args, block_s)
        if lane is Lane.COMMANDS:
            await trio.sleep(self.late_s)
        return reply


class Worker(Process):
    """One process of the cluster: a whole tree with a cable of its own."""

    cable: Cable

    def __init__(self, stage: Stage, number: int, groups: tuple[TaskGroup, ...], settings: dict[str, Any]) -> None:
        self.cable = Cable(stage.server)
        self.assemble(self.cable, stage.environment(number), number, groups, settings)

    def assemble(
        self,
        transport: GreetedTransport,
        environment: Environment,
        number: int,
        groups: tuple[TaskGroup, ...],
        settings: dict[str, Any],
    ) -> None:
        """Build the tree of this process over any transport."""
        super().__init__(transport, environment, config(**settings), groups, number=number)

    def kill(self) -> None:
        """End the process with no last word to Redis."""
        self.cable.cut()
        self._life.cancel()

    def crash(self, name: str) -> None:
        """Have one actor crash: no actor understands this message."""
        self.mailbox(name).tell(object())

    def mailbox(self, name: str) -> Mailbox[Any]:
        return self._slot(name).mailbox

    def restarts(self, name: str) -> int:
        return self._slot(name).restarts

    def doing(self, name: str) -> str:
        return self._slot(name).doing()

    @property
    def leads(self) -> bool:
        return self.doing("leader").startswith("leading")

    def _slot(self, name: str) -> ActorSlot:
        [found] = [slot for slot in self.supervision._root.walk() if slot.name == name]
        assert isinstance(found, ActorSlot)
        return found


class Stage:
    """The server, the workers on it, and a store of the test's own to look at it."""

    def __init__(self, clock: MockClock, nursery: trio.Nursery) -> None:
        assert trio.current_time() == 0, "the test itself must name autojump_clock, or it is not used"
        self.clock, self.nursery = clock, nursery
        self.server = InProcessServer(wall=lambda: EPOCH_S + trio.current_time() + self.redis_ahead_s)
        self.redis_ahead_s = 0.0
        """How far the clock of Redis stands before that of the processes."""
        self.workers: list[Worker] = []
        self._processes = count(1)
        self.store = self.new_store()
        self.redis: Any = self.store.transport.commands
        """For what no operation of the store shows."""
        self.watched: list[list[SupervisorEvent]] = []

    def now_ms(self) -> int:
        return at_ms(trio.current_time())

    def environment(self, number: int) -> Environment:
        """Time, chance and ids of one process."""
        ids = count(1)
        return Environment(
            clock=virtual_clock(EPOCH_S), random=random.Random(number), new_id=lambda: f"{number:08x}{next(ids):08x}"
        )

    async def history(self) -> str:
        """With which Redis goes on."""
        return await self.redis.hget(self.store.keys.generation, "id") or ""

    def new_store(self, transport: Cable | None = None) -> Store:
        return Store.over(transport or Cable(self.server), prefix="troupe")

    async def worker(self, *groups: TaskGroup, slow_s: float = 0.0, **settings: Any) -> Worker:
        """Start a process, whose commands are on their way for ``slow_s``, and return when its tree is up."""
        worker = Worker(self, next(self._processes), groups, settings)
        worker.cable.slow_s = slow_s
        self.workers.append(worker)
        await self.nursery.start(worker.run)
        return worker

    async def actor(self, child: Child, *, events: list[SupervisorEvent] | None = None) -> Supervision:
        """Start one actor, alone under a supervisor. A test that expects its crash clears ``events``."""
        heard: list[SupervisorEvent] = [] if events is None else events
        self.watched.append(heard)
        spec = Supervisor("stage", Strategy.ONE_FOR_ONE, (child,))
        supervision = Supervision(spec, self.environment(next(self._processes)), on_event=heard.append)
        await self.nursery.start(supervision.run)
        return supervision

    async def until(self, seconds: float) -> None:
        """Let time pass up to that instant, and everything that happens then happen."""
        await trio.sleep_until(seconds)
        await trio.testing.wait_all_tasks_blocked()

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        await trio.testing.wait_all_tasks_blocked()

    async def becomes(self, condition: Callable[[], Awaitable[object]], *, within_s: float = 60.0) -> float:
        """Wait until Redis shows something; the instant at which it did."""
        with trio.fail_after(within_s):
            while not await condition():
                await self.server.wait_change()
                await self.settle()
        return trio.current_time()

    @contextmanager
    def time_stands_still(self) -> Iterator[None]:
        """No time passes by itself, as long as threads are at work that no virtual clock can wait for."""
        self.clock.autojump_threshold = math.inf
        try:
            yield
        finally:
            self.clock.autojump_threshold = 0

    async def verdicts(self, task_id: str) -> list[tuple[str, str]]:
        """Verdict and reason of each entry of a ledger, the oldest first."""
        return [(entry.verdict, entry.reason) for entry in await self.ledger(task_id)]

    async def ledger(self, task_id: str) -> list[LedgerEntry]:
        return await self.store.ledger.all(task_id)

    def check_for_crashes(self) -> None:
        """No actor crashed, but those of whom a test took note."""
        crashes = [str(crash) for worker in self.workers for crash in worker.crashes]
        crashes += [str(event) for heard in self.watched for event in heard if isinstance(event, ChildFailed)]
        assert not crashes, crashes


def group(name: str = "g", **settings: Any) -> TaskGroup:
    return TaskGroup(name, **settings)


def noting(group: TaskGroup, expression: str, *, name: str = "t", **settings: Any) -> list[float]:
    """Declare a task that notes the instant of each start and ends at once."""
    started_s: list[float] = []

    async def note() -> None:
        await trio.lowlevel.checkpoint()
        started_s.append(trio.current_time())

    group.add_task(expression, name=name, **settings)(note)
    return started_s


class Publisher:
    """The test in the place of the leader: it queues runs when it likes."""

    def __init__(self, stage: Stage, value: str) -> None:
        self._stage, self.value = stage, value
        self._next_ms: dict[str, int] = {}

    @classmethod
    async def elected(cls, stage: Stage) -> Publisher:
        """Lead for ever, or until Redis goes on with another history."""
        publisher = cls(stage, "")
        await publisher.lead_again()
        return publisher

    async def lead_again(self) -> None:
        """Redis was restarted, and knows by now what its workers remember."""
        history = await self._stage.history()
        won = await self._stage.store.election.elect("test", "n", lease_ms=10**12, history=history)
        assert isinstance(won, Elected)
        self.value = won.value

    async def queue(self, task_id: str, count: int = 1, *, priority: str = "low", overlap: str = "allow") -> list[str]:
        """Publish that many slots of a task, a second apart and all in the past; the ids of the runs."""
        timetable = self._stage.store.timetable
        if task_id not in self._next_ms:
            self._next_ms[task_id] = at_ms(-1_000_000)
            version = await self._stage.store.catalog.version()
            await timetable.enroll(self.value, [Enrolment(task_id, self._next_ms[task_id])], version=version)
        run_ids = []
        for _ in range(count):
            due_ms = self._next_ms[task_id]
            next_ms = self._next_ms[task_id] = due_ms + 1_000
            slot = Slot(task_id, due_ms, next_ms, priority, overlap)
            assert await timetable.publish(self.value, [slot], queue_cap=10_000) == [Published()]
            run_ids.append(f"{task_id}@{due_ms}")
        return run_ids

    async def requeue(self) -> None:
        """Queue the runs that are due: retries, and those that were put aside."""
        due = await self._stage.store.timetable.window(self._stage.now_ms())
        await self._stage.store.timetable.requeue(self.value, [item for item in due if item.is_run])

    async def lose(self, run_id: str) -> None:
        """Take a run from its worker, as if its lease had been watched to its end."""
        leases = await self._stage.store.leases.expiring(at_ms(10**9))
        lost = [lease for lease in leases if lease.run_id == run_id]
        await self._stage.store.leases.reclaim(self.value, lost, max_deliveries=3, story="{}")


class Gate:
    """A body, ``async`` or in a thread, that is held until the test lets it go."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.inside = 0
        self.most_inside = 0
        self.passed = 0
        self.entered = trio.Event()

    async def walk(self) -> None:
        """An asynchronous body."""
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.entered.set()
        try:
            await self.open.wait()
            self.passed += 1
        finally:
            self.inside -= 1

    def walk_in_thread(self) -> None:
        """The body of a ``def`` task."""
        trio.from_thread.run(self.walk)
