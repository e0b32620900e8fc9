"""A cluster for tests: one Redis, and workers that are processes, which a test signals, kills and reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

import trio

from engine.config import Config, address_of
from engine.errors import RedisUnavailable
from engine.store.keys import Keys
from engine.store.link import Link
from engine.store.store import Store
from tests.store.servers import NoSuchServer, RedisServer, find_binary
from tests.system.worker import GROUP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from engine.store.leases import Presence
    from engine.store.ledger import LedgerEntry

ROOT: Final = Path(__file__).parents[2]
TROUPE: Final = str(Path(sys.executable).with_name("troupe"))
"""The command, as installed beside this interpreter."""
PATIENCE_S: Final = 30.0
"""For what takes a second or two on an idle machine."""

EVERY_SECOND: Final = "* * * * * *"
YEARLY: Final = "0 0 1 1 *"
ONCE: Final[dict[str, Any]] = {"expression": YEARLY, "run_on_first_start": True}
"""A task that runs as soon as somebody leads, and then not before New Year."""

QUICK: Final[dict[str, Any]] = {
    "leader_heartbeat_interval": 0.5,
    "leader_retry_interval": 0.5,
    "running_heartbeat_interval": 0.3,
    "reconciliation_interval": 0.5,
    "concurrent_tasks": 4,
}
"""Settings with short leases, so that tests need not wait for long ones."""

T = TypeVar("T")


async def eventually(condition: Callable[[], Awaitable[T]], what: str, *, limit_s: float = PATIENCE_S) -> T:
    """The first answer that is true; meanwhile Redis may be away. Fails after ``limit_s``, saying ``what``."""
    with trio.move_on_after(limit_s):
        while True:
            with suppress(RedisUnavailable):
                if answer := await condition():
                    return answer
            await trio.sleep(0.02)
    raise AssertionError(f"not within {limit_s:g} s: {what}")


def say(text: str) -> None:
    """Print figures; pytest shows them with -s, and when a test fails."""
    sys.stdout.write(f"{text}\n")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TROUPE_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


@final
@dataclass(frozen=True, slots=True)
class Effect:
    """One line of an effect log. ``at_s`` is the monotonic clock that all processes of a machine share."""

    event: str
    run: str
    slot_ms: int | None
    fence: int
    attempt: int
    pid: int
    at_s: float
    wall_s: float


@final
@dataclass(frozen=True, slots=True)
class Figures:
    """What a worker has sent and used by then."""

    at_s: float
    wall_s: float
    commands_sent: int
    cpu_s: float


@final
@dataclass(eq=False)
class Program:
    """A process of a test, with its output in a file."""

    command: Sequence[str]
    directory: Path
    name: str
    env: dict[str, str] = field(default_factory=environment)
    cwd: Path = ROOT

    def __post_init__(self) -> None:
        with self.log_path.open("wb") as output:
            self.process = subprocess.Popen(
                self.command, cwd=self.cwd, env=self.env, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.name}.log"

    def log(self) -> str:
        """All that it has written to standard output and standard error so far."""
        return self.log_path.read_text()

    def lines(self, text: str) -> list[str]:
        """The lines of its log that contain ``text``."""
        return [line for line in self.log().splitlines() if text in line]

    async def logged(self, text: str) -> None:
        """Wait until its log contains ``text``."""

        async def found() -> bool:
            return text in self.log()

        await eventually(found, f"{self.name} logs {text!r}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, *, limit_s: float = PATIENCE_S) -> int:
        """Wait for its end; the exit code, negative for the signal that killed it."""

        async def gone() -> bool:
            return self.process.poll() is not None

        await eventually(gone, f"{self.name} ends", limit_s=limit_s)
        return int(self.process.returncode)

    def kill(self) -> None:
        """End it at once, stopped or not. Harmless when it has ended."""
        self.process.kill()
        self.process.wait(timeout=PATIENCE_S)


@final
@dataclass(eq=False)
class Worker:
    """A process that runs ``tests.system.worker``."""

    program: Program
    effects_path: Path

    @property
    def pid(self) -> int:
        return self.program.pid

    @property
    def name(self) -> str:
        return self.program.name

    def signal(self, number: signal.Signals) -> None:
        self.program.signal(number)

    def effects(self) -> list[Effect]:
        """What its tasks have done so far, in order."""
        return [Effect(**line) for line in self._lines() if line["event"] != "figures"]

    def figures(self) -> list[Figures]:
        """What it has sent and used, by each time at which it wrote that down."""
        found = [line for line in self._lines() if line["event"] == "figures"]
        return [Figures(line["at_s"], line["wall_s"], line["commands_sent"], line["cpu_s"]) for line in found]

    def _lines(self) -> list[dict[str, Any]]:
        if not self.effects_path.exists():
            return []
        return [
            json.loads(line) for line in self.effects_path.read_text().splitlines(keepends=True) if line[-1] == "\n"
        ]


@final
@dataclass(eq=False)
class Cluster:
    """One Redis, one prefix, and the processes that a test started on them."""

    server: RedisServer
    directory: Path
    prefix: str = "cluster"
    redis_url: str = ""
    """Where workers find Redis, if that is not simply the server."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of all workers, and of whoever looks."""

    workers: list[Worker] = field(default_factory=list)
    programs: list[Program] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.redis_url or f"unix://{self.server.path}"

    def store(self) -> tuple[Link, Store]:
        """A store over a link that the caller runs."""
        address = address_of(Config(redis_url=self.url, **self.settings))
        link = Link(address, name="test", key=Keys(self.prefix).tag)
        return link, Store.over(link, prefix=self.prefix)

    # -- processes --------------------------------------------------------------------------------------------------

    def program(self, *command: str, name: str, cwd: Path = ROOT, **env: str) -> Program:
        """Start a process of any kind."""
        started = Program(command, self.directory, name, environment(**env), cwd)
        self.programs.append(started)
        return started

    def worker(
        self, *tasks: dict[str, Any], group: str = GROUP, figures_every_s: float | None = None, **config: Any
    ) -> Worker:
        """Start a worker with these tasks (see ``worker.make_engine``) and settings."""
        name = f"worker-{len(self.workers) + 1}"
        effects = self.directory / f"{name}.effects"
        spec: dict[str, Any] = {
            "config": {"redis_url": self.url, "redis_key_prefix": self.prefix, **self.settings, **config},
            "effects": str(effects),
            "group": group,
            "tasks": tasks,
        }
        if figures_every_s is not None:
            spec["figures_every_s"] = figures_every_s
        program = self.program(sys.executable, "-m", "tests.system.worker", json.dumps(spec), name=name)
        worker = Worker(program, effects)
        self.workers.append(worker)
        return worker

    async def stop(self, *workers: Worker) -> None:
        """SIGTERM these workers, all by default, and see that they end gracefully."""
        chosen = workers or self.workers
        for worker in chosen:
            worker.signal(signal.SIGTERM)
        for worker in chosen:
            code = await worker.program.ended()
            assert code == 0, f"{worker.name} ended with {code}"

    def close(self) -> None:
        """Kill whatever is left, and show the logs (pytest does only when a test has failed)."""
        for program in self.programs:
            program.kill()
            say(f"--- {program.name}, exit code {program.process.returncode}\n{program.log()}")
        self.server.kill()

    # -- what they did ----------------------------------------------------------------------------------------------

    def effects(self) -> list[Effect]:
        """What the tasks of all workers have done so far, by time."""
        return sorted((effect for worker in self.workers for effect in worker.effects()), key=lambda e: e.at_s)

    def starts(self, run_id: str | None = None) -> list[Effect]:
        return [e for e in self.effects() if e.event == "start" and run_id in {None, e.run}]

    def ends(self, run_id: str | None = None) -> list[Effect]:
        return [e for e in self.effects() if e.event == "end" and run_id in {None, e.run}]

    async def started(self, worker: Worker, run_id: str | None = None) -> Effect:
        """Wait until that worker has started that run, any by default; the first such start."""

        async def found() -> list[Effect]:
            return [e for e in worker.effects() if e.event == "start" and run_id in {None, e.run}]

        return (await eventually(found, f"{worker.name} starts {run_id or 'a run'}"))[0]


@final
@dataclass(eq=False)
class View:
    """The cluster as Redis shows it."""

    cluster: Cluster
    store: Store

    async def presences(self) -> dict[int, Presence]:
        """By process id."""
        return {found.account().pid: found for found in await self.store.leases.workers()}

    async def present(self, *workers: Worker) -> None:
        """Wait until these workers, all by default, have said that they are there."""
        wanted = {worker.pid for worker in workers or self.cluster.workers}

        async def there() -> bool:
            return wanted <= (await self.presences()).keys()

        await eventually(there, f"{len(wanted)} worker(s) are present")

    async def leader(self) -> Worker | None:
        """The worker that leads now."""
        key = await self.store.election.leader()
        pids = [pid for pid, found in (await self.presences()).items() if found.worker == key]
        return next((worker for worker in self.cluster.workers if worker.pid in pids), None)

    async def some_leader(self, *, other_than: Worker | None = None) -> Worker:
        """Wait until somebody leads."""

        async def found() -> Worker | None:
            leader = await self.leader()
            return None if leader is other_than else leader

        leader = await eventually(found, "somebody leads")
        assert leader is not None
        return leader

    async def epoch(self) -> int:
        """Of the newest leader: the Redis time in ms at which it was elected, unless that had gone back."""
        return int(await self.query("GET", self.store.keys.epoch))

    async def query(self, *command: str | int) -> Any:
        """For what no operation of the store tells."""
        return await self.store.transport.commands.execute_command(*command)

    async def verdicts(self, task_id: str) -> list[LedgerEntry]:
        """What became of a task's slots and runs, the oldest first."""
        return await self.store.ledger.all(task_id)

    async def settled(self, task_id: str, *, count: int = 1, limit_s: float = PATIENCE_S) -> list[LedgerEntry]:
        """Wait for at least ``count`` verdicts of a task."""

        async def enough() -> list[LedgerEntry]:
            found = await self.verdicts(task_id)
            return found if len(found) >= count else []

        return await eventually(enough, f"{task_id} has {count} verdict(s)", limit_s=limit_s)


@asynccontextmanager
async def look_at(cluster: Cluster) -> AsyncIterator[View]:
    """A view of the cluster, over a connection of its own."""
    link, store = cluster.store()
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        await link.wait_up()
        yield View(cluster, store)
        nursery.cancel_scope.cancel()


def any_redis(directory: Path, *options: str, series: str = "") -> RedisServer:
    """A server of this test's own: of that series, else 7.0 from PATH, else the bundled 6.2."""
    try:
        binary = find_binary(series or "7.0")
    except NoSuchServer:
        if series:
            raise
        binary = find_binary("6.2")
    directory.mkdir(exist_ok=True)
    return RedisServer(binary, directory, options).start()


def slots(entries: Iterable[LedgerEntry]) -> Counter[int]:
    """How many verdicts each slot of an every-second task has; entries about several slots are spread out."""
    found: Counter[int] = Counter()
    for entry in entries:
        assert entry.from_ms is not None
        assert entry.to_ms is not None
        covered = range(entry.from_ms, entry.to_ms + 1, 1000)
        assert len(covered) == entry.count, f"{entry} covers {len(covered)} slots"
        found.update(covered)
    return found


def assert_one_verdict_each(entries: Iterable[LedgerEntry]) -> Counter[int]:
    """From the first slot to the last no second is without a verdict, and none has two."""
    found = slots(entries)
    assert found, "there is no verdict"
    missing = [slot for slot in range(min(found), max(found), 1000) if slot not in found]
    doubled = [slot for slot, count in found.items() if count != 1]
    assert not missing, f"slots without a verdict: {missing}"
    assert not doubled, f"slots with several verdicts: {doubled}"
    return found


def assert_never_at_once(effects: Iterable[Effect]) -> None:
    """No run was started while an earlier start of it had neither ended nor been cancelled."""
    of_run: dict[str, list[Effect]] = defaultdict(list)
    for effect in sorted(effects, key=lambda e: e.at_s):
        of_run[effect.run].append(effect)
    for run, story in of_run.items():
        assert story[0].event == "start", f"{run}: {story}"
        for before, after in pairwise(story):
            assert (before.event == "start") != (after.event == "start"), f"{run} was doubled: {before}, then {after}"
