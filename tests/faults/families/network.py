"""What lies between a worker and Redis: partitions, lost replies, slow links, connections that only look open."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import trio

from tests.faults.ground import LEASE_S, LIMIT_S, LOAD, task
from tests.faults.scenario import Scenario
from tests.faults.wire import Exchange, Trap, first_of

if TYPE_CHECKING:
    from tests.faults.ground import Ground, Member

LONGER_S: Final = 1.8 * LEASE_S
FLAKY: Final = task("flaky", "*/3 * * * * *", flaky=True, retry_backoff=0.2, max_retries=3)


async def partition(ground: Ground, number: int) -> None:
    """One worker of three, the leader in turn, is cut off for longer than a lease, in one of five ways."""
    member = await (ground.leader() if number % 3 == 2 else ground.follower())
    run = await ground.in_body(member)
    proxy = member.proxy
    with ground.outage(member):
        match number % 5:
            case 0:  # a pulled cable
                proxy.black_hole = True
            case 1:  # packets are sent again until they get through
                proxy.to_server.stall()
                proxy.to_client.stall()
            case 2:  # nothing that it says arrives
                proxy.to_server.black_hole = True
            case 3:  # it hears nothing, and all that it asks for is done
                proxy.to_client.black_hole = True
            case _:  # refused
                proxy.refusing = True
                await proxy.cut()
        await trio.sleep(LONGER_S)
        stalled = number % 5 == 1
        proxy.black_hole = proxy.refusing = False
        proxy.to_server.go_on()
        proxy.to_client.go_on()
        if not stalled:
            await proxy.cut()
    await ground.ended([run.run])


LOST_REPLIES: Final = (
    *("publish", "claim", "complete", "beat", "renew", "XREADGROUP"),
    *("fail", "requeue", "elect", "reclaim", "release", "hand_back"),
)
"""Commands whose reply is lost after they were executed, in turn."""


async def lose_reply(ground: Ground, number: int) -> None:
    """The next such command of whoever sends one is executed, and its reply is lost with its connection."""
    name = LOST_REPLIES[number % len(LOST_REPLIES)]
    victim: Member | None = None
    match name:
        case "elect":
            victim = await ground.leader()
        case "reclaim" | "release":
            victim = await ground.follower()
            await ground.in_body(victim)
        case _:
            pass
    traps = {
        member: member.tap.set(Trap(name, "reply", _does_something)) for member in ground.alive if member is not victim
    }
    if victim is not None:
        read = Trap("claim", "request")
        if name == "release":  # it has read, and never claims
            await ground.spring(victim, read)
        ground.kill(victim)
        await ground.lose(victim, read)
    with trio.fail_after(LIMIT_S):
        while name == "hand_back" and not any(trap.caught for trap in traps.values()):
            await _frighten(ground)
            with trio.move_on_after(LEASE_S):  # again, if another worker has got the run before it could be given back
                await first_of(traps.values())
        await first_of(traps.values())
    for member, trap in traps.items():
        if trap.caught is not None:
            await ground.lose(member, trap)
        member.tap.clear()
    await ground.restore(3)
    await ground.flowing()


def _does_something(exchange: Exchange) -> bool:
    match exchange.name:
        case "XREADGROUP":
            return bool(exchange.reply)
        case "elect":
            return bool(exchange.reply[0] == "led")
        case "release":
            return "requeued" in exchange.reply
        case "hand_back":
            return "ok" in exchange.reply
        case _:
            return bool(exchange.argv)


async def _frighten(ground: Ground) -> None:
    """Cut a worker off for most of a lease, so that it stops what it does and gives it back."""
    member, _ = await ground.at_work("work/long")
    with ground.outage(member):
        member.proxy.to_server.stall()
        await trio.sleep(0.95 * LEASE_S)
        member.proxy.to_server.go_on()


async def slow(ground: Ground, number: int) -> None:
    """For a while everything takes up to a quarter of a lease each way, for one worker or for all; nothing is lost."""
    slowed = ground.alive if number % 2 else [await ground.follower()]
    for member in slowed:
        for way in (member.proxy.to_server, member.proxy.to_client):
            way.delay_s = lambda: random.uniform(0.02, LEASE_S / 4)
    await trio.sleep(4 * LEASE_S)
    for member in slowed:
        for way in (member.proxy.to_server, member.proxy.to_client):
            way.delay_s = lambda: 0.0
    await ground.flowing()


async def forget_connections(ground: Ground, number: int) -> None:
    """Redis does not know its connections any more, and the workers do not know that; new ones are fine."""
    for member in ground.alive if number % 3 == 2 else [await ground.follower()]:
        with ground.outage(member):
            await member.proxy.half_open()
    await ground.flowing()


async def half_close(ground: Ground, number: int) -> None:
    """One direction of all connections ends, the other stays open."""
    for member in ground.alive if number % 3 == 2 else [await ground.follower()]:
        with ground.outage(member):
            await member.proxy.half_close(to_client=number % 2 == 0)
    await ground.flowing()


async def stutter(ground: Ground, _number: int) -> None:
    """A worker is cut, heals, and is stopped while it reconnects."""
    member = await ground.follower()
    for _ in range(3):
        await member.proxy.cut()
        await ground.stop_for(member, random.uniform(0.05, 0.3))
        await trio.sleep(random.uniform(0.05, 0.3))
    await ground.flowing()


SCENARIOS = [
    Scenario(name="one worker of three cut off", inject=partition, times=10),
    Scenario(
        name="reply lost after the script ran",
        inject=lose_reply,
        times=len(LOST_REPLIES) * 2,
        tasks=(*LOAD, FLAKY),
        takes_s=90,
    ),
    Scenario(name="slow link", inject=slow, times=4),
    Scenario(name="half-open connections", inject=forget_connections, times=6),
    Scenario(name="half-closed connections", inject=half_close, times=12),
    Scenario(name="connections cut while a worker stutters", inject=stutter, times=6),
]
