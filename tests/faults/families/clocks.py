"""Wall clocks of workers that are minutes off, and step: nothing follows from them."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from tests.faults.ground import LEASE_S
from tests.faults.scenario import Scenario, Unable

if TYPE_CHECKING:
    from tests.faults.ground import Ground, Member

OFF_S: Final = 300
LIBRARY: Final = "libfaketimeMT.so.1"


def library() -> Path:
    """What fakes the time of a process that it is loaded into. Raises Unable."""
    for found in Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"):
        return found
    raise Unable(f"no {LIBRARY}: apt-get install faketime")


def fake_time(dial: Path) -> dict[str, str]:
    """The environment of a process whose wall clock is what that file says; its monotonic clock goes on as ever."""
    return {
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(dial),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def turn(dial: Path, seconds: int) -> None:
    """The clock is so far off from now on. Readers see the old file or the new one."""
    new = dial.with_suffix(".new")
    new.write_text(f"{seconds:+d}s\n")
    new.rename(dial)


async def step(ground: Ground, number: int) -> None:
    """A worker's clock steps, five minutes or a second, the leader's in turn: forwards, backwards, to and fro."""
    if number == 0:
        for member in list(ground.alive):
            await _replace(ground, member)
    member = await (ground.leader() if number % 3 == 2 else ground.follower())
    dial = ground.cluster.directory / f"{member.worker.name}.dial"
    for seconds in ((OFF_S,), (-OFF_S,), (OFF_S, -OFF_S, 0), (1, 0), (-1, 0), (86_400,))[number % 6]:
        turn(dial, seconds)
        await trio.sleep(random.uniform(0.1, LEASE_S / 2))
    await ground.flowing()


async def _replace(ground: Ground, member: Member) -> None:
    """By a worker whose clock can be turned."""
    dial = ground.cluster.directory / f"worker-{len(ground.members) + 1}.dial"
    turn(dial, random.choice((0, OFF_S, -OFF_S)))
    await ground.workers(1, env=fake_time(dial))
    await ground.cluster.stop(member.worker)
    ground.note_deaths()


async def clocks_were_off(ground: Ground) -> list[str]:
    """Bodies have seen times that were minutes off: the fault was there."""
    now, monotonic = await ground.view.store.leases.redis_ms() / 1000, time.monotonic()
    offsets = {round((e.wall_s - now) - (e.at_s - monotonic)) for e in ground.cluster.effects()}
    near = {kind for kind in (OFF_S, -OFF_S, 86_400) for offset in offsets if abs(offset - kind) < 5}
    return [] if {OFF_S, -OFF_S} <= near else [f"the clocks were off by {sorted(offsets)} s only"]


SCENARIOS = [
    Scenario(name="worker's clock five minutes off, stepping", inject=step, times=8, check=clocks_were_off),
]
