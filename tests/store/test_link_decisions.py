"""What the link decides without doing: delays, the memory of slow replies, the meaning of errors, BLOCK times."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import NoScriptError, RedisError, ResponseError

from engine.address import Address
from engine.config import Config
from engine.connect import link_to
from engine.errors import CommandRefused, RedisUnavailable
from engine.store.client import block_of_s
from engine.store.patience import Backoff, Telling
from engine.store.replies import QUIET_S, UNAVAILABLE, Refusals, failure_in, reply_error
from engine.store.slow_replies import SlowReplies


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_within_its_bounds(failures: int, chance: float) -> None:
    """Never above the ceiling, never below half of what it would be without jitter."""
    backoff = Backoff(first_s=0.05, ceiling_s=2.0)
    longest = backoff.delay_s(failures, 0.0)
    assert longest / 2 <= backoff.delay_s(failures, chance) <= longest <= 2.0
    assert backoff.delay_s(failures + 1, chance) >= backoff.delay_s(failures, chance)


def test_a_lost_connection_is_tried_again_four_times_in_the_shortest_lease() -> None:
    """Or a lease would end while its holder waits to connect, though Redis is back."""
    for leader_s, runs_s in ((3.0, 0.2), (0.4, 3.0)):
        config = Config(redis_host="nowhere", leader_heartbeat_interval=leader_s, running_heartbeat_interval=runs_s)
        link = link_to(Address(host="nowhere"), config, name="x", greetings=[])
        shortest_s = 3 * min(leader_s, runs_s)
        for lane in link._lanes.values():
            assert lane._settings.backoff.delay_s(100, 0.999) <= shortest_s / 4


def test_delays_double_up_to_the_ceiling() -> None:
    """The first is the first."""
    backoff = Backoff(first_s=0.1, ceiling_s=1.0)
    assert [backoff.delay_s(n, 0.0) for n in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@given(
    took_ms=st.lists(st.integers(0, 300), max_size=60),
    limit_ms=st.integers(2, 300),
)
def test_the_last_reply_slower_than_a_limit_is_remembered_for_every_limit(took_ms: list[int], limit_ms: int) -> None:
    """As if all replies were kept."""
    replies = SlowReplies()
    for at, took in enumerate(took_ms):
        replies.record(float(at), took / 1000)
    slower = [float(at) for at, took in enumerate(took_ms) if took > limit_ms]
    assert replies.last_s(slower_than_s=limit_ms / 1000) == (slower[-1] if slower else -math.inf)


def test_the_memory_of_slow_replies_is_bounded_by_the_slowest() -> None:
    """Even when replies get quicker and quicker, which is the worst case."""
    replies = SlowReplies()
    for number in range(50_000):
        replies.record(float(number), (50_000 - number) / 500_000)
    assert len(replies._steps) <= 100


@pytest.mark.parametrize("code", sorted(UNAVAILABLE))
def test_an_error_that_means_not_now_is_redis_unavailable(code: str) -> None:
    """With the server's words, and redis-py's exception as its cause."""
    error = reply_error(f"{code} 1234 10.0.0.1:6379" if code in {"MOVED", "ASK"} else f"{code} some text")
    assert isinstance(error, RedisUnavailable)
    assert code in str(error)
    assert isinstance(error.__cause__, RedisError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("WRONGTYPE Operation against a key", ResponseError),
        ("NOSCRIPT No matching script", NoScriptError),
        ("BUSYGROUP Consumer Group name already exists", ResponseError),
        ("BUSYKEY Target key name already exists", ResponseError),
        ("NOGROUP No such key", ResponseError),
        ("ERR READONLY is only in the text", ResponseError),
    ],
)
def test_an_error_about_the_command_stays_what_redis_py_makes_of_it(text: str, kind: type[Exception]) -> None:
    """Codes are compared whole."""
    assert type(reply_error(text)) is kind


@pytest.mark.parametrize(
    ("inner", "kind"),
    [
        ("@user_script: 1: -READONLY You can't write against a read only replica.", RedisUnavailable),
        ("@user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", RedisUnavailable),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", ResponseError),
        ("user_script:1: READONLY said by the script's own error()", ResponseError),
    ],
)
def test_an_error_from_within_a_script_is_found_behind_the_words_of_redis_6(inner: str, kind: type[Exception]) -> None:
    """Before 7.0 its code is ERR, and the real one is inside."""
    text = f"ERR Error running script (call to f_{'a' * 40}): @user_script:1: {inner}"
    assert type(reply_error(text)) is kind


def test_a_refusal_is_the_same_whichever_script_met_it() -> None:
    """From 7.0 on the text of the error says which one that was; who compares reasons would take each for news."""
    said = "READONLY You can't write against a read only replica."
    reasons = {str(reply_error(f"{said} script: {sha * 40}, on @user_script:1{sha}.")) for sha in "12"}
    assert reasons == {str(reply_error(said))}


def test_a_redis_that_refuses_is_told_of_when_that_begins_and_when_it_has_ended() -> None:
    """However often it refuses in between; that it answers other commands shows nothing. The last reason is kept."""
    refusals = Refusals()
    assert not refusals.ended(0)
    reasons = [refusals.reason]
    assert refusals.began(100, "OOM")
    assert not refusals.began(100.2, "OOM")
    assert not refusals.ended(100.2 + QUIET_S - 1)
    assert refusals.began(100.2 + QUIET_S - 1, "NOREPLICAS (some words)"), "for another reason"
    assert not refusals.began(100.2 + QUIET_S - 1, "NOREPLICAS (other words)")
    assert not refusals.ended(100.2 + QUIET_S)
    reasons.append(refusals.reason)
    assert refusals.ended(100.2 + 2 * QUIET_S)
    reasons.append(refusals.reason)
    assert not refusals.ended(100.2 + 3 * QUIET_S)
    assert refusals.began(200, "OOM")
    assert reasons == [None, "NOREPLICAS (other words)", None]


def test_an_array_with_an_error_is_returned_unless_it_says_not_now() -> None:
    """Half an answer is none."""
    mine, gone = reply_error("MINE no"), reply_error("READONLY no")
    assert failure_in([1, mine], [mine]) is None
    assert failure_in([1, mine, [gone]], [mine, gone]) is gone
    assert failure_in(mine, [mine]) is mine


@pytest.mark.parametrize(
    ("args", "first", "block_s"),
    [
        (("XREAD", "COUNT", 3, "STREAMS", "s", "$"), 1, 0),
        (("XREAD", "block", 1500, "STREAMS", "s", "$"), 1, 1.5),
        (("XREAD", b"BLOCK", b"250", b"STREAMS", "s", "$"), 1, 0.25),
        (("XREAD", "STREAMS", "BLOCK", "0"), 1, 0),
        (("XREADGROUP", "GROUP", "BLOCK", "STREAMS", "BLOCK", 20, "STREAMS", "s", ">"), 4, 0.02),
    ],
)
def test_the_block_time_of_a_read_is_found_among_its_options(
    args: tuple[object, ...], first: int, block_s: float
) -> None:
    """In any case and type, and not in the names of groups and streams."""
    assert block_of_s(args, first) == block_s


@pytest.mark.parametrize("block", [0, "0", -1])
def test_a_read_that_would_block_for_ever_is_refused(block: object) -> None:
    """It could not have a deadline."""
    with pytest.raises(CommandRefused):
        block_of_s(("XREAD", "BLOCK", block, "STREAMS", "s", "$"), 1)


def test_errors_can_be_copied_and_name_what_to_do() -> None:
    """Facts are fields."""
    error = CommandRefused("lock()", "use a lease")
    assert (error.command, error.instead) == ("lock()", "use a lease")
    assert str(error) == "lock() does not work here: use a lease"


def test_the_failures_of_a_connection_are_told_at_first_and_then_once_a_minute() -> None:
    """Also where each new connection lasts for seconds, and is lost for the same reason as the one before."""
    telling = Telling()

    def told(reason: str, *at_s: float) -> list[float]:
        return [now_s for now_s in at_s if telling.level(reason, now_s) == logging.WARNING]

    times = [3.0 * number for number in range(50)]
    assert told("it is a replica", *times) == [0, 3, 6, 9, 12, 72, 132]
    assert told("it has gone", 150, 151) == [150, 151], "another reason is news"
    assert told("it is a replica", 152) == [152]
    assert told("it is a replica", *range(220, 230)) == [220, 221, 222, 223, 224], "as is one after a quiet minute"
