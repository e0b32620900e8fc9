"""Primaries that are lost under load, with Sentinels and in a Cluster: the newest writes may be forgotten."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from redis.crc import key_slot

from engine.address import Address
from engine.store.keys import Keys
from tests.faults.ground import LIMIT_S, Ground, ground_on
from tests.faults.scenario import Scenario, Unable
from tests.faults.wire import SCRIPTS, Tap
from tests.store.proxy import Proxy
from tests.store.servers import NoSuchServer
from tests.store.topologies import Nodes, Replicated, ask, clustered, replicated, until
from tests.system.cluster import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.faults.wire import Exchange
    from tests.store.servers import RedisServer

T = TypeVar("T")

BEHIND_S: Final = 1.5
"""How far a replica is behind when it lags."""

BETWEEN_S: Final = 11.0
"""From one failover to the next: Sentinels wait for twice their ``failover-timeout``."""

SLOT: Final = key_slot(Keys("faults").tag.encode())
WAYS: Final = ("killed", "stopped", "killed, its replica behind")


class Fronts:
    """A proxy in front of each server of a topology: where clients, replicas and Sentinels are told to go."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.record: list[Exchange] = []
        self.proxies: dict[int, Proxy] = {}
        self.taps: dict[int, Tap] = {}

    def make(self, port: int) -> int:
        """Called in a thread: a proxy for a server's port; gives its own."""
        tap = self.taps[port] = Tap(f"port {port}", self.record)
        proxy = self.proxies[port] = Proxy(Address(host="127.0.0.1", port=port), listener=tap.connect)
        trio.from_thread.run(self._nursery.start, proxy.run)
        return proxy.port

    def first_done_s(self, server: RedisServer, since_s: float) -> float | None:
        """When that server had executed the first script since then."""
        of_server = (x for x in self.record if x.who == f"port {server.port}" and x.sent_s >= since_s)
        return next((x.replied_s for x in of_server if x.answered and x.name in SCRIPTS.values()), None)


@asynccontextmanager
async def _entered(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Servers take their time to start and to agree: in a thread, while their proxies work."""
    try:
        found = await trio.to_thread.run_sync(manager.__enter__)
    except NoSuchServer as error:
        raise Unable(str(error)) from error
    try:
        yield found
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


@asynccontextmanager
async def _place(
    directory: Path, scenario: Scenario, make: Callable[..., AbstractContextManager[Replicated | Nodes]]
) -> AsyncIterator[Ground]:
    async with trio.open_nursery() as nursery:
        fronts = Fronts(nursery)
        async with (
            _entered(make(directory / "redis", front=fronts.make)) as topology,
            ground_on(
                topology.servers[0],
                directory,
                redis_url=topology.url,
                shared=tuple(fronts.proxies.values()),
                record=fronts.record,
                tasks=scenario.tasks,
                config=scenario.config,
            ) as ground,
        ):
            ground.topology, ground.fronts = topology, fronts
            yield ground
        nursery.cancel_scope.cancel()


async def lose_primary(ground: Ground, number: int) -> None:
    """The primary is lost in one of several ways; the engines go on at its replica, and it comes back as one."""
    topology, fronts = ground.topology, ground.fronts
    assert isinstance(topology, Replicated | Nodes)
    assert isinstance(fronts, Fronts)
    begun_s, way = time.monotonic(), WAYS[number % len(WAYS)]
    old = await trio.to_thread.run_sync(_primary, topology)
    new = await trio.to_thread.run_sync(_replica_of, topology, old)
    assert new is not None
    if way == "killed, its replica behind":
        fronts.taps[old.port].mute = True
        await trio.sleep(BEHIND_S)
    lost_s = time.monotonic()
    with ground.outage():
        if way == "stopped":
            old.pause()
        else:
            old.kill()
        await trio.to_thread.run_sync(partial(_wait_moved, topology, old))
        fronts.taps[old.port].mute = False

        async def back_s() -> float | None:
            return fronts.first_done_s(new, lost_s)

        back = await eventually(back_s, "the engines are at the new primary", limit_s=LIMIT_S)
        assert back is not None
        ground.forgot_s.append(back)
        ground.cluster.server = new
    await ground.flowing()
    await trio.to_thread.run_sync(partial(_return, topology, old, new, stopped=way == "stopped"))
    await trio.sleep(max(0.0, begun_s + BETWEEN_S - time.monotonic()))


def _primary(topology: Replicated | Nodes) -> RedisServer:
    return topology.primary() if isinstance(topology, Replicated) else topology.owner(SLOT)


def _replica_of(topology: Replicated | Nodes, primary: RedisServer) -> RedisServer | None:
    if isinstance(topology, Replicated):
        return next(server for server in topology.servers if server is not primary)
    [(_, _, _, *replicas)] = [one for one in topology.slots(primary) if one[0] <= SLOT <= one[1]]
    ports = [port for _, port, *_ in replicas]
    return next((server for server in topology.servers if topology.told[server.port] in ports), None)


def _wait_moved(topology: Replicated | Nodes, old: RedisServer) -> None:
    others = [server for server in topology.servers if server is not old]
    if isinstance(topology, Replicated):
        topology.wait_moved(others[0])
        return

    def moved() -> bool:
        told = [one[2][1] for one in topology.slots(others[0]) if one[0] <= SLOT <= one[1]]
        return told != [topology.told[old.port]]

    until(moved, "a replica has the slot", limit_s=LIMIT_S)


def _return(topology: Replicated | Nodes, old: RedisServer, new: RedisServer, *, stopped: bool) -> None:
    """The old primary comes back, and follows the new one."""
    if isinstance(topology, Replicated):
        follow = ("127.0.0.1", str(topology.told[new.port]))
        if stopped:
            old.resume()
            ask(old, "REPLICAOF", *follow)
        else:
            old.options = (*old.options, "--replicaof", *follow)
            old.start()
    elif stopped:
        old.resume()
    else:
        old.start()

    def follows() -> bool:
        said = ask(old, "INFO", "replication")
        return b"role:slave" in said and b"master_link_status:up" in said

    until(follows, "the old primary follows the new one", limit_s=120)
    if isinstance(topology, Nodes):
        until(lambda: _replica_of(topology, new) is old, "the Cluster knows its replica", limit_s=LIMIT_S)


def _with_sentinels(directory: Path, front: Callable[[int], int]) -> AbstractContextManager[Replicated]:
    return replicated(directory, front=front)


SCENARIOS = [
    Scenario(
        name=f"{name} failover",
        inject=lose_primary,
        times=3,
        place=partial(_place, make=make),
        forgets=True,
        takes_s=90,
    )
    for name, make in (("Sentinel", _with_sentinels), ("Cluster", clustered))
]
