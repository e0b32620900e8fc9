"""Redis loses what it has acknowledged: nothing is doubled or lost beyond that, and it goes on soon."""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tests.faults.ground import LEASE_S, LIMIT_S, LOAD, task
from tests.faults.scenario import Scenario, alone
from tests.system.cluster import eventually

if TYPE_CHECKING:
    from tests.faults.ground import Ground

TAIL_S: Final = 2.0
"""How much of the newest is lost with the tail of a file."""


RESTS: Final = "work/rests"
TASKS: Final = (*LOAD, task("rests"))


async def pause(ground: Ground, number: int) -> None:
    """Somebody pauses a task, the first time, in the window that Redis is about to lose; the workers hear of it."""
    if number == 0:
        paused = partial(ground.view.store.catalog.pause, [RESTS], "pause", who="test", until_ms=None, details="{}")
        await eventually(paused, "the task is paused")
        ground.paused_s = time.monotonic()


async def it_still_rests(ground: Ground) -> list[str]:
    """What was paused is paused, whatever Redis has forgotten meanwhile."""
    pauses = (await ground.view.store.catalog.contents()).paused
    since_s = ground.paused_s + PUBLISHED_BEFORE_S
    started = [
        effect.run for effect in ground.cluster.starts() if effect.run.startswith(RESTS) and effect.at_s > since_s
    ]
    return ([] if RESTS in pauses else [f"{RESTS} is not paused any more"]) + [f"{run} started" for run in started]


PUBLISHED_BEFORE_S: Final = 1.0
"""Runs of a task that is paused start for so long, since their workers have claimed them."""


async def flush(ground: Ground, number: int) -> None:
    """FLUSHALL, by somebody who meant another Redis; every third time a worker dies just before, and what it knew."""
    member, _ = await ground.at_work("work/long")
    if number % 3 == 2:
        ground.kill(member)
    await pause(ground, number)
    await trio.sleep(LEASE_S / 2)
    await ground.view.query("FLUSHALL")
    ground.forgot_s.append(time.monotonic())
    await ground.flowing()
    await ground.restore(3)


async def lose_tail(ground: Ground, number: int) -> None:
    """Redis is killed, and the end of its append-only file is not there when it comes back."""
    folder, kept = ground.server.directory / "appendonlydir", ground.server.directory / "kept"
    await ground.at_work("work/long")
    await trio.to_thread.run_sync(shutil.copytree, folder, kept)
    await pause(ground, number)
    await trio.sleep(TAIL_S)
    with ground.outage():
        ground.server.kill()
        shutil.rmtree(folder)
        kept.rename(folder)
        await _come_back(ground)
    await ground.flowing()


async def lose_since_snapshot(ground: Ground, number: int) -> None:
    """Redis is killed, and all that it has when it comes back is its last snapshot."""
    await ground.at_work("work/long")
    await ground.view.query("SAVE")
    await pause(ground, number)
    await trio.sleep(TAIL_S)
    with ground.outage():
        ground.server.kill()
        await _come_back(ground)
    await ground.flowing()


async def _come_back(ground: Ground) -> None:
    await ground.start_redis()
    await eventually(ground.view.store.leases.redis_ms, "Redis answers again", limit_s=LIMIT_S)
    ground.forgot_s.append(time.monotonic())


SCENARIOS = [
    Scenario(name="FLUSHALL", inject=flush, times=5, forgets=True, tasks=TASKS, check=it_still_rests),
    Scenario(
        name="append-only file without its tail",
        inject=lose_tail,
        times=4,
        place=alone("--appendonly", "yes", "--appendfsync", "no"),
        forgets=True,
        tasks=TASKS,
        check=it_still_rests,
    ),
    Scenario(
        name="snapshot of some seconds ago",
        inject=lose_since_snapshot,
        times=3,
        forgets=True,
        tasks=TASKS,
        check=it_still_rests,
    ),
]
