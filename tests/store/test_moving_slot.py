"""A Cluster slot that is moved, key by key: no script acts on the part of its keys that is still there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from redis.crc import key_slot

from engine.address import Address
from engine.errors import RedisUnavailable
from engine.store.link import Link, LinkSettings
from engine.store.patience import Backoff
from engine.store.store import Store
from tests.store.conftest import _servers
from tests.store.scenario import TASK, Stage
from tests.store.servers import free_port
from tests.store.topologies import Nodes, ask, until
from tests.store.transitions import ALL, Transition, matches, outcome, replies_to

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Any

PREFIX = "moved"
QUICK = LinkSettings(backoff=Backoff(first_s=0.01, ceiling_s=0.02))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two primaries with half of the slots each."""
    with _servers(tmp_path_factory) as start:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "10000")
        buses = [free_port(), free_port()]
        one, two = (start("7.0", *options, "--cluster-port", str(bus)) for bus in buses)
        ask(one, "CLUSTER ADDSLOTSRANGE", 0, 8191)
        ask(two, "CLUSTER ADDSLOTSRANGE", 8192, 16383)
        for epoch, server in enumerate((one, two), 1):
            ask(server, "CLUSTER SET-CONFIG-EPOCH", epoch)
        ask(two, "CLUSTER MEET", "127.0.0.1", one.port, buses[0])
        for server in (one, two):
            until(lambda server=server: b"cluster_state:ok" in ask(server, "CLUSTER INFO"), "the Cluster is up")  # type: ignore[misc]
        yield Nodes([one, two], told={server.port: server.port for server in (one, two)})


async def repeated(call: Callable[[], Awaitable[Any]]) -> Any:
    """As an actor does: until Redis answers."""
    with trio.fail_after(30):
        while True:
            try:
                return await call()
            except RedisUnavailable:
                await trio.sleep(0.01)


@pytest.mark.parametrize("transition", ALL, ids=lambda transition: transition.name)
async def test_a_script_waits_for_the_slot_or_finds_all_of_its_keys(nodes: Nodes, transition: Transition) -> None:
    """Asked again after each key that moves: refused, and nothing written, until it is done, once, at the new node."""
    address = Address(nodes=tuple(("127.0.0.1", server.port) for server in nodes.servers))
    store = Store.over(link := Link(address, settings=QUICK, key=f"{{{PREFIX}}}:"), prefix=PREFIX)
    slot = key_slot(store.keys.tag.encode())
    source = nodes.owner(slot)
    target = next(server for server in nodes.servers if server is not source)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        with trio.fail_after(30):
            await link.wait_up()
        ask(source, "FLUSHALL")
        stage = await Stage.set(store)
        call = await transition.arrange(stage, [TASK])
        before = await stage.snapshot()
        begin, end = nodes.steps_of_move(slot, target)
        begin()
        done = False
        while keys := ask(source, "CLUSTER GETKEYSINSLOT", slot, 1):
            replies, error = await outcome(call)
            if error is None:
                assert all(matches(reply, transition.reply) for reply in replies), "it took a part for the whole"
                done = True
                break
            assert isinstance(error, RedisUnavailable), error
            ask(source, "MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5_000)
        end()
        if not done:
            await repeated(store.catalog.version)  # which finds the new node; SCAN would be answered by any
            assert await repeated(stage.snapshot) == before
            assert all(matches(reply, transition.reply) for reply in replies_to(await repeated(call)))
        nursery.cancel_scope.cancel()
