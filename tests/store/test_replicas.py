"""Writes that count only when a replica has them: real primaries, and replicas that stand still or are cut off."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import redis
import trio

from engine.address import Address
from engine.errors import RedisUnavailable
from engine.store.inprocess import InProcess
from engine.store.keys import Keys
from engine.store.link import Link, LinkSettings
from engine.store.patience import Backoff
from engine.store.replicas import ReplicaWait
from engine.store.runs import Gone
from engine.store.session import Done
from engine.store.store import Store
from engine.store.timetable import Published
from tests.store.proxy import Proxy
from tests.store.scenario import Stage, completion
from tests.store.topologies import AT_ONCE, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.store.servers import RedisServer

EACH = pytest.mark.parametrize("series", ["5.0", "6.2", "7.0"])
KEYS = Keys("test")
WAIT = ReplicaWait(count=1, timeout_s=10, mark=KEYS.mark)
BRIEF = replace(WAIT, timeout_s=0.3)
"""For tests in which nobody acknowledges, or not at first."""

QUICK = LinkSettings(backoff=Backoff(first_s=0.01, ceiling_s=0.05))


@pytest.fixture
def series() -> str:
    """Of both servers, where a test does not go through all."""
    return "7.0"


@pytest.fixture
def primary(start_redis: Callable[..., RedisServer], series: str) -> RedisServer:
    return start_redis(series, *AT_ONCE)


@pytest.fixture
def follow(start_redis: Callable[..., RedisServer], series: str) -> Iterator[Callable[[int], RedisServer]]:
    """``follow(port)`` starts a replica of who listens there; the caller waits until it follows."""
    started: list[RedisServer] = []

    def start(port: int) -> RedisServer:
        started.append(start_redis(series, "--replicaof", "127.0.0.1", str(port)))
        return started[-1]

    yield start
    for replica in started:
        replica.resume()


@pytest.fixture
def replica(primary: RedisServer, follow: Callable[[int], RedisServer]) -> RedisServer:
    found = follow(primary.port)
    until_one_follows(primary)
    return found


def until_one_follows(primary: RedisServer) -> None:
    with client(primary) as there:
        until(lambda: there.wait(1, 1_000) == 1, "a replica follows")


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=server.path, decode_responses=True, protocol=2)


@asynccontextmanager
async def linked(server: RedisServer, *, wait: ReplicaWait | None = WAIT) -> AsyncIterator[Link]:
    """A link that waits for a replica, up for the block."""
    link = Link(server.address, name="test", settings=QUICK, wait=wait)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        with trio.fail_after(30):
            await link.wait_up()
        yield link
        nursery.cancel_scope.cancel()


async def met(condition: Callable[[], bool]) -> None:
    """Wait until it is."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - a link has no event for each
            await trio.sleep(0.002)


async def repeated(call: Callable[[], Awaitable[object]]) -> object:
    """As an actor does: until Redis answers."""
    with trio.fail_after(60):
        while True:
            try:
                return await call()
            except RedisUnavailable:
                await trio.sleep(0.05)


@EACH
async def test_a_publication_and_an_end_are_on_the_replica_when_they_are_answered(
    primary: RedisServer, replica: RedisServer, series: str
) -> None:
    """At once, not some time later."""
    async with linked(primary) as link:
        stage = await Stage.set(Store.over(link, prefix="test"))
        with client(replica) as there:
            for _ in range(50):
                slot = stage.slot()
                await stage.redis.zadd(KEYS.due, {f"t/{slot.task_id}": slot.due_ms})
                assert await stage.store.timetable.publish(stage.leader, [slot], queue_cap=10) == [Published()]
                [run_id] = there.hkeys(KEYS.live(slot.task_id))
                held = await stage.taken()
                before = there.xlen(KEYS.ledger(slot.task_id))
                assert await stage.store.runs.complete("A", [completion(held)]) == [Done()]
                assert there.xlen(KEYS.ledger(slot.task_id)) == before + 1
                assert not there.exists(KEYS.run(run_id))
        assert link.statistics().unacknowledged_since_s is None
        assert link.statistics().trouble is None


@EACH
async def test_what_no_replica_acknowledges_is_done_and_asked_again_until_one_does(
    primary: RedisServer, replica: RedisServer, series: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The state is shown, and told once; the repeat, also over another connection, is no acknowledgement."""
    async with linked(primary, wait=None) as plain, linked(primary, wait=BRIEF) as link:
        stage, runs = await Stage.set(Store.over(plain, prefix="test")), Store.over(link, prefix="test").runs
        held = await stage.running()
        end = [completion(held)]
        replica.pause()
        for number in range(3):
            with pytest.raises(RedisUnavailable, match="have acknowledged"):
                await runs.complete("A", end)
            assert not await stage.redis.exists(KEYS.run(held.run_id)), "it is done"
            if number == 1:
                await drop_connection(link, primary, ":replicated")
        assert link.is_up()
        assert link.statistics().unacknowledged_since_s is not None
        assert "fewer than 1 replica" in (link.statistics().trouble or "")
        replica.resume()
        assert await repeated(lambda: runs.complete("A", end)) == [Gone()]
        assert link.statistics().unacknowledged_since_s is None
        assert link.statistics().trouble is None
        with client(replica) as there:
            assert there.xlen(KEYS.ledger("group/task")) == 1
    assert [said(record) for record in caplog.records if "acknowledge" in record.getMessage()] == ["begins", "ends"]


def said(record: logging.LogRecord) -> str:
    assert record.levelno == logging.WARNING
    return "ends" if "again, after" in record.getMessage() else "begins"


async def drop_connection(link: Link, server: RedisServer, name: str) -> None:
    """Have the server close one of the link's connections; return when it is up again."""
    with client(server) as there:
        [found] = [one for one in there.client_list() if one["name"].endswith(name)]
        there.client_kill_filter(_id=found["id"])
    drops = link.statistics().drops
    await met(lambda: link.statistics().drops > drops)
    with trio.fail_after(30):
        await link.wait_up()


async def test_nothing_new_is_published_while_a_publication_is_not_acknowledged(
    primary: RedisServer, replica: RedisServer
) -> None:
    """Or a failover would forget the more, the longer that lasts. Runs that have ended end all the same."""
    async with linked(primary, wait=None) as plain, linked(primary, wait=BRIEF) as link:
        stage, store = await Stage.set(Store.over(plain, prefix="test")), Store.over(link, prefix="test")
        held = await stage.running("group/running")
        slots = [stage.slot("group/one"), stage.slot("group/two")]
        for slot in slots:
            await stage.redis.zadd(KEYS.due, {f"t/{slot.task_id}": slot.due_ms})
        replica.pause()

        async def publish(number: int) -> object:
            return await store.timetable.publish(stage.leader, [slots[number]], queue_cap=10)

        for number in (0, 1):
            with pytest.raises(RedisUnavailable, match="have acknowledged"):
                await publish(number)
        with pytest.raises(RedisUnavailable, match="have acknowledged"):
            await store.runs.complete("A", [completion(held)])
        due = await stage.store.timetable.tasks()
        assert due["group/one"] == slots[0].next_ms, "published, before anybody knew"
        assert due["group/two"] == slots[1].due_ms, "not published"
        assert await stage.store.runs.live("group/running") == {}, "ended"
        replica.resume()
        assert await repeated(lambda: publish(1)) == [Published()]


@EACH
async def test_no_acknowledged_write_is_lost_with_the_primary(
    primary: RedisServer, follow: Callable[[int], RedisServer], series: str, nursery: trio.Nursery
) -> None:
    """Its replica is cut off, it takes more writes, and dies. What the replica lacks was never acknowledged."""
    proxy = Proxy(primary.tcp)
    await nursery.start(proxy.run)
    replica = follow(proxy.port)
    await trio.to_thread.run_sync(until_one_follows, primary)
    acknowledged: list[int] = []
    written: list[int] = []
    async with linked(primary, wait=BRIEF) as link, trio.open_nursery() as writers:

        async def write(first: int) -> None:
            for number in range(first, first + 1000):
                written.append(number)
                try:
                    await link.replicated.sadd("{test}:numbers", number)
                except RedisUnavailable:
                    await trio.sleep(0.01)
                else:
                    acknowledged.append(number)

        for writer in range(4):
            writers.start_soon(write, writer * 1000)
        await met(lambda: len(acknowledged) >= 200)
        proxy.black_hole = True
        so_far = len(written)
        await met(lambda: len(written) >= so_far + 8)
        primary.kill()
        writers.cancel_scope.cancel()
    with client(replica) as there:
        there.execute_command("REPLICAOF", "NO", "ONE")
        kept = {int(number) for number in there.smembers("{test}:numbers")}
    assert set(acknowledged) <= kept
    assert set(written) - kept, "the primary had taken more"
    nursery.cancel_scope.cancel()


@EACH
async def test_what_writes_nothing_is_acknowledged_too(primary: RedisServer, replica: RedisServer, series: str) -> None:
    """A script that an earlier try has done: something is written behind it, since Redis from 7.2 on waits for that."""
    async with linked(primary) as link:
        with client(primary) as there, client(replica) as beside:
            before = there.info("replication")["master_repl_offset"]
            assert await link.replicated.ping() is True
            assert beside.info("replication")["slave_repl_offset"] > before
            assert 0 < beside.pttl(KEYS.mark) <= 600_000


async def test_the_command_connection_never_waits(primary: RedisServer, replica: RedisServer) -> None:
    """Leases are renewed while a replica stands still."""
    async with linked(primary, wait=replace(WAIT, timeout_s=60)) as link, trio.open_nursery() as nursery:
        replica.pause()
        nursery.start_soon(link.replicated.ping)
        with client(primary) as there:
            await met(lambda: there.info("clients")["blocked_clients"] == 1)
        with trio.fail_after(30):
            for _ in range(100):
                assert await link.commands.ping() is True
        assert link.steady_since_s(slower_than_s=20) < trio.current_time(), "it is not slow either: it waits as told"
        replica.resume()


async def test_the_fourth_connection_is_there_only_where_replicas_are_waited_for(primary: RedisServer) -> None:
    """Whoever waits for none has three."""
    names = ["test:commands", "test:events", "test:runs"]
    for wait, expected in ((None, names), (replace(WAIT, count=2), [*names[:2], "test:replicated", names[2]])):
        async with linked(primary, wait=wait) as link:
            with client(primary) as there:
                assert sorted(one["name"] for one in there.client_list() if one["name"]) == expected
            assert (link.replicated is link.commands) == (wait is None)
            assert link.statistics().connects == len(expected)
    inside = InProcess()
    assert inside.replicated is inside.commands, "which has everything everywhere at once"


async def test_the_end_of_a_run_is_acknowledged_when_memory_is_full(primary: RedisServer, replica: RedisServer) -> None:
    """It frees memory; so does what is written behind it."""
    async with linked(primary) as link:
        stage = await Stage.set(Store.over(link, prefix="test"))
        held, slot = await stage.running(), stage.slot("group/other")
        await stage.redis.zadd(KEYS.due, {"t/group/other": slot.due_ms})
        with client(primary) as there:
            there.config_set("maxmemory-policy", "noeviction")
            there.config_set("maxmemory", "1")
            assert await stage.store.runs.complete("A", [completion(held)]) == [Done()]
            with pytest.raises(RedisUnavailable, match="raise maxmemory"):
                await stage.store.timetable.publish(stage.leader, [slot], queue_cap=10)
            assert "raise maxmemory" in (link.statistics().trouble or "")


async def test_callers_that_give_up_and_connections_that_are_cut_cross_no_replies(
    primary: RedisServer, replica: RedisServer
) -> None:
    """Each command has three replies on its way; nobody gets another's."""
    async with linked(primary) as link:
        answered = 0

        async def ask(number: int, patience_s: float) -> None:
            nonlocal answered
            with trio.move_on_after(patience_s):
                try:
                    assert await link.replicated.execute_command("ECHO", str(number)) == str(number)
                    answered += 1
                except RedisUnavailable:
                    pass

        for turn in range(5):
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(ask, number, (0, 0.002, 30)[number % 3])
                if turn % 2:
                    await drop_connection(link, primary, ":replicated")
        assert answered >= 60
        assert link.statistics().waiting == 0


async def test_a_user_without_the_right_to_wait_is_told_so(
    primary: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The link does not come up, and says why."""
    with client(primary) as there:
        there.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-wait")
    link = Link(Address(path=primary.path, username="app", password="secret"), settings=QUICK, wait=WAIT)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        await met(lambda: "WAIT: this user has no permissions" in (link.statistics().trouble or ""))
        assert not link.is_up()
        nursery.cancel_scope.cancel()


async def test_a_primary_that_dies_while_replicas_are_waited_for_has_not_answered(
    primary: RedisServer, replica: RedisServer
) -> None:
    """What it had done by then is asked again of the next one."""
    async with linked(primary, wait=replace(WAIT, timeout_s=60)) as link, trio.open_nursery() as nursery:
        replica.pause()

        async def write() -> None:
            with pytest.raises(RedisUnavailable, match="not answered"):
                await link.replicated.set("{test}:key", "1")

        nursery.start_soon(write)
        with client(primary) as there:
            await met(lambda: there.exists("{test}:key") == there.info("clients")["blocked_clients"] == 1)
        primary.kill()
    replica.resume()
