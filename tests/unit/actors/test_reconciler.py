"""What is left over when workers vanish, and what must not be taken from those that live."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.declared import Declared
from actors.messages import Beat, LeadershipTaken, LeaseRenewed, Term
from actors.reconciler import DEAD_ALARM, Reconciler
from engine.domain.catalog import pages
from engine.runtime import Child, Mailbox
from engine.store.election import Renewed
from engine.store.operations import Trigger
from engine.store.presence import Account
from tests.unit.actors.stage import Cable, Gate, Publisher, at_ms, config, group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage

YEARLY = "0 0 1 1 *"
LEASE_S = 9.0


async def test_a_run_of_a_vanished_worker_starts_again_elsewhere(autojump_clock: MockClock, stage: Stage) -> None:
    """After its lease, and not before; counted as a delivery, not as an attempt."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    assert gate.inside == 1
    victim.kill()
    other = await stage.worker(tasks, can_lead=False)
    await stage.until(10 + LEASE_S - 2)
    assert gate.inside == 0
    await stage.until(10 + 1.5 * LEASE_S)
    assert gate.inside == 1
    assert "1/2 runs" in other.doing("consumer")
    gate.open.set()
    await stage.until(30)
    [entry] = await stage.ledger("g/t")
    assert (entry.verdict, entry.attempt, len(entry.story)) == ("ran", 1, 2)
    assert '"outcome": "lost"' in entry.story[0]


async def test_a_run_that_kills_its_workers_is_set_aside(autojump_clock: MockClock, stage: Stage) -> None:
    """After ``max_deliveries``; it condemns no neighbour."""
    leading, tasks, killer, neighbour = group(), group(), Gate(), Gate()
    for one in (leading, tasks):
        one.add_task(YEARLY, name="killer", run_on_first_start=True)(killer.walk)
    await stage.worker(leading, concurrent_tasks=0)
    tasks.add_task(YEARLY, name="neighbour", run_on_first_start=True)(neighbour.walk)
    killed = 0
    while killed < 3:
        killer.entered = trio.Event()
        victim = await stage.worker(tasks, can_lead=False)
        await killer.entered.wait()
        await stage.settle()
        victim.kill()
        killed += 1
    await stage.until(trio.current_time() + 20)
    assert await stage.verdicts("g/killer") == [("dead", "max_deliveries")]
    [dead] = await stage.redis.xrange(stage.store.keys.dead)
    assert dead[1]["reason"] == "max_deliveries"


async def test_a_run_that_waits_to_be_alone_is_not_condemned_by_its_neighbour(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """It was claimed on its last delivery, and its body had not begun when the other one killed the worker."""
    leading, tasks, killer, innocent = group(), group(), Gate(), Gate()
    for one in (leading, tasks):
        one.add_task(YEARLY, name="killer", run_on_first_start=True)(killer.walk)
        one.add_task(YEARLY, name="innocent", run_on_first_start=True)(innocent.walk)
    await stage.worker(leading, concurrent_tasks=0)
    record = stage.store.keys.run("g/innocent@first")
    await stage.until(1)
    await stage.redis.hset(record, "deliveries", 2)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(5)
    assert (killer.inside, innocent.inside) == (1, 0)
    assert await stage.redis.hget(record, "state") == "running"
    victim.kill()
    await stage.until(30)
    assert await stage.redis.hmget(record, "state", "deliveries") == ["queued", "2"]
    killer.open.set()
    innocent.open.set()
    await stage.worker(tasks, can_lead=False)
    await stage.until(40)
    assert await stage.verdicts("g/killer") == await stage.verdicts("g/innocent") == [("ran", "")]


async def test_a_draining_worker_that_is_lost_counts_no_delivery(autojump_clock: MockClock, stage: Stage) -> None:
    """Its thread was cut off by the end of the process, which is no fault of the run."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk_in_thread)
    await stage.worker(tasks, concurrent_tasks=0, max_deliveries=1)
    worker = await stage.worker(tasks, can_lead=False, max_deliveries=1, shutdown_grace=1)
    with stage.time_stands_still():
        await gate.entered.wait()
    await worker.stop()
    worker.kill()
    await stage.until(30)
    assert await stage.ledger("g/t") == []
    with stage.time_stands_still():
        gate.open.set()


async def test_entries_that_a_vanished_worker_read_are_released(autojump_clock: MockClock, stage: Stage) -> None:
    """It had claimed none of them; the next scan finds them idle."""
    tasks = group()
    started_s = noting(tasks, "0 0 1 1 *", run_on_first_start=True)
    await stage.worker(tasks, concurrent_tasks=0)
    await stage.until(1)
    await stage.store.runs.make_groups()
    assert len(await stage.store.runs.read("ghost", priorities=("low",), count=5, block_ms=None)) == 1
    await stage.worker(tasks, can_lead=False)
    await stage.until(30)
    assert started_s == []
    await stage.until(40)
    assert len(started_s) == 1


async def test_a_vanished_worker_is_buried(autojump_clock: MockClock, stage: Stage) -> None:
    """Its presence, and its places in the consumer groups."""
    tasks = group()
    noting(tasks, YEARLY)
    leader = await stage.worker(tasks)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(1)
    victim.kill()
    await stage.until(60.5)
    assert [w.worker for w in await stage.store.leases.workers()] == [leader.identity.key]
    consumers = await stage.redis.xinfo_consumers(stage.store.keys.stream_low, "workers")
    assert [consumer["name"] for consumer in consumers] == [leader.identity.key]


async def test_tasks_that_nobody_declares_leave_the_timetable(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """After ``retire_after``; what other sets have goes on, and ledger and pause stay."""
    old, new = group(), group()
    for tasks in (old, new):
        noting(tasks, "* * * * *", name="kept")
    noting(old, "* * * * *", name="gone")
    settings = {"retire_after": 300.0}
    await stage.worker(new, concurrent_tasks=0, **settings)
    former = await stage.worker(old, can_lead=False, **settings)
    await stage.until(61)
    await former.stop()
    await stage.store.catalog.pause(["g/gone"], "op", until_ms=None, details="{}", who="me")
    await stage.until(61 + 290)
    assert set(await stage.store.timetable.tasks()) == {"g/kept", "g/gone"}
    await stage.until(61 + 390)
    assert set(await stage.store.timetable.tasks()) == {"g/kept"}
    assert (await stage.verdicts("g/gone"))[0] == ("ran", "")
    assert "g/gone" in (await stage.store.catalog.contents()).paused
    assert len((await stage.store.catalog.contents()).sets) == 1


async def test_the_mark_of_a_removed_task_goes_when_nobody_declares_the_task_any_longer(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then it hides what a live worker declares, and what a set has that is not retired yet."""
    old, new = group(), group()
    for tasks in (old, new):
        noting(tasks, YEARLY, name="kept")
    for name in ("removed", "other"):
        noting(old, YEARLY, name=name)
    settings = {"retire_after": 300.0}
    await stage.worker(new, concurrent_tasks=0, **settings)
    former = await stage.worker(old, can_lead=False, **settings)
    await stage.until(5)
    for name in ("removed", "kept"):
        assert await stage.store.operations.forget(f"g/{name}", f"forget {name}", who="me", declared=True) is not None
    await stage.until(200)
    await former.stop()
    await stage.until(200 + 290)
    assert set((await stage.store.catalog.contents()).withdrawn) == {"g/removed", "g/kept"}
    version = await stage.store.catalog.version()
    with caplog.at_level("INFO"):
        await stage.until(200 + 450)
    contents = await stage.store.catalog.contents()
    assert contents.withdrawn == ("g/kept",)
    assert contents.version == version + 1  # of the set that was retired
    told = [record.getMessage() for record in caplog.records if "which was removed" in record.getMessage()]
    assert told == ["Task g/removed, which was removed, is declared by nobody any longer"]


async def test_runs_of_a_task_that_nobody_declares_end_with_a_verdict(autojump_clock: MockClock, stage: Stage) -> None:
    """They would be read and put aside for ever; those that may still find a worker are left alone."""
    old, new = group(), group()
    noting(old, "*/5 * * * * *", name="gone")
    for tasks in (old, new):
        noting(tasks, YEARLY, name="kept")
    former = await stage.worker(old, retire_after=60.0)
    worker = await stage.worker(new, retire_after=60.0)
    await stage.until(31)
    await former.stop()
    await stage.until(80)
    assert len(await stage.store.runs.live("g/gone")) > 5
    await stage.until(200)
    assert await stage.store.runs.live("g/gone") == {}
    assert set(await stage.store.timetable.tasks()) == {"g/kept"}
    verdicts = await stage.verdicts("g/gone")
    assert ("ran", "") in verdicts
    assert verdicts[-1] == ("skipped", "no worker")
    await stage.until(210)
    before = len(worker.cable.sent)
    await stage.until(310)
    assert len(worker.cable.sent) - before < 200


async def test_a_run_that_was_asked_for_before_its_task_was_declared_is_left_time(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """A deployment: the web process knows the task before the first worker does."""
    mine, later = group("mine"), group("later")
    noting(mine, YEARLY)
    started_s = noting(later, YEARLY)
    await stage.worker(mine, retire_after=300.0)
    await stage.until(5)
    await stage.store.operations.trigger([Trigger("later/t@t-1", "low", "allow")], who="me", queue_cap=9)
    await stage.until(200)
    assert await stage.ledger("later/t") == []
    await stage.worker(later, can_lead=False, retire_after=300.0)
    await stage.until(800)  # it may meet the worker that does not know it some more times
    assert len(started_s) == 1


async def test_a_task_that_this_leader_cannot_read_stays(autojump_clock: MockClock, stage: Stage) -> None:
    """A newer set has it still, for those who understand it; the older set goes."""
    mine, old = group("mine"), group()
    noting(mine, YEARLY)
    noting(old, YEARLY, name="common")
    declared = Declared([old]).code
    [text] = pages(declared.definitions, declared.functions)
    newer = text.replace('"timezone":"UTC"', '"timezone":"Europe/Newtown"')
    assert newer != text
    newer_digest = "f" * 64
    await stage.store.catalog.declare(newer_digest, [newer])
    details = Account(digest=newer_digest).to_json()
    former = await stage.worker(old, retire_after=60.0)
    await stage.worker(mine, retire_after=60.0)
    await stage.until(5)
    await former.stop()
    for at_s in range(10, 300, 10):
        await stage.until(at_s)
        history = await stage.history()
        await stage.store.leases.beat("newer", [], lease_ms=9_000, details=details, draining=False, history=history)
    assert len((await stage.store.catalog.contents()).sets) == 2
    assert set(await stage.store.timetable.tasks()) == {"mine/t", "g/common"}
    await stage.until(500)
    assert set(await stage.store.timetable.tasks()) == {"mine/t"}


async def test_a_set_is_retired_however_often_the_leader_changes(autojump_clock: MockClock, stage: Stage) -> None:
    """The clock of each set is in Redis."""
    mine, old = group("mine"), group()
    noting(mine, YEARLY)
    noting(old, YEARLY)
    former = await stage.worker(old, retire_after=300.0)
    leader = await stage.worker(mine, retire_after=300.0)
    await former.stop()
    for at_s in range(100, 800, 100):
        await stage.until(at_s)
        successor = await stage.worker(mine, retire_after=300.0)
        await leader.stop()
        leader = successor
    assert len((await stage.store.catalog.contents()).sets) == 1


async def test_a_set_that_is_retired_and_declared_at_once_goes_on(autojump_clock: MockClock, stage: Stage) -> None:
    """Its worker came back in that moment: no slot is lost, since a task goes only from a catalog that lacks it."""
    mine, others = group("mine"), group("others")
    started_s = noting(mine, "*/10 * * * * *")
    noting(others, YEARLY)
    await stage.worker(others, concurrent_tasks=0, retire_after=60.0)
    worker = await stage.worker(mine, can_lead=False, retire_after=60.0)
    await stage.until(15)
    catalog, keys = stage.store.catalog, stage.store.keys
    [digest] = [w.digest for w in await stage.store.leases.workers() if w.worker == worker.identity.key]
    await stage.redis.hdel(keys.workers, worker.identity.key)
    await stage.redis.hset(keys.unused, digest, 1)
    leader = await stage.redis.get(keys.leader)
    declared = Declared([mine]).code
    assert await catalog.retire(leader, [digest], after_ms=60_000) == ["retired"]
    await catalog.declare(digest, pages(declared.definitions, declared.functions))
    await stage.until(201)
    assert started_s == [float(at_s) for at_s in range(10, 210, 10)]


async def test_a_live_declaration_is_not_retired(autojump_clock: MockClock, stage: Stage) -> None:
    """However long it has been there."""
    tasks = group()
    noting(tasks, YEARLY)
    await stage.worker(tasks, retire_after=60.0)
    await stage.until(300)
    assert set(await stage.store.timetable.tasks()) == {"g/t"}


async def test_a_worker_that_comes_back_declares_again(autojump_clock: MockClock, stage: Stage) -> None:
    """It was cut off for longer than ``retire_after``, and its tasks had left the timetable."""
    mine, others = group("mine"), group("others")
    started_s = noting(mine, "* * * * *")
    noting(others, YEARLY)
    noting(mine, YEARLY, name="common")
    await stage.worker(others, concurrent_tasks=0, retire_after=60.0)
    worker = await stage.worker(mine, can_lead=False, retire_after=60.0)
    await stage.until(61)
    worker.cable.cut()
    await stage.until(400)
    assert set(await stage.store.timetable.tasks()) == {"others/t"}
    worker.cable.join()
    await stage.until(481)
    assert started_s[0] == 60
    assert started_s[-2:] == [420, 480]


@pytest.mark.parametrize("down_s", [LEASE_S + 1, 10 * LEASE_S])
async def test_an_outage_longer_than_the_lease_is_no_loss(
    autojump_clock: MockClock, stage: Stage, down_s: float
) -> None:
    """All leases have expired when Redis is back, and their holders live: a thread is not started twice."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk_in_thread)
    workers = [await stage.worker(tasks), await stage.worker(tasks)]
    with stage.time_stands_still():
        await gate.entered.wait()
    await stage.until(20)
    stage.server.stop()
    await stage.until(20 + down_s)
    stage.server.start()
    await stage.until(20 + down_s + 5 * LEASE_S)
    assert gate.most_inside == 1
    with stage.time_stands_still():
        gate.open.set()
        await stage.becomes(lambda: stage.ledger("g/t"))
    [entry] = await stage.ledger("g/t")
    assert (entry.verdict, len(entry.story)) == ("ran", 1)
    assert sum(worker.restarts(name) for worker in workers for name in ("reconciler", "heartbeat", "consumer")) == 0


async def test_a_step_of_redis_clock_is_no_loss(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """It expires every lease at one stroke; the observation starts again, and the beats come first."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    await stage.worker(tasks)
    await stage.until(20.1)
    with caplog.at_level(logging.WARNING):
        stage.redis_ahead_s = 2 * LEASE_S
        await stage.until(60)
    assert gate.most_inside == 1
    assert (gate.inside, await stage.ledger("g/t")) == (1, [])


class Desk:
    """A Reconciler, with the test for its Leader; and a run of a worker that is gone, whose lease ends at 9 s."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.cable = stage, Cable(stage.server)
        self.mailbox = Mailbox[Any]("reconciler")
        self.run_id = ""

    async def start(self) -> Desk:
        stage, store = self.stage, self.stage.store
        leader, catalog = Mailbox[Any]("leader"), Mailbox[Any]("catalog")
        its_store = stage.new_store(self.cable)
        settings = config(reconciliation_interval=1)
        make = partial(Reconciler, config=settings, store=its_store, leader=leader, catalog=catalog)
        await stage.actor(Child("reconciler", make, self.mailbox))
        publisher = await Publisher.elected(stage)
        await store.runs.make_groups()
        [self.run_id] = await publisher.queue("g/t")
        entries = await store.runs.read("gone", priorities=("low",), count=1, block_ms=None)
        await store.runs.claim("gone", "token", entries, lease_ms=round(LEASE_S * 1000))
        return self

    async def lead(self, *, lease_s: float = LEASE_S) -> Term:
        term = Term(await self.stage.redis.get(self.stage.store.keys.leader), lease_s=lease_s)
        self.mailbox.tell(LeadershipTaken(term, trio.current_time()))
        return term

    async def state(self) -> str:
        return str(await self.stage.redis.hget(self.stage.store.keys.run(self.run_id), "state"))


async def test_a_leader_that_has_not_renewed_lately_reclaims_nothing(autojump_clock: MockClock, stage: Stage) -> None:
    """A process that stalled must not act on what it saw before, however sure it was; after a renewal it does."""
    desk = await Desk(stage).start()
    term = await desk.lead()
    await stage.until(40)
    assert await desk.state() == "running"
    desk.mailbox.tell(LeaseRenewed(term, 40.0, Renewed(stage.now_ms(), None, 0)))
    await stage.until(42)
    assert await desk.state() == "queued"


async def test_entries_that_were_read_a_moment_ago_are_left_to_their_reader(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """It is about to claim them: they are released when they have been idle for longer than a lease."""
    desk = await Desk(stage).start()
    await desk.lead(lease_s=1_000)
    [run_id] = await Publisher(stage, await stage.redis.get(stage.store.keys.leader)).queue("g/u")
    [entry] = await stage.store.runs.read("slow", priorities=("low",), count=1, block_ms=None)
    for instant, released in ((LEASE_S - 1, False), (LEASE_S + 5, True)):
        await stage.until(instant)
        now = await stage.redis.hget(stage.store.keys.run(run_id), "entry")
        assert (now != entry.entry_id) == released


@pytest.mark.parametrize(
    ("what", "reclaimed_s"), [("nothing", 9.0), ("a reconnect", 13.5), ("a slow reply", 13.5), ("a refusal", 18.0)]
)
async def test_what_disturbs_the_link_between_two_looks_starts_the_watch_anew(
    autojump_clock: MockClock, stage: Stage, what: str, reclaimed_s: float
) -> None:
    """A beat may have been held up by the same; slow is what took longer than a quarter of a lease.

    Looks are at 4.5 s, and at 9 s, when the lease ends; one that is refused is repeated half a lease later.
    """
    desk = await Desk(stage).start()
    await desk.lead(lease_s=1_000)
    await stage.until(6)
    if what == "a reconnect":
        desk.cable.cut()
        desk.cable.join()
    elif what == "a slow reply":
        desk.cable.steady_since_s = lambda *, slower_than_s: 6.0 if slower_than_s <= LEASE_S / 4 else 0.0  # type: ignore[method-assign]
    else:
        desk.cable.refusing = what == "a refusal"
    for instant in (9.01, 13.51, 18.01):
        await stage.until(instant)
        desk.cable.refusing = False
        assert await desk.state() == ("queued" if instant >= reclaimed_s else "running")


async def test_a_new_leader_watches_anew(autojump_clock: MockClock, stage: Stage) -> None:
    """Which delays a reclaim and never hastens it."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    first = await stage.worker(tasks, concurrent_tasks=0)
    await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    victim.kill()
    await stage.until(17)
    await first.stop()
    await stage.worker(tasks, can_lead=False)
    await stage.until(17 + LEASE_S / 2 - 0.1)
    assert gate.inside == 0
    await stage.until(17 + 1.5 * LEASE_S)
    assert gate.inside == 1


async def test_what_was_seen_before_an_outage_proves_nothing_after_it(autojump_clock: MockClock, stage: Stage) -> None:
    """A lease that expired meanwhile is watched for half a lease from the first look on, like any other.

    The first look comes when somebody leads again: the victim was waited for, in case it remembered what Redis may have
    forgotten, for a lease.
    """
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    victim.kill()
    await stage.worker(tasks, can_lead=False)
    await stage.until(16)  # the lease ends at 18, and was seen at 13.5
    stage.server.stop()
    await stage.until(18.5)
    stage.server.start()
    await stage.until(18.5 + 1.5 * LEASE_S - 0.1)
    assert gate.inside == 0
    await stage.until(18.5 + 2 * LEASE_S)
    assert gate.inside == 1


async def test_a_step_that_another_actor_noticed_starts_the_watch_anew(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """All actors of a process ask Redis for its time; whoever sees the step first must not hide it."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    leader = await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    victim.kill()
    await stage.worker(tasks, can_lead=False)
    await stage.until(16)  # the lease ends at 18, and was seen at 13.5
    stage.redis_ahead_s += 5
    leader.mailbox("heartbeat").tell(Beat())
    await stage.until(16 + LEASE_S / 2 - 0.1)
    assert gate.inside == 0
    assert len([record for record in caplog.records if "has stepped" in record.getMessage()]) == 1
    await stage.until(16 + 1.5 * LEASE_S)
    assert gate.inside == 1


async def test_every_step_of_redis_clock_is_noticed(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Forwards and backwards, whenever it comes."""
    tasks = group()
    noting(tasks, YEARLY)
    await stage.worker(tasks)
    for number in range(20):
        await stage.until(10 + number * 11.37)
        stage.redis_ahead_s += -3 if number % 3 == 2 else 5
    await stage.until(260)
    assert len([record for record in caplog.records if "has stepped" in record.getMessage()]) == 20


async def test_all_runs_of_a_worker_that_vanished_come_back_together(autojump_clock: MockClock, stage: Stage) -> None:
    """Within one and a half leases, however many they are."""
    tasks, gate, most = group(), Gate(), 1_200
    tasks.add_task(YEARLY, name="t")(gate.walk)
    await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False, concurrent_tasks=most)
    await stage.until(1)
    asked = [Trigger(f"g/t@t-{number}", "low", "allow") for number in range(most)]
    await stage.store.operations.trigger(asked, who="test", queue_cap=most)
    await stage.until(10)
    assert gate.inside == most
    victim.kill()
    await stage.until(10 + 1.5 * LEASE_S)
    assert Counter((await stage.store.runs.live("g/t")).values()) == {"queued": most}


async def test_a_lease_of_a_broken_run_hides_no_other(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays, and is tried again each half of a lease; the log is told once."""
    tasks, gate = group(), Gate()
    for name in ("broken", "whole"):
        tasks.add_task(YEARLY, name=name, run_on_first_start=True)(gate.walk)
    leader = await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    assert gate.inside == 2
    victim.kill()
    await stage.redis.hdel(stage.store.keys.run("g/broken@first"), "slot")
    await stage.until(10 + 1.5 * LEASE_S)
    assert await stage.store.runs.live("g/whole") == {"g/whole@first": "queued"}
    assert await stage.store.runs.live("g/broken") == {"g/broken@first": "running"}
    before = len(leader.cable.sent)
    await stage.until(10 + 11.5 * LEASE_S)
    assert len(leader.cable.sent) - before < 21 * 11
    told = [record for record in caplog.records if "cannot be reclaimed" in record.getMessage()]
    assert [record.levelname for record in told] == ["ERROR"]


async def test_the_sweep_asks_for_runs_in_progress_by_the_page(autojump_clock: MockClock, stage: Stage) -> None:
    """Their entries are pending for as long as they take, and nothing is to be done about them."""
    tasks, gate, most = group(), Gate(), 100
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await stage.worker(tasks, concurrent_tasks=most)
    await stage.until(1)
    asked = [Trigger(f"g/t@t-{number}", "low", "allow") for number in range(most)]
    await stage.store.operations.trigger(asked, who="test", queue_cap=most)
    await stage.until(60)
    assert gate.inside == most
    before = len(worker.cable.sent)
    await stage.until(180)
    names = Counter(args[0] for _, args in worker.cable.sent[before:])
    assert names["XRANGE"] == 4
    assert len(worker.cable.sent) - before < 250


async def test_a_broken_entry_that_cannot_be_released_is_told_once(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are."""
    tasks = group()
    started_s = noting(tasks, YEARLY, name="whole", run_on_first_start=True)
    noting(tasks, YEARLY, name="broken", run_on_first_start=True)
    await stage.worker(tasks, concurrent_tasks=0)
    await stage.until(1)
    await stage.store.runs.make_groups()
    assert len(await stage.store.runs.read("ghost", priorities=("low",), count=5, block_ms=None)) == 2
    await stage.redis.hdel(stage.store.keys.run("g/broken@first"), "slot")
    await stage.worker(tasks, can_lead=False)
    await stage.until(200)
    assert len(started_s) == 1
    told = [record for record in caplog.records if "cannot be released" in record.getMessage()]
    assert [record.levelname for record in told] == ["ERROR"]


async def test_an_entry_that_was_deleted_is_pending_no_longer(autojump_clock: MockClock, stage: Stage) -> None:
    """Somebody trimmed the stream: nothing says which run it named."""
    tasks = group()
    noting(tasks, YEARLY)
    await stage.worker(tasks, concurrent_tasks=0)
    await stage.until(1)
    await stage.store.runs.make_groups()
    entry_id = await stage.redis.xadd(stage.store.keys.stream_low, {"run": "g/t@1"})
    await stage.store.runs.read("ghost", priorities=("low",), count=5, block_ms=None)
    await stage.redis.xdel(stage.store.keys.stream_low, entry_id)
    await stage.until(61)
    assert (await stage.store.leases.pending(min_idle_ms=0)).deleted == ()


async def test_dead_runs_that_are_about_to_be_lost_are_an_alarm(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Once while it lasts, and again when there are too many anew."""
    tasks = group()
    noting(tasks, YEARLY)
    await stage.worker(tasks)

    def told() -> list[str]:
        return [record.levelname for record in caplog.records if "runs are dead" in record.getMessage()]

    async def die(count: int) -> None:
        many = "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'run', 'g/t@' .. n) end"
        await stage.redis.eval(many, 1, stage.store.keys.dead, count)

    await die(DEAD_ALARM - 1)
    await stage.until(100)
    assert told() == []
    await die(1)
    await stage.until(200)
    assert told() == ["ERROR"]
    await stage.redis.xtrim(stage.store.keys.dead, maxlen=1, approximate=False)
    await stage.until(300)
    await die(DEAD_ALARM)
    await stage.until(400)
    assert told() == ["ERROR", "ERROR"]


async def test_a_pause_that_has_ended_by_itself_is_removed(autojump_clock: MockClock, stage: Stage) -> None:
    """And no other; nothing changes by it, so that nobody reads the catalog again."""
    tasks = group()
    noting(tasks, YEARLY)
    await stage.worker(tasks)
    await stage.until(5)
    for name, until_ms in {"ended": at_ms(20), "later": at_ms(10_000), "open": None}.items():
        await stage.store.catalog.pause([f"g/{name}"], name, until_ms=until_ms, details="{}", who="me")
    version = await stage.store.catalog.version()
    await stage.until(19)
    assert await stage.redis.hlen(stage.store.keys.paused) == 3
    await stage.until(61)
    assert set((await stage.store.catalog.contents()).paused) == {"g/later", "g/open"}
    assert await stage.store.catalog.version() == version
