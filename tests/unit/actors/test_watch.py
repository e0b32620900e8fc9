"""When a lease counts as lost: expired by Redis time, and seen unchanged over half a lease of undisturbed watching."""

from __future__ import annotations

import pytest

from actors.watch import Watch
from engine.store.leases import Lease
from tests.unit.actors.stage import at_ms

LEASE_S = 9.0


def lease(expires_s: float, run_id: str = "g/t@1", fence: int = 7) -> Lease:
    return Lease(run_id, fence, at_ms(expires_s))


def look(watch: Watch, *leases: Lease, now_s: float, steady_since_s: float = 0.0, redis_s: float | None = None) -> int:
    """How many are lost, with a Redis whose clock shows ``redis_s``, by default what ours does."""
    redis_ms = at_ms(now_s if redis_s is None else redis_s)
    return len(watch.look(leases, now_s=now_s, redis_ms=redis_ms, steady_since_s=steady_since_s))


@pytest.fixture
def watch() -> Watch:
    return Watch(LEASE_S)


def test_an_expired_lease_is_not_lost_at_first_sight(watch: Watch) -> None:
    """Redis that stalled expires every live lease before the beats arrive: expiry alone proves nothing."""
    assert look(watch, lease(10), now_s=100) == 0


def test_it_is_lost_when_it_was_seen_so_over_half_a_lease(watch: Watch) -> None:
    """Neither before nor twice as late."""
    assert look(watch, lease(10), now_s=100) == 0
    assert look(watch, lease(10), now_s=104.4) == 0
    assert look(watch, lease(10), now_s=104.5) == 1


def test_watching_begins_while_the_lease_still_runs(watch: Watch) -> None:
    """A death is noticed as the lease ends, if it was watched for long enough by then."""
    assert look(watch, lease(10), now_s=5.5) == 0
    assert look(watch, lease(10), now_s=9.999) == 0
    assert look(watch, lease(10), now_s=10) == 1


def test_a_beat_starts_the_observation_again(watch: Watch) -> None:
    """Another expiry: the worker lives."""
    look(watch, lease(10), now_s=6)
    look(watch, lease(13), now_s=9)
    assert look(watch, lease(13), now_s=13) == 0
    assert look(watch, lease(13), now_s=13.5) == 1


def test_another_fence_is_another_lease(watch: Watch) -> None:
    """The run was reclaimed and claimed again."""
    look(watch, lease(10), now_s=6)
    assert look(watch, lease(10, fence=8), now_s=10.5) == 0


@pytest.mark.parametrize("disturbed_s", [6.5, 10.4])
def test_a_disturbance_voids_what_was_seen_before(watch: Watch, disturbed_s: float) -> None:
    """A reconnect, a slow reply, a jump of Redis's clock."""
    look(watch, lease(10), now_s=6)
    assert look(watch, lease(10), now_s=10.5, steady_since_s=disturbed_s) == 0
    assert look(watch, lease(10), now_s=15, steady_since_s=disturbed_s) == 1


def test_redis_time_and_not_ours_ends_a_lease(watch: Watch) -> None:
    """Its clock may stand behind."""
    look(watch, lease(10), now_s=100, redis_s=5)
    assert look(watch, lease(10), now_s=104.9, redis_s=9.9) == 0
    assert look(watch, lease(10), now_s=105, redis_s=10) == 1


def test_a_lease_that_was_out_of_sight_is_seen_anew(watch: Watch) -> None:
    """It was renewed, or gone, in between."""
    look(watch, lease(10), now_s=6)
    look(watch, now_s=8)
    assert look(watch, lease(10), now_s=10.5) == 0


def test_each_lease_is_judged_for_itself(watch: Watch) -> None:
    """One worker is dead, another is not."""
    watch.look([lease(10, "a"), lease(10, "b")], now_s=6, redis_ms=at_ms(6), steady_since_s=0)
    lost = watch.look([lease(10, "a"), lease(13, "b")], now_s=10.5, redis_ms=at_ms(10.5), steady_since_s=0)
    assert [one.run_id for one in lost] == ["a"]


def test_forgetting_begins_anew(watch: Watch) -> None:
    """A new term."""
    look(watch, lease(10), now_s=6)
    watch.forget()
    assert look(watch, lease(10), now_s=10.5) == 0


def test_with_nothing_in_sight_the_next_look_is_half_a_lease_away(watch: Watch) -> None:
    """So every lease is seen before it ends."""
    assert watch.next_look_s(now_s=0, redis_ms=at_ms(0)) == 4.5


def test_the_next_look_comes_when_a_lease_can_be_lost_and_never_spins(watch: Watch) -> None:
    """At its expiry or the end of the observation, whichever is later, and a twentieth of a lease away at least."""
    look(watch, lease(10), now_s=8)
    assert watch.next_look_s(now_s=8, redis_ms=at_ms(8)) == 4.5
    assert watch.next_look_s(now_s=9, redis_ms=at_ms(9)) == 3.5
    assert watch.next_look_s(now_s=12.4, redis_ms=at_ms(12.4)) == 0.45


def test_a_lost_lease_that_could_not_be_taken_is_watched_anew(watch: Watch) -> None:
    """It is lost again after another half of a lease, and has nobody look more often until then."""
    assert look(watch, lease(10), now_s=100) == 0
    assert look(watch, lease(10), now_s=104.5) == 1
    watch.observe_anew(lease(10), now_s=104.5)
    assert watch.next_look_s(now_s=104.5, redis_ms=at_ms(104.5)) == LEASE_S / 2
    assert look(watch, lease(10), now_s=108.9) == 0
    assert look(watch, lease(10), now_s=109) == 1
