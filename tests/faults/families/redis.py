"""Redis itself: killed, stopped, full, without scripts or clients; it keeps what it has acknowledged."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tests.faults.ground import LEASE_S, LIMIT_S, LOAD, ground_on, one_redis, task
from tests.faults.scenario import DURABLE, Scenario, Unable, alone
from tests.system.cluster import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.faults.ground import Ground

LONG_S: Final = 60.0
STUBBORN: Final = (*LOAD[:-1], task("thread", "*/4 * * * * *", seconds=3 * LEASE_S, thread=True))
"""With threads that outlast an outage by which every lease ends."""

DISK_BYTES: Final = 16 * 1024 * 1024


async def kill(ground: Ground, number: int) -> None:
    """SIGKILL while runs are in progress; it comes back at once, or after more than a lease."""
    await ground.at_work("work/thread")
    with ground.outage():
        ground.server.kill()
        await trio.sleep(1.5 * LEASE_S * (number % 2))
        await ground.start_redis()
        await eventually(ground.view.store.leases.redis_ms, "Redis answers again", limit_s=LIMIT_S)
    await ground.flowing()


async def stop(ground: Ground, number: int, *, long_s: float) -> None:
    """SIGSTOP while runs are in progress, SIGCONT: its sockets take what is sent, and nothing comes back.

    The first time for long, later for less or for more than a lease, while threads go on.
    """
    await ground.at_work("work/thread")
    with ground.outage():
        ground.server.pause()
        await trio.sleep(long_s if number == 0 else LEASE_S * (0.6 + 0.8 * (number % 2)))
        ground.server.resume()
    await ground.flowing()


async def forget_scripts(ground: Ground, _number: int) -> None:
    """SCRIPT FLUSH."""
    await ground.view.query("SCRIPT FLUSH")
    await trio.sleep(2.0)
    await ground.flowing()


async def kill_clients(ground: Ground, number: int) -> None:
    """CLIENT KILL of all connections, or of those that read."""
    if number % 2:
        for client in await _readers(ground):
            await ground.view.query("CLIENT KILL", "ID", client)
    else:
        await ground.view.query("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
    await trio.sleep(2.0)
    await ground.flowing()


async def unblock_readers(ground: Ground, number: int) -> None:
    """CLIENT UNBLOCK by a stranger, again and again, as a timeout or as an error."""
    until_s, count = time.monotonic() + 3, 0
    while time.monotonic() < until_s:
        for client in await _readers(ground):
            count += await ground.view.query("CLIENT UNBLOCK", client, "ERROR" if number % 2 else "TIMEOUT")
        await trio.sleep(0.02)
    assert count > 0, "nobody was unblocked"
    await ground.flowing()


async def _readers(ground: Ground) -> list[str]:
    clients: list[dict[str, str]] = await ground.view.query("CLIENT LIST")
    return [one["id"] for one in clients if one["cmd"].startswith("xread") and "b" in one["flags"]]


async def fill_memory(ground: Ground, _number: int) -> None:
    """``maxmemory`` is reached and nothing may be evicted, for longer than a lease."""
    await ground.view.query("CONFIG SET", "maxmemory-policy", "noeviction")
    await ground.view.query("CONFIG SET", "maxmemory", 1)
    await trio.sleep(2 * LEASE_S)
    await ground.view.query("CONFIG SET", "maxmemory", 0)
    await ground.flowing()


async def fill_disk(ground: Ground, _number: int) -> None:
    """The disk with the append-only file is full, for longer than a lease: Redis refuses every write."""
    filler = ground.server.directory / "filler"

    async def status() -> str:
        persistence: dict[str, str] = await ground.view.query("INFO", "persistence")
        return persistence["aof_last_write_status"]

    async def refuses() -> bool:
        return await status() == "err"

    async def accepts() -> bool:
        return await status() == "ok"

    with ground.outage():
        await trio.to_thread.run_sync(_fill, filler)
        await eventually(refuses, "Redis cannot write its file", limit_s=LIMIT_S)
        await trio.sleep(2 * LEASE_S)
        filler.unlink()
        await eventually(accepts, "Redis can write again", limit_s=LIMIT_S)
    await ground.flowing()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        for size in (65536, 512, 1):
            with suppress(OSError):
                while filler.write(b"\0" * size) == size:
                    pass


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs of a few MiB there, for the block."""
    if os.geteuid() != 0:
        raise Unable("only root can mount the small disk that is to be full")
    mount = shutil.which("mount")
    assert mount is not None
    folder.mkdir(parents=True)
    command = [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unable(f"no small disk can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@asynccontextmanager
async def on_small_disk(directory: Path, scenario: Scenario) -> AsyncIterator[Ground]:
    """One Redis whose append-only file is on a small disk."""
    options = ("--appendonly", "yes", "--appendfsync", "everysec")
    with small_disk(directory / "disk"):
        async with (
            one_redis(directory, *options, folder=directory / "disk") as server,
            ground_on(server, directory, tasks=scenario.tasks, config=scenario.config) as found,
        ):
            yield found


SCENARIOS = [
    Scenario(
        name="Redis killed and restarted (appendfsync always)",
        inject=kill,
        times=6,
        place=alone(*DURABLE),
        tasks=STUBBORN,
    ),
    Scenario(
        name="Redis stopped, once for 60 s", inject=partial(stop, long_s=LONG_S), times=5, tasks=STUBBORN, takes_s=110
    ),
    Scenario(name="SCRIPT FLUSH", inject=forget_scripts, times=10),
    Scenario(name="CLIENT KILL", inject=kill_clients, times=10),
    Scenario(name="CLIENT UNBLOCK of readers", inject=unblock_readers, times=4),
    Scenario(name="Redis out of memory", inject=fill_memory, times=4),
    Scenario(name="disk of Redis full", inject=fill_disk, times=3, place=on_small_disk),
]
