"""The in-process transport in virtual time: one clock governs blocking reads, TIME, entry ids and expiry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
import trio
import trio.testing

from engine.errors import RedisUnavailable
from engine.store.inprocess import InProcess, InProcessServer
from engine.store.transport import Lane

if TYPE_CHECKING:
    from trio.testing import MockClock

EPOCH_S = 1_764_000_000.0


def virtual_wall_s() -> float:
    """A wall clock that trio's clock moves."""
    return EPOCH_S + trio.current_time()


@pytest.fixture
def server() -> InProcessServer:
    """A server whose time is virtual."""
    return InProcessServer(wall=virtual_wall_s)


async def test_redis_time_follows_the_given_clock(autojump_clock: MockClock, server: InProcessServer) -> None:
    """TIME, inside scripts too, and the ids that Redis gives to entries."""
    redis = InProcess(server).commands
    await trio.sleep(100.25)
    assert await redis.time() == (int(EPOCH_S) + 100, 250_000)
    assert await redis.eval("return redis.call('TIME')", 0) == [str(int(EPOCH_S) + 100), "250000"]
    assert await redis.xadd("stream", {"a": 1}) == f"{int(EPOCH_S) + 100}250-0"


async def test_keys_expire_in_virtual_time(autojump_clock: MockClock, server: InProcessServer) -> None:
    """A key set for five seconds is there after four and gone after six."""
    redis = InProcess(server).commands
    await redis.set("lease", "me", px=5_000)
    await trio.sleep(4)
    assert await redis.pttl("lease") == 1_000
    await trio.sleep(2)
    assert await redis.get("lease") is None


async def test_a_blocking_read_takes_its_time_on_the_virtual_clock(
    autojump_clock: MockClock, server: InProcessServer
) -> None:
    """An hour of waiting costs no real time, and is an hour."""
    started_s = time.monotonic()
    assert await InProcess(server).events.xread({"stream": "$"}, block=3_600_000) == []
    assert trio.current_time() == 3_600
    assert time.monotonic() - started_s < 30


async def test_a_write_through_another_transport_wakes_a_reader(
    autojump_clock: MockClock, server: InProcessServer
) -> None:
    """Several engines share one server; the entry is read at the instant it is written, by a script too."""
    reader, writer = InProcess(server), InProcess(server)
    await writer.commands.xgroup_create("stream", "group", id="0", mkstream=True)

    async def write_later() -> None:
        await trio.sleep(7)
        await writer.commands.set("other", "wakes nobody for long")
        await trio.sleep(1)
        await writer.commands.eval("return redis.call('XADD', KEYS[1], '*', 'run', 'a')", 1, "stream")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_later)
        reply: Any = await reader.runs.xreadgroup("group", "me", {"stream": ">"}, block=60_000)
    ((_, ((_, fields),)),) = reply
    assert fields == {"run": "a"}
    assert trio.current_time() == 8


async def test_readers_of_one_group_share_the_entries(autojump_clock: MockClock, server: InProcessServer) -> None:
    """Each entry wakes all and goes to one."""
    transports = [InProcess(server) for _ in range(3)]
    await transports[0].commands.xgroup_create("stream", "group", id="0", mkstream=True)
    got: list[str] = []

    async def read(name: str, transport: InProcess) -> None:
        reply: Any = await transport.runs.xreadgroup("group", name, {"stream": ">"}, count=1, block=5_000)
        for _, entries in reply:
            got.extend(fields["run"] for _, fields in entries)

    async with trio.open_nursery() as nursery:
        for number, transport in enumerate(transports):
            nursery.start_soon(read, str(number), transport)
        await trio.testing.wait_all_tasks_blocked()
        await transports[0].commands.xadd("stream", {"run": "a"})
        await transports[0].commands.xadd("stream", {"run": "b"})
    assert sorted(got) == ["a", "b"]
    assert trio.current_time() == 5


async def test_a_cancelled_read_has_taken_nothing(autojump_clock: MockClock, server: InProcessServer) -> None:
    """And the lane is free for the next one."""
    transport = InProcess(server)
    await transport.commands.xgroup_create("stream", "group", id="0", mkstream=True)
    with trio.move_on_after(1):
        await transport.runs.xreadgroup("group", "me", {"stream": ">"}, block=60_000)
    await transport.commands.xadd("stream", {"run": "a"})
    assert (await transport.commands.xpending("stream", "group"))["pending"] == 0
    assert len(await transport.runs.xreadgroup("group", "me", {"stream": ">"}, block=1_000)) == 1


async def test_a_lane_carries_one_command_at_a_time(autojump_clock: MockClock, server: InProcessServer) -> None:
    """As on a socket: what is sent behind a blocking read waits for it."""
    transport = InProcess(server)

    async def block() -> None:
        await transport.events.xread({"stream": "$"}, block=2_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        await trio.testing.wait_all_tasks_blocked()
        assert transport.statistics().waiting == 1
        assert await transport.events.ping() is True
        assert trio.current_time() == 2


async def test_a_stopped_server_is_unavailable_until_it_is_started(
    autojump_clock: MockClock, server: InProcessServer
) -> None:
    """Commands and blocked reads fail as when a real one dies; data stays, and the link is steady from the start."""
    transport = InProcess(server)
    await transport.commands.set("key", "1")
    failures: list[RedisUnavailable] = []

    async def block() -> None:
        try:
            await transport.events.xread({"stream": "$"}, block=60_000)
        except RedisUnavailable as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        await trio.sleep(1)
        server.stop()
    assert len(failures) == 1
    assert not transport.is_up()
    with pytest.raises(RedisUnavailable):
        await transport.commands.get("key")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.wait_up)
        await trio.sleep(9)
        assert transport.steady_since_s(slower_than_s=1) == trio.current_time()
        server.start()
    assert await transport.commands.get("key") == "1"
    await trio.sleep(5)
    assert transport.steady_since_s(slower_than_s=1) == 10
    assert transport.statistics().drops == 3


async def test_unblock_is_for_its_own_transport(autojump_clock: MockClock, server: InProcessServer) -> None:
    """Another transport's read on the same lane goes on."""
    ours, theirs = InProcess(server), InProcess(server)
    ended_s: dict[str, float] = {}

    async def block(name: str, transport: InProcess) -> None:
        await transport.events.xread({"stream": "$"}, block=60_000)
        ended_s[name] = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block, "ours", ours)
        nursery.start_soon(block, "theirs", theirs)
        await trio.sleep(3)
        await ours.unblock(Lane.EVENTS)
    assert ended_s == {"ours": 3, "theirs": 60}


def test_others_who_use_fakeredis_keep_the_real_clock(server: InProcessServer) -> None:
    """Only the server at work is governed."""
    seconds, _ = fakeredis.FakeRedis().time()
    assert abs(seconds - time.time()) < 60


async def test_bytes_that_are_no_text_do_not_break_a_reply(server: InProcessServer) -> None:
    """They are shown escaped, as over a socket."""
    redis = InProcess(InProcessServer()).commands
    await redis.set("key", b"\xff")
    assert await redis.get("key") == "\\xff"
