"""The link on a real Redis that behaves: order, cancellation, bursts, big values, names, end."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from redis.exceptions import DataError, ResponseError

from engine.errors import RedisUnavailable
from engine.store.link import Link, LinkSettings
from engine.store.transport import Lane
from tests.store.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.store.servers import RedisServer


@asynccontextmanager
async def up(link: Link) -> AsyncIterator[Link]:
    """Run a link, up, for the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        with trio.fail_after(30):
            await link.wait_up()
        yield link
        nursery.cancel_scope.cancel()


@pytest.fixture
async def link(shared_redis: Callable[[str], RedisServer]) -> AsyncIterator[Link]:
    """A link to an empty Redis."""
    async with up(Link(shared_redis("6.2").address)) as link:
        await link.commands.flushall()
        yield link


async def echo(link: Link, text: str) -> None:
    """Check that a reply is the one to its command."""
    assert await link.commands.execute_command("ECHO", text) == text


async def test_ten_thousand_commands_at_once_each_get_their_reply(link: Link) -> None:
    """A burst is written in few pieces and answered in order."""
    async with trio.open_nursery() as nursery:
        for number in range(10_000):
            nursery.start_soon(echo, link, str(number))
    assert link.statistics().waiting == 0


async def test_a_storm_of_cancellations_leaves_the_connection_in_step(link: Link) -> None:
    """Replies of cancelled commands are dropped: nobody else ever gets one."""
    chance = random.Random(7)

    async def caller(name: int) -> None:
        for number in range(60):
            with trio.move_on_after(chance.choice([0, 0.0001, 0.001, 30])):
                await echo(link, f"{name}-{number}")
            if chance.random() < 0.1:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for name in range(50):
            nursery.start_soon(caller, name)
    await echo(link, "after")
    assert link.statistics().drops == 0
    assert link.statistics().waiting == 0


async def test_a_command_cancelled_before_it_is_sent_is_never_sent(link: Link) -> None:
    """What did not leave yet is taken back."""
    for _ in range(50):
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.commands.set("key", "1")
        assert await link.commands.get("key") is None


async def test_replies_in_arbitrary_pieces_are_put_together(shared_redis: Callable[[str], RedisServer]) -> None:
    """Split anywhere: within a number, within a character, between replies."""
    chance = random.Random(11)
    proxy = Proxy(shared_redis("6.2").tcp, chunk_bytes=lambda: chance.randint(1, 7))
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        async with up(Link(proxy.address)) as link:
            async with trio.open_nursery() as callers:
                for number in range(300):
                    callers.start_soon(echo, link, f"{number}-äöü€" + "x" * (number % 40))
            assert await link.commands.eval("return {1, {'a', false, {}}, 'b'}", 0) == [1, ["a", None, []], "b"]
        nursery.cancel_scope.cancel()


async def test_a_value_of_five_megabytes_goes_there_and_back(link: Link) -> None:
    """Among small commands, which are answered in their order."""
    big = "0123456789abcdef" * (5 * 1024 * 1024 // 16)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(echo, link, str(number))
        nursery.start_soon(link.commands.set, "big", big)
    assert await link.commands.get("big") == big
    assert link.statistics().bytes_sent > len(big)
    assert link.statistics().bytes_received > len(big)


async def test_what_does_not_fit_into_the_socket_is_sent_before_what_comes_next(link: Link) -> None:
    """The first write takes a part of the command, and others wait behind the rest."""
    big = "x" * 8_000_000
    replies: dict[int, object] = {}

    async def ask(number: int, *command: str) -> None:
        replies[number] = await link.commands.execute_command(*command)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0, "SET", "key", big)
        await trio.lowlevel.checkpoint()
        for number in range(1, 20):
            nursery.start_soon(ask, number, "STRLEN", "key")
    assert replies == {0: True, **dict.fromkeys(range(1, 20), len(big))}
    assert link.statistics().drops == 0


async def test_a_command_takes_two_turns_of_the_loop(link: Link) -> None:
    """It is sent in the turn in which it is asked for. Its reply is one turn, and whoever waits goes on in another."""
    turns = 0

    class Turns(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal turns
            turns += 1

    instrument = Turns()
    trio.lowlevel.add_instrument(instrument)
    for _ in range(200):
        await link.commands.ping()
    trio.lowlevel.remove_instrument(instrument)
    assert turns < 2.5 * 200


async def test_arguments_of_other_kinds_are_packed_or_refused(link: Link) -> None:
    """Any bytes-like value goes; what is no value is refused before it is sent, and names the kind."""
    await link.commands.set("key", memoryview(b"view"))
    await link.commands.execute_command("APPEND", "key", bytearray(b"-array"))
    assert await link.commands.get("key") == "view-array"
    with pytest.raises(DataError, match="NoneType"):
        await link.commands.execute_command("SET", "key", None)
    assert await link.commands.get("key") == "view-array"


async def test_bytes_that_are_no_text_are_shown_escaped(link: Link) -> None:
    """One foreign value must not break the connection for everybody."""
    await link.commands.set("key", b"ok \xff\xfe")
    assert await link.commands.get("key") == "ok \\xff\\xfe"


async def test_the_server_sees_three_named_connections(link: Link) -> None:
    """CLIENT LIST names process and lane."""
    names = {client["name"] for client in await link.commands.client_list()}
    assert {"troupe:commands", "troupe:runs", "troupe:events"} <= names


async def test_requests_are_counted_as_monitor_would_show_them(
    start_redis: Callable[..., RedisServer],
) -> None:
    """The counter equals Redis's own count of processed commands."""
    server = start_redis("6.2")
    async with up(Link(server.address)) as link:
        for _ in range(25):
            await link.commands.set("key", "1")
        with pytest.raises(ResponseError):
            await link.commands.lpush("key", "1")
        processed = (await link.commands.info("stats"))["total_commands_processed"]
        assert link.statistics().commands_sent == processed + 1  # INFO itself is not in its own answer


async def test_a_command_behind_a_blocking_one_is_given_its_time(
    shared_redis: Callable[[str], RedisServer],
) -> None:
    """Its own deadline begins when the read in front of it ends; the connection is not dropped."""
    settings = LinkSettings(command_timeout_s=0.4)
    async with up(Link(shared_redis("6.2").address, settings=settings)) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: link.events.xread({"quiet": "$"}, block=900))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(link.events.ping)
            nursery.start_soon(lambda: link.events.xread({"quiet": "$"}, block=500))
        assert link.statistics().drops == 0


async def test_blocking_reads_queued_for_a_connection_are_given_their_time(
    shared_redis: Callable[[str], RedisServer],
) -> None:
    """One behind the other, as if they had been sent while it was up."""
    link = Link(shared_redis("6.2").address, settings=LinkSettings(command_timeout_s=0.4))
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        assert not link.is_up()
        async with trio.open_nursery() as readers:
            readers.start_soon(lambda: link.events.xread({"quiet": "$"}, block=900))
            readers.start_soon(lambda: link.events.xread({"quiet": "$"}, block=500))
        assert link.statistics().drops == 0
        nursery.cancel_scope.cancel()


async def test_the_end_of_run_fails_what_waits_and_what_comes_after(
    shared_redis: Callable[[str], RedisServer],
) -> None:
    """Nobody hangs on a link that was closed; it can be run again."""
    link = Link(shared_redis("6.2").address)
    failures: list[str] = []

    async def block() -> None:
        try:
            await link.events.xread({"quiet": "$"}, block=60_000)
        except RedisUnavailable as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery, up(link):
        nursery.start_soon(block)
        await trio.testing.wait_all_tasks_blocked()
    assert len(failures) == 1
    assert "closed" in failures[0]
    assert not link.is_up()
    with pytest.raises(RedisUnavailable, match="not running"):
        await link.commands.ping()
    assert link.statistics().drops == 0

    async with up(link):
        assert await link.commands.ping() is True


async def test_slow_replies_and_open_ones_disturb_the_steadiness(link: Link) -> None:
    """A reply slower than asked for sets the instant forward; one still awaited makes it now."""
    born_s = link.steady_since_s(slower_than_s=30)
    assert born_s == link.statistics().up_since_s
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.commands.execute_command, "DEBUG", "SLEEP", "0.3")
        await trio.sleep(0.1)
        assert link.steady_since_s(slower_than_s=0.05) == pytest.approx(trio.current_time(), abs=0.01)
    after_s = trio.current_time()
    for _ in range(3):
        await link.commands.ping()
    assert after_s - 0.1 < link.steady_since_s(slower_than_s=0.2) <= after_s
    assert link.steady_since_s(slower_than_s=30) == born_s


async def test_a_read_that_blocks_as_told_disturbs_nothing(link: Link) -> None:
    """Only what comes late counts, not what Redis was asked to wait."""
    born_s = link.steady_since_s(slower_than_s=0.2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: link.events.xread({"quiet": "$"}, block=500))
        await trio.sleep(0.4)
        assert link.steady_since_s(slower_than_s=0.2) == born_s
    assert link.steady_since_s(slower_than_s=0.2) == born_s


async def test_an_unblock_sent_with_the_read_still_ends_it(link: Link) -> None:
    """It is repeated until it hits, since it can overtake the read on its own connection."""
    for _ in range(50):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: link.events.xread({"quiet": "$"}, block=60_000))
                while not link.statistics().waiting:
                    await trio.lowlevel.checkpoint()
                await link.unblock(Lane.EVENTS)
