"""The link on a Redis that dies, hangs, refuses or lies. Waits are for conditions; limits are ten times generous."""

from __future__ import annotations

import logging
import random
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from engine.address import Address
from engine.errors import RedisUnavailable
from engine.store.link import Link, LinkSettings
from engine.store.patience import Backoff
from tests.store.proxy import Proxy, listening
from tests.store.servers import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LINK_LOGGER = "fastapi.task-manager.link"
QUICK = LinkSettings(command_timeout_s=0.5, connect_timeout_s=2, backoff=Backoff(first_s=0.01, ceiling_s=0.1))
EACH = pytest.mark.parametrize("series", ["5.0", "6.2", "7.0"])


@asynccontextmanager
async def running(link: Link, *, wait: bool = True) -> AsyncIterator[Link]:
    """Run a link for the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        if wait:
            with trio.fail_after(30):
                await link.wait_up()
        yield link
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - a link has no event for each
            await trio.sleep(0.005)


async def test_no_reply_is_lost_or_crossed_when_redis_dies_under_load(
    start_redis: Callable[..., RedisServer],
) -> None:
    """Each command gets the reply to what it asked, or RedisUnavailable; and callers that repeat succeed."""
    server = start_redis("6.2")
    answered = unavailable = 0
    stop = False

    async def caller(link: Link, name: int) -> None:
        nonlocal answered, unavailable
        number = 0
        while not stop:
            number += 1
            try:
                assert await link.commands.execute_command("ECHO", f"{name}-{number}") == f"{name}-{number}"
                answered += 1
            except RedisUnavailable:
                unavailable += 1

    async with running(Link(server.address, settings=QUICK)) as link, trio.open_nursery() as nursery:
        for name in range(50):
            nursery.start_soon(caller, link, name)
        for _ in range(4):
            before = answered
            await until(lambda before=before: answered > before + 500)  # type: ignore[misc]
            server.kill()
            await until(lambda: not link.is_up())
            server.start()
            await until(link.is_up)
        stop = True
    assert unavailable > 0
    assert link.statistics().waiting == 0
    assert link.statistics().drops >= 12


async def test_a_paused_redis_runs_into_the_deadline_and_is_dialled_again(
    start_redis: Callable[..., RedisServer],
) -> None:
    """The oldest command's deadline ends the connection, and with it all that is stuck behind it."""
    server = start_redis("6.2")
    outcomes: list[str] = []

    async def ask(link: Link) -> None:
        try:
            await link.commands.ping()
        except RedisUnavailable as error:
            outcomes.append(str(error))

    async with running(Link(server.address, settings=QUICK)) as link:
        server.pause()
        try:
            started_s = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask, link)
            assert len(outcomes) == 20
            assert all("no reply within 0.5 s" in outcome for outcome in outcomes)
            assert 0.5 <= trio.current_time() - started_s < 5
        finally:
            server.resume()
        await until(link.is_up)
        assert await link.commands.ping() is True


async def test_replies_that_came_while_this_process_was_stopped_are_taken(
    shared_redis: Callable[[str], RedisServer],
) -> None:
    """A process that was itself stalled past a deadline looks for replies before it blames Redis."""
    async with running(Link(shared_redis("6.2").address, settings=QUICK)) as link:
        for _ in range(5):
            sent = link.statistics().commands_sent
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(link.commands.ping)
                while link.statistics().commands_sent < sent + 20:
                    await trio.lowlevel.checkpoint()
                time.sleep(0.6)  # noqa: ASYNC251 - the stall
        assert link.statistics().drops == 0


async def test_what_waited_for_a_connection_has_the_time_of_any_other_command() -> None:
    """Else a new connection would be given up at once for a command that had been queued for long."""

    async def slow_redis(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await trio.sleep(1.2)
        await stream.send_all(b"+OK\r\n+OK\r\n+PONG\r\n:7\r\n")
        await stream.receive_some(4096)
        await trio.sleep(1.2)
        await stream.send_all(b"+PONG\r\n")
        await trio.sleep_forever()

    settings = LinkSettings(command_timeout_s=2)
    async with listening(slow_redis) as address, running(Link(address, settings=settings), wait=False) as link:
        assert await link.commands.ping() is True


async def test_a_black_hole_is_noticed_on_every_lane(shared_redis: Callable[[str], RedisServer]) -> None:
    """Also by a blocking read: its deadline is its BLOCK time and the deadline of any command."""
    proxy = Proxy(shared_redis("6.2").tcp)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        async with running(Link(proxy.address, settings=QUICK)) as link:
            proxy.black_hole = True
            started_s = trio.current_time()
            with pytest.raises(RedisUnavailable, match=r"no reply within 0\.8 s"):
                await link.events.xread({"quiet": "$"}, block=300)
            assert trio.current_time() - started_s < 8
            with pytest.raises(RedisUnavailable, match="no reply"):
                await link.commands.ping()
            proxy.black_hole = False
            await proxy.cut()
            await until(link.is_up)
            assert await link.commands.ping() is True
        nursery.cancel_scope.cancel()


async def test_a_command_issued_while_down_waits_for_redis(start_redis: Callable[..., RedisServer]) -> None:
    """It goes out with the next connection, in the order of the calls."""
    server = start_redis("6.2")
    async with running(Link(server.address, settings=LinkSettings(backoff=QUICK.backoff))) as link:
        server.kill()
        await until(lambda: not link.is_up())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.commands.rpush, "list", "1")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(link.commands.rpush, "list", "2")
            await trio.testing.wait_all_tasks_blocked()
            assert link.statistics().waiting == 2
            server.start()
        assert await link.commands.lrange("list", 0, -1) == ["1", "2"]


async def test_a_command_waits_no_longer_than_its_deadline_for_redis(
    start_redis: Callable[..., RedisServer],
) -> None:
    """Then it fails, and says why there is no connection."""
    server = start_redis("6.2", run=False)
    async with running(Link(server.address, settings=QUICK), wait=False) as link:
        started_s = trio.current_time()
        with pytest.raises(RedisUnavailable, match=r"no connection to unix://.* within 0\.5 s"):
            await link.commands.ping()
        assert 0.4 < trio.current_time() - started_s < 5


async def test_what_is_queued_while_down_is_bounded_in_number_and_bytes() -> None:
    """One more is refused at once; a cancelled one makes room."""
    settings = LinkSettings(queue_limit=3, queue_limit_bytes=1_000)
    link = Link(Address(host="127.0.0.1", port=free_port()), settings=settings)
    async with running(link, wait=False):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(link.commands.ping)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RedisUnavailable, match="3 commands"):
                await link.commands.ping()
            nursery.cancel_scope.cancel()
        assert link.statistics().waiting == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.commands.set, "key", "x" * 800)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RedisUnavailable, match="bytes"):
                await link.commands.set("key", "x" * 300)
            nursery.cancel_scope.cancel()


async def test_the_end_of_run_fails_what_is_queued_for_a_redis_that_is_down() -> None:
    """Nobody waits for a connection that nobody will make."""
    link = Link(Address(host="127.0.0.1", port=free_port()))
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(RedisUnavailable, match="closed"):
                await link.commands.ping()

        async with running(link, wait=False):
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
    assert link.statistics().waiting == 0


async def test_a_password_that_the_server_echoes_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Redis does so when AUTH was renamed: unknown command, with args beginning with."""

    async def echo(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"-ERR unknown command `AUTH`, with args beginning with: `hush-hush`, \r\n")
        await trio.sleep_forever()

    async with listening(echo) as address:
        with caplog.at_level(logging.DEBUG, logger=LINK_LOGGER):
            async with running(Link(replace(address, password="hush-hush")), wait=False) as link:
                await until(lambda: bool(caplog.messages))
                assert "hush-hush" not in str(link.statistics())
    assert "beginning with: `***`" in caplog.messages[0]
    assert "hush-hush" not in caplog.text


async def test_each_failed_try_is_one_line_with_the_address(caplog: pytest.LogCaptureFixture) -> None:
    """Not three, though there are three connections; the delays grow to the ceiling."""
    address = Address(host="127.0.0.1", port=free_port())
    settings = LinkSettings(backoff=Backoff(first_s=0.01, ceiling_s=0.04))
    with caplog.at_level(logging.INFO, logger=LINK_LOGGER):
        async with running(Link(address, settings=settings, chance=lambda: 0.5), wait=False):
            await until(lambda: len(caplog.messages) >= 4)
    assert all(f"cannot connect to Redis at {address.label}" in line for line in caplog.messages)
    assert all("refused" in line for line in caplog.messages)
    delays = [line.rpartition("next try in ")[2] for line in caplog.messages[:4]]
    assert delays == ["0.01 s", "0.01 s", "0.03 s", "0.03 s"]


async def test_a_long_outage_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The first tries are told, and then one each minute unless the reason is another one."""
    address = Address(host="127.0.0.1", port=free_port())
    settings = LinkSettings(backoff=Backoff(first_s=0.01, ceiling_s=0.02))
    with caplog.at_level(logging.DEBUG, logger=LINK_LOGGER):
        async with running(Link(address, settings=settings), wait=False):
            await until(lambda: len(caplog.messages) >= 15)
    assert [record.levelno for record in caplog.records][:15] == [logging.WARNING] * 5 + [logging.DEBUG] * 10


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (Address(host="no-such-host.invalid"), "Name or service not known|No address|Temporary failure"),
        (Address(host="a..b"), "label"),
        (Address(path="/nowhere/redis.sock"), "No such file"),
        (Address(host="127.0.0.1", port=free_port(), tls=True), "refused"),
    ],
)
async def test_what_cannot_be_dialled_says_why(address: Address, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """Name lookup, socket and port each have their reason in the line."""
    with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
        async with running(Link(address, settings=QUICK), wait=False) as link:
            await until(lambda: bool(caplog.messages))
            assert not link.is_up()
    assert pytest.approx(0) == link.statistics().connects
    assert any(word in caplog.messages[0] for word in said.split("|")), caplog.messages[0]


async def test_a_listener_that_is_no_redis_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    """A web server on that port answers something else."""

    async def web_server(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await trio.sleep_forever()

    async with listening(web_server) as address:
        with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
            async with running(Link(address, settings=QUICK), wait=False):
                await until(lambda: bool(caplog.messages))
    assert "this is no Redis" in caplog.messages[0]


async def say_nothing(_stream: trio.SocketStream) -> None:
    """Accept, and leave it at that."""
    await trio.sleep_forever()


async def test_a_listener_that_says_nothing_fails_the_try(caplog: pytest.LogCaptureFixture) -> None:
    """The login has a deadline of its own."""
    settings = LinkSettings(connect_timeout_s=0.1, backoff=QUICK.backoff)
    async with listening(say_nothing) as address:
        with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
            async with running(Link(address, settings=settings), wait=False):
                await until(lambda: bool(caplog.messages))
    assert "no answer within 0.1 s" in caplog.messages[0]


async def test_a_database_that_does_not_exist_is_named(
    shared_redis: Callable[[str], RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    """SELECT fails with the number in the line."""
    address = Address(path=shared_redis("6.2").path, db=99)
    with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
        async with running(Link(address, settings=QUICK), wait=False):
            await until(lambda: bool(caplog.messages))
    assert "SELECT 99: " in caplog.messages[0]


async def test_a_redis_that_is_loading_is_waited_for(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    """It is not up while it reads its data, though it accepts connections."""
    server = start_redis("7.0")
    async with running(Link(server.address)) as link:
        await link.commands.eval("for i = 1, 2000 do redis.call('SET', 'k' .. i, i) end", 0)
        await link.commands.save()
    server.kill()
    # Slow motion: a pause after each key while loading.
    server.options = ["--key-load-delay", "400", "--loading-process-events-interval-bytes", "1024"]
    with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
        async with running(Link(server.address, settings=QUICK), wait=False) as link:
            server.start()
            await until(lambda: any("loading its data" in line for line in caplog.messages))
            await until(link.is_up)
            assert await link.commands.get("k2000") == "2000"


@EACH
async def test_a_replica_is_unavailable_and_its_connection_is_given_up(
    start_redis: Callable[..., RedisServer], series: str
) -> None:
    """READONLY, from a command or from within a script: another server is wanted."""
    server = start_redis(series)
    async with running(Link(server.address, settings=QUICK)) as link:
        await link.commands.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        drops = link.statistics().drops
        with pytest.raises(RedisUnavailable, match="read-only replica") as caught:
            await link.commands.set("key", "1")
        assert isinstance(caught.value.__cause__, ResponseError)
        await until(lambda: link.statistics().drops == drops + 1)
        await until(link.is_up)
        with pytest.raises(RedisUnavailable, match="read-only replica"):
            await link.commands.eval("return redis.call('SET', KEYS[1], 1)", 1, "key")
        await until(lambda: link.statistics().drops == drops + 2)


@EACH
async def test_too_few_replicas_is_unavailable_and_keeps_the_connection(
    start_redis: Callable[..., RedisServer], series: str
) -> None:
    """NOREPLICAS passes by itself; so do the others that are about now and not about this server."""
    server = start_redis(series)
    async with running(Link(server.address, settings=QUICK)) as link:
        await link.commands.config_set("min-replicas-to-write", 1)
        with pytest.raises(RedisUnavailable, match="too few replicas"):
            await link.commands.set("key", "1")
        script = ("return redis.call('SET', KEYS[1], 1)", 1, "key")
        if series == "5.0":  # where scripts are let through, as docs/redis.md says
            assert await link.commands.eval(*script) == "OK"
        else:
            with pytest.raises(RedisUnavailable, match="too few replicas"):
                await link.commands.eval(*script)
        assert link.statistics().drops == 0


@EACH
async def test_a_refusal_disturbs_the_steadiness(start_redis: Callable[..., RedisServer], series: str) -> None:
    """What Redis refuses to one worker it refuses to the beats of others: their leases end though they live."""
    server = start_redis(series)
    async with running(Link(server.address, settings=QUICK)) as link:
        await link.commands.config_set("min-replicas-to-write", 1)
        before_s = trio.current_time()
        assert link.steady_since_s(slower_than_s=30) < before_s
        with pytest.raises(RedisUnavailable, match="too few replicas"):
            await link.commands.set("key", "1")
        after_s = trio.current_time()
        await link.commands.ping()
        assert before_s < link.steady_since_s(slower_than_s=30) <= after_s


@EACH
async def test_a_redis_whose_memory_is_full_is_unavailable(
    start_redis: Callable[..., RedisServer], series: str, caplog: pytest.LogCaptureFixture
) -> None:
    """To what grows, also from within a script; the rest goes on over the same connection. It is said once."""
    server = start_redis(series, "--maxmemory", "1")
    async with running(Link(server.address, settings=QUICK)) as link:
        for _ in range(3):
            with pytest.raises(RedisUnavailable, match="raise maxmemory") as refused:
                await link.commands.set("key", "1")
            assert isinstance(refused.value.__cause__, OutOfMemoryError)
            with pytest.raises(RedisUnavailable, match="raise maxmemory"):
                await link.commands.eval("return redis.call('SET', KEYS[1], 1)", 1, "key")
        with pytest.raises(NoScriptError):
            await link.commands.evalsha("0" * 40, 0)
        assert await link.commands.get("key") is None
        assert link.statistics().drops == 0
    assert len([record for record in caplog.records if "refuses commands" in record.getMessage()]) == 1


async def ping_for_ever(link: Link) -> None:
    """Until that fails."""
    while True:
        await link.commands.ping()


@EACH
async def test_a_busy_redis_is_unavailable(start_redis: Callable[..., RedisServer], series: str) -> None:
    """BUSY while a script runs away; the script's own caller is stuck until it is killed."""
    server = start_redis(series, "--lua-time-limit", "50")
    async with (
        running(Link(server.address)) as link,
        running(Link(server.address, name="other")) as other,
        trio.open_nursery() as nursery,
    ):

        async def run_away() -> None:
            with pytest.raises(ResponseError, match="killed"):
                await other.commands.eval("while true do end", 0)

        nursery.start_soon(run_away)
        with trio.fail_after(30), pytest.raises(RedisUnavailable, match="keeps it busy"):
            await ping_for_ever(link)
        await link.commands.script_kill()


async def kill_everybody(link: Link) -> None:
    """Have Redis close all connections, ours included, until that shows."""
    while True:
        await link.commands.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "no")


async def test_a_password_changed_under_a_connection_ends_in_a_new_login(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that Redis closes is dialled anew; the line says that the password is wanted."""
    server = start_redis("6.2")
    async with running(Link(server.address, settings=QUICK)) as link:
        await link.commands.config_set("requirepass", "changed")
        with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
            with pytest.raises(RedisUnavailable):
                await kill_everybody(link)
            await until(lambda: any("password" in line for line in caplog.messages))
        assert not link.is_up()


async def test_a_reply_to_no_command_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """A server out of step must not answer the next command with the reply of another."""

    async def chatterbox(stream: trio.SocketStream) -> None:
        """Log anybody in, then say one thing too many."""
        await stream.receive_some(4096)
        await stream.send_all(b"+OK\r\n+OK\r\n+PONG\r\n:7\r\n")
        await trio.sleep(0.05)
        await stream.send_all(b"+SURPRISE\r\n")
        await trio.sleep_forever()

    async with listening(chatterbox) as address:
        with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
            async with running(Link(address, settings=QUICK), wait=False):
                await until(lambda: any("a reply to no command" in line for line in caplog.messages))


async def test_a_server_that_hangs_up_after_each_login_is_not_dialled_in_a_hot_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A connection that did not last counts as one more failure for the backoff."""

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"+OK\r\n+OK\r\n+PONG\r\n:7\r\n")

    settings = LinkSettings(backoff=Backoff(first_s=0.01, ceiling_s=0.2))
    async with listening(hang_up) as address:
        with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
            async with running(Link(address, settings=settings, chance=lambda: 0.0), wait=False):

                def delays() -> list[str]:
                    return [line.rpartition(" in ")[2] for line in caplog.messages if ":commands)" in line]

                await until(lambda: len(delays()) >= 5)
    assert delays()[:5] == ["0.01 s", "0.02 s", "0.04 s", "0.08 s", "0.16 s"]


async def test_cancellations_and_drops_together_leave_nothing_behind(
    shared_redis: Callable[[str], RedisServer],
) -> None:
    """Callers that give up while connections are cut under them: nobody hangs, nobody gets another's reply."""
    chance = random.Random(3)
    proxy = Proxy(shared_redis("6.2").tcp, chunk_bytes=lambda: chance.randint(1, 400))
    stop = False

    async def caller(link: Link, name: int) -> None:
        number = 0
        while not stop:
            number += 1
            with trio.move_on_after(chance.choice([0, 0.001, 0.01, 30])):
                try:
                    reply = await link.commands.execute_command("ECHO", f"{name}-{number}")
                except RedisUnavailable:
                    await trio.sleep(0.001)
                else:
                    assert reply == f"{name}-{number}"
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        async with running(Link(proxy.address, settings=QUICK)) as link:
            async with trio.open_nursery() as callers:
                for name in range(20):
                    callers.start_soon(caller, link, name)
                for _ in range(15):
                    await until(link.is_up)
                    await trio.sleep(0.01)  # some traffic, none in particular
                    await proxy.cut()
                    await until(lambda: not link.is_up())
                stop = True
            assert link.statistics().waiting == 0
        nursery.cancel_scope.cancel()


async def test_a_blocking_read_whose_stream_goes_is_one_to_repeat(start_redis: Callable[..., RedisServer]) -> None:
    """From Redis 7.0 on FLUSHALL ends it, as does a Cluster that gives the key to another node."""
    server = start_redis("7.0")
    async with running(Link(server.address, settings=QUICK)) as link:
        await link.commands.xgroup_create("s", "g", id="0", mkstream=True)
        failed: list[RedisUnavailable] = []

        async def read() -> None:
            with pytest.raises(RedisUnavailable, match="has gone") as caught:
                await link.runs.xreadgroup("g", "me", {"s": ">"}, block=60_000)
            failed.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with trio.fail_after(30):
                while not (await link.commands.info("clients"))["blocked_clients"]:
                    await trio.lowlevel.checkpoint()
            await link.commands.flushall()
        assert failed
