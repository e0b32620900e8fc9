"""The election: one leader, by a lease that it renews in time, and that it gives up when it goes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.identity import Identity
from actors.leader import Leader
from actors.messages import Drain, LeadershipEnded, LeadershipTaken, LeaseRenewed, SeatVacated, TermAsked, WriteRefused
from actors.predecessor import Predecessor
from engine.runtime import Child, Mailbox
from engine.store.election import Elected
from tests.unit.actors.stage import Cable, config, mail
from tests.unit.actors.wires import LosesReplies

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.runtime import Supervision, SupervisorEvent
    from tests.unit.actors.stage import Stage

LEASE_S = 9.0
RETRY_S = 5.0


class Candidate:
    """A Leader, and the mailboxes that it writes to, which the test reads."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name, self.stage = name, stage
        self.cable = Cable(stage.server)
        self.mailbox = Mailbox[Any]("leader")
        self.coordinator, self.reconciler, self.catalog, self.heartbeat = (Mailbox[Any](n) for n in "abcd")
        self.changes: list[bool] = []
        self.events: list[SupervisorEvent] = []
        self.tree: Supervision

    async def start(self) -> Candidate:
        settings = config(leader_heartbeat_interval=LEASE_S / 3, leader_retry_interval=RETRY_S)
        store = self.stage.new_store(self.cable)
        make = partial(
            Leader,
            config=settings,
            store=store,
            identity=Identity("test", self.name, 1, "0"),
            coordinator=self.coordinator,
            reconciler=self.reconciler,
            catalog=self.catalog,
            heartbeat=self.heartbeat,
            on_change=self.changes.append,
            predecessor=Predecessor(config=settings, store=store, name=self.name),
        )
        self.tree = await self.stage.actor(Child("leader", make, self.mailbox), events=self.events)
        await self.stage.settle()
        return self

    def news(self) -> list[Any]:
        """What the Coordinator was told since the last call."""
        return mail(self.coordinator)

    def epochs(self) -> list[int]:
        """Of the terms that the Coordinator was told of since the last call."""
        return [int(m.term.value.split(":")[1]) for m in self.news() if isinstance(m, LeadershipTaken)]


async def leader_of(stage: Stage) -> str | None:
    """The name of the candidate that leads, by Redis."""
    worker = await stage.store.election.leader()
    return worker.partition("-")[0] if worker else None


@pytest.fixture
async def first(stage: Stage) -> Candidate:
    """A candidate that leads."""
    return await Candidate(stage, "first").start()


async def test_leads_at_once_when_nobody_does(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """And tells all three who act on it."""
    assert await leader_of(stage) == "first"
    for mailbox in (first.coordinator, first.reconciler, first.catalog):
        [ended, taken] = mail(mailbox)
        assert isinstance(ended, LeadershipEnded)
        assert isinstance(taken, LeadershipTaken)
        assert taken.renewed_at_s == 0


async def test_renews_three_times_in_a_lease(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """And says when each renewal was sent."""
    first.news()
    await stage.until(60.5)
    renewed = [message.renewed_at_s for message in first.news() if isinstance(message, LeaseRenewed)]
    assert renewed == [3.0 * n for n in range(1, 21)]
    assert await leader_of(stage) == "first"


async def test_a_follower_takes_over_when_the_lease_ends(
    autojump_clock: MockClock, stage: Stage, first: Candidate
) -> None:
    """Not before; and with a greater epoch."""
    second = await Candidate(stage, "second").start()
    await stage.until(10)
    first.cable.cut()  # its last renewal was at 9
    await stage.until(17.9)
    assert await leader_of(stage) == "first"
    await stage.until(18.1)
    assert await leader_of(stage) == "second"
    assert second.epochs()[0] > first.epochs()[0]


async def test_a_resignation_is_heard_at_once(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """The Catalog of the follower hears the event and says so."""
    second = await Candidate(stage, "second").start()
    await stage.until(10)
    await first.mailbox.ask(Drain, timeout_s=1)
    assert await leader_of(stage) is None
    second.mailbox.tell(SeatVacated())
    await stage.settle()
    assert await leader_of(stage) == "second"
    assert trio.current_time() == 10


async def test_a_leader_that_resigned_stands_no_more(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """It is about to end."""
    await first.mailbox.ask(Drain, timeout_s=1)
    first.mailbox.tell(SeatVacated())
    await stage.until(60)
    assert await leader_of(stage) is None


async def test_a_resignation_is_an_event(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """So all hear of it."""
    ids = await stage.store.catalog.start(wake=False)
    await first.mailbox.ask(Drain, timeout_s=1)
    events, _ = await stage.store.catalog.news(ids, block_ms=10)
    assert [event.name for event in events] == ["resigned"]


async def test_stopping_leaves_no_lease_behind(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """Without a drain too."""
    first.tree.stop()
    await first.tree.wait_stopped()
    assert await leader_of(stage) is None
    assert isinstance(first.news()[-1], LeadershipEnded)


async def test_a_leader_whose_lease_went_to_another_steps_down(
    autojump_clock: MockClock, stage: Stage, first: Candidate
) -> None:
    """Cut off, it leads until its lease is over and no longer; back again, it follows."""
    first.news()
    first.cable.cut()
    await stage.until(LEASE_S - 1)
    assert first.news() == []
    await stage.until(LEASE_S + 1)
    second = await Candidate(stage, "second").start()
    assert isinstance(first.news()[0], LeadershipEnded)
    first.cable.join()
    await stage.until(LEASE_S + 2)
    assert "following second" in first.tree.snapshot().children[0].doing
    assert await leader_of(stage) == second.name


async def test_a_refused_write_ends_the_term(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """The Coordinator was refused: its word is as good as a renewal's."""
    [_, taken] = first.news()
    await stage.redis.delete(stage.store.keys.leader)
    first.mailbox.tell(WriteRefused(taken.term))
    await stage.settle()
    ended, again = first.news()
    assert isinstance(ended, LeadershipEnded)
    assert again.term != taken.term


async def test_a_refusal_of_a_former_term_is_old_news(
    autojump_clock: MockClock, stage: Stage, first: Candidate
) -> None:
    """It says nothing about this one."""
    [_, taken] = first.news()
    await stage.redis.delete(stage.store.keys.leader)
    first.mailbox.tell(WriteRefused(taken.term))
    await stage.settle()
    first.news()
    first.mailbox.tell(WriteRefused(taken.term))
    await stage.settle()
    assert first.news() == []
    assert await leader_of(stage) == "first"


async def test_a_renewal_by_the_coordinator_counts(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """The next one is due an interval after it."""
    await stage.until(3)
    renewal = first.news()[-1]
    await stage.until(5)
    first.mailbox.tell(renewal)
    await stage.until(7.9)
    assert first.news() == []
    await stage.until(8)
    assert len(first.news()) == 1


async def test_who_asks_is_told_the_term_again(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """A restarted actor knows nothing; it learns of the last renewal too."""
    await stage.until(4)
    first.news()
    first.mailbox.tell(TermAsked())
    await stage.settle()
    [taken] = first.news()
    assert isinstance(taken, LeadershipTaken)
    assert taken.renewed_at_s == 3


async def test_a_follower_has_no_term_to_tell(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """And is silent."""
    second = await Candidate(stage, "second").start()
    second.news()
    second.mailbox.tell(TermAsked())
    await stage.settle()
    assert second.news() == []


async def test_a_restarted_leader_takes_over_from_its_former_life_at_once(
    autojump_clock: MockClock, stage: Stage, first: Candidate
) -> None:
    """With a greater epoch, so what the former one still sends is refused."""
    [former] = first.epochs()
    first.mailbox.tell(object())
    await stage.until(1)
    assert first.epochs()[0] > former
    assert await leader_of(stage) == "first"
    first.events.clear()


async def test_losing_redis_is_a_state_and_no_crash(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """For longer than the lease; it leads again by itself, in a new term."""
    stage.server.stop()
    await stage.until(300)
    stage.server.start()
    await stage.until(301)
    assert first.tree.snapshot().children[0].restarts == 0
    former, new = first.epochs()
    assert new > former
    assert await leader_of(stage) == "first"


async def test_a_short_outage_costs_no_leadership(autojump_clock: MockClock, stage: Stage, first: Candidate) -> None:
    """The lease holds, and is renewed as soon as Redis answers."""
    await stage.until(2)
    stage.server.stop()
    await stage.until(8)
    stage.server.start()
    await stage.until(30)
    assert len(first.epochs()) == 1


async def test_a_resignation_without_redis_does_not_hold_up_the_stop(
    autojump_clock: MockClock, stage: Stage, first: Candidate
) -> None:
    """The lease ends it."""
    stage.server.stop()
    await first.mailbox.ask(Drain, timeout_s=1)
    stage.server.start()
    assert await leader_of(stage) == "first"
    await stage.until(LEASE_S + 1)
    assert await leader_of(stage) is None


async def test_a_leader_that_does_not_know_whether_it_was_elected_resigns(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """The answer to its election was lost, and it is told to stop: nobody would sit in its seat for a lease."""
    candidate = Candidate(stage, "first")
    lossy = LosesReplies(candidate.cable, "elect", lambda: None)
    await candidate.start()
    assert lossy.lost == 1
    assert await leader_of(stage) == "first"
    await candidate.mailbox.ask(Drain, timeout_s=1)
    assert await leader_of(stage) is None


async def test_followers_try_again_when_the_lease_ends_or_after_the_interval(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Whichever comes first."""
    other = await stage.store.election.elect("other", "n", lease_ms=12_000)
    assert isinstance(other, Elected)
    follower = await Candidate(stage, "follower").start()
    await stage.until(14)
    assert sorted({sent_s for sent_s, _ in follower.cable.sent}) == [0, 5, 10, 12.001]
    assert await leader_of(stage) == "follower"


async def test_whether_it_leads_is_said_at_each_change(
    autojump_clock: MockClock, stage: Stage, first: Candidate
) -> None:
    """The health of the worker shows it, without asking Redis."""
    await stage.until(1)
    assert first.changes[-1] is True
    await first.mailbox.ask(Drain, timeout_s=1)
    assert first.changes[-1] is False
