"""No secret leaves the process but to those who may ask for it: not in logs, trees, answers, tracebacks or Redis."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from engine import Config, Engine, RedisUnreachable, TaskGroup
from engine.config import address_of
from tests.store.servers import free_port
from tests.system.cluster import EVERY_SECOND, QUICK, TROUPE, Cluster, any_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD: Final = "pw-4711%2Fhush"  # noqa: S105  # of these tests; with a character that URLs escape
QUOTED: Final = "pw-4711%252Fhush"
TOKEN: Final = "token-4712-hush"  # noqa: S105
SECRETS: Final = (PASSWORD, QUOTED, TOKEN, "pw-4711", "token-4712", "hush")  # no bare digits: some number has them

PROGRAM: Final = f"""
import logging
import sys
from engine import Config, Engine, TaskGroup
from engine.testing import crash

logging.basicConfig(level=logging.DEBUG)
work = TaskGroup("work")

@work.add_task("{EVERY_SECOND}", retry_backoff=0.1)
async def fails():
    raise RuntimeError("on purpose")

engine = Engine(Config(), [work])
print(engine, Config(), repr(Config()), flush=True)
engine.run(api=sys.argv[1] if len(sys.argv) > 1 else None)
"""


def leaks(where: str, text: str) -> list[str]:
    """The secrets in a text."""
    return [f"{secret} in {where}" for secret in SECRETS if secret in text]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Cluster]:
    """A Redis with a user for Troupe, and a password for everybody else."""
    server = any_redis(tmp_path / "redis", "--requirepass", f"default-{PASSWORD}")
    url = f"redis://shop:{QUOTED}@127.0.0.1:{server.port}"
    found = Cluster(server, tmp_path, redis_url=url)
    admin(server.port, "ACL", "SETUSER", "shop", "on", f">{PASSWORD}", "~*", "+@all")
    try:
        yield found
    finally:
        found.close()


def admin(port: int, *command: str) -> Any:
    import redis

    with redis.Redis(port=port, password=f"default-{PASSWORD}", decode_responses=True) as client:
        return client.execute_command(*command)


def everything_in_redis(port: int) -> str:
    """All keys and what they hold, as text."""
    import redis

    found: list[object] = []
    with redis.Redis(port=port, password=f"default-{PASSWORD}", decode_responses=True) as client:
        for key in client.scan_iter():
            read: dict[str, tuple[object, ...]] = {
                "string": ("GET", key),
                "hash": ("HGETALL", key),
                "stream": ("XRANGE", key, "-", "+"),
                "zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
                "set": ("SMEMBERS", key),
            }
            found.append((key, client.execute_command(*read[client.type(key)])))
        found.append(client.execute_command("CLIENT", "LIST"))
    return repr(found)


@pytest.mark.slow
async def test_nothing_that_a_worker_says_holds_a_secret(guarded: Cluster) -> None:
    """Its log at DEBUG, the tree and tasks that ``troupe`` prints, every answer of the API, and all keys of Redis."""
    (guarded.directory / "shop.py").write_text(PROGRAM)
    env = {"TROUPE_REDIS_URL": guarded.url, "TROUPE_REDIS_KEY_PREFIX": "cluster", "TROUPE_API_TOKEN": TOKEN}
    program = guarded.program(sys.executable, "shop.py", "127.0.0.1:0", name="shop", cwd=guarded.directory, **env)
    await program.logged("Task work/fails failed")
    await program.logged("The management API listens at ")
    base = program.lines("The management API listens at ")[-1].rpartition(" ")[2]
    found: list[str] = []
    async with httpx.AsyncClient(base_url=base, headers={"X-Requested-With": "t"}, timeout=60) as client:
        refused = await client.get("/tasks", headers={"Authorization": f"Bearer wrong-{TOKEN}"})
        assert refused.status_code == 401
        found += leaks("a refusal", refused.text)
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        found += leaks("a restart", (await client.post("/supervisor/engine.catalog/restart")).text)
        paths = (await client.get("/openapi.json")).json()["paths"]
        asked = [path for path, operations in paths.items() if "get" in operations and "{" not in path]
        assert {"/health", "/workers", "/config"} <= set(asked) or len(asked) > 5, asked
        for path in asked:
            params = {"task_group_name": "work", "task_name": "fails"}
            found += leaks(path, (await client.get(path, params=params)).text)
    for command in ("tree", "tasks"):
        shown = guarded.program(TROUPE, command, "--json", name=f"troupe-{command}", cwd=guarded.directory, **env)
        assert await shown.ended() == 0
        found += leaks(command, shown.log())
    found += leaks("Redis", everything_in_redis(guarded.server.port))
    admin(guarded.server.port, "ACL", "SETUSER", "shop", "resetpass", ">changed")
    admin(guarded.server.port, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await program.logged("WRONGPASS")
    program.process.terminate()
    await program.ended()
    found += leaks("the log", program.log())
    assert not found, found


async def refusal_of(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """All that is said of an engine that never reaches its Redis, with the traceback as Python prints it."""
    caplog.set_level(logging.DEBUG)
    engine = Engine(Config(redis_url=url, startup_timeout=2, **QUICK), [TaskGroup("work")])
    with pytest.raises(RedisUnreachable) as caught:
        await engine.serve()
    told = "\n".join([record.getMessage() for record in caplog.records] + traceback.format_exception(caught.value))
    return told + repr(engine) + json.dumps(str(address_of(Config(redis_url=url))))


async def test_a_wrong_password_is_not_repeated_by_who_refuses_it(
    guarded: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither ours nor that of Redis."""
    wrong = guarded.url.replace("4711", "4711-wrong")
    said = await refusal_of(wrong, caplog)
    assert "WRONGPASS" in said
    assert not leaks("a refusal", said)


async def test_a_redis_that_nobody_reaches_is_named_without_its_password(caplog: pytest.LogCaptureFixture) -> None:
    """The address is what people need."""
    port = free_port()
    said = await refusal_of(f"redis://shop:{QUOTED}@127.0.0.1:{port}", caplog)
    assert f"127.0.0.1:{port}" in said
    assert not leaks("an outage", said)


async def test_sentinels_that_refuse_a_password_do_not_repeat_it(
    guarded: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain Redis is no Sentinel, and its AUTH refuses both users."""
    url = f"redis+sentinel://shop:{QUOTED}-x@127.0.0.1:{guarded.server.port}/mymaster"
    caplog.set_level(logging.DEBUG)
    engine = Engine(
        Config(redis_url=url, redis_sentinel_password=f"{PASSWORD}-wrong", startup_timeout=2, **QUICK),
        [TaskGroup("work")],
    )
    with pytest.raises(RedisUnreachable) as caught:
        await engine.serve()
    told = "\n".join([record.getMessage() for record in caplog.records] + traceback.format_exception(caught.value))
    assert "WRONGPASS" in told
    assert not leaks("a refusal of Sentinels", told + repr(engine))


async def test_a_server_that_quotes_what_it_does_not_understand_quotes_no_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that has no AUTH says with which words it was called."""
    server = any_redis(tmp_path / "redis", "--rename-command", "AUTH", "")
    try:
        said = await refusal_of(f"redis://shop:{QUOTED}@127.0.0.1:{server.port}", caplog)
    finally:
        server.kill()
    assert "unknown command" in said
    assert "***" in said
    assert not leaks("an echo", said)
