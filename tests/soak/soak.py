"""A soak: workers on one Redis run a schedule for a while, one of them is killed every 20 s, and nothing may be lost.

    python -m tests.soak --minutes 30

500 every-second tasks, four workers. Two are killed in turn, and others take their places; two stay, so that their
memory can be watched. Prints a line a minute and a summary; exits with 1 if something was lost or doubled, or memory
grew.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import trio

from engine.domain.names import task_id
from engine.errors import RedisUnavailable
from tests.soak.judge import Judge, Limit, Memory
from tests.soak.worker import BODY_S, EFFECT, GROUP, START
from tests.system.cluster import Cluster, Program, any_redis, eventually, look_at, say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.cluster import View

KILL_EVERY_S: Final = 20.0
LOOK_EVERY_S: Final = 5.0
QUIET_AT_END_S: Final = 15.0
"""Nobody is killed so shortly before the end: what a killed worker had is taken over within a few seconds."""

OPEN_MS: Final = 60_000
"""A slot is judged when it is so old: its run may have been lost and taken over meanwhile, several times."""

LEDGER_LENGTH: Final = 100
"""Verdicts kept for each task: full after two or three minutes, and read long before they are trimmed."""

LEAST_RAN: Final = 0.5
"""Of all slots. A machine that runs fewer is not loaded as was meant, but overwhelmed."""

SETTINGS: Final[dict[str, Any]] = {
    "redis_key_prefix": "soak",
    "concurrent_tasks": 100,
    "queue_cap": 20_000,
    "ledger_length": LEDGER_LENGTH,
    "leader_heartbeat_interval": 1.0,
    "leader_retry_interval": 1.0,
    "running_heartbeat_interval": 1.0,
    "reconciliation_interval": 5.0,
    "shutdown_grace": 20.0,
}


@final
@dataclass(eq=False)
class Soak:
    """One soak: its processes, what they did, and what was seen of it."""

    cluster: Cluster
    view: View
    tasks: int
    minutes: float
    judge: Judge = field(default_factory=Judge)
    memory: Memory = field(default_factory=Memory)
    begun_s: float = field(default_factory=time.monotonic)
    steady: list[Program] = field(default_factory=list)
    victims: list[Program] = field(default_factory=list)
    kills: int = 0
    _read: dict[str, str] = field(default_factory=dict)
    """Task id -> the ledger entry to read next."""

    _ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Task id -> the last range of slots that was told of it, from and to."""

    _offsets: dict[Path, int] = field(default_factory=dict)

    @property
    def effects(self) -> Path:
        """Where the workers write down what they do."""
        return self.cluster.directory / "effects"

    @property
    def minute(self) -> float:
        """Since the begin."""
        return (time.monotonic() - self.begun_s) / 60

    # -- processes --------------------------------------------------------------------------------------------------

    def start(self, name: str) -> Program:
        """One more worker."""
        config = {"redis_url": self.cluster.url, "worker_service_name": name.partition("-")[0], **SETTINGS}
        spec = json.dumps({"config": config, "effects": str(self.effects), "tasks": self.tasks})
        return self.cluster.program(sys.executable, "-m", "tests.soak.worker", spec, name=name)

    async def begin(self) -> None:
        """The victims first: one of them leads."""
        self.effects.mkdir()
        self.victims = [self.start("victim-0a"), self.start("victim-0b")]
        await self.present(self.victims)
        self.steady = [self.start("steady-1"), self.start("steady-2")]
        await self.present(self.steady)

    async def present(self, programs: list[Program]) -> None:
        """Wait until these have said that they are there."""

        async def there() -> bool:
            return {program.pid for program in programs} <= (await self.view.presences()).keys()

        await eventually(there, "workers are present", limit_s=120)

    async def kill_now_and_then(self) -> None:
        """SIGKILL a victim, the two in turn, and start another in its place."""
        while True:
            await trio.sleep(KILL_EVERY_S - 1)
            await trio.sleep(1 - time.time() % 1 + 1.5 * BODY_S)  # when the runs of a second have just begun
            if self.minutes * 60 - self.minute * 60 < QUIET_AT_END_S:
                return
            victim = self.victims.pop(0)
            victim.signal(signal.SIGKILL)
            self.judge.killed(victim.pid)
            await victim.ended()
            self.cluster.programs.remove(victim)
            victim.log_path.unlink()
            self.kills += 1
            self.victims.append(self.start(f"victim-{self.kills}"))

    def check_alive(self) -> None:
        """Only those who were killed may be gone."""
        for program in (*self.steady, *self.victims):
            if program.process.poll() is not None:
                raise SystemExit(f"{program.name} ended by itself with {program.process.returncode}:\n{program.log()}")

    # -- looking ------------------------------------------------------------------------------------------------------

    async def look_now_and_then(self) -> None:
        """Read what is new, judge what is old."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            self.check_alive()
            await self.look()
            redis_ms = await self.view.store.leases.redis_ms()
            self.judge.settle((redis_ms - OPEN_MS) // 1000 * 1000)
            for program in self.steady:
                self.memory.note(f"worker {program.name}", self.minute, resident_bytes(program.pid))
            self.memory.note("redis", self.minute, (await self.view.query("INFO", "memory"))["used_memory"])

    async def look(self) -> None:
        """Effects first: a verdict tells of starts that are written down by then."""
        await self.read_ledgers()
        self.read_effects()

    async def read_ledgers(self) -> None:
        async with trio.open_nursery() as nursery:
            for task in range(self.tasks):
                nursery.start_soon(self._read_ledger, task)

    async def _read_ledger(self, task: int) -> None:
        name = task_id(GROUP, f"t{task}")
        key, start = self.view.store.keys.ledger(name), self._read.get(name, "-")
        for entry_id, fields in await self.view.query("XRANGE", key, start, "+"):
            first, last = int(fields.get("from") or fields["slot"]), int(fields.get("to") or fields["slot"])
            told = self._ranges.get(name, (0, 0))
            if "from" in fields:
                self._ranges[name] = first, last
            if first == told[0]:
                first = told[1] + 1000  # a range that was told, and has grown since
            self.judge.verdict(task, first, last, fields["verdict"])
            milliseconds, _, sequence = entry_id.partition("-")
            self._read[name] = f"{milliseconds}-{int(sequence) + 1}"

    def read_effects(self) -> None:
        """What is new in the effect logs. Those that are full, or whose process is gone, are removed when read."""
        by_process: dict[int, list[Path]] = {}
        for path in self.effects.iterdir():
            by_process.setdefault(int(path.stem), []).append(path)
        alive = {program.pid for program in (*self.steady, *self.victims)}
        for pid, paths in by_process.items():
            paths.sort(key=lambda path: int(path.suffix[1:]))
            for path in paths:
                with path.open("rb") as file:
                    file.seek(self._offsets.get(path, 0))
                    data = file.read()
                whole = len(data) - len(data) % EFFECT.size
                for what, second, task, at_s in EFFECT.iter_unpack(data[:whole]):
                    if what == START:
                        self.judge.started(task, second * 1000, pid, at_s)
                    else:
                        self.judge.ended(task, second * 1000, pid)
                self._offsets[path] = self._offsets.get(path, 0) + whole
                if path != paths[-1] or (pid not in alive and not data):
                    self._offsets.pop(path)
                    path.unlink()

    async def report_each_minute(self) -> None:
        """A line for each."""
        starts = number = 0
        while True:
            number += 1
            await trio.sleep(max(0.0, number * 60 - self.minute * 60))
            sizes = ", ".join(f"{what} {size / 2**20:.1f} MB" for what, size in self.memory.newest().items())
            judge, new = self.judge, self.judge.starts - starts
            say(
                f"minute {number}: {new:,} starts ({new / 60:.0f}/s), {self.kills} workers killed, {judge.again:,} "
                f"starts again, {judge.other_verdicts:,} slots that did not run, {judge.violations} violations; {sizes}"
            )
            sys.stdout.flush()
            starts = judge.starts

    # -- the end ------------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Stop all, and judge whatever was due well before."""
        redis_ms = await self.view.store.leases.redis_ms()
        for program in (*self.steady, *self.victims):
            program.signal(signal.SIGTERM)
        for program in (*self.steady, *self.victims):
            code = await program.ended(limit_s=120)
            if code != 0:
                raise SystemExit(f"{program.name} ended with {code}:\n{program.log()}")
        await self.look()
        self.judge.settle(redis_ms // 1000 * 1000 - 5_000)

    def summary(self) -> bool:
        """Print it; True if all is well."""
        judge, seconds = self.judge, self.minute * 60
        share = judge.ran / judge.settled if judge.settled else 0.0
        wrong = list(judge.told)
        if share < LEAST_RAN:
            wrong.append(f"only {share:.0%} of the slots ran: this machine is overwhelmed")
        say(
            f"\n{judge.settled:,} slots in {seconds:.0f} s: {judge.ran:,} ran ({judge.ran / seconds:.0f}/s), "
            f"{judge.other_verdicts:,} were skipped or missed while nobody led; {judge.starts:,} starts, {self.kills} "
            f"workers killed, {judge.again:,} runs started again; {judge.violations} violations"
        )
        limit = Limit.of(self.minutes)
        for growth in self.memory.growth(limit.from_minute if limit else 0):
            say(f"from minute {limit.from_minute if limit else 0:g} on, {growth}")
            if limit is not None and growth.percent > limit.percent:
                wrong.append(f"{growth.what} grew by {growth.percent:.2f} %, and may by {limit.percent:g} %")
        if limit is None:
            say("too short to judge memory: that takes 6 minutes, and 20 for the limit of 2 %")
        for text in wrong:
            say(f"WRONG: {text}")
        say("nothing lost, nothing doubled" if not wrong else f"{max(judge.violations, len(wrong))} violations")
        return not wrong


def resident_bytes(pid: int) -> int:
    """What a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{pid} has no memory")


@asynccontextmanager
async def on_a_cluster(directory: Path) -> AsyncIterator[tuple[Cluster, View]]:
    """A Redis of its own. Whatever is left of the processes is killed behind the block."""
    cluster = Cluster(any_redis(directory / "redis"), directory, prefix=SETTINGS["redis_key_prefix"])
    try:
        async with look_at(cluster) as view:
            yield cluster, view
    finally:
        for program in cluster.programs:
            program.kill()
        cluster.server.kill()


async def soak(directory: Path, *, tasks: int, minutes: float) -> bool:
    """True if nothing was lost or doubled, and memory stayed."""
    async with on_a_cluster(directory) as (cluster, view):
        one = Soak(cluster, view, tasks, minutes)
        await one.begin()
        one.begun_s = time.monotonic()
        with trio.move_on_after(minutes * 60 + 0.5):  # so that the last minute has its line
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.kill_now_and_then)
                nursery.start_soon(one.look_now_and_then)
                nursery.start_soon(one.report_each_minute)
        await one.end()
        return one.summary()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--tasks", type=int, default=500, help="each runs every second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="troupe-soak-") as directory:
        try:
            fine = trio.run(partial(soak, Path(directory), tasks=given.tasks, minutes=given.minutes))
        except RedisUnavailable as error:
            say(f"WRONG: {error}")
            return 1
    return 0 if fine else 1
