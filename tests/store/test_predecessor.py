"""What the replaced system keeps, read and taken over on each transport. In system tests the real package writes it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from redis import Redis

from engine.domain.catalog import digest, pages
from engine.domain.group import TaskGroup
from engine.errors import RedisUnavailable
from engine.migration import GOING, NO_FUNCTION, OF_NO_TASK, TAKEN, TAKEN_BY_CODE, Finding, import_predecessor, old_name
from engine.store.link import Link
from engine.store.predecessor import PredecessorStore, PredecessorUnreadable
from engine.store.store import Store
from tests.store.scenario import snapshot
from tests.store.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.store.transport import Transport
    from tests.store.servers import RedisServer

OLD = "app"
HASH = f"{OLD}_dynamic_tasks"
NIGHTLY = "0 3 * * *"


def old(name: str, **changed: Any) -> str:
    """A definition as that system writes it."""
    definition = {"task_group_name": "reports", "function_name": "send", "cron_expression": NIGHTLY, "name": name}
    return json.dumps(definition | changed)


async def nightly() -> None:
    """A task of code."""


async def send(to: str = "all") -> None:
    """A function for tasks made at run time."""


async def declare(store: Store) -> None:
    """As a process of the application does when it starts."""
    group = TaskGroup("reports")
    group.add_task(NIGHTLY)(nightly)
    group.register_function(send)
    definitions, functions = [task.definition for task in group.tasks], ["reports/nightly", "reports/send"]
    await store.catalog.declare(digest(definitions, functions), pages(definitions, functions))


def told(findings: list[Finding]) -> list[tuple[str, str | None, str, str]]:
    return [(one.source, one.task, one.outcome, one.reason) for one in findings]


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["app", "a*p?[x]^y\\", "a b", "äpp"])
async def test_flags_are_found_by_the_prefix_as_it_is_written(transport: Transport, prefix: str) -> None:
    """Whatever a pattern of Redis makes of its characters; more than a page of them."""
    reads = PredecessorStore(transport, prefix)
    flags = {reads.flag("g", f"t{number}") for number in range(1_500)}
    for flag in flags | {
        "app2_g_t_disabled",
        "axpyx_g_t_disabled",
        f"{prefix}_g_t_next_run",
        f"x{prefix}_g_t_disabled",
    }:
        await transport.commands.set(flag, "1", ex=1_000)
    assert await reads.disabled() == flags


async def test_where_nothing_is_kept_nothing_is_found(transport: Transport) -> None:
    """No leader, no definition, no flag."""
    reads = PredecessorStore(transport, OLD)
    assert await reads.leader() is None
    assert await reads.definitions() == {}
    assert await reads.disabled() == frozenset()


async def test_something_else_under_its_name_cannot_be_read(transport: Transport) -> None:
    """The error names the command that Redis refused, and its answer."""
    await transport.commands.set(HASH, "no hash")
    await transport.commands.hset(f"{OLD}_leader_lock", "no", "string")
    reads = PredecessorStore(transport, OLD)
    with pytest.raises(PredecessorUnreadable, match=r"HGETALL app_dynamic_tasks cannot be read: WRONGTYPE"):
        await reads.definitions()
    with pytest.raises(PredecessorUnreadable, match="app_leader_lock"):
        await reads.leader()


async def test_a_lock_on_another_node_of_a_cluster_cannot_be_read(start_redis: Callable[..., RedisServer]) -> None:
    """Rather than be unavailable for ever, which would keep a worker whose own keys are on this node from leading."""
    mine, other = (start_redis("7.0", "--cluster-enabled", "yes", "--cluster-port", str(free_port())) for _ in range(2))
    link = Link(mine.address)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        await link.wait_up()
        redis: Any = link.commands
        slot = await redis.execute_command("CLUSTER KEYSLOT", f"{OLD}_leader_lock")
        assert await redis.execute_command("CLUSTER KEYSLOT", f"{{{OLD}}}:leader") != slot
        with Redis(unix_socket_path=other.path) as there:
            there.execute_command("CLUSTER ADDSLOTS", slot)
        if slot:
            await redis.execute_command("CLUSTER ADDSLOTSRANGE", 0, slot - 1)
        await redis.execute_command("CLUSTER ADDSLOTSRANGE", slot + 1, 16_383)
        await redis.execute_command("CLUSTER MEET", "127.0.0.1", other.port, other.options[-1])
        store = Store.over(link, prefix=OLD)
        with trio.fail_after(50):
            while True:
                with suppress(RedisUnavailable):  # until the nodes know each other
                    await store.election.leader()
                    with pytest.raises(PredecessorUnreadable, match="app_leader_lock cannot be read"):
                        await PredecessorStore(link, OLD).leader()
                    break
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


# -- taking over ------------------------------------------------------------------------------------------------------


async def fill(redis: Any) -> None:
    """Some of each kind."""
    for name in ("letters", "odd", "nightly"):
        await redis.hset(HASH, f"reports:{name}", old(name, **({"cron_expression": "no"} if name == "odd" else {})))
    names = ("letters", "odd", "gone", old_name("nightly", {}, NIGHTLY))
    for name in names:
        await redis.set(f"{OLD}_reports_{name}_disabled", "1", ex=1_000)


async def test_it_takes_what_it_can_and_says_what_it_cannot(store: Store) -> None:
    """Tasks, then flags; those of no task last."""
    redis = store.transport.commands
    await declare(store)
    await fill(redis)
    findings = await import_predecessor(store, OLD)
    outcomes = {one.source.removeprefix(f"{OLD}_"): (one.task, one.outcome) for one in findings}
    assert outcomes == {
        "reports:letters": ("reports/letters", "taken"),
        "reports:nightly": ("reports/nightly", "not taken"),
        "reports:odd": (None, "not taken"),
        "reports_letters_disabled": ("reports/letters", "taken"),
        f"reports_{old_name('nightly', {}, NIGHTLY)}_disabled": ("reports/nightly", "taken"),
        "reports_gone_disabled": (None, "not taken"),
        "reports_odd_disabled": (None, "not taken"),
    }
    assert [one.kind for one in findings] == ["definition"] * 3 + ["flag"] * 4
    reasons = {one.source: one.reason for one in findings if one.outcome == "not taken"}
    assert all(reasons.values())
    assert reasons[f"{OLD}_reports_odd_disabled"] == OF_NO_TASK

    contents = await store.catalog.contents()
    assert list(contents.dynamic) == ["reports/letters"]
    assert json.loads(contents.dynamic["reports/letters"])["dynamic"] is True
    now_ms = await store.leases.redis_ms()
    assert sorted(contents.paused) == ["reports/letters", "reports/nightly"]
    for pause in contents.paused.values():
        assert pause.until_ms is None
        details = json.loads(pause.details)
        assert details["who"] == "troupe import"
        assert OLD in details["why"]
        assert now_ms - 60_000 < details["since_ms"] <= now_ms


async def test_a_second_time_changes_nothing(store: Store) -> None:
    """Neither in Redis nor in what is said, but that it is there already. Old keys are never changed."""
    redis = store.transport.commands
    await declare(store)
    await fill(redis)
    before = await snapshot(redis, OLD)
    first = await import_predecessor(store, OLD)
    taken = await snapshot(redis)
    second = await import_predecessor(store, OLD)
    assert await snapshot(redis) == taken
    assert await snapshot(redis, OLD) == before
    there = [(s, t, "there already" if outcome == "taken" else outcome, why) for s, t, outcome, why in told(first)]
    assert told(second) == there


async def test_a_dry_run_says_the_same_and_changes_nothing(store: Store) -> None:
    """Flags of tasks that would be taken over count as theirs."""
    redis = store.transport.commands
    await declare(store)
    await fill(redis)
    before = await snapshot(redis)
    dry = await import_predecessor(store, OLD, dry_run=True)
    assert await snapshot(redis) == before
    assert dry == await import_predecessor(store, OLD)


async def test_before_anything_is_declared_tasks_are_taken_and_flags_of_code_are_not(store: Store) -> None:
    """Which is said, and repeating it afterwards takes the rest."""
    redis = store.transport.commands
    await fill(redis)
    flag = f"{OLD}_reports_{old_name('nightly', {}, NIGHTLY)}_disabled"
    first = {one.source: one for one in await import_predecessor(store, OLD)}
    assert (first["reports:letters"].outcome, first["reports:letters"].reason) == ("taken", NO_FUNCTION)
    assert "start the application once" in first[flag].reason
    await declare(store)
    second = {one.source: one for one in await import_predecessor(store, OLD)}
    assert (second["reports:letters"].outcome, second["reports:letters"].reason) == ("there already", "")
    assert (second[flag].outcome, second[flag].task) == ("taken", "reports/nightly")


async def test_names_that_are_taken_are_left_as_they_are(store: Store) -> None:
    """By code, by another task made at run time, and by one that is being removed."""
    redis = store.transport.commands
    await declare(store)
    await redis.hset(HASH, mapping={f"reports:{name}": old(name) for name in ("nightly", "other", "going")})
    await store.operations.define("reports/other", another("other"), "op", who="ada")
    await redis.hset(store.keys.dynamic, "reports/going", "7|")
    found = {one.source: one for one in await import_predecessor(store, OLD)}
    assert {one.outcome for one in found.values()} == {"not taken"}
    assert found["reports:nightly"].reason == TAKEN_BY_CODE
    assert found["reports:other"].reason == TAKEN
    assert found["reports:going"].reason == GOING
    assert (await store.catalog.contents()).dynamic["reports/other"] == another("other")


def another(name: str) -> str:
    """Another task of that name."""
    group = TaskGroup("reports")
    group.register_function(send)
    return group.add_dynamic_task("send", "0 4 * * *", name=name).definition.to_json()


@pytest.mark.parametrize(("ends_in_ms", "outcome"), [(None, "there already"), (60_000, "there already"), (-1, "taken")])
async def test_a_pause_that_is_in_force_stays_as_it_is(store: Store, ends_in_ms: int | None, outcome: str) -> None:
    """Somebody here has decided since; a pause that has ended is none."""
    redis = store.transport.commands
    await declare(store)
    await redis.set(f"{OLD}_reports_{old_name('nightly', {}, NIGHTLY)}_disabled", "1")
    until_ms = None if ends_in_ms is None else await store.leases.redis_ms() + ends_in_ms
    await store.catalog.pause(["reports/nightly"], "op", until_ms=until_ms, details="{}", who="ada")
    [finding] = await import_predecessor(store, OLD)
    assert finding.outcome == outcome
    [pause] = (await store.catalog.contents()).paused.values()
    assert (pause.until_ms, pause.details == "{}") == ((until_ms, True) if outcome != "taken" else (None, False))


async def test_a_thousand_disabled_tasks_are_paused(store: Store) -> None:
    """However many calls that takes."""
    redis = store.transport.commands
    names = [f"task-{number}" for number in range(1_001)]
    await redis.hset(HASH, mapping={f"reports:{name}": old(name) for name in names})
    for name in names:
        await redis.set(f"{OLD}_reports_{name}_disabled", "1")
    findings = await import_predecessor(store, OLD)
    assert [one.outcome for one in findings] == ["taken"] * 2_002
    contents = await store.catalog.contents()
    assert contents.paused.keys() == contents.dynamic.keys() == {f"reports/{name}" for name in names}
