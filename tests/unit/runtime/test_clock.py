"""The three times."""

from __future__ import annotations

import math
import time

import trio
from trio.testing import MockClock

from engine.runtime import Clock, default_environment, virtual_clock


async def test_virtual_clock_moves_all_three_times_together(autojump_clock: MockClock) -> None:
    """Sleeping moves wall and Redis time by as much as the monotonic one."""
    clock = virtual_clock(1_000.0)
    assert (clock.monotonic(), clock.wall(), clock.redis_ms()) == (0.0, 1_000.0, 1_000_000)

    await trio.sleep(2.5)
    assert (clock.monotonic(), clock.wall(), clock.redis_ms()) == (2.5, 1_002.5, 1_002_500)


async def test_redis_time_is_the_wall_clock_until_redis_was_heard(autojump_clock: MockClock) -> None:
    """Then it follows Redis: its own offset, moved on by the monotonic clock and not by the wall's jumps."""
    wall_s = [1_000.0]
    clock = Clock(wall=lambda: wall_s[0])
    assert clock.redis_ms() == 1_000_000

    clock.saw_redis_ms(5_000_000, sent=0.0, received=0.0)
    wall_s[0] = 9_000.0
    await trio.sleep(1)
    assert clock.redis_ms() == 5_001_000
    assert clock.wall() == 9_000.0


async def test_observation_is_dated_in_the_middle_of_its_round_trip(autojump_clock: MockClock) -> None:
    """Sent at 0, received at 2: Redis read its clock at about 1."""
    clock = virtual_clock(0.0)
    await trio.sleep(2)
    clock.saw_redis_ms(10_000, sent=0.0, received=2.0)

    assert clock.redis_ms() == 11_000


async def test_a_step_of_redis_time_is_remembered(autojump_clock: MockClock) -> None:
    """Against all that was seen before, forwards and backwards; none when Redis keeps pace, or drifts."""
    clock = virtual_clock(0.0)
    clock.saw_redis_ms(10_000, sent=0.0, received=0.0)
    for second in range(1, 6):
        await trio.sleep_until(second)
        clock.saw_redis_ms(10_000 + second * 1_100, sent=second, received=second)
    assert clock.redis_stepped_at_s == -math.inf

    await trio.sleep_until(6)
    clock.saw_redis_ms(20_000, sent=6.0, received=6.0)
    assert clock.redis_stepped_at_s == 6.0
    await trio.sleep_until(8)
    clock.saw_redis_ms(22_000, sent=8.0, received=8.0)
    assert clock.redis_stepped_at_s == 6.0
    clock.saw_redis_ms(21_700, sent=8.0, received=8.0)
    assert clock.redis_stepped_at_s == 8.0


async def test_a_slow_reply_is_no_step(autojump_clock: MockClock) -> None:
    """Redis read its clock at some time of the round trip, not certainly in its middle."""
    clock = virtual_clock(0.0)
    clock.saw_redis_ms(10_000, sent=0.0, received=0.0)
    await trio.sleep_until(5)
    clock.saw_redis_ms(15_000, sent=1.0, received=5.0)
    clock.saw_redis_ms(15_000, sent=5.0, received=5.0)
    assert clock.redis_stepped_at_s == -math.inf


async def test_a_slow_reply_hides_no_step(autojump_clock: MockClock) -> None:
    """What it leaves open is decided by the next."""
    clock = virtual_clock(0.0)
    clock.saw_redis_ms(10_000, sent=0.0, received=0.0)
    await trio.sleep_until(5)
    clock.saw_redis_ms(15_000, sent=1.0, received=5.0)
    clock.saw_redis_ms(16_000, sent=5.0, received=5.0)
    assert clock.redis_stepped_at_s == 5.0


async def test_default_environment_is_the_real_world() -> None:
    """Wall time is the host's, and ids do not repeat."""
    environment = default_environment()
    assert abs(environment.clock.wall() - time.time()) < 10
    assert len({environment.new_id() for _ in range(1000)}) == 1000
    assert 0.0 <= environment.random.random() < 1.0


async def test_the_highest_time_of_redis_never_falls_behind(autojump_clock: MockClock) -> None:
    """Also when its clock steps back, or a server takes over whose clock is behind: fences are to grow beyond it."""
    clock = virtual_clock(1_000.0)
    assert clock.highest_redis_ms() == 1_000_000
    clock.saw_redis_ms(900_000, sent=0, received=0)
    assert clock.highest_redis_ms() == clock.redis_ms() == 900_000
    clock.saw_redis_ms(905_000, sent=0, received=0)
    clock.saw_redis_ms(890_000, sent=0, received=0)
    await trio.sleep(2)
    assert (clock.redis_ms(), clock.highest_redis_ms()) == (892_000, 907_000)
