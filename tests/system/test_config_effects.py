"""Every setting is turned, and what it changes is seen.

A row of the table is a setting, a way to look, and what is seen with each of its values. Schedules, leases and retries
are seen in virtual time, on a Redis in this process; connections by a whole engine on a real one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import httpx
import pytest
import redis
import trio
import trustme

from engine.app import Engine
from engine.config import Config
from engine.errors import ConfigError, PayloadTooLarge, RedisUnreachable
from engine.store.script import Script
from engine.views import read_statistics
from integrations.fastapi.standalone import make_app
from tests.store.servers import NoSuchServer, RedisServer, find_binary, free_port
from tests.store.topologies import replicated
from tests.unit.actors.stage import Stage, group, noting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio.testing import MockClock

    from engine.domain.group import TaskGroup
    from tests.unit.actors.stage import Worker

T = TypeVar("T")

WITHOUT_EFFECT = {"poll_interval"}
"""Accepted, so that a configuration of the replaced system is one of this."""

RARELY = "0 0 1 1 *"


# -- in virtual time --------------------------------------------------------------------------------------------------


async def bodies_at_once(stage: Stage, **turned: Any) -> int:
    """Five runs of a minute each are due at the same instant: how many go on a second later?"""
    going = Counter[str]()

    async def body() -> None:
        going["now"] += 1
        await trio.sleep(50)

    tasks = group()
    tasks.add_task(["* * * * *"] * 5, name="t", kwargs=[{}] * 5)(body)
    await stage.worker(tasks, **turned)
    await stage.until(61)
    return going["now"]


async def attempts_shown(stage: Stage, **turned: Any) -> int:
    """A task ran once a minute for ten minutes: how many of its attempts do the statistics show?"""
    tasks = group()
    noting(tasks, "* * * * *")
    config = (await stage.worker(tasks, **turned)).config
    await stage.until(601)
    return len(await read_statistics(stage.store, "g/t", config))


async def verdicts_of_a_slow_task(stage: Stage, **turned: Any) -> list[tuple[str, str]]:
    """A run takes longer than the time between two slots."""
    tasks = group()
    tasks.add_task("* * * * *", name="t")(lasting(90))
    await stage.worker(tasks, **turned)
    await stage.until(161)
    return await stage.verdicts("g/t")


async def starts_without_another_leader(stage: Stage, **turned: Any) -> int:
    """A worker is alone for a minute: how often does its task start?"""
    tasks = group()
    started_s = noting(tasks, "* * * * *")
    await stage.worker(tasks, **turned)
    await stage.until(61)
    return len(started_s)


async def polls(stage: Stage, **turned: Any) -> bool:
    """A worker with nothing to do: does it ask anything of Redis ten times a second?"""
    worker = await stage.worker(rare_tasks(), **turned)
    return await counted(stage, lambda: worker.cable.statistics().commands_sent) >= 600


async def blocking_reads_in_a_minute(stage: Stage, **turned: Any) -> int:
    """A worker with nothing to do waits on the streams, again and again."""
    worker = await stage.worker(rare_tasks(), **turned)
    return await counted(stage, lambda: worker.cable.reads_of_runs)


async def leads_beside_the_replaced_system(stage: Stage, **turned: Any) -> bool:
    """A worker of that system leads under the same prefix: does this one lead as well?"""
    await stage.redis.set("troupe_leader_lock", "web-1")
    worker = await stage.worker(group(), **turned)
    await stage.until(60)
    return worker.leads


async def attempts_to_lead_in_a_minute(stage: Stage, **turned: Any) -> int:
    """A follower, while another worker leads."""
    await stage.worker(rare_tasks())
    follower = await stage.worker(rare_tasks(), **turned)
    return await counted(stage, lambda: scripts_sent(follower, "elect"))


async def largest_task_that_is_made(stage: Stage, **turned: Any) -> int | None:
    """By the characters of its only argument."""

    async def note(text: str) -> None:
        await trio.lowlevel.checkpoint()

    tasks = group()
    tasks.register_function(note)
    await stage.worker(tasks, **turned)
    await stage.until(1)
    made = None
    for size in (1, 1_000, 10_000):
        with suppress(PayloadTooLarge):
            await tasks.create_task("note", RARELY, {"text": "x" * size})
            made = size
    return made


async def verdicts_with_nobody_to_execute(stage: Stage, **turned: Any) -> set[tuple[str, str]]:
    """Three slots are published and never read."""
    tasks = group()
    noting(tasks, "* * * * *")
    await stage.worker(tasks, concurrent_tasks=0, **turned)
    await stage.until(181)
    return set(await stage.verdicts("g/t"))


async def all_verdicts_are_kept(stage: Stage, **turned: Any) -> bool:
    """A task has run fifty times. (Redis trims a stream by whole nodes, so the number of those kept is not exact.)"""
    tasks = group()
    noting(tasks, "* * * * * *")
    await stage.worker(tasks, **turned)
    await stage.until(50.5)
    return len(await stage.ledger("g/t")) == 50


async def scheduled_after_its_worker_left(stage: Stage, **turned: Any) -> set[str]:
    """Five minutes ago the only worker that declared ``old/t`` stopped."""
    old, new = group("old"), group("new")
    noting(old, RARELY)
    noting(new, RARELY)
    await stage.worker(new, old, **turned)
    leaving = await stage.worker(old, can_lead=False)
    await stage.until(5)
    await stage.workers[0].stop()
    await stage.worker(new, **turned)
    await leaving.stop()
    await stage.until(305)
    return set(await stage.store.timetable.tasks())


async def seconds_until_another_leads(stage: Stage, **turned: Any) -> float:
    """The leader is killed between two renewals."""
    leader = await stage.worker(rare_tasks(), **turned)
    await stage.until(1)
    heir = await stage.worker(rare_tasks(), **turned)
    await stage.until(30.5)
    leader.kill()
    with trio.fail_after(100):
        while not heir.leads:  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.1)
    return round(trio.current_time() - 30.5)


async def minute_of_a_run_that_was_read_and_never_claimed(stage: Stage, **turned: Any) -> int:
    """A worker died between reading an entry and claiming its run: another worker's minute of starting it."""
    tasks = group()
    started_s = noting(tasks, "1 * * * *")
    await stage.worker(tasks, concurrent_tasks=0, **turned)
    await stage.until(61)
    await stage.store.runs.make_groups()
    assert len(await stage.store.runs.read("dead", priorities=["low"], count=1, block_ms=None)) == 1
    await stage.worker(tasks, can_lead=False)
    await stage.until(1_000)
    [start_s] = started_s
    return int(start_s // 60)


async def a_lost_run_soon_starts_again(stage: Stage, **turned: Any) -> bool:
    """Its worker was killed: does it start again within ten seconds?"""
    tasks = group()
    started_s: list[float] = []

    async def body() -> None:
        started_s.append(trio.current_time())
        await trio.sleep(1_000)

    tasks.add_task("1 * * * *", name="t")(body)
    await stage.worker(tasks, concurrent_tasks=0, **turned)
    executing = await stage.worker(tasks, can_lead=False, **turned)
    await stage.until(61)
    executing.kill()
    await stage.worker(tasks, can_lead=False, **turned)
    await stage.until(200)
    first_s, second_s = started_s
    return second_s - first_s < 10


async def starts_of_a_run_that_kills_its_workers(stage: Stage, **turned: Any) -> int:
    """Each worker that begins it dies, until it is set aside as dead."""
    begun = trio.Event()
    starts = 0

    async def body() -> None:
        nonlocal starts
        starts += 1
        begun.set()
        await trio.sleep_forever()

    tasks = group()
    tasks.add_task("1 * * * *", name="t")(body)
    await stage.worker(tasks, concurrent_tasks=0, **turned)
    while not await stage.verdicts("g/t"):
        begun = trio.Event()
        executing = await stage.worker(tasks, can_lead=False, **turned)
        with trio.move_on_after(120):
            await begun.wait()
        executing.kill()
    assert await stage.verdicts("g/t") == [("dead", "max_deliveries")]
    return starts


async def delays_between_attempts(stage: Stage, **turned: Any) -> list[float]:
    """A task that fails each time: the delays before its first four retries."""
    started_s = await starts_of_a_failing_task(stage, **turned)
    return [later - earlier for earlier, later in pairwise(started_s[:5])]


async def end_of_a_failing_task(stage: Stage, **turned: Any) -> tuple[int, list[tuple[str, str]]]:
    """A task that fails each time, and is due once a day: its attempts, and the verdict."""
    started_s = await starts_of_a_failing_task(stage, **turned)
    return len(started_s), await stage.verdicts("g/t")


async def end_of_a_run_when_its_worker_stops(stage: Stage, **turned: Any) -> str:
    """The engine is asked to stop twenty seconds before the run would end by itself."""
    ended = []

    async def body() -> None:
        try:
            await trio.sleep(20)
        except trio.Cancelled:
            ended.append("cancelled")
            raise
        ended.append("done")

    tasks = group()
    tasks.add_task("1 * * * *", name="t")(body)
    worker = await stage.worker(tasks, **turned)
    await stage.until(60.5)
    await worker.stop()
    [end] = ended
    return end


async def starts_of_a_failing_task(stage: Stage, **turned: Any) -> list[float]:
    started_s: list[float] = []

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        started_s.append(trio.current_time())
        raise ValueError(len(started_s))

    tasks = group()
    tasks.add_task("1 16 * * *", name="t")(fail)
    await stage.worker(tasks, **turned)
    await stage.until(600)
    return started_s


async def counted(stage: Stage, count: Callable[[], int]) -> int:
    """How far a counter goes in a minute, when the worker has settled down."""
    await stage.until(100)
    before = count()
    await stage.until(160)
    return count() - before


def scripts_sent(worker: Worker, name: str) -> int:
    return sum(args[:2] == ("EVALSHA", Script.load(name).sha) for _, args in worker.cable.sent)


def rare_tasks() -> TaskGroup:
    tasks = group()
    noting(tasks, RARELY)
    return tasks


def lasting(seconds: float) -> Callable[[], Awaitable[None]]:
    async def body() -> None:
        await trio.sleep(seconds)

    return body


# -- on a real Redis --------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Place:
    """What the ways to look at a real engine work with: servers that they start, and a folder."""

    start: Callable[..., RedisServer]
    folder: Path


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Engine]:
    """An engine with one task, up for the block."""
    engine = Engine(Config(**settings), [rare_tasks()])
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.serve)
        yield engine
        engine.stop()


async def seen_by_redis(server: RedisServer, fact: str, **settings: Any) -> str:
    """What CLIENT LIST says of the connections of an engine."""
    async with running(**settings):
        with redis.Redis(unix_socket_path=server.path, password=settings.get("redis_password")) as client:
            [said] = {one.get(fact, "") for one in client.client_list() if one["name"].startswith("troupe-")}
    return str(said)


async def gets_in(**settings: Any) -> bool:
    """Does an engine reach Redis?"""
    return await not_reached(startup_timeout=2.0, **settings) is None


async def not_reached(**settings: Any) -> RedisUnreachable | None:
    """Why an engine does not come up, if it does not."""
    try:
        async with running(**settings):
            return None
    except ExceptionGroup as failed:
        [error] = failed.exceptions
        if not isinstance(error, RedisUnreachable):
            raise
        return error


async def host_dialled(place: Place, redis_host: str) -> str:
    """The server's end of the connections: it listens on two addresses."""
    server = place.start("6.2", "--bind", "127.0.0.1", "127.0.0.2")
    local = await seen_by_redis(server, "laddr", redis_host=redis_host, redis_port=server.port)
    return local.partition(":")[0]


async def server_behind_the_port(place: Place, redis_port: str) -> str:
    """Two servers on one host: which of the two has an engine's keys?"""
    servers = {"one": place.start("6.2"), "other": place.start("6.2")}
    async with running(redis_host="127.0.0.1", redis_port=servers[redis_port].port):
        await until(lambda: any(keys_in(server) for server in servers.values()))
    [used] = [name for name, server in servers.items() if keys_in(server)]
    return used


async def database_of_the_url(place: Place, redis_url: str) -> str:
    """In the database that the URL names."""
    server = place.start("6.2")
    return await seen_by_redis(server, "db", redis_url=redis_url.replace("SOCKET", server.path))


async def database(place: Place, redis_db: int) -> str:
    """In the database of that number."""
    server = place.start("6.2")
    return await seen_by_redis(server, "db", redis_host="127.0.0.1", redis_port=server.port, redis_db=redis_db)


async def user(place: Place, redis_username: str | None) -> str:
    """The user as which Redis knows the connections; both have the same password."""
    app = ("--user", "app", "on", ">secret", "~*", "&*", "+@all")
    server = place.start("6.2", "--requirepass", "secret", *app)
    address = {"redis_host": "127.0.0.1", "redis_port": server.port, "redis_password": "secret"}
    return await seen_by_redis(server, "user", redis_username=redis_username, **address)


async def gets_in_with_password(place: Place, redis_password: str | None) -> bool:
    """The server asks for one."""
    server = place.start("6.2", "--requirepass", "right")
    return await gets_in(redis_host="127.0.0.1", redis_port=server.port, redis_password=redis_password)


async def gets_past_the_sentinels(place: Place, **given: str | None) -> bool:
    """They ask for a user and a password of their own."""
    lines = ("user default off", "user watch on >right ~* &* +@all")
    with replicated(place.folder / "servers", *lines) as servers:
        return await gets_in(redis_url=servers.url, **given)


async def gets_past_with_password(place: Place, redis_sentinel_password: str | None) -> bool:
    """As the user that is right."""
    user = {"redis_sentinel_username": "watch"} if redis_sentinel_password else {}
    return await gets_past_the_sentinels(place, redis_sentinel_password=redis_sentinel_password, **user)


async def gets_past_as(place: Place, redis_sentinel_username: str | None) -> bool:
    """With the password that is right."""
    user = {"redis_sentinel_username": redis_sentinel_username}
    return await gets_past_the_sentinels(place, redis_sentinel_password="right", **user)


async def port_that_lets_in(place: Place, *, redis_tls: bool) -> list[str]:
    """Which of a server's two ports an engine can use."""
    tls_port, ca_file, server = tls_server(place)
    ports = {"TLS": tls_port, "plain": server.port}
    trusted = ca_file if redis_tls else None
    address = {"redis_host": "localhost", "redis_tls": redis_tls, "redis_ca_file": trusted}
    return [name for name, port in ports.items() if await gets_in(redis_port=port, **address)]


async def gets_in_with_ca_file(place: Place, redis_ca_file: str | None) -> bool:
    """The server's certificate is signed by an authority that the system does not know."""
    port, ca_file, _ = tls_server(place)
    trusted = redis_ca_file and ca_file
    return await gets_in(redis_host="localhost", redis_port=port, redis_tls=True, redis_ca_file=trusted)


def tls_server(place: Place) -> tuple[int, str, RedisServer]:
    """Its port for TLS, the file of the authority that signed its certificate, and itself, with a plain port."""
    authority, port = trustme.CA(), free_port()
    ca_file, pem = place.folder / "ca.pem", str(place.folder / "server.pem")
    authority.cert_pem.write_to_path(ca_file)
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    files = ["--tls-ca-cert-file", str(ca_file), "--tls-cert-file", pem, "--tls-key-file", pem]
    return port, str(ca_file), place.start("7.0", "--tls-port", str(port), "--tls-auth-clients", "no", *files)


async def redis_without_an_address(place: Place, *, embedded: bool) -> str:
    """No address is given: is there a Redis in this user's state directory?"""
    try:
        async with running(embedded=embedded):
            return "its own" if (place.folder / "troupe" / "redis.sock").is_socket() else "elsewhere"
    except ConfigError:
        return "none"


async def goes_on_without_a_replica(place: Place, wait_replicas: int) -> bool:
    """Redis has none: is a task that is due each second started again and again?"""
    tasks = group()
    starts: list[int] = []

    @tasks.add_task("* * * * * *", name="tick")
    async def tick() -> None:
        await trio.lowlevel.checkpoint()
        starts.append(1)

    engine = Engine(Config(redis_url=f"unix://{place.start('6.2').path}", wait_replicas=wait_replicas), [tasks])
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.serve)
        await until(lambda: len(starts) > 2 or "have acknowledged" in (engine.health().redis_trouble or ""))
        nursery.cancel_scope.cancel()
    return len(starts) > 2


async def patience(place: Place, startup_timeout: float) -> float:
    """Nobody listens: how long does the engine say that it waited? It did, and gave up then."""
    before_s = trio.current_time()
    error = await not_reached(redis_host="127.0.0.1", redis_port=free_port(), startup_timeout=startup_timeout)
    assert error is not None
    assert error.waited_s <= trio.current_time() - before_s < error.waited_s + 4
    return error.waited_s


async def what_keys_begin_with(place: Place, redis_key_prefix: str) -> set[str]:
    """All of them."""
    server = place.start("6.2")
    async with running(redis_url=f"unix://{server.path}", redis_key_prefix=redis_key_prefix):
        await until(lambda: keys_in(server))
    return {key.partition(":")[0] for key in keys_in(server)}


async def keys_written(place: Place, *, enabled: bool) -> bool:
    """Does the engine touch Redis at all?"""
    server = place.start("6.2")
    async with running(redis_url=f"unix://{server.path}", enabled=enabled):
        if enabled:
            await until(lambda: keys_in(server))
    with redis.Redis(unix_socket_path=server.path) as client:
        connections = client.info("stats")["total_connections_received"]
    return bool(keys_in(server)) or connections > 2  # the one that saw the server start, and this one


async def name_of_the_worker(place: Place, worker_service_name: str) -> str:
    """As the list of workers shows it."""
    server = place.start("6.2")
    async with running(redis_url=f"unix://{server.path}", worker_service_name=worker_service_name) as engine:
        assert engine.worker_id is not None
        return re.sub(r"-\d+-[0-9a-f]{4}$", "", engine.worker_id).removesuffix(f"-{os.uname().nodename}")


async def status_of_an_unhealthy_worker(place: Place, **turned: Any) -> int:
    """Of the API of an engine that has not started."""
    transport = httpx.ASGITransport(make_app(Engine(Config(redis_host="nowhere", **turned))))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return (await client.get("/health")).status_code


async def status_for_whoever_shows_none(place: Place, **turned: Any) -> int:
    """Of the API of an engine that runs, over a socket."""
    server, port = place.start("6.2"), free_port()
    engine = Engine(Config(redis_url=f"unix://{server.path}", **turned), [rare_tasks()])
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(engine.serve, api=f"127.0.0.1:{port}"))
        async with httpx.AsyncClient() as client:
            status = (await client.get(f"http://127.0.0.1:{port}/tasks")).status_code
        engine.stop()
    return status


def keys_in(server: RedisServer) -> list[str]:
    with redis.Redis(unix_socket_path=server.path, decode_responses=True) as client:
        return [str(key) for key in client.scan_iter()]


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - it asks another process
            await trio.sleep(0.02)


# -- the table --------------------------------------------------------------------------------------------------------

Look = Callable[..., Awaitable[object]]


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A setting with one of its values, and what is then seen."""

    setting: str
    look: Look
    value: Any
    seen: object


IN_VIRTUAL_TIME: dict[str, tuple[Look, dict[Any, object]]] = {
    "concurrent_tasks": (bodies_at_once, {0: 0, 2: 2, 4: 4}),
    "statistics_redis_expiration": (attempts_shown, {90: 2, 432_000: 10}),
    "statistics_history_runs": (attempts_shown, {3: 3, 500: 10}),
    "allow_parallel": (
        verdicts_of_a_slow_task,
        {True: [("ran", "")], False: [("skipped", "overlap"), ("ran", "")]},
    ),
    "can_lead": (starts_without_another_leader, {True: 1, False: 0}),
    "poll_interval": (polls, {0.1: False, 0.01: False}),
    "stream_block_ms": (blocking_reads_in_a_minute, {1_000: 60, 10_000: 6}),
    "queue_cap": (verdicts_with_nobody_to_execute, {1_000: set(), 1: {("skipped", "queue full")}}),
    "ledger_length": (all_verdicts_are_kept, {1_000: True, 10: False}),
    "retire_after": (scheduled_after_its_worker_left, {600.0: {"old/t", "new/t"}, 60.0: {"new/t"}}),
    "leader_heartbeat_interval": (seconds_until_another_leads, {1.0: 3, 3.0: 9}),
    "leader_retry_interval": (attempts_to_lead_in_a_minute, {1.0: 60, 5.0: 12}),
    "max_payload_bytes": (largest_task_that_is_made, {65_536: 10_000, 5_000: 1_000, 256: None}),
    "wait_for_predecessor": (leads_beside_the_replaced_system, {False: True, True: False}),
    "reconciliation_interval": (minute_of_a_run_that_was_read_and_never_claimed, {30: 1, 300: 5}),
    "running_heartbeat_interval": (a_lost_run_soon_starts_again, {1.0: True, 6.0: False}),
    "max_deliveries": (starts_of_a_run_that_kills_its_workers, {1: 1, 3: 3}),
    "retry_backoff": (delays_between_attempts, {1.0: [1, 2, 4, 8], 3.0: [3, 6, 12, 24]}),
    "retry_backoff_max": (delays_between_attempts, {60.0: [1, 2, 4, 8], 3.0: [1, 2, 3, 3]}),
    "retry_backoff_multiplier": (delays_between_attempts, {2.0: [1, 2, 4, 8], 1.0: [1, 1, 1, 1]}),
    "max_retries": (
        end_of_a_failing_task,
        {None: (11, [("dead", "max_retries")]), 2: (3, [("dead", "max_retries")]), 0: (1, [("failed", "raised")])},
    ),
    "shutdown_grace": (end_of_a_run_when_its_worker_stops, {25.0: "done", 1.0: "cancelled"}),
}

ON_A_REAL_REDIS: dict[str, tuple[Look, dict[Any, object]]] = {
    "redis_key_prefix": (what_keys_begin_with, {"troupe": {"{troupe}"}, "a+b": {"{a%2Bb}"}}),
    "enabled": (keys_written, {True: True, False: False}),
    "redis_host": (host_dialled, {"127.0.0.1": "127.0.0.1", "127.0.0.2": "127.0.0.2"}),
    "redis_port": (server_behind_the_port, {"one": "one", "other": "other"}),
    "redis_url": (database_of_the_url, {"unix://SOCKET": "0", "unix://SOCKET?db=3": "3"}),
    "redis_username": (user, {None: "default", "app": "app"}),
    "redis_password": (gets_in_with_password, {"right": True, "wrong": False, None: False}),
    "redis_sentinel_username": (gets_past_as, {None: False, "watch": True}),
    "redis_sentinel_password": (gets_past_with_password, {None: False, "wrong": False, "right": True}),
    "redis_db": (database, {0: "0", 5: "5"}),
    "redis_tls": (port_that_lets_in, {True: ["TLS"], False: ["plain"]}),
    "redis_ca_file": (gets_in_with_ca_file, {"theirs": True, None: False}),
    "embedded": (redis_without_an_address, {True: "its own", False: "none"}),
    "wait_replicas": (goes_on_without_a_replica, {0: True, 1: False}),
    "startup_timeout": (patience, {0.2: 0.2, 1.0: 1.0}),
    "unhealthy_status": (status_of_an_unhealthy_worker, {503: 503, 200: 200}),
    "api_token": (status_for_whoever_shows_none, {None: 200, "sesame": 401}),
    "worker_service_name": (name_of_the_worker, {"fastapi-task-manager": "fastapi-task-manager", "shop": "shop"}),
}


def cases(table: dict[str, tuple[Look, dict[Any, object]]]) -> list[Any]:
    return [
        pytest.param(Row(name, look, value, seen), id=f"{name}={value}")
        for name, (look, values) in table.items()
        for value, seen in values.items()
    ]


@pytest.fixture(autouse=True)
def _only_what_a_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("TROUPE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Servers of this test's own, which end with it, and an empty home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    started: list[RedisServer] = []

    def start(series: str, *options: str) -> RedisServer:
        try:
            binary = find_binary(series)
        except NoSuchServer as error:
            pytest.skip(str(error))
        folder = tmp_path / f"redis{len(started)}"
        folder.mkdir()
        started.append(RedisServer(binary, folder, options))
        return started[-1].start()

    yield Place(start, tmp_path)
    for server in started:
        server.kill()


@pytest.mark.parametrize("row", cases(IN_VIRTUAL_TIME))
async def test_it_changes_what_it_should(autojump_clock: MockClock, nursery: trio.Nursery, row: Row) -> None:
    """Everything but this one setting has its default."""
    stage = Stage(autojump_clock, nursery)
    assert await row.look(stage, **{row.setting: row.value}) == row.seen
    stage.check_for_crashes()


@pytest.mark.parametrize("row", cases(ON_A_REAL_REDIS))
async def test_it_changes_what_it_should_on_a_real_redis(place: Place, row: Row) -> None:
    """Everything has its default, but this one setting and what it takes to find the server."""
    assert await row.look(place, **{row.setting: row.value}) == row.seen


def test_every_setting_has_its_row_with_two_values_that_are_seen_to_differ() -> None:
    """A new setting needs one too, or a place among those without effect, which docs/configuration.md then names."""
    table = IN_VIRTUAL_TIME | ON_A_REAL_REDIS
    assert not IN_VIRTUAL_TIME.keys() & ON_A_REAL_REDIS.keys()
    assert table.keys() == Config.model_fields.keys()
    assert all(len(values) >= 2 for _, values in table.values())
    same = {name for name, (_, values) in table.items() if len(set(map(repr, values.values()))) < 2}
    assert same == WITHOUT_EFFECT
    docs = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name in WITHOUT_EFFECT:
        assert re.search(rf"^\| `{name}` \|.*\| Accepted without effect", docs, flags=re.MULTILINE)
