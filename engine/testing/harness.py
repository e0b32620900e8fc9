"""TroupeEngine: what a test holds in its hands."""

from __future__ import annotations

import difflib
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, final

import trio

from engine.domain.task import check_inherited
from engine.errors import EngineStateError, ExtraMissing, NotSettled, RedisUnavailable, UnknownTask
from engine.management import Management, Match
from engine.testing.account import Ledgers
from engine.testing.expectations import wrong_runs, wrong_schedule
from engine.testing.instants import ms_of, zone_of
from engine.testing.process import Process
from engine.testing.schedule import PROCESS
from engine.testing.settings import config_from, loop_of, parts_of, usual_loop
from engine.testing.thread import VirtualThread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from datetime import tzinfo

    from trio.testing import MockClock

    from engine.config import Config
    from engine.domain.group import TaskGroup
    from engine.domain.task import Definition
    from engine.testing.account import Account, Run
    from engine.testing.bodies import Start
    from engine.testing.cluster import Cluster, Member
    from engine.testing.expectations import Instant
    from engine.testing.settings import BodiesOn

__all__ = ["TroupeEngine"]

T = TypeVar("T")

START: Final = "2026-01-01 00:00"
"""When a test begins that does not say: not today, so that it is the same tomorrow."""

PATIENCE_S: Final = 30.0
"""Real seconds: machines of CI stand still at times."""


@final
class TroupeEngine:
    """A cluster of one worker or several, with its Redis, in virtual time: for tests.

    It begins with ``start``, or with the first thing that is asked of it. The actors and the scripts are the real
    ones; only Redis is in this process, and the clock moves when ``advance`` or ``run_due`` move it, from one thing
    that is due to the next. Between two calls nothing happens at all. Tasks are named as ``group/name``.

    Every method may be called in any kind of test and in any thread but that of a task's function.

    Args:
        groups: what ``start`` takes if it is given none: task groups, an Engine or a TaskManager.
    """

    def __init__(self, groups: object = ()) -> None:
        self.given = groups
        """What was given here."""

        self._thread: VirtualThread | None = None
        self._ledgers = Ledgers()
        self._closed = False

    # -- start and end ------------------------------------------------------------------------------------------------

    def start(
        self,
        groups: object = None,
        *,
        start: Instant = START,
        timezone: str = "UTC",
        workers: int = 1,
        seed: int = 0,
        bodies_on: BodiesOn | None = None,
        patience_s: float = PATIENCE_S,
        **settings: Any,
    ) -> None:
        """Begin, at a given instant, with workers that are ready.

        Args:
            groups: task groups, or an Engine or a TaskManager, whose Config is taken over but for where Redis is.
            start: when the virtual clock begins.
            timezone: in which ``start`` is meant, if it does not say, and in which ``now`` is shown.
            workers: how many.
            seed: of all chance (the order of tasks, jitter, ids); the same gives the same, in every session.
            bodies_on: where ``async def`` functions run: ``"trio"``, in virtual time; ``"asyncio"``, in virtual time,
                on a loop of their own; or a loop of asyncio that runs in another thread or is that of the test.
                Without it ``"asyncio"`` for a TaskManager, ``"trio"`` for all else, as in production.
            patience_s: real seconds for which a call may wait for a thread or a socket that does not move.
            settings: of the Config, such as ``concurrent_tasks=1``. The environment is not asked.

        Raises:
            ConfigError: a setting is unknown or out of bounds.
            EngineStateError: it runs already, or has ended.
            ExtraMissing: fakeredis is not installed.
            InvalidInstant: ``start`` or ``timezone`` cannot be understood.
            TaskDeclarationError: a task contradicts what it inherits from the Config.
            TaskTypeError: ``groups`` is none of these.
        """
        given = self.given if groups is None else groups
        found, base = parts_of(given)
        zone = zone_of(timezone)
        self.begin(
            found,
            config_from(base, settings),
            start_ms=ms_of(start, zone),
            zone=zone,
            workers=workers,
            seed=seed,
            bodies_on=usual_loop(given) if bodies_on is None else bodies_on,
            patience_s=patience_s,
        )

    def begin(
        self,
        groups: Sequence[TaskGroup],
        config: Config,
        *,
        start_ms: int,
        zone: tzinfo = UTC,
        workers: int = 1,
        seed: int = 0,
        bodies_on: BodiesOn = "trio",
        patience_s: float = PATIENCE_S,
    ) -> None:
        """As ``start``, with all that is made of what is given there."""
        if self._thread is not None or self._closed:
            why = "it has ended" if self._closed else "it runs already: call start() before anything else, and once"
            raise EngineStateError("start", why)
        for task in (task for group in groups for task in group.declared):
            check_inherited(task.definition, retry_backoff_max=config.retry_backoff_max)
        if find_spec("fakeredis") is None or find_spec("lupa") is None:
            raise ExtraMissing("an engine in virtual time", "testing")
        from engine.testing.cluster import Cluster

        def make(nursery: trio.Nursery, clock: MockClock) -> Cluster:
            loop = loop_of(bodies_on, clock)
            return Cluster(nursery, clock, groups=groups, config=config, start_s=start_ms / 1000, seed=seed, loop=loop)

        self._zone = zone
        self._thread = VirtualThread(make, seed=seed, patience_s=patience_s)
        for _ in range(workers):
            self.start_worker()

    def close(self) -> None:
        """End at once; runs in progress are cancelled. The fixture does this after the test.

        Raises:
            EngineStateError: an actor has failed meanwhile, which is a bug of Troupe; or something goes on.
        """
        thread, self._thread, self._closed = self._thread, None, True
        if thread is None:
            return
        crashes = [str(crash) for member in thread.cluster.members for crash in member.crashes]
        if not thread.close():
            raise EngineStateError("close", "a task's function does not end, though it was cancelled")
        if crashes:
            raise EngineStateError("close", f"actors have failed, which is a bug of Troupe: {'; '.join(crashes)}")

    @property
    def config(self) -> Config:
        """The settings of its workers."""
        return self._running().cluster.config

    @property
    def groups(self) -> tuple[TaskGroup, ...]:
        """What its workers declare."""
        return tuple(self._running().cluster.groups)

    # -- time ---------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The wall clock, in the zone given to ``start``. Also for a task's function, which finds no other."""
        return datetime.fromtimestamp(self._running().cluster.now_ms() / 1000, self._zone)

    def advance(
        self,
        by: timedelta | None = None,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        to: Instant | None = None,
    ) -> list[Run]:
        """Move the clock, and let everything happen that is due meanwhile, up to and with the last instant.

        Give a duration, or with ``to`` an instant, which is meant in the zone given to ``start`` if it does not say.

        Returns:
            The runs, and the slots without one, that got their verdict since the last such call.

        Raises:
            EngineStateError: it would go back.
            NotSettled: a thread or a socket is waited for in vain; time stands still while they are at work.
        """
        thread = self._running()
        given = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds) + (by or timedelta())
        now_ms = thread.cluster.now_ms()
        if to is not None:
            given += timedelta(milliseconds=ms_of(to, self._zone) - now_ms)
        if given < timedelta():
            raise EngineStateError("advance", f"time does not go back, and this is {-given} ago")
        until_s = round(thread.cluster.elapsed_s + given.total_seconds(), 3)
        return self._do("advance", partial(_then_news, lambda cluster: cluster.time.pass_until(until_s), self._ledgers))

    def run_due(self) -> list[Run]:
        """Run what is due at this instant, triggered runs and retries included, until none is queued or in progress.

        The clock moves only as far as the functions take time. Retries that are due later are not waited for.

        Returns:
            As ``advance``.

        Raises:
            NotSettled: a run does not end within a day of virtual time, or nobody is there to run it.
        """
        return self._do("run_due", partial(_then_news, _until_no_runs, self._ledgers))

    def sleep(self, seconds: float) -> None:
        """For a ``def`` function, in the place of ``time.sleep``: wait in virtual time. Elsewhere use ``trio.sleep``.

        Raises:
            EngineStateError: not in the thread of a task's function.
        """
        thread, process = self._running(), PROCESS.get()
        if not isinstance(process, Process) or threading.current_thread() is thread.thread:
            raise EngineStateError("sleep", "it is for a task's def function; a test calls advance()")
        bodies = thread.cluster.bodies

        async def rest() -> None:
            bodies.resting.append(process)
            try:
                await trio.sleep(seconds)
            finally:
                bodies.resting.remove(process)

        try:
            trio.from_thread.run(rest)
        finally:
            if process.dead:
                threading.Event().wait()  # its worker was killed: nothing of it runs again

    # -- workers and Redis --------------------------------------------------------------------------------------------

    @property
    def workers(self) -> list[str]:
        """The workers that live, the oldest first."""
        return [member.name for member in self._running().cluster.alive]

    @property
    def leader(self) -> str | None:
        """The worker that leads."""
        found = self._running().cluster.leader
        return found.name if found is not None else None

    def start_worker(self, **settings: Any) -> str:
        """Start one more worker, with settings of its own; how it is called."""
        config = config_from(self.config, settings) if settings else None

        async def join(cluster: Cluster) -> str:
            return (await cluster.join(config)).name

        return self._do("start_worker", join)

    def stop_worker(self, worker: str | None = None) -> None:
        """Stop a worker in order: its runs get ``shutdown_grace``, then they are handed back. Which: see below.

        Raises:
            EngineStateError: there is no such worker, or there are several and none is named.
        """
        member = self._member("stop_worker", worker)
        self._do("stop_worker", lambda cluster: cluster.leave(member))

    def kill_worker(self, worker: str | None = None) -> None:
        """End a worker as SIGKILL does: no line of it is executed any more. Others notice when its leases end.

        Raises:
            EngineStateError: there is no such worker, or there are several and none is named.
        """
        member = self._member("kill_worker", worker)

        async def die(cluster: Cluster) -> None:
            member.die()
            await cluster.time.settle()

        self._do("kill_worker", die)

    def stop_redis(self) -> None:
        """Have Redis be away, with all its data kept, until ``start_redis``."""
        self._do("stop_redis", partial(_switch, up=False))

    def start_redis(self) -> None:
        """Have Redis be there again."""
        self._do("start_redis", partial(_switch, up=True))

    # -- tasks --------------------------------------------------------------------------------------------------------

    def trigger(self, task: str, *, force: bool = False) -> str:
        """Queue a run now, beside the schedule; its id. What can happen at this instant has happened on return.

        Raises:
            NothingTriggered: the task is paused (``force`` passes that), overlaps itself, or its queue is full.
            RedisUnavailable: after ``stop_redis``.
            UnknownTask: there is no such task.
        """
        match = self._match(task)
        triggered = self._do(
            "trigger", partial(_manage, lambda management: management.trigger(match, who="test", force=force))
        )
        [(_, run_id)] = triggered.runs
        return run_id

    def pause(self, task: str) -> None:
        """Keep a task from running until ``resume``. Raises UnknownTask and RedisUnavailable, as ``trigger``."""
        match = self._match(task)
        self._do("pause", partial(_manage, lambda management: management.pause(match, who="test")))

    def resume(self, task: str) -> None:
        """End the pause of a task. Raises as ``pause``."""
        match = self._match(task)
        self._do("resume", partial(_manage, lambda management: management.resume(match, who="test")))

    def runs(self, task: str) -> list[Run]:
        """All its runs, and slots without one, the oldest first; those that have no verdict yet come last."""
        return list(self._account(task).runs)

    def verdicts(self, task: str) -> list[str]:
        """The verdicts of its runs and slots, the oldest first."""
        return [run.verdict for run in self._account(task).runs if run.verdict is not None]

    def next_due(self, task: str) -> datetime | None:
        """When its next slot is due, in the task's zone; None when none is."""
        account = self._account(task)
        if account.next_ms is None:
            return None
        return datetime.fromtimestamp(account.next_ms / 1000, zone_of(account.task.timezone))

    def starts(self, task: str) -> list[Start]:
        """Each start of its function, with run, attempt, fence and worker."""
        wanted = self._definition(task).id
        return [start for start in self._running().cluster.bodies.starts if start.task_id == wanted]

    def report(self, task: str) -> str:
        """All that is known of a task, as text: what a failing assertion shows."""
        return self._account(task).report()

    # -- assertions ---------------------------------------------------------------------------------------------------

    def assert_ran(
        self,
        task: str,
        *,
        times: int | None = None,
        at: Instant | Iterable[Instant] | None = None,
        verdict: str = "ran",
        reason: str | None = None,
    ) -> None:
        """Fail unless the task got this verdict: at least once, or just so many times, or for just these slots.

        Args:
            task: which task.
            times: how often, since the start; of slots that were passed over together each counts.
            at: a slot or several, in the task's zone if they do not say.
            verdict: ``ran``, ``failed``, ``dead``, ``skipped`` or ``missed``.
            reason: such as ``overlap``, ``timed out``, ``paused``, ``max_retries``.

        Raises:
            AssertionError: says what happened instead.
            InvalidExpectation, InvalidInstant: this can never be.
            UnknownTask: there is no such task.
        """
        __tracebackhide__ = True
        wrong = wrong_runs(self._account(task), times=times, at=at, verdict=verdict, reason=reason)
        if wrong is not None:
            raise AssertionError(wrong)

    def assert_scheduled(
        self,
        task: str,
        *,
        next: Instant | None = None,  # noqa: A002  # how a test reads
        count: int | None = None,
        until: Instant | None = None,
    ) -> None:
        """Fail unless the task has a slot to come and is not paused; its next one, or how many there are.

        Args:
            task: which task.
            next: when its next slot is due, in the task's zone if it does not say.
            count: how many slots there are from now on to ``until``, both included.
            until: see ``count``.

        Raises:
            AssertionError: says what is scheduled instead.
            InvalidExpectation, InvalidInstant: this can never be.
            UnknownTask: there is no such task.
        """
        __tracebackhide__ = True
        wrong = wrong_schedule(self._account(task), next_at=next, count=count, until=until)
        if wrong is not None:
            raise AssertionError(wrong)

    def run_async(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Call an ``async def`` function of the test's own where those of tasks run, and wait for it.

        For what belongs to their loop: a connection pool that a task uses, a query through it.

        Raises:
            EngineStateError: called on that very loop.
            NotSettled: as ``advance``.
        """
        return self._do("run_async", lambda cluster: cluster.run_async(partial(function, *args)))

    def perform(self, operation: Callable[[Cluster], Awaitable[T]]) -> T:
        """For what this class does not offer: do something in the trio run of the cluster, whose parts are not public.

        Raises:
            EngineStateError: called by a task's function.
            NotSettled: it waits for something that does not move.
        """
        return self._do("perform", operation)

    def _do(self, name: str, operation: Callable[[Cluster], Awaitable[T]]) -> T:
        return self._running().call(operation, name=name)

    # -- what all of them need ----------------------------------------------------------------------------------------

    def _running(self) -> VirtualThread:
        if self._thread is None:
            self.start()
        return cast("VirtualThread", self._thread)

    def _definition(self, task: str) -> Definition:
        known = self._do("_definition", self._ledgers.definitions)
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known)) or 'none'}"
            raise UnknownTask(task, "name", f"no such task; {meant}")
        return known[task]

    def _match(self, task: str) -> Match:
        definition = self._definition(task)
        return Match(group=definition.group, name=definition.name)

    def _account(self, task: str) -> Account:
        definition = self._definition(task)
        return self._do("_account", lambda cluster: self._ledgers.account(cluster, definition))

    def _member(self, operation: str, worker: str | None) -> Member:
        alive = self._running().cluster.alive
        found = [member for member in alive if worker in {None, member.name}]
        if len(found) != 1:
            names = ", ".join(member.name for member in alive) or "none"
            raise EngineStateError(operation, f"name one of the workers that live: {names}")
        return found[0]


async def _then_news(move: Callable[[Cluster], Awaitable[object]], ledgers: Ledgers, cluster: Cluster) -> list[Run]:
    """Move the clock; what has got its verdict since the last time."""
    await move(cluster)
    return await ledgers.news(cluster)


async def _until_no_runs(cluster: Cluster) -> None:
    if cluster.has_runs() and not cluster.alive:
        raise NotSettled("a run is queued", "there is no worker; start one with start_worker()")
    await cluster.time.pass_until(cluster.elapsed_s + LONGEST_RUN_S, enough=lambda: not cluster.has_runs())
    if cluster.has_runs():
        raise NotSettled("a run is queued or in progress", "it did not end within a day of virtual time")


async def _switch(cluster: Cluster, *, up: bool) -> None:
    if up:
        cluster.regain_redis()
    else:
        cluster.lose_redis()
    await cluster.time.settle()


async def _manage(operation: Callable[[Management], Awaitable[T]], cluster: Cluster) -> T:
    if cluster.redis_away:
        raise RedisUnavailable("the test has stopped it")
    return await cluster.perform(lambda: operation(cluster.management))


LONGEST_RUN_S: Final = 86_400.0
"""How long a run may take in virtual time."""
