"""What the engine finds by entry point, and the address of its API: decided before anything starts."""

from __future__ import annotations

import pickle
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from engine import Config, Engine
from engine.app import exit_code
from engine.errors import ApiRefused, ApiUnavailable, ConfigError, ServiceNotFound
from engine.services import find_service, opened, read_address, token_of
from integrations.hypercorn import management_api

if TYPE_CHECKING:
    from pathlib import Path


def engine(**settings: Any) -> Engine:
    """One that is never started."""
    return Engine(Config(redis_host="nowhere", **settings))


@pytest.mark.parametrize(
    ("given", "read", "loopback"),
    [
        ("127.0.0.1:8000", "127.0.0.1:8000", True),
        ("127.255.3.4:1", "127.255.3.4:1", True),
        ("localhost:65535", "127.0.0.1:65535", True),
        ("[::1]:8000", "[::1]:8000", True),
        ("[0:0:0:0:0:0:0:1]:0", "[::1]:0", True),
        ("0.0.0.0:8000", "0.0.0.0:8000", False),
        ("[::]:8000", "[::]:8000", False),
        ("192.0.2.7:80", "192.0.2.7:80", False),
        ("[2001:db8::7]:80", "[2001:db8::7]:80", False),
    ],
)
def test_an_address_is_an_ip_address_and_a_port(given: str, read: str, loopback: bool) -> None:  # noqa: FBT001
    """IPv6 in brackets; of names only localhost, which needs no resolver."""
    address = read_address(given)
    assert str(address) == read
    assert address.ip.is_loopback is loopback


@pytest.mark.parametrize(
    "given",
    [
        *("", "8000", ":8000", "127.0.0.1", "127.0.0.1:", "::1:8000", "[127.0.0.1]:80", "[::1]", "[::1:80", "[]:80"),
        *("127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1:100000", "127.0.0.1:८०", "127.0.0.1:80 ", "127.1:80"),
        *("http://127.0.0.1:8000", "127.0.0.1:8000/", "shop.example:80", "*:80", "unix:/run/api", "[fe80::1%lo]:80"),
        *(8000, None, True, ("127.0.0.1", 8000), b"127.0.0.1:80"),
    ],
)
def test_what_is_no_address_is_refused_with_one_that_is(given: Any) -> None:
    """Whatever was meant, it is not guessed."""
    with pytest.raises(ApiRefused, match=r"; give|: give") as caught:
        read_address(given)
    assert repr(given) in str(caught.value)
    assert exit_code(caught.value) == 78


@pytest.mark.parametrize("api", ["0.0.0.0:0", "[::]:0", "192.0.2.7:0"])
@pytest.mark.parametrize("token", [None, ""])
def test_an_address_that_others_reach_needs_a_token(api: str, token: str | None) -> None:
    """An empty one is none. Nothing listens by then."""
    with (
        pytest.raises(ApiRefused, match=r"must show a token: set TROUPE_API_TOKEN \(Config\.api_token\)"),
        opened(engine(api_token=token), api),
    ):
        pytest.fail("it was opened")


def test_with_a_token_any_address_of_this_host_will_do() -> None:
    """And without one a loopback address."""
    for found, api in ((engine(api_token="sesame"), "0.0.0.0:0"), (engine(), "127.0.0.1:0")):
        with opened(found, api) as (child,):
            assert child.name == "api"
    with opened(engine(), None) as children:
        assert children == ()


@pytest.mark.parametrize("token", ["open sesame", "sesame\n", "sésame", "ses\x00ame", "sesame "])
def test_a_token_that_no_header_can_carry_is_refused_unseen(token: str) -> None:
    """Nobody could show it; the error does not show it either."""
    config = Config(redis_host="nowhere", api_token=token)
    with pytest.raises(ConfigError, match=r"^Config\.api_token: .*visible ASCII") as caught:
        token_of(config)
    assert token not in str(caught.value)
    with pytest.raises(ConfigError), opened(Engine(config), "127.0.0.1:0"):
        pytest.fail("it was opened")


def test_a_token_of_the_wrong_type_is_refused_unseen() -> None:
    """Settings errors show what was given, but for secrets."""
    wrong: Any = 4711_0815
    with pytest.raises(ConfigError, match="api_token") as caught:
        Config(redis_host="nowhere", api_token=wrong)
    assert "47110815" not in str(caught.value)


def test_an_address_that_is_taken_or_not_ours_is_told_so() -> None:
    """It may be free a moment later, so a service manager may try again: 69."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(ApiUnavailable, match=f"{taken}: another process listens there") as caught,
            opened(engine(), taken),
        ):
            pytest.fail("it was opened")
    assert exit_code(caught.value) == 69
    with pytest.raises(ApiUnavailable, match="no address of this host"), opened(engine(api_token="t"), "192.0.2.7:0"):
        pytest.fail("it was opened")


def test_the_entry_point_of_this_distribution_serves_the_api() -> None:
    """As installed, since that is where it is looked for."""
    assert find_service("api") is management_api


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no installed distribution has an entry point"),
        ("nowhere.at_all:it", "nowhere.at_all:it cannot be imported: No module named 'nowhere'"),
        ("json:no_such_name", "json:no_such_name cannot be imported"),
    ],
)
def test_a_service_that_is_not_there_is_named_with_what_to_look_for(
    value: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distribution that offers nothing, or a module that another one hides."""
    if value is not None:
        info = tmp_path / "other-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[troupe.services]\nteapot = {value}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ServiceNotFound) as caught:
        find_service("teapot")
    assert f"the service 'teapot' is not there: {reason}" in str(caught.value)
    assert exit_code(caught.value) == 78


@pytest.mark.parametrize("error", [ApiRefused("a", "b"), ApiUnavailable("a", "b"), ServiceNotFound("a", "b")])
def test_errors_survive_pickling(error: Exception) -> None:
    """They may cross processes."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
