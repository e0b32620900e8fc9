"""What Redis refuses, and what is broken: a script then writes all of it or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from redis.exceptions import OutOfMemoryError

from engine.errors import KeyMalformed, RedisUnavailable
from engine.store import (
    catalog,
    election,
    leases,
    ledger,
    operations,
    runs,
    schema,
    session,
    survey,
    tidying,
    timetable,
)
from engine.store.link import Link
from engine.store.script import Script
from engine.store.store import Store
from tests.store.conftest import _servers
from tests.store.scenario import OTHER, TASK, Stage, snapshot
from tests.store.transitions import ALL, ON_RUNS, READERS, Transition, is_broken, matches, outcome, replies_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import ModuleType

    from tests.store.servers import RedisServer


each = pytest.mark.parametrize("transition", ALL, ids=lambda transition: transition.name)


async def put_a_list(stage: Stage, key: str) -> None:
    """Something that Troupe never writes: no script can take it for a string, hash, stream, set or sorted set."""
    await stage.redis.delete(key)
    await stage.redis.execute_command("RPUSH", key, "not ours")


def key_of(stage: Stage, part: str, task: str, run_id: str) -> str:
    """A key of an item by its part's name."""
    keys = stage.store.keys
    return {"record": keys.run(run_id), "live": keys.live(task), "ledger": keys.ledger(task)}[part]


async def run_of(stage: Stage, transition: Transition, task: str) -> str:
    """The run that the arranged call will act on, made already or not."""
    live = await stage.live(task)
    if live and transition.name != "publish, superseding":
        return next(iter(live))
    return f"{task}@first" if transition.name.startswith("enroll") else f"{task}@{stage.now_ms - 1_000}"


# -- keys of the wrong type --------------------------------------------------------------------------------------------

PARTS = [
    pytest.param(transition, part, id=f"{transition.name}: {part}")
    for transition in ON_RUNS
    for part in transition.of_run
    if (transition.name, part) != ("enroll", "record")  # it asks for no run
]


@pytest.mark.parametrize(("transition", "part"), PARTS)
async def test_an_item_with_a_key_of_the_wrong_type_is_broken_and_writes_nothing(
    stage: Stage, transition: Transition, part: str
) -> None:
    """Found while nothing is written yet, since Lua does not roll back."""
    call = await transition.arrange(stage, [TASK])
    await put_a_list(stage, key_of(stage, part, TASK, await run_of(stage, transition, TASK)))
    before = await stage.snapshot()
    [reply] = replies_to(await call())
    assert is_broken(reply), reply
    assert await stage.snapshot() == before


@pytest.mark.parametrize(("transition", "part"), PARTS)
async def test_the_other_items_of_the_call_go_on(stage: Stage, transition: Transition, part: str) -> None:
    """One application's broken task does not stop its others, whichever comes first in the call."""
    for broken in (TASK, OTHER):
        await stage.redis.flushall()
        stage = await Stage.set(stage.store)
        call = await transition.arrange(stage, [TASK, OTHER])
        await put_a_list(stage, key_of(stage, part, broken, await run_of(stage, transition, broken)))
        before = await stage.snapshot()
        replies = dict(zip((TASK, OTHER), replies_to(await call()), strict=True))
        assert is_broken(replies.pop(broken))
        [healthy] = replies.values()
        assert matches(healthy, transition.reply), healthy
        after = await stage.snapshot()
        assert after != before
        assert {key: value for key, value in after.items() if broken in key} == {
            key: value for key, value in before.items() if broken in key
        }


@each
async def test_a_shared_key_of_the_wrong_type_refuses_the_call_and_nothing_is_written(
    stage: Stage, transition: Transition
) -> None:
    """Whichever key it is: never half of a transition."""
    keys = stage.store.keys
    for key in transition.keys(keys):
        if transition in ON_RUNS and (key == keys.events or (key == keys.leader and not transition.leads)):
            continue  # not looked at
        await stage.redis.flushall()
        stage = await Stage.set(stage.store)
        call = await transition.arrange(stage, [TASK])
        await put_a_list(stage, key)
        before = await stage.snapshot()
        replies, error = await outcome(call)
        assert error is not None or all(is_broken(reply) for reply in replies), f"{key}: {replies}"
        if transition.name != "agree":  # asked for a connection alone, which it then refuses
            assert error is None or (isinstance(error, KeyMalformed) and error.key == key), error
        assert await stage.snapshot() == before, key


@pytest.mark.parametrize("field", ["task", "slot", "priority", "attempt", "deliveries", "fence"])
@pytest.mark.parametrize("name", ["complete", "fail", "hand_back", "reclaim", "requeue", "release", "claim"])
async def test_a_record_with_a_hole_is_broken_and_writes_nothing(stage: Stage, name: str, field: str) -> None:
    """A field that Troupe always writes is missing: somebody else was there. The run stays as it is."""
    [transition] = [transition for transition in ON_RUNS if transition.name == name]
    call = await transition.arrange(stage, [TASK])
    await stage.redis.hdel(stage.store.keys.run(await run_of(stage, transition, TASK)), field)
    before = await stage.snapshot()
    [reply] = replies_to(await call())
    if field == "fence" and name in ("complete", "fail", "hand_back", "reclaim"):
        assert not matches(reply, transition.reply)  # refused as another's
    else:
        assert is_broken(reply), reply
    after = await stage.snapshot()
    if (name, field) == ("reclaim", "fence"):
        before.pop(stage.store.keys.leases)  # that lease is nobody's
    assert after == before


@each
async def test_a_broken_key_that_a_script_can_do_without_costs_nobody_anything(
    stage: Stage, transition: Transition
) -> None:
    """No worker loses its runs, and no leader its lease, for a key that is not about them."""
    for key in transition.does_without(stage.store.keys):
        await stage.redis.flushall()
        stage = await Stage.set(stage.store)
        call = await transition.arrange(stage, [TASK])
        await put_a_list(stage, key)
        [reply] = replies_to(await call())
        assert matches(reply, transition.reply), (key, reply)


NUMBERS = {
    "elect": ("epoch",),
    "publish": ("passed",),
    "move, rescheduling": ("passed",),
    **dict.fromkeys(("declare", "retire", "pause", "resume", "define", "forget"), ("version",)),
}


@pytest.mark.parametrize("text", ["", "no number", "-1", "1.5", "inf", "1e3", " 1", "9" * 30])
@pytest.mark.parametrize("name", NUMBERS)
async def test_a_number_that_is_none_refuses_the_call_and_nothing_is_written(
    stage: Stage, name: str, text: str
) -> None:
    """Redis itself would refuse to count on from it, in the middle of a transition."""
    [transition] = [transition for transition in ALL if transition.name == name]
    for number in NUMBERS[name]:
        call = await transition.arrange(stage, [TASK])
        key = getattr(stage.store.keys, number)
        await stage.redis.set(key, text)
        before = await stage.snapshot()
        _, error = await outcome(call)
        assert isinstance(error, KeyMalformed)
        assert error.key == key
        assert await stage.snapshot() == before


# -- what only reads ---------------------------------------------------------------------------------------------------

reader = pytest.mark.parametrize("transition", READERS, ids=lambda transition: transition.name)


@reader
async def test_what_only_reads_changes_nothing_and_says_the_same_again(stage: Stage, transition: Transition) -> None:
    """However often it is asked."""
    call = await transition.arrange(stage, [TASK])
    before = await stage.snapshot()
    [first] = replies_to(await call())
    assert matches(first, transition.reply), first
    assert replies_to(await call()) == [first]
    assert await stage.snapshot() == before


@reader
async def test_what_only_reads_says_what_is_broken(stage: Stage, transition: Transition) -> None:
    """Any key that it looks at, with something in it that Troupe never writes."""
    keys = stage.store.keys
    for part in (*transition.of_run, *transition.keys(keys)):
        await stage.redis.flushall()
        stage = await Stage.set(stage.store)
        call = await transition.arrange(stage, [TASK])
        run_id = await run_of(stage, transition, TASK)
        await put_a_list(stage, key_of(stage, part, TASK, run_id) if part in transition.of_run else part)
        [reply] = replies_to(await call())
        assert is_broken(reply), (part, reply)


@reader
async def test_what_only_reads_is_answered_by_a_redis_that_refuses_writes(
    links: tuple[Link, Link], transition: Transition
) -> None:
    """Full, or without the replicas that it wants: whoever looks should see why."""
    link, onlooker = links
    stage = await Stage.set(Store.over(link, prefix="looked-at"))
    call = await transition.arrange(stage, [TASK])
    for name, value in (("maxmemory-policy", "noeviction"), ("maxmemory", "1"), ("min-replicas-to-write", "1")):
        await onlooker.commands.execute_command("CONFIG", "SET", name, value)
    [reply] = replies_to(await call())
    assert matches(reply, transition.reply), reply


# -- a real Redis that refuses writes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["5.0", "6.2", "7.0"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this module's own, whose settings its tests change and put back."""
    with _servers(tmp_path_factory) as start:
        yield start(request.param)


@pytest.fixture
async def links(server: RedisServer) -> AsyncIterator[tuple[Link, Link]]:
    """One link for the store, and one to look and to set the server up, which no refusal drops."""
    worker, onlooker = Link(server.address), Link(server.address)
    async with trio.open_nursery() as nursery:
        for link in (worker, onlooker):
            await nursery.start(link.run)
            await link.wait_up()
        await onlooker.commands.flushall()
        try:
            yield worker, onlooker
        finally:
            await onlooker.commands.execute_command("CONFIG", "SET", "maxmemory", "0")
            await onlooker.commands.execute_command("CONFIG", "SET", "min-replicas-to-write", "0")
            await onlooker.commands.execute_command("REPLICAOF", "NO", "ONE")
            nursery.cancel_scope.cancel()


@each
async def test_a_full_redis_refuses_what_grows_whole_and_lets_through_what_must_get_through(
    links: tuple[Link, Link], transition: Transition
) -> None:
    """Redis refuses for memory only at a script's first write: the order of writes decides, and never half is done."""
    link, onlooker = links
    stage = await Stage.set(Store.over(link, prefix="full"))
    call = await transition.arrange(stage, [TASK])
    await onlooker.commands.execute_command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await onlooker.commands.execute_command("CONFIG", "SET", "maxmemory", "1")
    before = await snapshot(onlooker.commands)
    replies, error = await outcome(call)
    if transition.when_full == "refused":
        assert isinstance(error, RedisUnavailable), (replies, error)
        assert isinstance(error.__cause__, OutOfMemoryError)
        assert await snapshot(onlooker.commands) == before
    else:
        assert error is None
        assert all(matches(reply, transition.reply) for reply in replies), replies
        await onlooker.commands.execute_command("CONFIG", "SET", "maxmemory", "0")
        [again] = replies_to(await call())
        assert not is_broken(again)


@each
async def test_a_read_only_replica_is_an_unavailable_redis_and_nothing_is_written(
    links: tuple[Link, Link], transition: Transition
) -> None:
    """The master became a replica of another: a state that passes, not an error of the command."""
    link, onlooker = links
    stage = await Stage.set(Store.over(link, prefix="replica"))
    call = await transition.arrange(stage, [TASK])
    await onlooker.commands.execute_command("REPLICAOF", "127.0.0.1", "1")  # where nobody answers: the data stays
    before = await snapshot(onlooker.commands)
    with pytest.raises(RedisUnavailable, match="read-only replica"):
        await call()
    assert await snapshot(onlooker.commands) == before
    await onlooker.commands.execute_command("REPLICAOF", "NO", "ONE")
    with trio.fail_after(30):
        await link.wait_up()
        while True:
            try:
                [reply] = replies_to(await call())
                break
            except RedisUnavailable:  # the link has not noticed yet that its connection was dropped
                await trio.sleep(0.01)
    assert matches(reply, transition.reply), reply


@each
@pytest.mark.parametrize("server", ["6.2", "7.0"], indirect=True)
async def test_a_redis_that_lacks_replicas_is_unavailable_and_nothing_is_written(
    links: tuple[Link, Link], transition: Transition
) -> None:
    """With min-replicas-to-write and no replica. Redis 5.0 asks nothing of scripts."""
    link, onlooker = links
    stage = await Stage.set(Store.over(link, prefix="alone"))
    call = await transition.arrange(stage, [TASK])
    await onlooker.commands.execute_command("CONFIG", "SET", "min-replicas-to-write", "1")
    before = await snapshot(onlooker.commands)
    with pytest.raises(RedisUnavailable, match="too few replicas"):
        await call()
    assert await snapshot(onlooker.commands) == before


@pytest.mark.parametrize(
    "module",
    [catalog, election, leases, ledger, operations, runs, schema, session, survey, tidying, timetable],
    ids=lambda module: module.__name__,
)
def test_every_script_of_a_module_is_in_the_table(module: ModuleType) -> None:
    """A new one does not slip through."""
    scripts = {found.name for found in vars(module).values() if isinstance(found, Script)}
    assert scripts <= {transition.name.partition(",")[0] for transition in ALL + READERS}
