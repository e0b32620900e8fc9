"""Consumer: has runs read and claimed, executes them, and has Redis told how they ended."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any, assert_never, final

import trio

from actors.ending import report
from actors.in_flight import InFlight
from actors.intake import Intake
from actors.memory import adoptions
from actors.messages import (
    CatalogAsked,
    CatalogRead,
    ConsumerInbox,
    Drain,
    LeasesInDanger,
    Refresh,
    RunsAsked,
    RunsRemembered,
    StopRuns,
)
from actors.outage import insist
from actors.pace import Pace
from actors.readers import Readers
from actors.running import (
    OwnLoop,
    Phase,
    Returned,
    Running,
    Stop,
    Stopped,
    TimedOut,
    exc_info_of,
    perform,
    rejoin,
)
from actors.settlement import Settlement
from engine.domain.run import RunContext, Verdict
from engine.domain.task import Task
from engine.errors import RedisUnavailable
from engine.runtime import Actor
from engine.store.runs import Completion, Failure, Fenced, Gone, Hold
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.identity import Identity
    from actors.memory import RecentEnds
    from actors.messages import CatalogInbox, StatsInbox
    from actors.running import BodyEnd, Host
    from actors.threads import ThreadCall, Threads
    from engine.config import Config
    from engine.domain.task import Definition
    from engine.runtime import Mailbox, Reply
    from engine.store.retelling import Adoption
    from engine.store.runs import Claimed
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.consumer")

LAST_WORDS_S = 2.0
"""How long a Consumer that crashes or is cancelled may take to give its runs back."""

ALONE_WITHIN_LEASES = 10
"""How long a run on its last delivery waits for the others: longer than most runs take. Nothing is read meanwhile."""


@final
class Consumer(Actor[ConsumerInbox]):
    """Executes up to ``concurrent_tasks`` runs at once; each is a task in its nursery.

    Its ``receive`` never waits for Redis, so that the Heartbeat always hears which runs it holds. When it crashes,
    asynchronous runs are cancelled and handed back; threads go on, and its successor reports their ends.
    """

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        identity: Identity,
        tasks: Mapping[str, Task],
        functions: Mapping[tuple[str, str], Callable[..., Any]],
        threads: Threads,
        recent: RecentEnds,
        catalog: Mailbox[CatalogInbox],
        stats: Mailbox[StatsInbox],
        host: Host | None = None,
        draining: bool = False,
    ) -> None:
        self._config, self._store, self._identity = config, store, identity
        self._worker_id = identity.worker_id
        self._declared, self._functions = tasks, functions
        self._tasks: Mapping[str, Task] = tasks
        self._threads, self._recent, self._catalog, self._stats = threads, recent, catalog, stats
        self._in_flight = InFlight(config.concurrent_tasks)
        self._pace = Pace()
        self._overdue = 0
        self._host = host or OwnLoop()
        self._draining = draining
        self._drained = trio.Event()
        self._version = -1
        """Of the catalog, when it was last heard of."""

        self._learned = trio.Event()

    async def started(self) -> None:
        """Take over the threads of a former life, then read."""
        self._catalog.tell(CatalogAsked())
        self._intake = Intake(
            store=self._store,
            worker=self._identity.key,
            block_ms=self._config.stream_block_ms,
            capacity=self._config.concurrent_tasks,
        )
        self._settlement = Settlement(
            store=self._store,
            worker=self._identity.key,
            stats=self._stats,
            recent=self._recent,
            in_flight=self._in_flight,
            intake=self._intake,
            pace=self._pace,
        )
        await self.context.nursery.start(self._execute)
        for call in self._threads.still_going():
            self._in_flight.add(call.running)
            self._bodies.start_soon(self._rejoin, call)
        if self._draining:
            self._begin_drain()
        if self._config.concurrent_tasks > 0:
            self._bodies.start_soon(self._readers().run)
        self.context.doing(self._doing)

    def _readers(self) -> Readers:
        return Readers(
            config=self._config,
            store=self._store,
            worker=self._identity.key,
            clock=self.context.clock,
            new_id=self.context.new_id,
            tasks=lambda: self._tasks,
            in_flight=self._in_flight,
            intake=self._intake,
            pace=self._pace,
            start=self._start,
        )

    async def _execute(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The reader, the bodies it starts, and the telling of their ends, which goes on until the last has ended."""
        async with trio.open_nursery() as telling:
            telling.start_soon(self._settlement.run)
            try:
                async with trio.open_nursery() as self._bodies:
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                self._settlement.close()

    async def receive(self, message: ConsumerInbox) -> None:
        """Change what is known and who shall stop; the runs themselves are tasks of their own."""
        match message:
            case CatalogRead():
                self._learn(message.tasks)
                self._version = message.version
                self._learned.set()
                self._learned = trio.Event()
            case RunsAsked():
                message.reply.send([(run.run_id, run.claimed.fence) for run in self._in_flight])
            case StopRuns():
                self._stop(message.lost, Stop.LOST)
                self._stop(message.cancelled, Stop.CANCELLED)
            case LeasesInDanger():
                self._stop_all(Stop.DANGER)
            case RunsRemembered():
                message.reply.send(self._remembered(message.sure_until_s))
            case Drain():
                self._begin_drain()
                self.context.nursery.start_soon(self._answer_when_drained, message.reply)
            case _:
                assert_never(message)

    def _learn(self, catalog: Mapping[str, Definition]) -> None:
        """What this process declares it runs by its own code; what was made at run time, if it knows the function."""
        dynamic: dict[str, Task] = {}
        for task_id, definition in catalog.items():
            if definition.dynamic and task_id not in self._declared:
                function = self._functions.get((definition.group, definition.function))
                if function is not None:
                    dynamic[task_id] = Task(definition, function)
        self._tasks = {**dynamic, **self._declared} if dynamic else self._declared

    def _stop(self, members: frozenset[tuple[str, int]], why: Stop) -> None:
        for run_id, fence in members:
            run = self._in_flight.find(run_id, fence)
            if run is None or run.phase is Phase.ENDED or run.asked is why:
                continue
            if run.cancellable:
                log.warning("Run %s is stopped: %s", run_id, why.value)
            else:
                log.warning("Run %s should stop (%s), but its thread cannot be cancelled", run_id, why.value)
            run.tell_to_stop(why)
        self._in_flight.note_change()

    def _stop_all(self, why: Stop) -> None:
        for run in self._in_flight:
            run.tell_to_stop(why)
        self._in_flight.note_change()

    def _remembered(self, sure_until_s: float) -> list[Adoption]:
        ended = self._recent.remembered(now_s=self.context.clock.monotonic(), sure_until_s=sure_until_s)
        return adoptions(self._in_flight, ended, exists=self._tasks, config=self._config)

    # -- running --------------------------------------------------------------------------------------------------

    def _start(self, claimed: Claimed, task: Task, token: str, *, late: bool) -> None:
        run = self._running(claimed, task, token)
        self._in_flight.add(run)
        if late:
            log.warning("Run %s is given back: its claim was answered too late", run.run_id)
            run.tell_to_stop(Stop.DANGER)
        self._bodies.start_soon(self._run, run, name=run.run_id)

    def _running(self, claimed: Claimed, task: Task, token: str) -> Running:
        return Running(
            claimed=claimed,
            task=task,
            hold=Hold(claimed.run_id, claimed.fence, token),
            last_delivery=claimed.deliveries >= max(1, self._config.max_deliveries - 1),
            context=RunContext(
                run_id=claimed.run_id,
                task_id=claimed.task_id,
                group=task.definition.group,
                name=task.definition.name,
                slot_ms=claimed.slot_ms,
                attempt=claimed.attempt,
                fence=claimed.fence,
                worker_id=self._worker_id,
            ),
        )

    async def _run(self, run: Running) -> None:
        """One run, from its claim to its verdict."""
        try:
            if run.last_delivery:
                await self._wait_alone(run)
            if run.claimed.deliveries > 0 and run.stop is None:
                await self._begin(run)
            if run.task.definition.dynamic:
                await self._look_again(run)
            run.started_s = self.context.clock.monotonic()
            run.started_ms = self.context.clock.redis_ms_at(run.started_s)
            end = Stopped() if run.stop is not None else await perform(run, self._threads, self._host)
        except trio.Cancelled:
            if run.cancellable:
                await self._give_back(run)
            raise
        await self._end(run, end)

    async def _rejoin(self, call: ThreadCall) -> None:
        await self._end(call.running, await rejoin(call))

    async def _end(self, run: Running, end: BodyEnd) -> None:
        clock = self.context.clock
        now_s = clock.monotonic()
        duration_s, now_ms = now_s - run.started_s, clock.redis_ms_at(now_s)
        decision = report(run, end, self._config, worker=self._worker_id, duration_s=duration_s, now_ms=now_ms)
        match end:
            case Returned(error) if error is not None:
                name = f"{run.context.group}/{run.context.name}"
                facts = {"run_id": run.run_id, "attempt": run.claimed.attempt}
                log.error("Task %s failed", name, exc_info=exc_info_of(error), extra=facts)
            case TimedOut(None):
                log.error("Task %s/%s timed out", run.context.group, run.context.name)
            case TimedOut(call) if call is not None and isinstance(decision, Completion):
                await self._outlast(run, call, decision)
            case _:
                pass
        match decision:
            case Failure():
                log.info("Run %s is tried again in %.3g s", run.run_id, decision.delay_ms / 1000)
            case Completion() if decision.verdict == Verdict.DEAD.value:
                log.warning("Run %s is dead after %d attempts: %s", run.run_id, run.claimed.attempt, decision.reason)
            case _:
                pass
        run.phase = Phase.ENDED
        self._threads.forget(run)
        self._settlement.add(run, decision, duration_s)

    async def _outlast(self, run: Running, call: ThreadCall, verdict: Completion) -> None:
        """Its time is over: the verdict is written now, and its slot is free when the thread has returned."""
        run.phase = Phase.OVERDUE
        name = f"{run.context.group}/{run.context.name}"
        log.error("Task %s timed out; run %s holds its slot until its thread returns", name, run.run_id)
        self._overdue += 1
        await self._settlement.abandon(verdict)
        await call.done.wait()
        self._overdue -= 1
        log.warning("The thread of run %s, which timed out, has returned", run.run_id)

    async def _look_again(self, run: Running) -> None:
        """A dynamic task may have been removed or made anew before the claim, unheard: run what it is, or nothing.

        What Redis says of the catalog after the claim is waited for; not for longer than a lease.
        """
        version = await insist(self._store.transport, self._store.catalog.version)
        if version > self._version:
            self._catalog.tell(Refresh(version))
            with trio.move_on_after(self._config.run_lease_s):
                while self._version < version and run.stop is None:
                    await self._learned.wait()
        task = self._tasks.get(run.claimed.task_id)
        if task is None or self._version < version:
            run.tell_to_stop(Stop.UNKNOWN)
        else:
            run.task = task

    async def _wait_alone(self, run: Running) -> None:
        """On its last delivery a run may be what kills workers: it waits until no other run could be hurt.

        Not for ever: it is handed back, and kept away from this worker as long as those go on that stood in its way.
        """
        with trio.move_on_after(self._config.run_lease_s * ALONE_WITHIN_LEASES):
            await self._intake.hasten()
            await self._in_flight.wait_until(lambda: run.stop is not None or self._in_flight.is_alone(run))
            return
        self._in_flight.keep_away(run)
        log.warning("Run %s must run alone, and is given back: %s", run.run_id, Stop.CROWDED.value)
        run.tell_to_stop(Stop.CROWDED)

    async def _begin(self, run: Running) -> None:
        """From here on the loss of this worker counts against a run whose workers were lost before."""
        reply = await insist(self._store.transport, lambda: self._store.runs.begin(self._identity.key, run.hold))
        if isinstance(reply, Fenced | Gone):
            run.tell_to_stop(Stop.LOST)

    async def _give_back(self, run: Running) -> None:
        """The Consumer itself ends: this body has ended, and other workers need not wait for the lease."""
        with trio.CancelScope(shield=True), trio.move_on_after(LAST_WORDS_S):
            try:
                # Or the read in progress, which nobody takes note of any more, would get the run.
                await self._store.transport.unblock(Lane.RUNS)
                await self._store.runs.hand_back(self._identity.key, [run.hold])
            except RedisUnavailable:
                log.warning("Run %s could not be handed back; its lease ends it", run.run_id)

    # -- stopping -------------------------------------------------------------------------------------------------

    def _begin_drain(self) -> None:
        if not self._intake.closed:
            self._intake.close()
            self.context.nursery.start_soon(self._drain)

    async def _answer_when_drained(self, reply: Reply[None]) -> None:
        await self._drained.wait()
        reply.send(None)

    async def _drain(self) -> None:
        """Read no more; give runs in progress their time, then hand back what can be cancelled."""
        self._in_flight.note_change()
        with trio.move_on_after(self._config.shutdown_grace):
            if self._config.concurrent_tasks > 0:
                await self._intake.stop_reading()
            await self._in_flight.wait_until(lambda: len(self._in_flight) == 0)
        self._stop_all(Stop.SHUTDOWN)
        with trio.move_on_after(LAST_WORDS_S):
            await self._in_flight.wait_until(lambda: not any(run.cancellable for run in self._in_flight))
        for run in self._in_flight:
            log.warning("Run %s is still going and keeps its lease until this process ends", run.run_id)
        self._drained.set()

    def _doing(self) -> str:
        names = ", ".join(run.claimed.task_id for run in islice(self._in_flight, 5))
        overdue = f", {self._overdue} of them timed out in threads that go on" if self._overdue else ""
        text = f"{len(self._in_flight)}/{self._config.concurrent_tasks} runs{overdue}"
        return f"{text}: {names}" if names else text
