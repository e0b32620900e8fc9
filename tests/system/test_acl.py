"""The user that docs/redis.md describes may do all that Troupe does, and nothing that it does not."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
import redis
import trio

from engine.address import Address
from engine.app import Engine
from engine.config import Config
from engine.domain.group import TaskGroup
from engine.errors import KeyMalformed
from engine.management import Match
from engine.store.keys import Keys
from engine.store.link import Link
from engine.store.predecessor import PredecessorStore, PredecessorUnreadable
from engine.store.replicas import ReplicaWait
from engine.store.store import Store
from tests.store.guard import rules_of_page
from tests.store.scenario import OTHER, TASK, Stage
from tests.store.servers import NoSuchServer, RedisServer, find_binary
from tests.store.topologies import clustered, replicated
from tests.store.transitions import ALL, READERS, is_broken, outcome
from tests.system.cluster import EVERY_SECOND, ONCE, QUICK, ROOT, Cluster, eventually, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.store.topologies import Nodes, Replicated

pytestmark = pytest.mark.timeout(180)

PREFIX: Final = "shop"
"""As on the page."""

USER, SECRET = "troupe", "secret"
SUBCOMMANDS: Final = {"client", "xgroup"}
"""Commands of which the user has only some."""


def listed() -> set[str]:
    """The commands that the page allows; of some, a subcommand."""
    return {rule.removeprefix("+") for rule in rules_of_page() if rule.startswith("+")}


def in_scripts() -> set[str]:
    """The commands that the Lua scripts call."""
    found: set[str] = set()
    calls = re.compile(r"redis\.p?call\(\s*(?:'(?P<command>[A-Z]+)'(?:,\s*'(?P<word>[A-Z]+)')?)?")
    for path in (ROOT / "engine" / "store" / "lua").glob("*.lua"):
        for call in calls.finditer(path.read_text(encoding="utf-8")):
            assert call["command"], f"{path.name}: the command of {call[0]!r} cannot be seen"
            name = call["command"].lower()
            found.add(f"{name}|{call['word'].lower()}" if name in SUBCOMMANDS else name)
    return found


def used(admin: redis.Redis) -> set[str]:
    """The commands that this server has executed since its figures were cleared, by whoever they came."""
    return {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}


def without_subcommands(names: set[str]) -> set[str]:
    """As Redis 6.2 counts."""
    return {name.partition("|")[0] for name in names}


@pytest.fixture(params=["6.2", "7.0"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that knows the user of the page."""
    try:
        binary = find_binary(request.param)
    except NoSuchServer as error:
        pytest.skip(str(error))
    (tmp_path / "redis").mkdir()
    found = RedisServer(binary, tmp_path / "redis").start()
    with admin_of(found) as admin:
        admin.execute_command("ACL", "SETUSER", USER, *rules_of_page())
    yield found
    found.kill()


def admin_of(server: RedisServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=server.path, decode_responses=True)


def refused(admin: redis.Redis) -> list[tuple[str, str]]:
    """What Redis has refused to the user, but for the predecessor's lock: kind and object."""
    entries = [(str(entry["reason"]), str(entry["object"])) for entry in admin.acl_log()]
    return [entry for entry in entries if entry != ("key", f"{PREFIX}_leader_lock")]


def as_user(server: RedisServer) -> Address:
    return Address(path=server.path, username=USER, password=SECRET)


async def test_every_script_may_do_what_it_does(server: RedisServer) -> None:
    """Each transition of the table, as that user."""
    link = Link(as_user(server))
    with admin_of(server) as admin:
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            await link.wait_up()
            for transition in ALL + READERS:
                admin.flushall()
                stage = await Stage.set(Store.over(link, prefix=PREFIX))
                call = await transition.arrange(stage, [TASK, OTHER])
                replies, error = await outcome(call)
                assert error is None, f"{transition.name}: {error}"
                assert replies
                assert not any(is_broken(reply) for reply in replies), f"{transition.name}: {replies}"
            nursery.cancel_scope.cancel()
        assert refused(admin) == []


async def test_what_the_page_adds_for_the_predecessor_is_enough_to_read_its_keys(server: RedisServer) -> None:
    """Its lock, its tasks and its flags; without that, they cannot be read."""
    link = Link(as_user(server))
    old = PredecessorStore(link, PREFIX)
    with admin_of(server) as admin:
        admin.set(f"{PREFIX}_leader_lock", "somebody")
        admin.set(f"{PREFIX}_g_t_disabled", "1")
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            with pytest.raises(PredecessorUnreadable):
                await old.leader()
            admin.execute_command("ACL", "SETUSER", USER, f"~{PREFIX}_*", "+scan")
            assert await old.leader() == "somebody"
            assert await old.definitions() == {}
            assert await old.disabled() == {f"{PREFIX}_g_t_disabled"}
            nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize(("around", "right"), [(replicated, "+role"), (clustered, "+cluster|slots")])
async def test_what_the_page_adds_for_sentinel_and_cluster_is_needed(
    around: Callable[[Path], AbstractContextManager[Replicated | Nodes]], right: str, tmp_path: Path
) -> None:
    """Without it Redis is not found."""
    page = (ROOT / "docs" / "redis.md").read_text(encoding="utf-8")
    assert f"`{right}`" in page
    with around(tmp_path / "redis") as servers:
        for server in servers.servers:
            with admin_of(server) as admin:
                admin.execute_command("ACL", "SETUSER", USER, *rules_of_page())
        address = replace(Address.parse(servers.url), username=USER, password=SECRET)
        link = Link(address, key=Keys(PREFIX).tag)
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)

            async def refused() -> bool:
                return right.strip("+").partition("|")[0] in (link.statistics().last_error or "").lower()

            await eventually(refused, "it is refused")
            assert not link.is_up()
            for server in servers.servers:
                with admin_of(server) as admin:
                    admin.execute_command("ACL", "SETUSER", USER, right)
            with trio.fail_after(30):
                await link.wait_up()
            nursery.cancel_scope.cancel()


async def test_what_the_page_adds_for_wait_replicas_is_needed_and_enough(server: RedisServer) -> None:
    """Without it the connection over which replicas are waited for does not come up."""
    assert "`wait_replicas` `+wait`" in (ROOT / "docs" / "redis.md").read_text(encoding="utf-8")
    link = Link(as_user(server), wait=ReplicaWait(count=0, timeout_s=1, mark=Keys(PREFIX).mark))
    with admin_of(server) as admin:
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)

            async def is_refused() -> bool:
                return "'wait'" in (link.statistics().trouble or "").lower()

            await eventually(is_refused, "it is refused")
            assert not link.is_up()
            admin.acl_log_reset()
            admin.execute_command("ACL", "SETUSER", USER, "+wait")
            with trio.fail_after(30):
                await link.wait_up()
            assert await link.replicated.ping() is True
            nursery.cancel_scope.cancel()
        assert refused(admin) == []


@pytest.mark.slow
async def test_engines_need_every_right_and_no_other(server: RedisServer, tmp_path: Path) -> None:
    """A worker is lost; another leads, runs every kind of task, is operated, looked at and stopped."""
    cluster = Cluster(server, tmp_path, prefix=PREFIX)
    options: dict[str, Any] = {
        **QUICK,
        "redis_key_prefix": PREFIX,
        "redis_url": cluster.url,
        "redis_username": USER,
        "redis_password": SECRET,
    }
    with admin_of(server) as admin:
        admin.config_resetstat()
        known = used(admin) | {"config|resetstat", "acl|log", "config", "acl", "info"}
        try:
            lost = cluster.worker({"name": "long", "seconds": 600, **ONCE}, **options)
            await cluster.started(lost)
            lost.signal(signal.SIGKILL)
            await operate(Config(**options), admin)
        finally:
            for program in cluster.programs:
                program.kill()
                say(program.log())
        assert refused(admin) == []
        # Without what the test itself has asked; an engine asks INFO at each connection.
        needed = (used(admin) - known - {"auth"}) | in_scripts() | {"info"}
        wanted = listed()
        if server.binary.version < (7, 0):
            needed, wanted = without_subcommands(needed), without_subcommands(wanted)
        assert needed == wanted


async def operate(config: Config, admin: redis.Redis) -> None:
    """All that an engine does, once."""
    ran: list[str] = []
    group = TaskGroup("work")

    def noting(name: str, **options: Any) -> None:
        async def body() -> None:
            ran.append(name)

        group.add_task(EVERY_SECOND, name=name, **options)(body)

    noting("plain")
    noting("urgent", high_priority=True)
    noting("alone", allow_parallel=False)

    @group.add_task(EVERY_SECOND, name="thread")
    def in_thread() -> None:
        ran.append("thread")

    @group.add_task(EVERY_SECOND, name="failing", max_retries=1, retry_backoff=0.1)
    async def fail() -> None:
        ran.append("failing")
        raise ValueError("on purpose")

    @group.add_task("0 0 1 1 *", name="long")
    async def stay() -> None:
        ran.append("long")

    @group.register_function(name="made")
    async def made() -> None:
        ran.append("made")

    engine = Engine(config, [group])
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.serve)

        async def all_ran() -> bool:
            return {"plain", "urgent", "alone", "thread", "failing", "long"} <= set(ran)

        await eventually(all_ran, "every kind of task runs, the one that was lost as well")
        await group.create_task("made", "* * * * * *", name="dynamic")

        async def made_ran() -> bool:
            return "made" in ran

        await eventually(made_ran, "the dynamic task runs")
        await engine.perform(lambda m: m.pause(Match(group="work", name="plain"), who="me"))
        await engine.perform(lambda m: m.resume(Match(group="work", name="plain"), who="me"))
        await engine.perform(lambda m: m.trigger(Match(group="work", name="long"), who="me"))
        await engine.perform(lambda m: m.reset_retry(Match(group="work", name="failing"), who="me"))
        await engine.perform(lambda m: m.statistics("work", "failing"))
        admin.set(Keys(PREFIX).cleared, "a hash, as Troupe has it")
        with pytest.raises(KeyMalformed, match="is of type string"):
            await engine.perform(lambda m: m.statistics("work", "failing"))
        admin.delete(Keys(PREFIX).cleared)
        await engine.perform(lambda m: m.clear_statistics(Match(group="work", name="plain"), who="me"))
        assert await engine.perform(lambda m: m.tasks(Match()))
        assert await engine.perform(lambda m: m.workers())
        await group.remove_task("dynamic")
        engine.stop()
