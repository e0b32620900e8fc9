"""Workers and leaders that are killed, or stopped for a while, at each step of a run."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from engine.store.operations import Trigger
from tests.faults.ground import CONFIG, LEASE_S, LOAD, task
from tests.faults.scenario import Scenario
from tests.faults.wire import Trap
from tests.system.cluster import YEARLY, eventually

if TYPE_CHECKING:
    from tests.faults.ground import Ground, Member

STEPS: Final = {
    "read, not claimed": ("claim", "request"),
    "claimed, not started": ("claim", "reply"),
    "in its body": None,
    "ended, not told": ("complete", "request"),
    "told, reply lost": ("complete", "reply"),
}
"""Steps of a run, and the command at which a worker is there."""


async def at_step(ground: Ground, member: Member, number: int) -> tuple[list[str], Trap | None]:
    """Wait until that worker is at the next of the steps with some run; the runs, and the trap that holds it there."""
    place = list(STEPS.values())[number % len(STEPS)]
    if place is None:
        return [(await ground.in_body(member)).run], None
    trap = Trap(*place)
    caught = await ground.spring(member, trap)
    return [word for word in caught.argv if "@" in word and not word.startswith("{")], trap


async def whom(ground: Ground, *, leader: bool) -> Member:
    return await (ground.leader() if leader else ground.follower())


async def kill(ground: Ground, number: int, *, leader: bool) -> None:
    """SIGKILL at the next step; another worker takes the place, and the runs get their verdicts."""
    member = await whom(ground, leader=leader)
    runs, trap = await at_step(ground, member, number)
    ground.kill(member)
    if trap is not None:
        await ground.lose(member, trap)
    await ground.restore(3)
    await ground.ended(runs)


async def stop(ground: Ground, number: int, *, leader: bool, leases: float) -> None:
    """SIGSTOP at the next step, SIGCONT later; what it had asked is answered meanwhile, and waits for it."""
    member = await whom(ground, leader=leader)
    runs, trap = await at_step(ground, member, number)
    with ground.outage(member):
        member.worker.signal(signal.SIGSTOP)
        if trap is not None and trap.at == "reply":
            trap.release()
        await trio.sleep(leases * LEASE_S)
        member.worker.signal(signal.SIGCONT)
        if trap is not None:
            trap.release()
    await ground.ended(runs)


POISON: Final = "work/poison"


async def poison(ground: Ground, number: int) -> None:
    """A run that ends every process that starts it, until it is set aside."""
    run_id = f"{POISON}@t-{number}"
    asked = Trigger(run_id, "low", "allow")
    await eventually(partial(ground.view.store.operations.trigger, [asked], who="test", queue_cap=100), "it is queued")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_replace_the_dead, ground)
        await ground.ended([run_id], limit_s=120)
        nursery.cancel_scope.cancel()
    await ground.restore(3)


async def _replace_the_dead(ground: Ground) -> None:
    while True:
        ground.note_deaths()
        if len(ground.alive) < 3:
            await ground.worker()
        await trio.sleep(0.05)


async def dead(ground: Ground) -> list[str]:
    """Runs that were given up on."""
    ledgers = [await ground.view.verdicts(task_id) for task_id in ground.crons()]
    return [str(entry.run_id) for ledger in ledgers for entry in ledger if entry.verdict == "dead"]


async def only_the_poison_is_dead(ground: Ground) -> list[str]:
    """It was started ``max_deliveries`` times, and no neighbour was condemned with it."""
    poisonous = [f"{POISON}@t-{number}" for number in range(ground.injected)]
    starts = {run_id: len(ground.cluster.starts(run_id)) for run_id in poisonous}
    found = [f"{run_id} was started {count} times" for run_id, count in starts.items() if count != MAX_DELIVERIES]
    if wrong := set(await dead(ground)) ^ set(poisonous):
        found.append(f"dead should be {poisonous}, and {sorted(wrong)} are otherwise")
    return found


MAX_DELIVERIES: Final = 3


async def leave(ground: Ground, number: int) -> None:
    """SIGTERM with runs in progress that take longer than ``shutdown_grace``."""
    await ground.restore(4)
    member, left = await ground.at_work("work/endless-loop", "work/endless-thread")
    member.worker.signal(signal.SIGTERM)
    await member.worker.program.ended(limit_s=GRACE_S + 10)
    ground.note_deaths()
    await ground.ended(effect.run for effect in left)


GRACE_S: Final = 1.0
ENDLESS_S: Final = 5.0


async def handed_back_in_time(ground: Ground) -> list[str]:
    """What can be cancelled was given to another at once, without a lease; nobody waited for the thread."""
    found = [f"{run_id} was counted, and is dead" for run_id in await dead(ground)]
    for member in ground.members:
        if member.pid in ground.died_s:
            found += _left_badly(ground, member, ground.died_s[member.pid])
    return found


def _left_badly(ground: Ground, member: Member, died_s: float) -> list[str]:
    effects = member.worker.effects()
    ended = {(e.run, e.fence) for e in effects if e.event == "end"}
    left = [e for e in effects if e.event == "start" and (e.run, e.fence) not in ended]
    if not any(start.run.startswith("work/endless-thread") for start in left):
        return [f"{member.worker.name} had no thread in progress when it left, or has waited for it"]
    found = []
    for start in left:
        again_s = min((e.at_s for e in ground.cluster.starts(start.run) if e.fence > start.fence), default=float("inf"))
        if start.run.startswith("work/endless-loop") and again_s - died_s > LEASE_S / 2:
            found.append(f"{start.run} was started again {again_s - died_s:.1f} s after its worker had left")
    return found


SCENARIOS = [
    Scenario(name="worker killed, at each step of a run", inject=partial(kill, leader=False), times=10),
    Scenario(name="leader killed, at each step of a run", inject=partial(kill, leader=True), times=10),
    *(
        Scenario(
            name=f"{who} stopped for {word} than a lease, at each step of a run",
            inject=partial(stop, leader=who == "leader", leases=leases),
            times=10,
        )
        for word, leases in (("less", 0.4), ("more", 1.8))
        for who in ("worker", "leader")
    ),
    Scenario(
        name="run that kills its worker",
        inject=poison,
        times=2,
        tasks=(*LOAD, task("poison", YEARLY, deadly=True)),
        check=only_the_poison_is_dead,
    ),
    Scenario(
        name="SIGTERM with runs longer than shutdown_grace",
        inject=leave,
        times=4,
        tasks=(
            *LOAD[:3],
            task("endless-loop", "*/5 * * * * *", seconds=ENDLESS_S),
            task("endless-thread", "*/5 * * * * *", seconds=ENDLESS_S, thread=True),
        ),
        config={**CONFIG, "shutdown_grace": GRACE_S, "max_deliveries": 1, "concurrent_tasks": 20},
        check=handed_back_in_time,
    ),
]
