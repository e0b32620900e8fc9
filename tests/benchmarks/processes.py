"""Workers in processes of their own: how runs a second grow with them, and what losing the leader costs."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import redis
import trio

from engine import RunContext, TaskGroup
from tests.benchmarks import subject
from tests.benchmarks.drain import TASKS
from tests.benchmarks.subject import GROUP, KEYS

ASIDE: Final = "{bench}:aside"
"""Where the queue waits until all workers are there."""

LEASE: Final[dict[str, Any]] = {"leader_heartbeat_interval": 0.5, "leader_retry_interval": 0.5}
"""The lease of the leader is 1.5 s there."""


def worker(url: str, *, log: str, every_second: bool, concurrency: int) -> dict[str, float]:
    """Until it is stopped: each start of a body is a line of its file, slot in ms and instant in s."""
    with Path(log).open("a", buffering=1, encoding="ascii") as lines:

        async def body() -> None:
            lines.write(f"{RunContext.current().slot_ms or 0} {time.time()}\n")

        group = TaskGroup(GROUP)
        if every_second:
            subject.add_tasks(group, 1, body, cron="* * * * * *")
        else:
            subject.add_tasks(group, TASKS, body)
        more = LEASE if every_second else {"stream_block_ms": 50}
        subject.engine_of(url, [group], concurrent_tasks=concurrency, **more).run()
    return {}


class Workers:
    """Processes of this module, and what they wrote."""

    def __init__(self, url: str, folder: Path, count: int, **options: Any) -> None:
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        for number in range(count):
            told = json.dumps({"way": "worker", "url": url, "log": str(folder / f"{number}"), **options})
            command = [sys.executable, "-m", "tests.benchmarks.processes", told]
            self.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def starts(self) -> list[tuple[int, float]]:
        """Slot in ms and instant in s of each body, in the order of the instants."""
        lines = [line for file in self._folder.iterdir() for line in file.read_text().splitlines()]
        return sorted(((int(line.split()[0]), float(line.split()[1])) for line in lines), key=lambda start: start[1])

    def end(self) -> None:
        """All of them, with a farewell."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=60)


def wait_for(condition: Any) -> None:
    """With a limit."""
    deadline_s = time.monotonic() + subject.LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "what was waited for did not come"
        time.sleep(0.002)


def scale_out(url: str, *, runs: int, workers: int, concurrency: int) -> dict[str, float]:
    """A full queue that appears when all workers are there: from the first start until Redis knows of the last end."""
    client = redis.Redis.from_url(url)
    trio.run(lambda: subject.fill(url, runs, tasks=TASKS))
    client.xgroup_create(KEYS.stream_low, "workers", id="0")
    client.rename(KEYS.stream_low, ASIDE)
    with tempfile.TemporaryDirectory() as folder:
        all_of_them = Workers(url, Path(folder), workers, every_second=False, concurrency=concurrency)
        try:
            wait_for(lambda: client.zcard(KEYS.workers_seen) == workers)
            time.sleep(1)
            client.rename(ASIDE, KEYS.stream_low)
            wait_for(lambda: not client.xlen(KEYS.stream_low) and not client.zcard(KEYS.leases))
            ended_s = time.time()
        finally:
            all_of_them.end()
        starts = all_of_them.starts()
    assert len(starts) == runs, f"{len(starts)} starts of {runs} runs"
    return {"runs_per_s": runs / (ended_s - starts[0][1])}


def failover(url: str, *, crash: bool) -> dict[str, float]:
    """The leader of three ends in the middle of a second, with a task of every second: how late is the next slot?"""
    client = redis.Redis.from_url(url, decode_responses=True)
    with tempfile.TemporaryDirectory() as folder:
        three = Workers(url, Path(folder), 3, every_second=True, concurrency=10)
        try:
            wait_for(lambda: client.zcard(KEYS.workers_seen) == 3 and len(three.starts()) >= 3)
            time.sleep(1)
            leading = str(client.get(KEYS.leader))
            [leader] = [one for one in three.processes if f"-{one.pid}-" in leading]
            time.sleep(math.ceil(time.time()) + 0.5 - time.time())
            ended_s = time.time()
            leader.send_signal(signal.SIGKILL if crash else signal.SIGTERM)
            wait_for(lambda: three.starts()[-1][0] > 1_000 * (ended_s + 4))
        finally:
            three.end()
        after = [(slot_ms, at_s) for slot_ms, at_s in three.starts() if slot_ms > 1_000 * ended_s]
    slots = {slot_ms for slot_ms, _ in after}
    due = set(range(min(slots, default=0), max(slots, default=0) + 1, 1_000)) | {1_000 * math.ceil(ended_s)}
    return {
        "latest_ms": max(1_000 * at_s - slot_ms for slot_ms, at_s in after),
        "without_s": after[0][1] - math.ceil(ended_s),
        "missed": float(len(due - slots)),
    }


if __name__ == "__main__":
    subject.main({"worker": worker, "scale_out": scale_out, "failover": failover})
