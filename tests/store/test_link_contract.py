"""What every transport does alike, over sockets and in process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from redis.exceptions import NoScriptError, ResponseError

from engine.errors import CommandRefused
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.store.transport import Transport


async def test_replies_are_shaped_and_decoded_by_redis_py(transport: Transport) -> None:
    """A command method gives what redis-py documents for RESP2, as text."""
    redis = transport.commands
    assert await redis.set("key", "välue") is True
    assert await redis.get("key") == "välue"
    assert await redis.get("nothing") is None
    assert await redis.hset("hash", mapping={"a": 1, "b": 2.5}) == 2
    assert await redis.hgetall("hash") == {"a": "1", "b": "2.5"}
    assert await redis.zadd("zset", {"one": 1, "two": 2}) == 2
    assert await redis.zrange("zset", 0, -1, withscores=True) == [("one", 1.0), ("two", 2.0)]
    assert await redis.exists("key", "hash", "nothing") == 2
    assert [key async for key in redis.scan_iter("k*")] == ["key"]


async def test_a_name_of_two_words_reaches_redis_as_two(transport: Transport) -> None:
    """redis-py names commands like ``XGROUP CREATE``; Redis wants the words apart."""
    redis = transport.commands
    assert await redis.xgroup_create("stream", "group", id="0", mkstream=True) is True
    assert await redis.execute_command("xgroup create", "stream", "other", "0") is True
    assert {group["name"] for group in await redis.xinfo_groups("stream")} == {"group", "other"}


async def test_stream_commands_give_entries_and_pending_ranges(transport: Transport) -> None:
    """Reading, pending ranges and acknowledging, through redis-py's methods."""
    redis = transport.commands
    await redis.xgroup_create("stream", "group", id="0", mkstream=True)
    first = await redis.xadd("stream", {"run": "a"})
    assert await transport.runs.xreadgroup("group", "me", {"stream": ">"}, count=1, block=5_000) == [
        ["stream", [(first, {"run": "a"})]]
    ]
    (pending,) = await redis.xpending_range("stream", "group", "-", "+", 10)
    assert (pending["message_id"], pending["consumer"], pending["times_delivered"]) == (first, "me", 1)
    assert await redis.xack("stream", "group", first) == 1
    assert await redis.xrevrange("stream", count=1) == [(first, {"run": "a"})]


async def test_errors_about_a_command_stay_those_of_redis_py(transport: Transport) -> None:
    """What Redis refuses is raised as redis-py's class, also from within a script, and costs nobody else."""
    redis = transport.commands
    await redis.set("text", "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await redis.lpush("text", "y")
    with pytest.raises(ResponseError, match=r"^WRONGTYPE"):
        await redis.eval("return redis.call('LPUSH', KEYS[1], 1)", 1, "text")
    with pytest.raises(NoScriptError):
        await redis.evalsha("0" * 40, 0)
    with pytest.raises(ResponseError, match="NOGROUP"):
        await transport.runs.xreadgroup("group", "me", {"nothing": ">"}, block=10)
    assert await redis.get("text") == "x"


async def test_an_error_inside_an_array_stays_a_value_in_it(transport: Transport) -> None:
    """As in redis-py: the caller sees which item failed."""
    one, error, two = await transport.commands.eval("return {1, redis.error_reply('MINE no'), 2}", 0)
    assert (one, two) == (1, 2)
    assert isinstance(error, ResponseError)
    assert "MINE no" in str(error)


async def test_a_script_is_loaded_and_called_by_its_digest(transport: Transport) -> None:
    """SCRIPT LOAD answers the SHA that EVALSHA takes."""
    redis = transport.commands
    sha = await redis.script_load("return {KEYS[1], ARGV[1], redis.call('TIME')[1] + 0}")
    key, argument, seconds = await redis.evalsha(sha, 1, "k", "v")
    assert (key, argument) == ("k", "v")
    assert abs(seconds - (await redis.time())[0]) <= 60


@pytest.mark.parametrize("lane", [Lane.RUNS, Lane.EVENTS])
async def test_a_blocking_read_that_finds_nothing_ends_by_itself(transport: Transport, lane: Lane) -> None:
    """After its BLOCK time it returns an empty list."""
    started_s = trio.current_time()
    assert await read(transport, lane, block_ms=60) == []
    assert 0.05 <= trio.current_time() - started_s < 30


@pytest.mark.parametrize("lane", [Lane.RUNS, Lane.EVENTS])
async def test_a_write_ends_a_blocking_read(transport: Transport, lane: Lane) -> None:
    """What was added while it blocked is returned, and nothing from before it for the id $."""
    await transport.commands.xadd("stream", {"old": 1})
    await in_background(transport, lane, then=lambda: transport.commands.xadd("stream", {"new": 1}))


async def in_background(transport: Transport, lane: Lane, *, then: Callable[[], Awaitable[object]]) -> None:
    """Block on a lane until ``then`` has been called often enough to end it, and check that it brought the news."""
    got: list[Any] = []

    async def block() -> None:
        if lane is Lane.EVENTS:
            got.extend(await transport.events.xread({"stream": "$"}, block=60_000))
        else:
            await transport.commands.xgroup_create("stream", "group", id="$", mkstream=True)
            got.extend(await transport.runs.xreadgroup("group", "me", {"stream": ">"}, block=60_000))
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        while not got:
            await trio.sleep(0.02)  # between tries only: the read may not have reached Redis yet
            await then()
    ((stream, entries),) = got
    assert stream == "stream"
    assert all(fields == {"new": "1"} for _, fields in entries)


@pytest.mark.parametrize("lane", [Lane.RUNS, Lane.EVENTS])
async def test_unblock_ends_the_read_in_progress(transport: Transport, lane: Lane) -> None:
    """The read returns nothing, long before its BLOCK time, however early the unblock came; the lane goes on."""
    for _ in range(20):
        results: list[object] = []
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect, transport, lane, results)
                while not results:
                    await transport.unblock(lane)
                    await trio.lowlevel.checkpoint()
        assert results == [[]]


async def collect(transport: Transport, lane: Lane, results: list[object]) -> None:
    """Append what a long read gives."""
    results.append(await read(transport, lane, block_ms=60_000))


async def test_unblock_without_a_read_does_nothing(transport: Transport) -> None:
    """And does not end the next one."""
    await transport.unblock(Lane.RUNS)
    started_s = trio.current_time()
    assert await read(transport, Lane.RUNS, block_ms=60) == []
    assert trio.current_time() - started_s >= 0.05


async def read(transport: Transport, lane: Lane, *, block_ms: int) -> Any:
    """Block on a lane for a stream that nobody writes."""
    if lane is Lane.EVENTS:
        return await transport.events.xread({"quiet": "$"}, block=block_ms)
    if not await transport.commands.exists("quiet"):
        await transport.commands.xgroup_create("quiet", "group", id="$", mkstream=True)
    return await transport.runs.xreadgroup("group", "me", {"quiet": ">"}, block=block_ms)


@pytest.mark.parametrize(
    "name", ["pipeline", "transaction", "lock", "pubsub", "monitor", "keyspace_notifications", "client"]
)
async def test_what_cannot_work_under_trio_is_refused_with_a_sentence(transport: Transport, name: str) -> None:
    """redis-py's methods that take a connection for themselves say what to do instead."""
    with pytest.raises(CommandRefused, match=rf"{name}\(\) does not work here: \w+"):
        getattr(transport.commands, name)()


@pytest.mark.parametrize("name", ["SUBSCRIBE", "select", "MULTI", "BLPOP", "WAIT", "CLIENT REPLY"])
async def test_commands_that_would_harm_the_shared_connection_are_refused(transport: Transport, name: str) -> None:
    """In any case, as one word or two, and on every lane."""
    for client in (transport.commands, transport.events):
        with pytest.raises(CommandRefused, match=name.upper()):
            await client.execute_command(name, "1", 0)


async def test_a_blocking_read_is_refused_on_the_commands_lane_and_without_an_end(transport: Transport) -> None:
    """It would hold up all other actors; and one without an end would never notice a dead connection."""
    with pytest.raises(CommandRefused, match="lane"):
        await transport.commands.xread({"stream": "$"}, block=10)
    with pytest.raises(CommandRefused, match="for ever"):
        await transport.events.xread({"stream": "$"}, block=0)
    assert await transport.commands.xread({"stream": "0"}) == []


async def test_closing_a_client_leaves_the_transport_alone(transport: Transport) -> None:
    """Clients own no connection, so `async with` and aclose() are harmless."""
    async with transport.commands as redis:
        await redis.set("key", "1")
    await transport.commands.aclose()
    assert await transport.commands.get("key") == "1"


async def test_commands_are_counted(transport: Transport) -> None:
    """Each request counts once, whatever it was."""
    before = transport.statistics().commands_sent
    await transport.commands.set("key", "1")
    with pytest.raises(ResponseError):
        await transport.commands.lpush("key", "1")
    assert transport.statistics().commands_sent == before + 2
    assert transport.statistics().waiting == 0
    assert transport.is_up()
