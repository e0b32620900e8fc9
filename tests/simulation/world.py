"""A cluster in one trio program: processes, the Redis between them, and what can be done to both."""

from __future__ import annotations

import math
import random
from contextlib import suppress
from contextvars import copy_context
from functools import cached_property, partial
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any, final

import trio

from engine.domain.group import TaskGroup
from engine.domain.run import RunContext
from engine.errors import CannotCrash, RedisUnavailable, RestartLimitExceeded, TroupeError
from engine.management import Management, Match
from engine.runtime import Clock, Environment
from engine.runtime.clock import STEP_S
from engine.store.store import Store
from engine.store.transport import Lane
from engine.testing.schedule import PROCESS, freeze, thaw
from tests.simulation.aftermath import Aftermath
from tests.simulation.effects import EffectLog, Start
from tests.simulation.oracle import Oracle, Rhythm, Violation
from tests.simulation.story import ACTORS, LOSSES
from tests.simulation.swift import set_full, swift_lanes, swift_server
from tests.simulation.wire import Connection, Wire
from tests.unit.actors.stage import EPOCH_S, Worker, config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.runtime import SupervisorEvent
    from engine.store.inprocess import Saved, _Lane
    from tests.simulation.losses import Image
    from tests.simulation.story import Step, Story

LEASE_S = 3.0
SETTINGS: dict[str, Any] = {
    "running_heartbeat_interval": LEASE_S / 3,
    "leader_heartbeat_interval": 1.0,
    "leader_retry_interval": 1.5,
    "reconciliation_interval": 4.0,
    "stream_block_ms": 2_000,
    "shutdown_grace": 2.0,
    "retry_backoff": 0.4,
    "retry_backoff_max": 4.0,
}

PERIODS_S = {"g/quick": 2, "g/urgent": 5, "g/long": 10, "g/alone": 4, "g/flaky": 6, "g/stubborn": 15}
"""The tasks that every process declares, and the seconds between two slots, which divide a minute."""

DYNAMIC = ("d0", "d1")

MOST_PROCESSES = 4
"""That are alive at once."""


class CrashNow(Exception):
    """An actor is made to fail."""


class Refusal(Exception):
    """A body fails as it is meant to."""


@final
class Process(Worker):
    """One process of the cluster."""

    def __init__(self, world: World, number: int, concurrent_tasks: int) -> None:
        self.number, self.world = number, world
        self.frozen = False
        self.held: list[trio.lowlevel.Task] = []
        self.dead = self.stopping = self.gone = False
        self.stalled_until_s, self.joined_s = -math.inf, trio.current_time()
        self.skew_s = 0.0
        self.wire: Wire = Wire(world, f"p{number}", random.Random(f"wire {world.story.seed} {number}"))
        ids = count(1)
        environment = Environment(
            clock=Clock(wall=lambda: EPOCH_S + trio.current_time() + self.skew_s),
            random=random.Random(f"process {world.story.seed} {number}"),
            new_id=lambda: f"{number:08x}{next(ids):08x}",
        )
        groups = (self._tasks(),)
        self.assemble(
            self.wire,
            environment,
            number,
            groups,
            {
                **SETTINGS,
                "concurrent_tasks": concurrent_tasks,
                "max_deliveries": world.oracle.max_deliveries,
            },
        )

    @property
    def key(self) -> str:
        """As Redis knows it."""
        return self.identity.key

    async def live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run until the end of the process."""
        PROCESS.set(self)
        task_status.started()
        try:
            await self.run()
        except* RestartLimitExceeded:
            pass  # as the process would: it exits
        if not self.stopping:
            self._exit()

    async def leave(self) -> None:
        """Stop in order."""
        PROCESS.set(self)
        self.stopping = True
        started_s = trio.current_time()
        await self.stop()
        self.world.left(self, started_s)
        self._exit()

    def _exit(self) -> None:
        self.gone = True
        self.wire.held_down = True
        self.wire.cut(half_open_s=0.0, why="the process has ended")

    def _heard(self, event: SupervisorEvent) -> None:
        error = getattr(event, "error", None)
        if isinstance(error, Exception) and not _ours(error) and not self.dead:
            self.world.violation("G0", f"p{self.number}: an actor crashed by itself: {event}")

    def _tasks(self) -> TaskGroup:
        group = TaskGroup("g")

        def declare(name: str, seconds: float, **settings: Any) -> None:
            async def body() -> None:
                await self._body(seconds)

            group.add_task(f"*/{PERIODS_S[f'g/{name}']} * * * * *", name=name, **settings)(body)

        declare("quick", 0.3)
        declare("urgent", 0.1, high_priority=True)
        declare("long", LEASE_S * 2.2)
        declare("alone", 2.0, allow_parallel=False)
        declare("flaky", 0.2, allow_parallel=False)
        declare("stubborn", 0.2, max_retries=3)

        async def dynamic() -> None:
            await self._body(0.5)

        group.register_function(dynamic, name="dynamic")
        return group

    async def _body(self, seconds: float) -> None:
        run, world = RunContext.current(), self.world
        start = Start(run.run_id, run.task_id, run.fence, run.slot_ms, run.attempt, self.number, trio.current_time())
        world.effects.started(start)
        world.note(f"start {run.run_id} {run.fence} p{self.number}")
        # What it does follows from the run alone, not from who asks first.
        chance = random.Random(f"{world.story.seed} {run.run_id} {run.attempt} {len(world.effects.of_run[run.run_id])}")
        try:
            await trio.sleep(seconds * chance.uniform(0.2, 1.3))
            if run.name in {"flaky", "stubborn"} and chance.random() < 0.6:
                start.outcome = "raised"
                raise Refusal
            start.outcome = "returned"
        except trio.Cancelled:
            start.outcome = "cancelled"
            raise
        finally:
            if not self.dead:
                start.ended_s = trio.current_time()
                world.note(f"end {run.run_id} {run.fence} {start.outcome}")


@final
class World:
    """The cluster of one story."""

    def __init__(self, story: Story, nursery: trio.Nursery) -> None:
        self.story, self.nursery = story, nursery
        self._context = copy_context()
        self.redis_ahead_s = 0.0
        self.redis_stalled, self.redis_awake = trio.Event(), trio.Event()
        self.spare: list[dict[Lane, _Lane]] = []
        """Connections to the server that nobody uses any more."""
        self.left_in_buffers: list[Connection] = []
        self._saved: dict[Step, Saved] = {}
        self._filled = 0
        """How many of the steps that fill its memory are in progress."""
        self.disturbed_s = self.lost_s = -math.inf
        """The last instants of a step that disturbs anybody, and of one at which Redis forgot."""
        self.quiet = False
        """No more faults come."""
        self.aftermaths = 0
        """Losses that were judged."""
        self.server = swift_server(lambda: EPOCH_S + trio.current_time() + self.redis_ahead_s)
        self._spy = swift_lanes(self.server)[Lane.COMMANDS]
        self.effects = EffectLog()
        self.oracle = Oracle(self, lease_s=LEASE_S, slots={name: Rhythm(each) for name, each in PERIODS_S.items()})
        self.oracle.max_deliveries = random.Random(f"deliveries {story.seed}").choice((1, 2, 3))
        self.effects.on_start = self.oracle.body_starts
        self.processes: list[Process] = []
        self.lines: list[str] = []
        """What happened, for people; kept if ``keep_lines``."""
        self.keep_lines = False
        self.commands = 0
        self._digest = sha256()
        self._chance = random.Random(f"world {story.seed}")
        self._operations = count(1)
        self._operator_wire = Wire(self, "op", random.Random(f"operator {story.seed}"))
        self.operator = Store.over(self._operator_wire, prefix="troupe")
        ids = count(1)
        self._operator_group = TaskGroup("g")
        self._operator_group.register_function(_nothing, name="dynamic")
        self.management = Management(
            self.operator,
            config(**SETTINGS),
            lambda: (self._operator_group,),
            new_id=lambda: f"0000000f{next(ids):08x}",
        )

    # -- the trace ----------------------------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """Something happened."""
        text = f"{trio.current_time():.6f} {line}"
        self._digest.update(text.encode() + b"\n")
        if self.keep_lines:
            self.lines.append(text)

    def trace(self) -> str:
        """Everything that happened, as a digest."""
        return self._digest.hexdigest()

    def violation(self, guarantee: str, text: str) -> None:
        """A guarantee does not hold."""
        self.oracle.violate(guarantee, text)

    def executed(self, wire: Wire, args: tuple[Any, ...], reply: Any, error: Exception | None) -> None:
        """Redis has executed a command, just now."""
        self.commands += 1
        self.note(f"{wire.name} {args!r} -> {reply!r} {error!r}")
        self.oracle.executed(wire.name, args, reply, error)

    def look(self, command: tuple[Any, ...]) -> Any:
        """What Redis would answer, asked by nobody, in no time."""
        started_s, self.server.started_s = self.server.started_s, 0.0
        try:
            return self._spy.execute(command)
        finally:
            self.server.started_s = started_s

    # -- who there is -------------------------------------------------------------------------------------------------

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """A task of nobody's process."""
        self._context.copy().run(self.nursery.start_soon, function, *args)

    def alive(self) -> list[Process]:
        """Those that have not ended, nor are about to."""
        return [p for p in self.processes if not (p.dead or p.stopping or p.gone)]

    async def join(self, concurrent_tasks: int) -> Process:
        """A new process."""
        process = Process(self, len(self.processes) + 1, concurrent_tasks)
        self.processes.append(process)
        await self.nursery.start(process.live)
        return process

    def left(self, process: Process, began_s: float) -> None:
        """A process has stopped in order."""
        wire = process.wire
        undisturbed = max(wire.disturbed_s, wire.slow_until_s, self.oracle.redis_steady_since_s) < began_s
        undisturbed = undisturbed and wire.is_up() and not wire.loss and not self.redis_stalled.is_set()
        if undisturbed and not process.dead and process.stalled_until_s < began_s:
            self.oracle.stopped(process.key)

    # -- the steps ----------------------------------------------------------------------------------------------------

    async def do(self, step: Step) -> None:
        """Do it, without waiting for what comes of it. What is done to nobody is not done."""
        self.note(f"step {step}")
        alive = self.alive()
        if step.kind not in self._operations_of and step.kind not in LOSSES:
            self.disturbed_s = trio.current_time()
        if step.kind in self._operations_of:
            self.start_soon(self._operate, step)
        elif step.kind in self._to_redis:
            self._to_redis[step.kind](step)
        elif step.kind == "join":
            if len(alive) < MOST_PROCESSES:
                await self.join(1 + step.what % 3)
        elif alive:
            self._to_process[step.kind](alive[step.who % len(alive)], step)

    @cached_property
    def _to_redis(self) -> dict[str, Callable[[Step], object]]:
        return {
            "redis restart": lambda step: self.start_soon(self._restart_redis, 0.05 + step.amount**2 * 6),
            "redis stall": lambda step: self.start_soon(self._stall_redis, 0.1 + step.amount * 6),
            "redis clock": lambda step: self._step_clock((step.amount * 2 - 1) * 8),
            "memory full": lambda step: self.start_soon(self._fill, 0.3 + step.amount * 5),
            "flushall": self._flush,
            "lost tail": lambda step: self.start_soon(self._lose_tail, step, 0.0),
            "failover": lambda step: self.start_soon(self._lose_tail, step, (step.what % 9 - 4) * 1.0),
        }

    @cached_property
    def _to_process(self) -> dict[str, Callable[[Process, Step], object]]:
        return {
            "kill": self._kill,
            "crash": self._crash,
            "stall": lambda p, step: self.start_soon(self._stall, p, 0.2 + step.amount**2 * 9),
            "cut": lambda p, step: self.start_soon(self._cut, p, 0.05 + step.amount**2 * 7, float(step.what % 2)),
            "slow": lambda p, step: self.start_soon(
                self._slow, p, 1 + step.amount * 5, (0.02, 0.2, 0.9)[step.what % 3]
            ),
            "lossy": lambda p, step: self.start_soon(
                self._lossy, p, 1 + step.amount * 4, (0.05, 0.2, 0.5)[step.what % 3]
            ),
            "skew": self._skew,
            "stop": self._stop,
        }

    def _kill(self, process: Process, step: Step) -> None:
        process.dead = True
        process.wire.held_down = True
        freeze(process)
        process.wire.cut(half_open_s=1.5 * step.amount if step.what % 2 else 0.0, why="killed")

    def _crash(self, process: Process, step: Step) -> None:
        path = process._slot(ACTORS[step.what % len(ACTORS)]).path
        with suppress(CannotCrash):
            process.supervision.crash(path, CrashNow())

    def _skew(self, process: Process, step: Step) -> None:
        process.skew_s = (step.amount * 2 - 1) * 300

    def _stop(self, process: Process, _step: Step) -> None:
        process.stopping = True
        self.start_soon(process.leave)

    async def _stall(self, process: Process, for_s: float) -> None:
        if process.frozen:
            return
        process.stalled_until_s = trio.current_time() + for_s
        freeze(process)
        await trio.sleep(for_s)
        if not process.dead:
            thaw(process)

    async def _cut(self, process: Process, for_s: float, half_open_s: float) -> None:
        wire = process.wire
        if wire.held_down:
            return
        wire.held_down, wire.cut_s = True, trio.current_time() + for_s
        wire.cut(half_open_s=half_open_s)
        await trio.sleep(for_s)
        if not (process.dead or process.gone):
            wire.held_down = False
            wire.connect()

    async def _slow(self, process: Process, for_s: float, most_s: float) -> None:
        process.wire.slow_s = most_s
        process.wire.slow_until_s = trio.current_time() + for_s
        await trio.sleep(for_s)
        process.wire.slow_s = 0.0

    async def _lossy(self, process: Process, for_s: float, loss: float) -> None:
        process.wire.loss, process.wire.lossy_until_s = loss, trio.current_time() + for_s
        await trio.sleep(for_s)
        process.wire.loss = 0.0

    async def _restart_redis(self, after_s: float) -> None:
        if self.server.started_s is None:
            return
        self.server.stop()
        for wire in self._wires():
            wire.cut(half_open_s=0.0, why="Redis is gone")
        await trio.sleep(after_s)
        self.server.start()
        self.oracle.redis_steady_since_s = trio.current_time()
        for wire in self._wires():
            self.start_soon(wire._reconnect, wire.chance.uniform(0.01, 0.6))

    async def _fill(self, for_s: float) -> None:
        self._filled += 1
        set_full(self.server, full=True)
        await trio.sleep(for_s)
        self._filled -= 1
        set_full(self.server, full=self._filled > 0)

    def _flush(self, step: Step) -> None:
        if self.server.started_s is None or self.redis_stalled.is_set():
            return
        before, self.lost_s = self.oracle.image(), trio.current_time()
        self.look(("FLUSHALL",))
        self._forgot(before, lag_s=math.inf)

    async def save(self, step: Step) -> None:
        """Keep what Redis holds a while before a step at which that is all that is left."""
        await trio.sleep_until(step.at_s - lag_s(step))
        self._saved[step] = self.server.save()

    async def _lose_tail(self, step: Step, clock_s: float) -> None:
        """Another server goes on with what was saved, and where it is a replica, by another clock."""
        if self.server.started_s is None or self.redis_stalled.is_set():
            return
        before, self.lost_s = self.oracle.image(), trio.current_time()
        self.server.stop()
        for wire in self._wires():
            wire.cut(half_open_s=0.0, why="Redis is gone")
        await trio.sleep(0.05 + step.amount**2 * 2)
        if clock_s:
            self._step_clock(clock_s)
        self.server.start(self._saved[step])
        self._forgot(before, lag_s=lag_s(step))
        for wire in self._wires():
            self.start_soon(wire._reconnect, wire.chance.uniform(0.01, 0.6))

    def _forgot(self, before: Image, *, lag_s: float) -> None:
        left = self.oracle.image()
        self.oracle.redis_forgot(before, left)
        self.start_soon(Aftermath(self, before, left, lag_s=lag_s, lease_s=LEASE_S).judge)

    async def _stall_redis(self, for_s: float) -> None:
        if self.redis_stalled.is_set():
            return
        self.redis_stalled.set()
        await trio.sleep(for_s)
        self.redis_stalled = trio.Event()
        if for_s > LEASE_S / 4 + LEASE_S / 3:  # in a shorter one the reconciler's process need not have asked anything
            self.oracle.redis_steady_since_s = trio.current_time()
        self.redis_awake.set()
        self.redis_awake = trio.Event()
        for connection in self.left_in_buffers:
            connection.end_in(0.5)
        self.left_in_buffers.clear()

    def _step_clock(self, by_s: float) -> None:
        before_s, self.redis_ahead_s = self.redis_ahead_s, max(-8.0, self.redis_ahead_s + by_s)
        if abs(self.redis_ahead_s - before_s) > STEP_S + LEASE_S / 4:  # a smaller one can hide in slow replies
            self.oracle.redis_steady_since_s = trio.current_time()

    def _wires(self) -> list[Wire]:
        return [process.wire for process in self.processes] + [self._operator_wire]

    @cached_property
    def _operations_of(self) -> dict[str, Callable[[Step], Awaitable[object]]]:
        management = self.management
        return {
            "pause": lambda step: management.pause(_match(step), who="op"),
            "resume": lambda step: management.resume(_match(step), who="op"),
            "trigger": lambda step: management.trigger(_match(step), who="op", force=step.amount < 0.3),
            "reset_retry": lambda step: management.reset_retry(_match(step), who="op"),
            "cancel": self._cancel,
            "create": lambda step: management.create(
                self._operator_group.prepare("dynamic", "*/3 * * * * *", name=_dynamic(step)), who="op"
            ),
            "remove": lambda step: management.remove("g", _dynamic(step), who="op"),
        }

    async def _operate(self, step: Step) -> None:
        try:
            await self._operations_of[step.kind](step)
        except RedisUnavailable:
            pass  # it may have been done
        except TroupeError as refused:
            self.note(f"operator refused: {refused!r}")

    async def _cancel(self, step: Step) -> None:
        runs = sorted(await self.operator.runs.live(f"g/{_match(step).name}"))
        if runs:
            operation_id = f"cancel{next(self._operations)}"
            await self.operator.operations.cancel([runs[step.who % len(runs)]], operation_id, who="op")

    # -- the end ------------------------------------------------------------------------------------------------------

    async def become_quiet(self, until_s: float) -> None:
        """No more faults; two new workers; everything paused; then wait until nothing is left."""
        self.quiet = True
        if self.redis_stalled.is_set():
            await self.redis_awake.wait()
        if self.server.started_s is None:
            await self.server.wait_change()
        for process in self.processes:
            if not process.dead and not process.gone:
                process.wire.slow_s = process.wire.loss = 0.0
                process.wire.held_down = False
                if process.frozen:
                    thaw(process)
                process.wire.connect()
        for _ in range(2):
            await self.join(4)
        await trio.sleep(LEASE_S * 2)
        await self._insist(partial(self.management.pause, Match(group="g"), who="end"))
        for name in DYNAMIC:
            await self._insist(partial(self.management.remove, "g", name, who="end"))
        while (left := self.oracle.left_over()) and trio.current_time() < until_s:  # noqa: ASYNC110 - anything may change it
            await trio.sleep(0.5)
        self.oracle.judge(left)

    async def _insist(self, operation: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await operation()
            except RedisUnavailable:
                await trio.sleep(0.2)
            except TroupeError:
                return
            else:
                return

    def end(self) -> None:
        """Let go of every process, the dead ones too, so that the program can end."""
        for process in self.processes:
            process.dead = True
            process.wire.held_down = True
            process.wire.cut(half_open_s=0.0, why="the end")
            if process.frozen:
                thaw(process)
        self.nursery.cancel_scope.cancel()


def lag_s(step: Step) -> float:
    """How far behind is what is left after a step at which Redis forgets."""
    return min(step.at_s - 0.5, 0.1 + 3 * ((step.who * 7 + step.what) % 100) / 100)


def _match(step: Step) -> Match:
    """The task that an operator means."""
    return Match(name=[task_id.partition("/")[2] for task_id in PERIODS_S][step.what % len(PERIODS_S)])


def _dynamic(step: Step) -> str:
    return DYNAMIC[step.what % len(DYNAMIC)]


def _ours(error: BaseException) -> bool:
    """Was it made to happen?"""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_ours, error.exceptions))
    return isinstance(error, CrashNow | RestartLimitExceeded)


async def _nothing() -> None:
    """The operator's process runs nothing."""


__all__ = ["Process", "Violation", "World"]
