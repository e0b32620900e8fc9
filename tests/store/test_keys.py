"""Keys that cannot collide, and scripts that touch only what they are given, with commands of Redis 5.0."""

from __future__ import annotations

import re
from functools import cached_property
from importlib.resources import files
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from engine.domain.names import slot_run_id, task_id, task_of, trigger_run_id
from engine.store.keys import Keys
from engine.store.script import Script

NAMES = st.text(st.sampled_from("a:/{}@#%|. é"), min_size=1, max_size=5)
"""Everything that separates something somewhere."""

SCRIPTS = {
    path.name.removesuffix(".lua"): path.read_text(encoding="utf-8")
    for path in (files("engine.store") / "lua").iterdir()
}
scripts = pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"lib"}))
every_file = pytest.mark.parametrize("name", sorted(SCRIPTS))


def shared(keys: Keys) -> dict[str, str]:
    """The keys that an application has once, by name."""
    names = [name for name, member in vars(Keys).items() if isinstance(member, cached_property)]
    return {name: getattr(keys, name) for name in names if name not in ("tag", "run_scripts")}


# -- keys -------------------------------------------------------------------------------------------------------------


@given(st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES))
def test_different_names_never_share_a_key(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Prefix, group and task: whatever they contain, each triple has keys of its own."""
    (prefix, group, task), (prefix2, group2, task2) = one, other
    mine, theirs = task_id(group, task), task_id(group2, task2)
    for kind in ("live", "ledger"):
        same = getattr(Keys(prefix), kind)(mine) == getattr(Keys(prefix2), kind)(theirs)
        assert same == (one == other)
    assert (Keys(prefix).run(slot_run_id(mine, 5)) == Keys(prefix2).run(slot_run_id(theirs, 5))) == (one == other)


@given(NAMES, NAMES, NAMES)
def test_no_key_of_a_task_is_a_key_of_another_kind(prefix: str, group: str, task: str) -> None:
    """Not even for a task that is named like a key."""
    keys, name = Keys(prefix), task_id(group, task)
    found = [
        *(keys.live(name), keys.ledger(name), keys.run(slot_run_id(name, 1)), keys.run(trigger_run_id(name, "1"))),
        *(keys.run(f"{name}@first"), keys.once(task), keys.declared("0123abcd"), *set(shared(keys).values())),
    ]
    assert len(found) == len(set(found))


@given(NAMES, NAMES, NAMES)
def test_all_keys_of_an_application_lie_in_one_slot_of_a_cluster(prefix: str, group: str, task: str) -> None:
    """One script may name several. The bare prefix of the runs too, to which scripts append ids."""
    keys, name = Keys(prefix), task_id(group, task)
    found = [*shared(keys).values(), *keys.of_run(slot_run_id(name, 1)), keys.once(task), keys.declared("d")]
    assert len({key_slot(key.encode()) for key in found}) == 1
    assert all(key.startswith(keys.tag) for key in found)


@given(NAMES, NAMES, st.integers(min_value=0))
def test_the_keys_of_an_item_are_those_of_its_run_and_of_its_task(group: str, task: str, slot_ms: int) -> None:
    """As the run id names them."""
    keys, name = Keys("p"), task_id(group, task)
    run = slot_run_id(name, slot_ms)
    assert task_of(run) == name
    assert keys.of_run(run) == (keys.run(run), keys.live(name), keys.ledger(name))
    assert keys.run(run) == keys.runs + run


def test_no_two_shared_keys_are_the_same() -> None:
    """And the scripts are given eleven of them, in the order of lib.lua."""
    keys = Keys("p")
    found = shared(keys)
    for (one, key), (other, key2) in combinations(sorted(found.items()), 2):
        assert key != key2, (one, other)
    names = re.findall(r"KEYS\[(\d+)\]", code("lib").split("local GROUP")[0])
    assert sorted(map(int, names)) == list(range(1, len(keys.run_scripts) + 1))
    order = [
        "leader",
        "due",
        "wake",
        "leases",
        "cancel",
        "paused",
        "stream_high",
        "stream_low",
        "dead",
        "events",
        "runs",
        "generation",
    ]
    assert keys.run_scripts == tuple(found[name] for name in order)


# -- scripts ----------------------------------------------------------------------------------------------------------


def code(name: str) -> str:
    """A script without its comments."""
    return re.sub(r"--[^\n]*", "", SCRIPTS[name])


def calls(name: str) -> list[str]:
    """What stands in the brackets of each redis.call of a script."""
    found = []
    for start in re.finditer(r"redis\.p?call\(", code(name)):
        depth, end = 1, start.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(code(name)[end], 0)
            end += 1
        found.append(code(name)[start.end() : end - 1])
    return found


@scripts
def test_every_script_says_what_it_does_takes_and_answers_and_why_it_can_be_repeated(name: str) -> None:
    """The header is the contract; those on runs share their KEYS, which lib.lua explains."""
    header = SCRIPTS[name].split("\nlocal")[0]
    assert re.match(r"(--#include lib\n)?-- [A-Z]", header)
    for word in ("ARGV", "reply:", "Repeatable:"):
        assert word in header, word
    assert "KEYS" in header or header.startswith("--#include lib")


@every_file
def test_scripts_use_only_commands_of_redis_5(name: str) -> None:
    """And no option that came later, and nothing that blocks."""
    known = {
        *("GET", "SET", "DEL", "INCR", "TIME", "EXPIRE", "PEXPIRE", "PERSIST", "PTTL"),
        *("HGET", "HMGET", "HGETALL", "HSET", "HDEL", "HLEN", "HEXISTS", "HKEYS", "HVALS"),
        *("SADD", "SREM", "SCARD", "SISMEMBER"),
        *("ZADD", "ZREM", "ZSCORE", "ZCARD", "ZRANGE", "ZRANGEBYSCORE"),
        *("XADD", "XACK", "XDEL", "XLEN", "XRANGE", "XREVRANGE", "XPENDING", "XGROUP"),
    }
    for call in calls(name):
        command, *options = re.findall(r"'([A-Z]+)'", call)
        assert command in known, call
        words = set(options)
        assert not words & {"GT", "LT", "IDLE", "NOMKSTREAM", "MINID", "LIMIT", "KEEPTTL", "GET", "BYSCORE", "REV"}
        assert "'('" not in call
        if command in ("EXPIRE", "PEXPIRE"):
            assert not words


@every_file
def test_scripts_name_no_key_of_their_own(name: str) -> None:
    """All come in KEYS, but the records of runs whose ids a script reads: they are appended to what is in KEYS."""
    assert not re.search(r"'[^']*\{[^']*:[^']*'", code(name))
    for call in calls(name):
        assert re.match(r"'(TIME'|XGROUP', '[A-Z]+', [a-z]|[A-Z]+',\s*[A-Za-z])", call), call
    appended = re.findall(r"(RUNS|KEYS\[\d+\]|[A-Z]{4,}) \.\.", code(name))
    assert set(appended) <= {"RUNS", "KEYS[6]"}
    assert ("KEYS[6]" in appended) == (name == "bury")


@every_file
def test_user_json_is_opaque_to_scripts(name: str) -> None:
    """Cjson turns an empty list into an object, and rounds large integers."""
    assert "cjson" not in code(name)
    assert "cmsgpack" not in code(name)


@scripts
def test_a_script_is_known_by_the_digest_of_what_is_sent(name: str) -> None:
    """With lib.lua in the place of its include."""
    script = Script.load(name)
    assert "#include" not in script.text
    assert (SCRIPTS["lib"] in script.text) == SCRIPTS[name].startswith("--#include lib")
    assert re.fullmatch("[0-9a-f]{40}", script.sha)
