"""What the link decides without doing: delays, the memory of slow replies, the meaning of errors, BLOCK times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import NoScriptError, RedisError, ResponseError

from engine.errors import CommandRefused, RedisUnavailable
from engine.store.client import block_of_s
from engine.store.patience import Backoff
from engine.store.replies import QUIET_S, UNAVAILABLE, Refusals, failure_in, reply_error
from engine.store.slow_replies import SlowReplies


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_a_delay_is_within_its_bounds(failures: int, chance: float) -> None:
    """Never above the ceiling, never below half of what it would be without jitter."""
    backoff = Backoff(first_s=0.05, ceiling_s=2.0)
    longest = backoff.delay_s(failures, 0.0)
    assert longest / 2 <= backoff.delay_s(failures, chance) <= longest <= 2.0
    assert backoff.delay_s(failures + 1, chance) >= backoff.delay_s(failures, chance)


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


def test_a_redis_that_refuses_is_told_of_when_that_begins_and_when_it_has_ended() -> None:
    """However often it refuses in between; that it answers other commands shows nothing."""
    refusals = Refusals()
    assert not refusals.ended(0)
    assert refusals.began(100)
    assert not refusals.began(100.2)
    assert not refusals.ended(100.2 + QUIET_S - 1)
    assert not refusals.began(100.2 + QUIET_S - 1)
    assert not refusals.ended(100.2 + QUIET_S)
    assert refusals.ended(100.2 + 2 * QUIET_S)
    assert not refusals.ended(100.2 + 3 * QUIET_S)
    assert refusals.began(200)


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
