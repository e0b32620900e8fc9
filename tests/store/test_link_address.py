"""Addresses: what URLs mean, what is refused, what never shows a password; and each way in, on a real server."""

from __future__ import annotations

import logging
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st

from engine.address import Address, read_url
from engine.config import Config, address_of
from engine.errors import ConfigError
from engine.store.link import Link, LinkSettings
from engine.store.patience import Backoff
from tests.store.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.store.servers import RedisServer

LINK_LOGGER = "fastapi.task-manager.link"
QUICK = LinkSettings(backoff=Backoff(first_s=0.01, ceiling_s=0.05))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://redis.internal", Address(host="redis.internal")),
        ("redis://redis.internal:6380/3", Address(host="redis.internal", port=6380, db=3)),
        ("redis://:se%2Fcr%40et@h/1", Address(host="h", password="se/cr@et", db=1)),
        ("redis://me:pass@h?db=4", Address(host="h", username="me", password="pass", db=4)),
        ("redis://[::1]:7000", Address(host="::1", port=7000)),
        ("unix:///run/redis.sock?db=2", Address(path="/run/redis.sock", db=2)),
        ("unix://:pw@/run/my%20redis.sock", Address(path="/run/my redis.sock", password="pw")),
        ("rediss://h:6380/0?ssl_ca_certs=/ca.pem", Address(host="h", port=6380, tls=True, ca_file="/ca.pem")),
        (
            "rediss://h?ssl_certfile=/me.pem&ssl_keyfile=/me.key",
            Address(host="h", tls=True, cert_file="/me.pem", key_file="/me.key"),
        ),
        (
            "redis+sentinel://me:pw@a:1000,b/mymaster?db=2",
            Address(nodes=(("a", 1000), ("b", 26379)), sentinel_master="mymaster", username="me", password="pw", db=2),
        ),
        (
            "rediss+sentinel://[::1]:1000/my%20master/1?ssl_ca_certs=/ca.pem",
            Address(nodes=(("::1", 1000),), sentinel_master="my master", db=1, tls=True, ca_file="/ca.pem"),
        ),
        (
            "rediss+cluster://me:pw@a:1000,b",
            Address(nodes=(("a", 1000), ("b", 6379)), username="me", password="pw", tls=True),
        ),
    ],
)
def test_a_url_says_where_redis_is(url: str, address: Address) -> None:
    """In redis-py's own notation."""
    assert Address.parse(url) == address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "has no scheme; write redis://localhost:6379"),
        ("redis.internal:6380/2", "has no scheme; write redis://redis.internal:6380/2"),
        ("localhost", "has no scheme; write redis://HOST:PORT/DB"),
        ("http://h:6379", "begins with 'http://'; give one of redis://"),
        ("redis://h:port", "is no URL"),
        ("redis://h:70000", "is no URL"),
        ("redis://h:0", "port 0"),
        ("redis://", "lacks a host"),
        ("redis://h/name", "no database number"),
        ("redis://h?db=name", "no database number"),
        ("redis://h/-1", "no database number"),
        ("redis://h/1?db=2", "two databases"),
        ("redis://h/1#2", "a '#'"),
        ("redis://h /1", "white space"),
        ("unix://", "no path"),
        ("unix://run/redis.sock", "three slashes"),
        ("rediss://h?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("redis://h?socket_timeout=3", "socket_timeout"),
        ("redis://h?host=elsewhere", "'host'"),
        ("redis://h?foo", "'foo'"),
        ("redis+cluster://", "lacks hosts"),
        ("redis+cluster://h:x", "hosts that cannot be read"),
        ("redis+sentinel://h", "lacks the name that the Sentinels give the primary"),
        ("redis+sentinel:///mymaster", "lacks hosts"),
        ("redis+sentinel://h,,i/mymaster", "hosts that cannot be read"),
        ("redis+sentinel://h:70000/mymaster", "hosts that cannot be read"),
        ("redis+sentinel://h/mymaster/name", "no database number"),
    ],
)
@pytest.mark.parametrize("setting", ["redis_url", "redis_host"])
def test_a_bad_url_is_refused_with_the_setting_and_what_to_give(url: str, said: str, setting: str) -> None:
    """The error blames the setting that held the URL. One reading: the Config says the same, when it is made."""
    with pytest.raises(ConfigError) as caught:
        read_url(url, field_name=setting)
    assert caught.value.field == setting
    assert said in caught.value.reason
    if "://" in url or setting == "redis_url":
        with pytest.raises(ConfigError) as by_config:
            Config(**{setting: url})
        assert str(by_config.value) == str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://me@h", "redis_username: is given without redis_password"),
        ("redis://h/99999", "redis_db: 99999"),
        ("redis://h?ssl_ca_certs=/ca.pem", "TLS"),
        ("redis://h?ssl_keyfile=/me.key", "without TLS"),
        ("rediss://h?ssl_keyfile=/me.key", "ssl_keyfile without ssl_certfile"),
        ("unix:///s?ssl_certfile=/me.pem", "without TLS"),
        ("redis+cluster://h?db=1", "a Cluster has only 0"),
    ],
)
def test_a_url_whose_parts_contradict_each_other_is_refused(url: str, said: str) -> None:
    """By the Config too, when it is made; and what is named are settings that there are."""
    for make in (Address.parse, lambda url: Config(redis_url=url), lambda url: Config(redis_host=url)):
        with pytest.raises(ConfigError) as caught:
            make(url)
        assert said in str(caught.value)
        assert caught.value.field in Config.model_fields
        assert set(re.findall(r"redis_\w+", str(caught.value))) <= Config.model_fields.keys()


@pytest.mark.parametrize("setting", ["redis_ca_file", "ssl_ca_certs", "ssl_certfile"])
def test_a_file_that_is_missing_is_found_when_the_config_is_made(setting: str, tmp_path: Path) -> None:
    """Not when the engine starts."""
    missing = str(tmp_path / "missing.pem")
    given = {"redis_ca_file": missing} if setting == "redis_ca_file" else {}
    query = "" if given else f"?{setting}={missing}"
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        Config(redis_url=f"rediss://h{query}", **given)
    (tmp_path / "missing.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        Config(redis_url=f"rediss://h{query}", **given)


def test_a_config_leads_to_the_address_that_its_settings_say(tmp_path: Path) -> None:
    """By URL, with what the URL leaves to the other settings; or by parts."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    address = Address(host="h", port=7000, db=2, username="me", password="pw", tls=True, ca_file=str(ca))
    parts = {"redis_host": "h", "redis_port": 7000, "redis_db": 2, "redis_username": "me", "redis_password": "pw"}
    for config in (
        Config(redis_url=f"rediss://me:pw@h:7000/2?ssl_ca_certs={ca}"),
        Config(redis_url="rediss://me@h:7000/2", redis_password="pw", redis_ca_file=str(ca)),
        Config(**parts, redis_tls=True, redis_ca_file=str(ca)),
    ):
        assert address_of(config) == address
    assert address_of(Config(redis_host="h")) == Address(host="h")
    assert address_of(Config(redis_url="unix:///run/my%20redis.sock")) == Address(path="/run/my redis.sock")


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"host": ""}, "redis_host"),
        ({"port": 0}, "redis_port"),
        ({"db": -1}, "redis_db"),
        ({"username": "me"}, "redis_username"),
        ({"path": "/s", "tls": True}, "redis_url"),
        ({"cert_file": "/c"}, "redis_url"),
        ({"key_file": "/k"}, "redis_url"),
        ({"tls": True, "key_file": "/k"}, "redis_url"),
        ({"sentinel_password": "x"}, "redis_sentinel_password"),
        ({"nodes": (("h", 1),), "sentinel_master": "m", "sentinel_username": "x"}, "redis_sentinel_username"),
    ],
)
def test_parts_that_cannot_be_are_refused(parts: dict[str, object], field: str) -> None:
    """When the address is made, never when it is dialled."""
    with pytest.raises(ConfigError) as caught:
        Address(**parts)  # type: ignore[arg-type] # wrong ones are the point
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("address", "label"),
    [
        (Address(host="h", username="u", password="secret"), "redis://h:6379/0"),
        (Address(host="::1", tls=True, db=2), "rediss://[::1]:6379/2"),
        (Address(path="/run/redis.sock"), "unix:///run/redis.sock?db=0"),
        (
            Address(nodes=(("h", 1), ("::1", 2)), sentinel_master="m", password="secret", sentinel_password="secret"),
            "redis+sentinel://h:1,[::1]:2/m/0",
        ),
        (Address(nodes=(("h", 1), ("i", 2)), password="secret"), "redis+cluster://h:1,i:2"),
    ],
)
def test_the_label_is_the_address_for_people(address: Address, label: str) -> None:
    """Without user and password."""
    assert address.label == label


SECRETS = st.text("QXZ019/?#@:&=[]+", min_size=8)  # what an URL can be cut at, and no word of the messages


@given(SECRETS)
def test_no_text_made_from_an_address_holds_the_password(secret: str) -> None:
    """Neither repr nor label; and what a server echoes is redacted."""
    for address in (
        Address(host="h", password=secret),
        Address(nodes=(("h", 1),), sentinel_master="m", sentinel_password=secret),
    ):
        assert secret not in repr(address) + str(address) + address.label
        assert secret not in address.redact(f"ERR unknown command 'AUTH', with args beginning with: '{secret}'")


@given(SECRETS)
def test_no_error_about_a_url_quotes_its_password(secret: str) -> None:
    """Also when the password was not percent-encoded, and the URL was cut at the wrong place for it."""
    for url in (
        f"redis://:{secret}@h:6379/0",
        f"redis://me:{secret}@h:6379/0",
        f"redis://me:1?{secret}@h",
        f"redis://:#/{secret}@h",
        f"redis+sentinel://:{secret}@h,i/m",
        f"redis+sentinel://:1,{secret}@h,i/m",
        f"redis+sentinel://me:{secret}@h:x/m",
        f"redis://:{secret}/x@h/0?db={secret}",
        f"me:{secret}@h:6379",
    ):
        assert secret not in what_is_printed_about(url)


def what_is_printed_about(url: str) -> str:
    """The address, or why there is none, together with the causes that a traceback would show."""
    try:
        return repr(Address.parse(url))
    except ConfigError as error:
        shown = None if error.__suppress_context__ else error.__context__
        return f"{error} {error.__cause__!r} {shown!r}"


def test_a_certificate_file_that_cannot_be_read_is_a_setting_to_correct(tmp_path: Path) -> None:
    """Found when the link is made."""
    with pytest.raises(ConfigError, match=r"redis_ca_file.*missing\.pem"):
        Link(Address(tls=True, ca_file=str(tmp_path / "missing.pem")))
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    with pytest.raises(ConfigError, match="redis_ca_file"):
        Address(tls=True, ca_file=str(empty)).ssl_context()
    with pytest.raises(ConfigError, match=r"redis_url.*in the same file"):
        Address(tls=True, cert_file=str(empty)).ssl_context()


def test_without_a_ca_file_the_system_is_trusted() -> None:
    """And the server's name is checked."""
    context = Address(tls=True).ssl_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@asynccontextmanager
async def running(address: Address) -> AsyncIterator[Link]:
    """Run a link for the block."""
    link = Link(address, settings=QUICK)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        yield link
        nursery.cancel_scope.cancel()


async def check_up(address: Address) -> None:
    """A link to the address comes up and works."""
    async with running(address) as link:
        with trio.fail_after(30):
            await link.wait_up()
        assert await link.commands.set("key", "1") is True
        assert await link.events.ping() is True


async def why_down(address: Address, caplog: pytest.LogCaptureFixture) -> str:
    """The line about a try that failed."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=LINK_LOGGER):
        async with running(address) as link:
            with trio.fail_after(30):
                while not caplog.messages:  # noqa: ASYNC110 - a log has no event
                    await trio.sleep(0.005)
            assert not link.is_up()
            assert link.statistics().last_error in caplog.messages[0]  # type: ignore[operator] # it is set
    return caplog.messages[0]


@pytest.mark.parametrize("series", ["6.2", "7.0"])
async def test_user_and_password_let_in_and_a_wrong_one_is_said_to_be_wrong(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture, series: str
) -> None:
    """The line names AUTH, and holds neither the right password nor the wrong one."""
    server = start_redis(series, "--requirepass", "right-one", *("--user", "app", "on", ">app-one", "~*", "+@all"))
    await check_up(Address(path=server.path, password="right-one"))
    await check_up(Address(path=server.path, username="default", password="right-one"))
    await check_up(Address(path=server.path, username="app", password="app-one"))
    for user in (None, "app"):
        line = await why_down(Address(path=server.path, username=user, password="wrong-one"), caplog)
        assert "AUTH: WRONGPASS" in line
        assert "wrong-one" not in line
    assert "wants a password" in await why_down(Address(path=server.path), caplog)


@pytest.mark.parametrize(
    ("series", "said"), [("5.0", "no password is set"), ("6.2", "without any password configured")]
)
async def test_a_password_for_a_server_without_one_is_said_to_be_unwanted(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture, series: str, said: str
) -> None:
    """In the server's words."""
    line = await why_down(Address(path=start_redis(series).path, password="unwanted-one"), caplog)
    assert "AUTH" in line
    assert said in line
    assert "unwanted-one" not in line


async def test_a_user_name_is_left_out_for_a_server_before_acls(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Redis 5 takes a password only: it is asked again without the name."""
    path = start_redis("5.0", "--requirepass", "right-one").path
    for user in (None, "default"):
        await check_up(Address(path=path, username=user, password="right-one"))
        line = await why_down(Address(path=path, username=user, password="wrong-one"), caplog)
        assert "AUTH: ERR invalid password" in line
        assert "wrong-one" not in line
    assert "wants a password" in await why_down(Address(path=path), caplog)


async def test_each_database_is_its_own(shared_redis: Callable[[str], RedisServer]) -> None:
    """SELECT is part of the login of every lane."""
    path = shared_redis("6.2").path
    async with running(Address(path=path, db=3)) as three, running(Address(path=path, db=4)) as four:
        await three.commands.set("only-in-three", "1")
        assert await three.events.exists("only-in-three") == 1
        assert await four.commands.exists("only-in-three") == 0


async def test_tcp_and_ipv6_and_unix_sockets(start_redis: Callable[..., RedisServer]) -> None:
    """All three reach the same server."""
    server = start_redis("6.2", "--bind", "127.0.0.1", "::1")
    for address in (server.address, server.tcp, Address.parse(f"redis://[::1]:{server.port}")):
        await check_up(address)


async def test_tls_with_a_ca_file_and_a_client_certificate(
    start_redis: Callable[..., RedisServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Let in with both; refused with the reason without the one or the other, or under another name."""
    authority = trustme.CA()
    ca, server_pem, client_pem = tmp_path / "ca.pem", tmp_path / "server.pem", tmp_path / "client.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(server_pem)
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(client_pem)
    port = free_port()
    files = ["--tls-ca-cert-file", ca, "--tls-cert-file", server_pem, "--tls-key-file", server_pem]
    start_redis("7.0", "--tls-port", str(port), *map(str, files))

    await check_up(Address.parse(f"rediss://localhost:{port}?ssl_ca_certs={ca}&ssl_certfile={client_pem}"))

    stranger = await why_down(Address.parse(f"rediss://localhost:{port}"), caplog)
    assert "TLS: " in stranger
    assert "certificate verify failed" in stranger
    other_name = Address.parse(f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca}&ssl_certfile={client_pem}")
    assert "IP address mismatch" in await why_down(other_name, caplog)
    await why_down(Address.parse(f"rediss://localhost:{port}?ssl_ca_certs={ca}"), caplog)
    await why_down(Address.parse(f"redis://localhost:{port}"), caplog)


async def test_tls_carries_a_burst_in_both_directions(start_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    """Sender and receiver use the encrypted stream at the same time."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    port, pem = free_port(), str(tmp_path / "server.pem")
    files = ["--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-cert-file", pem, "--tls-key-file", pem]
    start_redis("7.0", "--tls-port", str(port), "--tls-auth-clients", "no", *files)
    async with running(Address.parse(f"rediss://localhost:{port}?ssl_ca_certs={tmp_path}/ca.pem")) as link:

        async def echo(text: str) -> None:
            assert await link.commands.execute_command("ECHO", text) == text

        async with trio.open_nursery() as nursery:
            for number in range(2_000):
                nursery.start_soon(echo, f"{number}" + "x" * (number % 500))
