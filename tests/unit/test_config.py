"""Settings: defaults, environment, bounds, contradictions, secrets."""

from __future__ import annotations

import os
import pickle
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from engine.config import Config
from engine.errors import ConfigError, ConfigWarning
from tests.docs import configuration

HIDDEN = "s3kr3t-p4ss"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("TROUPE_"):
            monkeypatch.delenv(name)


def test_the_documented_table_is_what_the_docstrings_say() -> None:
    """Of every setting. To bring it in line: python -m tests.docs.configuration"""
    text = configuration.PAGE.read_text(encoding="utf-8")
    assert configuration.table() in text
    assert configuration.page(text) == text
    rows = re.findall(r"^\| `(\w+)` \| `[^`]+` \| (?:\w+ )?\| \S.* \|$", text, flags=re.MULTILINE)
    assert rows == list(Config.model_fields)
    ineffective = [name for name in rows if "Accepted without effect" in configuration.row(name)]
    assert ineffective == ["poll_interval"]


def test_no_address_is_an_error_that_names_both_ways() -> None:
    """A container that lost its address must not become a cluster of its own."""
    with pytest.raises(ConfigError) as caught:
        Config()
    for way in ("redis_host", "redis_url", "TROUPE_REDIS_URL", "embedded=True", "TROUPE_EMBEDDED=1"):
        assert way in str(caught.value)


@pytest.mark.parametrize("variable", ["TROUPE_REDIS_HOST", "TROUPE_REDIS_URL"])
def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Compose files pass variables that are not set as empty text."""
    monkeypatch.setenv(variable, "")
    with pytest.raises(ConfigError, match="no Redis is named"):
        Config()
    assert Config(embedded=True).embedded


@pytest.mark.parametrize(
    "settings",
    [
        {"embedded": True, "redis_host": "h"},
        {"embedded": True, "redis_url": "redis://h"},
        {"redis_host": "h", "redis_url": "redis://h"},
        {"redis_host": "redis://h", "redis_url": "redis://h"},
        {"redis_url": "redis://h", "redis_db": 1},
        {"redis_url": "redis://h", "redis_port": 6379},
        {"redis_url": "redis://h", "redis_tls": True},
        {"redis_url": "redis://:one@h", "redis_password": "two"},
        {"redis_host": "h", "redis_ca_file": "/ca.pem"},
        {"redis_host": "h", "retry_backoff": 61},
        {"redis_host": "h", "redis_sentinel_password": "x"},
        {"redis_url": "redis+sentinel://h/m", "redis_sentinel_username": "x"},
        {"redis_url": "redis+sentinel://h/m", "redis_port": 1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    """Neither is chosen silently."""
    with pytest.raises(ConfigError):
        Config(**settings)


@pytest.mark.parametrize(
    ("environment", "settings", "said"),
    [
        ({"REDIS_HOST": "a", "REDIS_URL": "redis://b"}, {}, "TROUPE_REDIS_HOST, TROUPE_REDIS_URL"),
        ({"REDIS_HOST": "redis://a", "EMBEDDED": "1"}, {}, "TROUPE_REDIS_HOST, TROUPE_EMBEDDED"),
        ({"REDIS_URL": "redis://a", "REDIS_DB": "1"}, {}, "TROUPE_REDIS_URL, TROUPE_REDIS_DB"),
        ({"REDIS_PASSWORD": "a"}, {"redis_url": "redis://:b@h"}, "TROUPE_REDIS_PASSWORD"),
        ({"REDIS_USERNAME": "a"}, {"redis_host": "h"}, "TROUPE_REDIS_USERNAME"),
        ({"RETRY_BACKOFF_MAX": "5"}, {"redis_host": "h", "retry_backoff": 6}, "TROUPE_RETRY_BACKOFF_MAX"),
        ({"QUEUE_CAP": "0"}, {"redis_host": "h"}, "TROUPE_QUEUE_CAP"),
    ],
)
def test_what_came_from_the_environment_is_called_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], settings: dict[str, Any], said: str
) -> None:
    """Whoever reads the error looks for what gave the setting, and finds no such argument."""
    for name, value in environment.items():
        monkeypatch.setenv(f"TROUPE_{name}", value)
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert str(caught.value).endswith(f" ({said} in the environment)")


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one; an address wins over all that the environment says of addresses."""
    monkeypatch.setenv("TROUPE_REDIS_URL", "redis://elsewhere:1/5")
    monkeypatch.setenv("TROUPE_CONCURRENT_TASKS", "7")
    monkeypatch.setenv("TROUPE_CAN_LEAD", "false")
    found = Config()
    assert (found.redis_url, found.concurrent_tasks, found.can_lead) == ("redis://elsewhere:1/5", 7, False)
    assert Config(concurrent_tasks=3).concurrent_tasks == 3
    assert Config(redis_host="h").redis_url is None
    assert Config(embedded=True).redis_url is None

    monkeypatch.setenv("TROUPE_EMBEDDED", "1")
    with pytest.raises(ConfigError, match="is given as well"):
        Config()


def test_a_port_in_the_environment_does_not_disturb_a_url_given_as_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL says the port."""
    monkeypatch.setenv("TROUPE_REDIS_PORT", "7000")
    assert Config(redis_url="redis://h:1").redis_url == "redis://h:1"
    assert Config(redis_host="h").redis_port == 7_000


def test_unknown_names_are_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As argument, and in the environment where it is nearly one of ours."""
    with pytest.raises(ConfigError, match="did you mean concurrent_tasks"):
        Config(redis_host="h", concurent_tasks=3)
    monkeypatch.setenv("TROUPE_WORKSHOP", "another program's")
    assert Config(redis_host="h").redis_host == "h"
    monkeypatch.setenv("TROUPE_REDIS_HOTS", "h")
    with pytest.raises(ConfigError, match="did you mean TROUPE_REDIS_HOST"):
        Config(redis_host="h")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("concurrent_tasks", -1, "-1; give at least 0"),
        ("redis_port", 70_000, "70000; give at most 65,535"),
        ("running_heartbeat_interval", 0.01, "0.01 s; give at least 0.1 s"),
        ("leader_heartbeat_interval", 0, "0 s; give at least 0.1 s"),
        ("poll_interval", 0, "0 s; give more than 0 s"),
        ("stream_block_ms", 0, "0 ms; give at least 10 ms"),
        ("shutdown_grace", float("nan"), "give a finite number, in s"),
        ("shutdown_grace", float("inf"), "give a finite number, in s"),
        ("retry_backoff_multiplier", 0.5, "0.5; give at least 1"),
        ("max_retries", -1, "-1; give at least 0"),
        ("max_retries", 1.5, "1.5; give a whole number"),
        ("queue_cap", 0, "0; give at least 1"),
        ("statistics_redis_expiration", 10**9, "1000000000 s; give at most 316,224,000 s"),
        ("startup_timeout", "soon", "'soon'; give a number, in s"),
        ("allow_parallel", "maybe", "'maybe'; give True or False"),
        ("worker_service_name", "", "''; give at least 1 character"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_bound_and_unit(name: str, value: object, text: str) -> None:
    """The error is ours, and names field, value, bound and unit."""
    with pytest.raises(ConfigError) as caught:
        Config(**{"redis_host": "h", name: value})
    assert caught.value.field == name
    assert text in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "a b", "a{b}", "a}", "a\n", "\u2003", "x" * 201])
def test_a_prefix_that_would_break_keys_is_refused(prefix: str) -> None:
    """Braces are the hash tag's, white space is nobody's."""
    with pytest.raises(ConfigError) as caught:
        Config(redis_host="h", redis_key_prefix=prefix)
    assert caught.value.field == "redis_key_prefix"


def test_the_prefix_of_every_script_warns() -> None:
    """Two scripts with redis_key_prefix=__name__ would share everything."""
    with pytest.warns(ConfigWarning, match="__main__"):
        Config(redis_host="h", redis_key_prefix="__main__")


@pytest.mark.parametrize(
    "settings",
    [
        {"redis_host": "h", "redis_password": HIDDEN},
        {"redis_url": f"redis://me:{HIDDEN}@h:1/2"},
        {"redis_url": f"rediss://h/?password={HIDDEN}"},
        {"redis_host": f"redis://:{HIDDEN}@h"},
        {"redis_url": f"unix://:{HIDDEN}@/tmp/redis.sock?db=1"},
    ],
)
def test_a_password_is_known_and_never_printed(settings: dict[str, Any]) -> None:
    """Wherever it was given, it is in redis_password alone, which hides it."""
    config = Config(**settings)
    assert config.redis_password == SecretStr(HIDDEN)
    for text in (repr(config), str(config), str(config.model_dump()), config.model_dump_json()):
        assert HIDDEN not in text


@pytest.mark.parametrize(
    "settings",
    [
        {"redis_url": f"redis://:{HIDDEN}@h:port"},
        {"redis_url": f"http://:{HIDDEN}@h"},
        {"redis_url": f"redis://:{HIDDEN}@"},
        {"redis_host": f"me:{HIDDEN}@h"},
        {"redis_password": [HIDDEN], "redis_host": "h"},
        {"redis_host": "h", "redis_password": HIDDEN, "concurrent_tasks": -1},
        {"redis_password": HIDDEN},
        {"redis_url": [HIDDEN]},
        {"redis_host": [HIDDEN]},
        {"redis_host": "h", "redis_password": HIDDEN, "embedded": True},
        {"redis_url": f"redis://:{HIDDEN}@h", "redis_password": "another"},
    ],
)
def test_a_password_is_not_in_an_error_nor_in_its_traceback(settings: dict[str, Any]) -> None:
    """Errors end in logs, and so do their causes."""
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    lines = traceback.format_exception(caught.value)
    source = [line for line in lines if __file__ not in line]
    assert HIDDEN not in "".join(source)


@pytest.mark.parametrize(
    ("given", "kept", "username", "password"),
    [
        ("redis://me:p%40ss@h:1/2", "redis://h:1/2", "me", "p@ss"),
        ("rediss://h", "rediss://h", None, None),
        ("redis://:x@[::1]:6379?db=3", "redis://[::1]:6379?db=3", None, "x"),
        ("redis://h/?db=3&password=p%40ss", "redis://h/?db=3", None, "p@ss"),
        ("unix:///tmp/redis.sock?db=2", "unix:///tmp/redis.sock?db=2", None, None),
        ("unix://me:x@/tmp/redis.sock", "unix:///tmp/redis.sock", "me", "x"),
        ("redis+sentinel://me:x@h:1,i:2/m?db=1", "redis+sentinel://h:1,i:2/m?db=1", "me", "x"),
    ],
)
def test_a_url_is_kept_without_its_credentials(
    given: str, kept: str, username: str | None, password: str | None
) -> None:
    """Also where it is given as redis_host."""
    for config in (Config(redis_url=given), Config(redis_host=given)):
        found = config.redis_password
        assert (config.redis_url, config.redis_host, config.redis_username) == (kept, None, username)
        assert (found.get_secret_value() if found else None) == password


def test_a_config_does_not_change() -> None:
    """It is shared by everything that runs."""
    config = Config(redis_host="h")
    with pytest.raises(ConfigError, match="make another"):
        config.concurrent_tasks = 3
    assert config.concurrent_tasks == 2
    assert hash(config) == hash(Config(redis_host="h"))
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 -- our own bytes


def test_leases_are_three_heartbeats() -> None:
    """In seconds."""
    config = Config(redis_host="h", leader_heartbeat_interval=2, running_heartbeat_interval=0.5)
    assert (config.leader_lease_s, config.run_lease_s) == (6.0, 1.5)


def test_config_imports_neither_trio_nor_redis() -> None:
    """Settings can be read by anything, at no cost."""
    for module in ("config", "config_errors", "address", "errors"):
        source = (Path(__file__).parents[2] / "engine" / f"{module}.py").read_text(encoding="utf-8")
        assert not re.search(r"^\s*(?:import|from) (?:trio|redis)\b", source, flags=re.MULTILINE)
