"""Whom Sentinels name: believed by epoch, and only if it is a primary; and the ways in. Failovers: tests/system."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from engine.address import Address
from engine.config import Config, address_of
from engine.store.link import Link, LinkSettings
from engine.store.patience import Backoff
from tests.store.guard import Guard, connect, rights_of_page
from tests.store.proxy import listening
from tests.store.servers import free_port
from tests.store.topologies import replicated, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    import pytest

    from tests.store.servers import RedisServer

QUICK = LinkSettings(backoff=Backoff(first_s=0.01, ceiling_s=0.05))


def naming(server: RedisServer, *, epoch: int) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A Sentinel that knows this primary since that epoch."""

    async def talk(stream: trio.SocketStream) -> None:
        while b"MASTER" in await stream.receive_some():
            host, port = b"127.0.0.1", str(server.port).encode()
            facts = [b"config-epoch", str(epoch).encode()]
            await stream.send_all(b"".join(array(words) for words in ([host, port], facts)))

    return talk


def array(words: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


async def knowing_nothing(stream: trio.SocketStream) -> None:
    """A Sentinel of other primaries."""
    while await stream.receive_some():
        await stream.send_all(b"*-1\r\n-ERR No such master with that name\r\n")


async def silent(stream: trio.SocketStream) -> None:
    """It takes connections and says nothing."""
    while await stream.receive_some():
        pass


@asynccontextmanager
async def link_over(
    *sentinels: Callable[[trio.SocketStream], Awaitable[None]], settings: LinkSettings = QUICK
) -> AsyncIterator[Link]:
    """A link that asks these Sentinels."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(listening(talk)) for talk in sentinels]
        nodes = tuple((one.host, one.port) for one in found)
        link = Link(Address(nodes=nodes, sentinel_master="m"), settings=settings)
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            yield link
            nursery.cancel_scope.cancel()


async def said(link: Link, text: str) -> None:
    """Wait until the link is down for this reason."""
    with trio.fail_after(30):
        while text not in (link.statistics().last_error or ""):  # noqa: ASYNC110  # a text, and no event
            await trio.sleep(0.01)


async def port_of(link: Link) -> int:
    with trio.fail_after(30):
        await link.wait_up()
    return int(str((await link.commands.config_get("port"))["port"]))


async def test_the_newest_epoch_is_believed(start_redis: Callable[..., RedisServer]) -> None:
    """One that was cut off during a failover still names the old primary, which may be up."""
    old, new = start_redis("7.0"), start_redis("7.0")
    sentinels = [naming(old, epoch=1), naming(new, epoch=2), naming(old, epoch=1)]
    async with link_over(*sentinels) as link:
        assert await port_of(link) == new.port


async def test_those_that_are_silent_or_know_nothing_are_passed_over(start_redis: Callable[..., RedisServer]) -> None:
    """Within the time for one try to connect."""
    server = start_redis("7.0")
    settings = LinkSettings(backoff=QUICK.backoff, connect_timeout_s=2.0)
    async with link_over(silent, knowing_nothing, naming(server, epoch=1), settings=settings) as link:
        assert await port_of(link) == server.port


async def test_why_nobody_tells_is_said() -> None:
    """Of each that was asked."""
    settings = LinkSettings(backoff=QUICK.backoff, connect_timeout_s=0.5)
    async with link_over(silent, knowing_nothing, settings=settings) as link:
        await said(link, "it knows no primary of the name 'm'")
        await said(link, "no answer within")


async def test_a_server_that_is_named_and_is_no_primary_yet_is_not_taken(
    start_redis: Callable[..., RedisServer],
) -> None:
    """Sentinels name a replica a moment before it is promoted, or a primary that has come back as a replica."""
    replica = start_redis("7.0", "--replicaof", "127.0.0.1", str(free_port()))
    direct = Link(replica.address, settings=QUICK)
    async with link_over(naming(replica, epoch=1)) as link, trio.open_nursery() as nursery:
        await nursery.start(direct.run)
        await said(link, "it is a replica, not the primary")
        assert not link.is_up()
        await direct.commands.execute_command("REPLICAOF", "NO", "ONE")
        assert await port_of(link) == replica.port
        nursery.cancel_scope.cancel()


async def test_a_primary_that_is_no_longer_named_is_left(start_redis: Callable[..., RedisServer]) -> None:
    """Also while it is up, and takes writes that are going to be lost."""
    old, new = start_redis("7.0"), start_redis("7.0")
    named = [old]

    async def talk(stream: trio.SocketStream) -> None:
        await naming(named[-1], epoch=len(named))(stream)

    async with link_over(talk) as link:
        assert await port_of(link) == old.port
        named.append(new)
        with trio.fail_after(30):
            while link.statistics().connects < 6 or not link.is_up():  # noqa: ASYNC110  # a counter, and no event
                await trio.sleep(0.01)
        assert await port_of(link) == new.port
        assert link.statistics().drops == 3


async def why_not(address: Address, caplog: pytest.LogCaptureFixture) -> str:
    """What is wrong with it, which is no secret."""
    link = Link(address, settings=QUICK, key="{app}:")
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        with trio.fail_after(30):
            while link.statistics().last_error is None:  # noqa: ASYNC110  # a text, and no event
                await trio.sleep(0.01)
        assert not link.is_up()
        nursery.cancel_scope.cancel()
    told = f"{link.statistics()} {caplog.text}"
    assert not any(secret in told for secret in ("p/w", "wrong-one"))
    return link.statistics().last_error or ""


async def works(address: Address) -> None:
    """It is let in, and may use the keys of its application."""
    link = Link(address, settings=QUICK, key="{app}:")
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        with trio.fail_after(30):
            await link.wait_up()
        assert await link.commands.set("{app}:key", "1") is True
        assert await link.events.ping() is True
        nursery.cancel_scope.cancel()


def other_authority(directory: Path) -> str:
    """The certificate of one that has signed nothing here."""
    return Guard.make(directory / "other", []).ca_file


async def test_sentinels_and_redis_each_want_tls_and_a_password_of_their_own(
    start_redis: Callable[..., RedisServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the rights of the page, and the two questions of a Sentinel's user. What is wrong is said, and where."""
    start_redis("7.0", run=False)  # skips where there is none
    guard = Guard.make(tmp_path / "guard", [*rights_of_page("app"), "+role"])
    with replicated(tmp_path / "redis", guard=guard) as servers:
        address = address_of(Config(redis_url=servers.url, **guard.sentinel_settings()))
        await works(address)
        first = f"127.0.0.1:{servers.sentinel_ports[0]}: "
        for wrong, said in (
            ({"sentinel_password": "wrong-one"}, f"{first}AUTH: WRONGPASS"),
            ({"sentinel_username": None}, f"{first}AUTH: WRONGPASS"),
            ({"sentinel_username": None, "sentinel_password": None}, f"{first}SENTINEL: it wants a password"),
            ({"ca_file": other_authority(tmp_path)}, "certificate verify failed"),
            ({"tls": False, "ca_file": None}, first),
            ({"password": "wrong-one"}, f"rediss://127.0.0.1:{servers.servers[0].port}/0: AUTH: WRONGPASS"),
            ({"username": None, "password": None}, "it wants a password"),
        ):
            why = await why_not(replace(address, **wrong), caplog)
            assert said in why, f"{wrong}: {why}"


async def test_nodes_of_a_cluster_want_tls_and_a_password(
    start_redis: Callable[..., RedisServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is asked for the owner of the slot, and the owner itself."""
    guard = Guard.make(tmp_path / "guard", [*rights_of_page("app"), "+cluster|slots"])
    port = free_port()
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    start_redis("7.0", *cluster, *guard.options(port))
    with connect(port, guard) as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in str(admin.execute_command("CLUSTER", "INFO")), "the Cluster is up")
    address = Address.parse(guard.url(f"redis+cluster://127.0.0.1:{port}"))
    await works(address)
    node = f"no node of the Cluster tells where Redis is: 127.0.0.1:{port}: "
    for wrong, said in (
        ({"password": "wrong-one"}, f"{node}AUTH: WRONGPASS"),
        ({"username": None, "password": None}, f"{node}CLUSTER SLOTS: it wants a password"),
        ({"ca_file": other_authority(tmp_path)}, f"{node}TLS: "),
        ({"tls": False, "ca_file": None}, node),
    ):
        why = await why_not(replace(address, **wrong), caplog)
        assert said in why, f"{wrong}: {why}"
