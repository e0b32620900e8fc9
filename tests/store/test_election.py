"""elect, renew, resign: one leader at a time, and epochs that only grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.store.election import Elected, Held, Lost, OtherHistory, Renewed
from engine.store.keys import SCHEMA
from tests.store.scenario import LEASE_MS, TASK, Stage, expect

if TYPE_CHECKING:
    from engine.store.store import Store

DAY_MS = 86_400_000


async def test_the_first_candidate_leads_under_an_epoch_of_redis_time(store: Store) -> None:
    """The lease, the epoch, the schema's version where there is none, and nothing else; the lease ends by itself."""
    elected = expect(Elected, await store.election.elect("host:1", "nonce", lease_ms=LEASE_MS))
    redis, keys = store.transport.commands, store.keys
    assert elected.value == f"host:1:{elected.epoch}:nonce"
    assert abs(elected.epoch - await store.leases.redis_ms()) < 60_000
    assert await redis.get(keys.leader) == elected.value
    assert await redis.get(keys.epoch) == str(elected.epoch)
    assert 0 < await redis.pttl(keys.leader) <= LEASE_MS
    assert await redis.pttl(keys.epoch) == -1
    assert await redis.hgetall(keys.meta) == {"schema": str(SCHEMA)}
    assert await redis.dbsize() == 3
    assert await store.election.leader() == "host:1"


async def test_another_worker_is_told_who_leads_and_for_how_long(store: Store) -> None:
    """It changes nothing."""
    await store.election.elect("host:1", "nonce", lease_ms=LEASE_MS)
    before = await store.transport.commands.get(store.keys.epoch)
    held = expect(Held, await store.election.elect("host:2", "other", lease_ms=LEASE_MS))
    assert held.worker == "host:1"
    assert 0 < held.left_ms <= LEASE_MS
    assert await store.transport.commands.get(store.keys.epoch) == before
    assert await store.election.leader() == "host:1"


async def test_a_new_candidacy_of_the_leading_worker_takes_over_with_a_new_epoch(store: Store) -> None:
    """Its Leader was restarted: what the former one still sends is refused."""
    former = expect(Elected, await store.election.elect("worker", "first", lease_ms=LEASE_MS))
    latter = expect(Elected, await store.election.elect("worker", "second", lease_ms=LEASE_MS))
    assert latter.epoch > former.epoch
    assert await store.election.renew(former.value, lease_ms=LEASE_MS) == Lost("worker")
    assert not await store.election.resign(former.value)
    assert isinstance(await store.election.renew(latter.value, lease_ms=LEASE_MS), Renewed)


async def test_a_repeat_of_a_candidacy_gets_its_epoch_again_and_a_whole_lease(store: Store) -> None:
    """The reply was lost, and time has passed since."""
    first = expect(Elected, await store.election.elect("worker", "nonce", lease_ms=1_000))
    again = expect(Elected, await store.election.elect("worker", "nonce", lease_ms=LEASE_MS))
    assert again.value == first.value
    assert await store.transport.commands.pttl(store.keys.leader) > 1_000


async def test_epochs_grow_when_the_clock_of_redis_is_behind(store: Store) -> None:
    """It was stepped back, or a dump of another server was restored: one more than the last, and so on."""
    ahead = await store.leases.redis_ms() + DAY_MS
    await store.transport.commands.set(store.keys.epoch, ahead)
    for more in (1, 2, 3):
        elected = expect(Elected, await store.election.elect("worker", f"nonce {more}", lease_ms=LEASE_MS))
        assert elected.epoch == ahead + more
        assert await store.transport.commands.get(store.keys.epoch) == str(ahead + more)


@pytest.mark.parametrize("value", ["host:1:5:nonce", "garbage"])
async def test_a_seat_that_no_election_gave_is_not_held_for_ever(store: Store, value: str) -> None:
    """Somebody wrote the key by hand: the lease that every election has is put on it once, and not renewed."""
    redis, leader = store.transport.commands, store.keys.leader
    await redis.set(leader, value)
    assert isinstance(await store.election.elect("host:2", "other", lease_ms=LEASE_MS), Held)
    assert 0 < await redis.pttl(leader) <= LEASE_MS
    if value != "garbage":
        await redis.pexpire(leader, 1_000)
        await store.election.elect("host:2", "other", lease_ms=LEASE_MS)
        assert await redis.pttl(leader) <= 1_000


async def test_renewing_extends_the_lease_and_tells_what_the_leader_must_know(stage: Stage) -> None:
    """Redis time, the first due instant and the version of the catalog, in one round trip."""
    election, redis, keys = stage.store.election, stage.redis, stage.store.keys
    renewed = expect(Renewed, await election.renew(stage.leader, lease_ms=2 * LEASE_MS))
    assert (renewed.minimum_ms, renewed.version) == (None, 0)
    assert renewed.redis_ms >= stage.now_ms
    assert await redis.pttl(keys.leader) > LEASE_MS
    due_ms = await stage.due()
    await stage.store.catalog.pause([TASK], "pause", until_ms=None, details="{}", who="me")
    renewed = expect(Renewed, await election.renew(stage.leader, lease_ms=LEASE_MS))
    assert (renewed.minimum_ms, renewed.version) == (due_ms, 1)


async def test_renewing_never_takes_a_lease(store: Store) -> None:
    """Not where nobody leads, and not with the value of another epoch."""
    assert await store.election.renew("worker:1:nonce", lease_ms=LEASE_MS) == Lost(None)
    assert await store.election.leader() is None
    elected = expect(Elected, await store.election.elect("worker", "nonce", lease_ms=LEASE_MS))
    other = f"worker:{elected.epoch - 1}:nonce"
    assert await store.election.renew(other, lease_ms=1) == Lost("worker")
    assert await store.transport.commands.pttl(store.keys.leader) > 1_000


async def test_a_lease_that_ended_is_lost_for_its_holder(store: Store) -> None:
    """Redis ends it; its holder learns of it when it renews, and another may lead at once."""
    elected = expect(Elected, await store.election.elect("worker", "nonce", lease_ms=LEASE_MS))
    await store.transport.commands.pexpire(store.keys.leader, 0)
    assert await store.election.renew(elected.value, lease_ms=LEASE_MS) == Lost(None)
    assert isinstance(await store.election.elect("other", "nonce", lease_ms=LEASE_MS), Elected)


async def test_resigning_frees_the_seat_and_says_so(stage: Stage) -> None:
    """Followers hear the event and need not wait for the lease."""
    assert await stage.store.election.resign(stage.leader)
    assert await stage.store.election.leader() is None
    assert await stage.entries(stage.store.keys.events) == [{"event": "resigned", "who": stage.leader}]
    assert isinstance(await stage.store.election.elect("other", "nonce", lease_ms=LEASE_MS), Elected)


async def test_a_candidacy_that_has_resigned_is_over(stage: Stage) -> None:
    """A repeat that was on its way when it resigned must not hold the seat, with nobody in it, for a lease."""
    assert await stage.store.election.resign(stage.leader)
    assert await stage.store.election.elect("leader", "nonce", lease_ms=LEASE_MS) == Held("", LEASE_MS)
    assert await stage.store.election.leader() is None
    assert isinstance(await stage.store.election.elect("leader", "another nonce", lease_ms=LEASE_MS), Elected)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_candidacy_whose_answer_was_lost_can_resign(store: Store, when: str) -> None:
    """It does not know its epoch, nor whether it leads, or is about to."""
    election = store.election

    async def elect() -> Elected | Held | OtherHistory:
        return await election.elect("worker", "nonce", lease_ms=LEASE_MS)

    if when == "before":
        await elect()
    assert await election.resign("worker::nonce") == (when == "before")
    assert isinstance(await elect(), Held)
    assert await election.leader() is None


async def test_a_candidacy_whose_answer_was_lost_ends_no_other(stage: Stage) -> None:
    """Neither that of another worker, nor a later one of its own."""
    for unknown in ("other::nonce", "leader::another nonce"):
        assert not await stage.store.election.resign(unknown)
    assert await stage.redis.get(stage.store.keys.leader) == stage.leader


@pytest.mark.parametrize("value", ["leader:1:nonce", "other:1:nonce", "::"])
async def test_only_the_holder_of_the_whole_value_resigns(stage: Stage, value: str) -> None:
    """Another epoch of the same worker is another leader."""
    before = await stage.snapshot()
    assert not await stage.store.election.resign(value)
    assert await stage.snapshot() == before
