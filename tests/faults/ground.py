"""Where faults are injected.

One Redis, worker processes that each reach it through a proxy of their own, and a log of what was done to them.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import trio

from engine.errors import RedisUnavailable
from tests.faults.facts import facts
from tests.faults.oracle import Evidence, Outage
from tests.faults.wire import Exchange, Tap, Trap
from tests.store.proxy import Proxy
from tests.store.servers import RedisServer, find_binary
from tests.system.cluster import Cluster, Effect, View, Worker, eventually, look_at
from tests.system.worker import GROUP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
    from pathlib import Path

    from engine.address import Address
    from tests.faults.facts import Fact

HEARTBEAT_S: Final = 0.8
LEASE_S: Final = 3 * HEARTBEAT_S
"""Of leaders and of runs: long enough that a busy machine does not let one end, short enough to wait for many."""

CONFIG: Final[dict[str, Any]] = {
    "leader_heartbeat_interval": HEARTBEAT_S,
    "leader_retry_interval": HEARTBEAT_S,
    "running_heartbeat_interval": HEARTBEAT_S,
    "reconciliation_interval": 1,
    "concurrent_tasks": 8,
    "shutdown_grace": 15,
}
JUST_S: Final = 20.0
"""What was going on so long ago may be waited for."""

LIMIT_S: Final = 60.0
"""For what takes a few leases."""


def task(name: str, cron: str = "* * * * * *", *, seconds: float = 0.2, **options: Any) -> dict[str, Any]:
    """A task whose body takes so long."""
    return {"name": name, "expression": cron, "seconds": seconds, **options}


LOAD: Final = (
    *(task(f"tick-{number}") for number in range(3)),
    task("pair", "*/2 * * * * *", seconds=1.0),
    task("long", "*/4 * * * * *", seconds=1.5 * LEASE_S),
    task("thread", "*/4 * * * * *", seconds=1.5 * LEASE_S, thread=True),
)
"""Short runs, runs longer than a lease, on the loop and in threads: 4 slots a second, all of which may overlap."""


@final
@dataclass(eq=False)
class Member:
    """A worker process and its way to Redis."""

    worker: Worker
    proxy: Proxy
    tap: Tap
    tasks: Sequence[dict[str, Any]]
    _read_bytes: int = 0
    _effects: list[Effect] = field(default_factory=list)

    def effects(self) -> list[Effect]:
        """What its tasks have done so far: only what is new is read, since many wait for that."""
        if self.worker.effects_path.exists():
            with self.worker.effects_path.open("rb") as log:
                log.seek(self._read_bytes)
                whole = log.read().rpartition(b"\n")[0]
            if whole:
                self._read_bytes += len(whole) + 1
                self._effects += [Effect(**json.loads(line)) for line in whole.splitlines()]
        return self._effects

    @property
    def pid(self) -> int:
        return self.worker.pid

    @property
    def alive(self) -> bool:
        return self.worker.program.process.poll() is None


@final
@dataclass(eq=False)
class Ground:
    """One application under one fault."""

    cluster: Cluster
    nursery: trio.Nursery
    tasks: Sequence[dict[str, Any]] = LOAD
    config: dict[str, Any] = field(default_factory=dict)
    record: list[Exchange] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    died_s: dict[int, float] = field(default_factory=dict)
    forgot_s: list[float] = field(default_factory=list)
    """When Redis lost what it had acknowledged, or was there again after that."""

    shared: Sequence[Proxy] = ()
    """In front of servers that tell their clients where to go; then no worker has a proxy of its own."""

    topology: object = None
    fronts: object = None
    """Servers that belong together, and the proxies in front of them, where there are several."""

    paused_s: float = 0.0
    """When a task was paused."""

    gone: set[str] = field(default_factory=set)
    """Tasks that are not scheduled any longer."""

    injected: int = 0

    view: View = field(init=False)

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member.alive]

    # -- workers ----------------------------------------------------------------------------------------------------

    async def worker(
        self,
        *,
        tasks: Sequence[dict[str, Any]] | None = None,
        env: dict[str, str] | None = None,
        **config: Any,
    ) -> Member:
        """Start a worker with these tasks, those of the ground by default; returns at once."""
        name = f"worker-{len(self.members) + 1}"
        tap = Tap(name, self.record)
        proxy = Proxy(self.server_address, listener=tap.connect)
        url = self.cluster.redis_url
        if not self.shared:
            await self.nursery.start(proxy.run)
            url = f"redis://127.0.0.1:{proxy.port}"
        chosen = self.tasks if tasks is None else tasks
        effects = self.cluster.directory / f"{name}.effects"
        settings = {**CONFIG, **self.config, **config}
        spec = {
            "config": {"redis_url": url, "redis_key_prefix": self.cluster.prefix, **settings},
            "effects": str(effects),
            "group": GROUP,
            "tasks": chosen,
        }
        command = (sys.executable, "-m", "tests.system.worker", json.dumps(spec))
        program = self.cluster.program(*command, name=name, **(env or {}))  # type: ignore[arg-type]
        member = Member(Worker(program, effects), proxy, tap, chosen)
        self.cluster.workers.append(member.worker)
        self.members.append(member)
        return member

    async def workers(self, count: int, **options: Any) -> list[Member]:
        """Start so many, and wait until they are there."""
        started = [await self.worker(**options) for _ in range(count)]
        if started:
            await self.view.present(*(member.worker for member in started))
        return started

    async def restore(self, count: int) -> None:
        """Start workers in place of those that are gone, up to that number."""
        await self.workers(count - len(self.alive))

    async def leader(self) -> Member:
        """Who leads now, when somebody does. The seat of one that was killed is taken for a lease still."""

        async def found() -> list[Member]:
            worker = await self.view.leader()
            return [member for member in self.alive if member.worker is worker]

        return (await eventually(found, "a worker that is alive leads", limit_s=LIMIT_S))[0]

    async def follower(self) -> Member:
        """One that does not lead: the oldest, so that all have their turn."""
        leader = await self.leader()
        return next(member for member in self.alive if member is not leader)

    @property
    def server(self) -> RedisServer:
        return self.cluster.server

    @property
    def server_address(self) -> Address:
        return self.server.tcp

    # -- faults -----------------------------------------------------------------------------------------------------

    def kill(self, member: Member) -> None:
        """SIGKILL."""
        member.worker.program.kill()
        self.died_s[member.pid] = time.monotonic()

    def note_deaths(self) -> None:
        """Processes may end by themselves: soon after that, this says when."""
        for member in self.members:
            if not member.alive:
                self.died_s.setdefault(member.pid, time.monotonic())

    @contextmanager
    def outage(self, member: Member | None = None) -> Iterator[None]:
        """What happens in this block keeps that worker, or every one, from Redis."""
        from_s = time.monotonic()
        number = len(self.outages)
        pid = None if member is None else member.pid
        self.outages.append(Outage(pid, from_s, float("inf")))
        try:
            yield
        finally:
            self.outages[number] = Outage(pid, from_s, time.monotonic())

    async def stop_for(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        with self.outage(member):
            member.worker.signal(signal.SIGSTOP)
            try:
                await trio.sleep(seconds)
            finally:
                member.worker.signal(signal.SIGCONT)

    async def spring(self, member: Member, trap: Trap, *, limit_s: float = LIMIT_S) -> Exchange:
        """Wait until that worker has stepped into the trap."""
        member.tap.set(trap)
        with trio.fail_after(limit_s):
            await trap.sprung.wait()
        assert trap.caught is not None
        return trap.caught

    async def lose(self, member: Member, trap: Trap) -> None:
        """What the trap holds is lost, with its connection."""
        await member.proxy.cut()
        trap.drop()

    async def start_redis(self) -> None:
        """Start it again as it was."""
        await trio.to_thread.run_sync(self.server.start)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def facts_since(self, since_s: float) -> list[Fact]:
        """What Redis has said about commands that were sent after that instant."""
        return facts(exchange for exchange in self.record if exchange.sent_s >= since_s)

    async def flowing(self, *, limit_s: float = LIMIT_S) -> None:
        """Wait until two slots that were published from now on have their verdicts."""
        since_s = time.monotonic()

        async def flows() -> bool:
            found = self.facts_since(since_s)
            published = {fact.id for fact in found if fact.kind == "published"}
            return len(published & {fact.id for fact in found if fact.kind == "ended"}) >= 2

        await eventually(flows, "slots are published and have verdicts again", limit_s=limit_s)

    async def ended(self, run_ids: Iterable[str], *, limit_s: float = LIMIT_S) -> None:
        """Wait until these runs have their verdicts."""
        wanted, since_s = set(run_ids), time.monotonic() - JUST_S

        async def over() -> bool:
            return wanted <= {fact.id for fact in self.facts_since(since_s) if fact.kind in ("ended", "passed")}

        await eventually(over, f"{sorted(wanted)} have verdicts", limit_s=limit_s)

    async def in_body(self, member: Member, *, limit_s: float = LIMIT_S) -> Effect:
        """Wait until that worker has begun a run from now on, which goes on."""
        since_s = time.monotonic()

        async def begun() -> list[Effect]:
            return [effect for effect in in_progress(member) if effect.at_s >= since_s]

        return (await eventually(begun, f"{member.worker.name} has begun a run", limit_s=limit_s))[0]

    async def at_work(self, *task_ids: str) -> tuple[Member, list[Effect]]:
        """Wait for a worker that has begun runs of all these tasks within the last two seconds; gives them too."""

        def begun(member: Member) -> list[Effect]:
            since_s = time.monotonic() - 2
            return [e for e in in_progress(member) if e.run.partition("@")[0] in task_ids and e.at_s > since_s]

        async def found() -> list[tuple[Member, list[Effect]]]:
            of = {member: begun(member) for member in self.alive}
            return [(m, runs) for m, runs in of.items() if {e.run.partition("@")[0] for e in runs} == set(task_ids)]

        return (await eventually(found, f"a worker has runs of {task_ids} in progress", limit_s=LIMIT_S))[0]

    # -- the end ----------------------------------------------------------------------------------------------------

    async def settle(self) -> int:
        """Nothing is wrong any longer: wait until every slot up to now has been dealt with. Gives the instant, ms."""
        for member in self.members:
            member.tap.clear()
            member.proxy.to_client.go_on()
            member.proxy.to_server.go_on()
        now_ms = await eventually(self.view.store.leases.redis_ms, "Redis answers", limit_s=LIMIT_S)
        until_ms = (now_ms // 1000 + 1) * 1000
        task_ids = [task_id for task_id in self.crons() if task_id not in self.gone]

        async def dealt_with() -> bool:
            due = await self.view.store.timetable.tasks()
            if any(due.get(task_id, 0) < until_ms for task_id in task_ids):
                return False
            for task_id in task_ids:
                for run_id in await self.view.store.runs.live(task_id):
                    suffix = run_id.rpartition("@")[2]
                    if not suffix.isdecimal() or int(suffix) < until_ms:
                        return False
            return True

        await eventually(dealt_with, "every slot has been dealt with", limit_s=LIMIT_S)
        return until_ms

    def crons(self) -> dict[str, str]:
        """Task id -> expression."""
        return {f"{GROUP}/{one['name']}": one["expression"] for one in self.tasks}

    async def evidence(self, until_ms: int) -> Evidence:
        """All that is known, when the workers have stopped."""
        crons, ledgers, unfinished = self.crons(), {}, set[str]()
        for task_id in crons:
            ledgers[task_id] = await eventually_list(self.view, task_id)
            unfinished |= (await self.view.store.runs.live(task_id)).keys()
        return Evidence(
            lease_s=LEASE_S,
            crons=crons,
            until_ms=until_ms,
            effects=self.cluster.effects(),
            exchanges=list(self.record),
            ledgers=ledgers,
            unfinished=frozenset(unfinished),
            outages=list(self.outages),
            died_s=dict(self.died_s),
        )

    async def stop_workers(self) -> None:
        """SIGTERM all, and see that they end gracefully."""
        alive = [member.worker for member in self.alive]
        if alive:
            await self.cluster.stop(*alive)


def in_progress(member: Member) -> list[Effect]:
    """Bodies that have begun at a worker and not ended."""
    effects = member.effects()
    over = {(e.run, e.fence) for e in effects if e.event != "start"}
    return [e for e in effects if e.event == "start" and (e.run, e.fence) not in over]


async def eventually_list(view: View, task_id: str) -> Any:
    """The verdicts of a task, however often the link of the test has to connect again."""
    while True:
        try:
            return await view.verdicts(task_id)
        except RedisUnavailable:
            await trio.sleep(0.05)


@asynccontextmanager
async def one_redis(directory: Path, *options: str, folder: Path | None = None) -> AsyncIterator[RedisServer]:
    """A server of 7.0, for the block."""
    place = folder or directory / "redis"
    place.mkdir(parents=True, exist_ok=True)
    server = RedisServer(find_binary("7.0"), place, options)
    try:
        await trio.to_thread.run_sync(server.start)
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def ground_on(
    server: RedisServer, directory: Path, *, redis_url: str = "", shared: Sequence[Proxy] = (), **options: Any
) -> AsyncIterator[Ground]:
    """A ground whose processes end with the block."""
    cluster = Cluster(server, directory, prefix="faults", redis_url=redis_url or f"redis://127.0.0.1:{server.port}")
    try:
        async with trio.open_nursery() as nursery, look_at(cluster) as view:
            found = Ground(cluster, nursery, shared=shared, **options)
            found.view = view
            yield found
            nursery.cancel_scope.cancel()
    finally:
        for program in cluster.programs:
            program.kill()
