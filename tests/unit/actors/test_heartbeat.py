"""Leases and presence: three beats in a lease, for whatever the Consumer says that it holds."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.declared import Declared
from actors.heartbeat import Heartbeat
from actors.identity import Identity
from actors.messages import CountsAsked, Drain, LeasesInDanger, Refresh, RunsAsked, StopRuns
from engine.runtime import Child, Mailbox
from engine.store.runs import Claimed
from engine.store.script import script_of
from tests.unit.actors.stage import Cable, Gate, Publisher, at_ms, config, group, mail

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.runtime import Supervision
    from tests.unit.actors.stage import Stage

LEASE_S = 9.0


class Bearer:
    """A Heartbeat, with the test for its Consumer, which answers unless told not to."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.cable = Cable(stage.server)
        self.mailbox, self.consumer, self.catalog, self.stats = (Mailbox[Any](name) for name in "hcks")
        self.holds: list[tuple[str, int]] = []
        self.answers = True
        self.heard: list[Any] = []
        """What the Consumer was told."""
        self.tree: Supervision

    async def start(self, events: list[Any] | None = None) -> Bearer:
        make = partial(
            Heartbeat,
            config=config(running_heartbeat_interval=LEASE_S / 3),
            store=self.stage.new_store(self.cable),
            identity=Identity("svc", "host", 7, "abcdef"),
            declared=Declared([]),
            snapshot=dict,
            started_ms=at_ms(0),
            consumer=self.consumer,
            catalog=self.catalog,
            stats=self.stats,
            leader=None,
        )
        self.stage.nursery.start_soon(self._answer, self.consumer)
        self.stage.nursery.start_soon(self._answer, self.stats)
        self.tree = await self.stage.actor(Child("heartbeat", make, self.mailbox), events=events)
        await self.stage.settle()
        return self

    async def _answer(self, mailbox: Mailbox[Any]) -> None:
        while True:
            match await mailbox.receive():
                case RunsAsked(reply):
                    if self.answers:
                        reply.send(list(self.holds))
                case CountsAsked(reply):
                    reply.send({"ran": 3})
                case message:
                    self.heard.append(message)

    async def claim(self, publisher: Publisher, count: int = 1) -> None:
        """Hold runs from now on."""
        runs = self.stage.store.runs
        await runs.make_groups()
        await publisher.queue("g/t", count)
        entries = await runs.read("host-7-abcdef", priorities=("low",), count=count, block_ms=None)
        for claimed in await runs.claim("host-7-abcdef", "token", entries, lease_ms=round(LEASE_S * 1000)):
            assert isinstance(claimed, Claimed)
            self.holds.append((claimed.run_id, claimed.fence))

    async def expiries_s(self) -> list[float]:
        """When the leases end, in seconds of trio's clock."""
        return [(lease.expiry_ms - at_ms(0)) / 1000 for lease in await self.stage.store.leases.expiring(10**15)]


@pytest.fixture
async def publisher(stage: Stage) -> Publisher:
    return await Publisher.elected(stage)


@pytest.fixture
async def bearer(stage: Stage) -> Bearer:
    return await Bearer(stage).start()


async def test_every_beat_renews_all_leases(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """Three beats in a lease, one command for all runs."""
    await bearer.claim(publisher, 3)
    before = len(bearer.cable.sent)
    await stage.until(30.5)
    assert await bearer.expiries_s() == [30 + LEASE_S] * 3
    assert len(bearer.cable.sent) - before == 10


async def test_it_asks_before_each_beat(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """What the Consumer no longer holds is left to expire."""
    await bearer.claim(publisher)
    await stage.until(4)
    bearer.holds.clear()
    await stage.until(30)
    assert await bearer.expiries_s() == [3 + LEASE_S]


async def test_a_consumer_that_does_not_answer_keeps_its_leases(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """It is being restarted; the beats are not late for it."""
    await bearer.claim(publisher)
    await stage.until(4)
    bearer.answers = False
    await stage.until(31)
    [expiry_s] = await bearer.expiries_s()
    assert expiry_s >= 30 + LEASE_S
    bearer.answers = True


async def test_runs_that_others_took_are_stopped(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """A beat revives nothing."""
    await bearer.claim(publisher, 2)
    await publisher.lose(bearer.holds[0][0])
    await stage.until(3.5)
    assert bearer.heard == [StopRuns(lost=frozenset({bearer.holds[0]}))]


async def test_runs_that_somebody_wants_to_end_are_cancelled(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """At the next beat."""
    await bearer.claim(publisher, 2)
    run_id, fence = bearer.holds[1]
    await stage.redis.sadd(stage.store.keys.cancel, f"{run_id}#{fence}")
    await stage.until(3.5)
    assert bearer.heard == [StopRuns(cancelled=frozenset({(run_id, fence)}))]


async def test_a_new_version_has_the_catalog_read(autojump_clock: MockClock, stage: Stage, bearer: Bearer) -> None:
    """Once for each version: an event that was lost costs one beat. The first beat has it read in any case."""
    assert mail(bearer.catalog) == [Refresh(None)]
    await stage.until(10)
    assert mail(bearer.catalog) == []
    await stage.store.catalog.pause(["g/t"], "op", until_ms=None, details="{}", who="me")
    await stage.until(20)
    assert mail(bearer.catalog) == [Refresh(1)]


async def test_cut_off_for_most_of_a_lease_it_warns_the_consumer_once(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """In time, before the lease can have ended."""
    await bearer.claim(publisher)
    await stage.until(4)  # the last beat was at 3: its leases end at 12
    bearer.cable.cut()
    await stage.until(10.4)
    assert bearer.heard == []
    await stage.until(11)
    assert bearer.heard == [LeasesInDanger()]
    await stage.until(60)
    assert bearer.heard == [LeasesInDanger()]


async def test_a_restart_while_it_is_cut_off_warns_the_consumer_in_time(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It does not know when its former life was last heard: leases can end in half of one."""
    crashes: list[Any] = []
    bearer = await Bearer(stage).start(crashes)
    await bearer.claim(publisher)
    await stage.until(4)  # the last beat was at 3: its leases end at 12
    bearer.cable.cut()
    await stage.until(5.5)
    bearer.mailbox.tell(object())
    await stage.until(12)
    assert bearer.heard == [LeasesInDanger()]
    assert len(crashes) > 0
    crashes.clear()


async def test_a_short_outage_stops_no_run(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """And the lease is renewed as soon as Redis is back."""
    await bearer.claim(publisher)
    await stage.until(4)
    stage.server.stop()
    await stage.until(9)
    stage.server.start()
    await stage.until(9.3)
    [expiry_s] = await bearer.expiries_s()
    assert expiry_s == pytest.approx(9.2 + LEASE_S, abs=0.2)
    assert bearer.heard == []


async def test_it_beats_at_once_when_redis_can_be_reached_again(
    autojump_clock: MockClock, stage: Stage, bearer: Bearer
) -> None:
    """Who came meanwhile is known then, for when Redis forgets it."""
    await stage.until(10)
    bearer.cable.cut()
    await stage.until(13.03)
    bearer.cable.join()
    await stage.until(13.04)
    assert [at_s for at_s, args in bearer.cable.sent if script_of(args) == "beat"][-1] == 13.03


async def test_without_runs_there_is_no_danger(autojump_clock: MockClock, stage: Stage, bearer: Bearer) -> None:
    """Nobody needs to be told."""
    stage.server.stop()
    await stage.until(100)
    assert bearer.heard == []
    stage.server.start()


async def test_the_presence_tells_who_is_there(autojump_clock: MockClock, stage: Stage, bearer: Bearer) -> None:
    """With a version, for readers of other versions."""
    await stage.until(3.5)
    [presence] = await stage.store.leases.workers()
    said = presence.account()
    assert presence.seen_ms == at_ms(3)
    assert not presence.draining
    assert (said.worker_id, said.pid, said.digest) == ("svc-host-7-abcd", 7, Declared([]).code_digest)
    assert said.counts == {"ran": 3}
    assert (said.executes, said.can_lead) == (True, True)
    assert json.loads(presence.details)["v"] == 1


async def test_a_drain_is_said_at_once(autojump_clock: MockClock, stage: Stage, bearer: Bearer) -> None:
    """So that what is lost with this worker is not counted against its runs."""
    await stage.until(1)
    await bearer.mailbox.ask(Drain, timeout_s=0.1)
    [presence] = await stage.store.leases.workers()
    assert presence.draining
    assert presence.seen_ms == at_ms(1)


async def test_leases_are_kept_while_draining(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """Runs in progress have their grace."""
    await bearer.claim(publisher)
    await bearer.mailbox.ask(Drain, timeout_s=0.1)
    await stage.until(20)
    assert await bearer.expiries_s() == [18 + LEASE_S]


async def test_the_presence_ends_with_the_worker(autojump_clock: MockClock, stage: Stage, bearer: Bearer) -> None:
    """Nothing is left to be buried."""
    await stage.store.runs.make_groups()
    assert len(await stage.store.leases.workers()) == 1
    bearer.tree.stop()
    await bearer.tree.wait_stopped()
    assert await stage.store.leases.workers() == []


async def test_a_run_ten_times_longer_than_its_lease_is_started_once(autojump_clock: MockClock, stage: Stage) -> None:
    """The whole worker, its own reconciler watching."""
    tasks, starts = group(), list[float]()

    @tasks.add_task("0 0 1 1 *", name="t", run_on_first_start=True)
    async def long() -> None:
        starts.append(trio.current_time())
        await trio.sleep(9)

    await stage.worker(tasks, running_heartbeat_interval=0.3)
    await stage.worker(tasks, running_heartbeat_interval=0.3)
    await stage.until(20)
    assert len(starts) == 1
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_worker_that_was_cut_off_stops_its_runs_and_gives_them_back(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """As soon as Redis answers again; nobody had taken them."""
    tasks, gate = group(), Gate()
    tasks.add_task("0 0 1 1 *", name="t")(gate.walk)
    worker = await stage.worker(tasks, can_lead=False)
    await publisher.queue("g/t")
    await stage.until(4)
    worker.cable.cut()
    await stage.until(11.5)
    assert gate.inside == 0
    worker.cable.join()
    await stage.until(13)
    assert gate.inside == 1
    gate.open.set()
    await stage.until(14)
    [entry] = await stage.ledger("g/t")
    assert (entry.verdict, entry.attempt) == ("ran", 1)


async def test_a_slow_connection_is_given_up_before_the_lease_ends(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, bearer: Bearer
) -> None:
    """One through which nothing comes looks open for longer than a lease may last."""
    await bearer.claim(publisher)
    await stage.until(4)
    bearer.cable.stall()
    await stage.until(10.5)
    assert bearer.heard == [LeasesInDanger()]


async def test_a_run_survives_its_heartbeat_s_crashes(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Whatever the number of crashes, it is restarted within a sixth of a lease: no lease ends meanwhile."""
    tasks, gate = group(), Gate()
    tasks.add_task("0 0 1 1 *", name="t")(gate.walk)
    worker = await stage.worker(tasks, can_lead=False, running_heartbeat_interval=0.2)
    await publisher.queue("g/t")
    for second in range(1, 5):
        await stage.until(second)
        worker.crash("heartbeat")
    await stage.until(6)
    delays_s = [crash.restart_in_s for crash in worker.crashes]
    worker.crashes.clear()
    assert len(delays_s) == 4
    assert all(delay_s is not None and delay_s <= worker.config.run_lease_s / 6 for delay_s in delays_s)
    assert gate.inside == 1
    gate.open.set()


async def test_after_a_crash_it_asks_until_it_is_told_which_leases_there_are(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """A beat that knows of none would let those of its former life end."""
    events: list[Any] = []
    bearer = await Bearer(stage).start(events)
    await bearer.claim(publisher)
    await stage.until(4)
    bearer.answers = False
    bearer.mailbox.tell(object())
    await stage.until(8)
    [presence] = await stage.store.leases.workers()
    assert presence.seen_ms == at_ms(3)
    bearer.answers = True
    await stage.until(9)
    [presence] = await stage.store.leases.workers()
    assert presence.account().running == 1
    [expiry_s] = await bearer.expiries_s()
    assert expiry_s > 8 + LEASE_S
    events.clear()
