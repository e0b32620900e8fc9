"""Due slots into streams: at their instant, in calls of bounded size, and only while this worker leads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.coordinator import Coordinator
from actors.messages import (
    CatalogAsked,
    CatalogRead,
    LeadershipEnded,
    LeadershipTaken,
    LeaseRenewed,
    Term,
    TermAsked,
    Woken,
    WriteRefused,
)
from engine.domain.run import RunContext
from engine.domain.task import Definition
from engine.runtime import Child, Mailbox
from engine.store.election import Elected, Renewed
from engine.store.runs import Claimed, Completion, Failure, Hold
from tests.unit.actors.stage import Cable, at_ms, config, group, mail, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.runtime import Supervision, SupervisorEvent
    from engine.store.runs import Entry
    from tests.unit.actors.stage import Stage

LEASE_S = 9.0


class Desk:
    """A Coordinator, with the test for its Leader and its Catalog."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.cable = Cable(stage.server)
        self.mailbox = Mailbox[Any]("coordinator")
        self.leader, self.catalog = Mailbox[Any]("leader"), Mailbox[Any]("catalog")
        self.events: list[SupervisorEvent] = []
        self.elections = 0
        self.term: Term
        self.tree: Supervision

    async def start(self) -> Desk:
        make = partial(
            Coordinator,
            config=config(leader_heartbeat_interval=LEASE_S / 3),
            store=self.stage.new_store(self.cable),
            leader=self.leader,
            catalog=self.catalog,
        )
        self.tree = await self.stage.actor(Child("coordinator", make, self.mailbox), events=self.events)
        return self

    async def lead(self) -> None:
        """Win an election, and say so."""
        self.elections += 1
        won = await self.stage.store.election.elect("us", f"n{self.elections}", lease_ms=round(LEASE_S * 1000))
        assert isinstance(won, Elected)
        self.term = Term(won.value, LEASE_S)
        self.mailbox.tell(LeadershipTaken(self.term, trio.current_time()))
        await self.stage.settle()

    async def renew(self) -> None:
        """Renew as the Leader does, and say so."""
        answer = await self.stage.store.election.renew(self.term.value, lease_ms=round(LEASE_S * 1000))
        assert isinstance(answer, Renewed)
        self.mailbox.tell(LeaseRenewed(self.term, trio.current_time(), answer))
        await self.stage.settle()

    async def until(self, seconds: float) -> None:
        """Let time pass, with the renewals of a Leader."""
        while trio.current_time() + LEASE_S / 3 < seconds:
            await trio.sleep(LEASE_S / 3)
            await self.renew()
        await self.stage.until(seconds)

    async def learn(self, *tasks: Definition) -> None:
        """The catalog holds these now."""
        version = await self.stage.store.catalog.version()
        self.mailbox.tell(CatalogRead(version, {task.id: task for task in tasks}, {}))
        await self.stage.settle()

    async def published(self) -> list[str]:
        """Runs that nobody has read yet, high priority first."""
        keys, redis = self.stage.store.keys, self.stage.redis
        found: list[str] = []
        for stream in (keys.stream_high, keys.stream_low):
            found += [fields["run"] for _, fields in await redis.xrange(stream)]
        return found

    async def due(self) -> dict[str, int]:
        return await self.stage.store.timetable.tasks()

    def scripts(self, since_s: float = 0.0) -> list[tuple[Any, ...]]:
        """The scripts that were called with a leader's value, the whole text of a script not counted."""
        return [args for sent_s, args in self.cable.sent if sent_s >= since_s and args[0] == "EVALSHA"]


def definition(expression: str = "* * * * *", name: str = "t", **settings: Any) -> Definition:
    return Definition(group="g", name=name, function="f", expression=expression, **settings)


def run_ids(*seconds: float, task_id: str = "g/t") -> list[str]:
    return [f"{task_id}@{at_ms(second)}" for second in seconds]


@pytest.fixture
async def desk(stage: Stage) -> Desk:
    """A Coordinator that leads and knows no task."""
    desk = await Desk(stage).start()
    await desk.lead()
    return desk


async def test_a_slot_is_published_exactly_when_it_is_due(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """Not a millisecond before."""
    await desk.learn(definition())
    await desk.until(59.999)
    assert await desk.published() == []
    await desk.until(60)
    assert await desk.published() == run_ids(60)
    assert trio.current_time() == 60
    assert await desk.due() == {"g/t": at_ms(120)}


async def test_nothing_is_published_without_a_term(autojump_clock: MockClock, stage: Stage) -> None:
    """A follower knows the tasks and sleeps."""
    desk = await Desk(stage).start()
    await desk.learn(definition())
    await stage.until(200)
    assert desk.cable.sent == []


async def test_a_coordinator_asks_for_what_it_missed(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """At each start: Leader and Catalog speak only when something changes."""
    assert mail(desk.leader) == [TermAsked()]
    assert mail(desk.catalog) == [CatalogAsked()]
    desk.mailbox.tell(object())
    await stage.until(1)
    assert mail(desk.leader) == [TermAsked()]
    assert mail(desk.catalog) == [CatalogAsked()]
    desk.events.clear()


async def test_a_term_told_twice_is_the_same_term(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """Somebody else asked: nothing is read again."""
    await desk.learn(definition())
    before = len(desk.cable.sent)
    desk.mailbox.tell(LeadershipTaken(desk.term, 0))
    await stage.settle()
    assert len(desk.cable.sent) == before


async def test_a_thousand_slots_go_in_calls_of_five_hundred(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """10,000 in one call would hold Redis for too long."""
    await desk.learn(*(definition(name=f"t{n}") for n in range(1_000)))
    await desk.until(59)
    await desk.renew()
    await desk.until(60)
    assert len(await desk.published()) == 1_000
    publications = [args for args in desk.scripts(60.0) if any(str(arg).startswith("g/t") for arg in args)]
    sizes = [
        sum(1 for arg in args if str(arg).endswith(f"@{at_ms(60)}") and "{" not in str(arg)) for args in publications
    ]
    assert sizes == [500, 500]


@pytest.mark.parametrize("tasks", [10, 1_000])
async def test_an_idle_hour_costs_the_same_for_any_number_of_tasks(
    autojump_clock: MockClock, stage: Stage, desk: Desk, tasks: int
) -> None:
    """One look at the window every ten seconds."""
    await desk.learn(*(definition("0 0 1 1 *", name=f"t{n}") for n in range(tasks)))
    before = len(desk.cable.sent)
    await desk.until(3_600)
    assert 355 <= len(desk.cable.sent) - before <= 361


async def test_after_a_gap_the_latest_slot_runs_and_the_others_are_in_the_ledger(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """One entry for all the missed neighbours, with their range."""
    await desk.learn(definition())
    desk.mailbox.tell(LeadershipEnded())
    await stage.until(600.5)
    await desk.lead()
    assert await desk.published() == run_ids(600)
    [missed] = await stage.ledger("g/t")
    assert (missed.verdict, missed.reason, missed.count) == ("missed", "catch-up", 9)
    assert (missed.from_ms, missed.to_ms) == (at_ms(60), at_ms(540))
    assert await desk.due() == {"g/t": at_ms(660)}


async def test_a_new_task_is_scheduled_as_soon_as_it_is_known(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """From its next instant on; the others keep theirs."""
    await desk.learn(definition("0 * * * *"))
    await desk.until(30)
    await desk.learn(definition("0 * * * *"), definition(name="new"))
    assert await desk.due() == {"g/t": at_ms(3_600), "g/new": at_ms(60)}
    await desk.until(60)
    assert await desk.published() == run_ids(60, task_id="g/new")


@pytest.mark.parametrize(
    ("expressions", "next_s"), [(("0 * * * *", "* * * * *"), 120), (("* * * * *", "30 * * * *"), 1_800)]
)
async def test_a_changed_expression_counts_from_now_on(
    autojump_clock: MockClock, stage: Stage, desk: Desk, expressions: tuple[str, str], next_s: float
) -> None:
    """Earlier or later than the former one."""
    before, after = expressions
    await desk.learn(definition(before))
    await desk.until(70)
    await desk.learn(definition(after))
    assert await desk.due() == {"g/t": at_ms(next_s)}


async def test_a_slot_that_was_published_is_never_opened_again(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """By a new leader whose clock is behind that of Redis."""
    await desk.learn(definition())
    await desk.until(60)
    desk.mailbox.tell(LeadershipEnded())
    clock = desk.tree._environment.clock
    clock.saw_redis_ms(at_ms(59.9), sent=60, received=60)
    await desk.lead()
    assert await desk.due() == {"g/t": at_ms(120)}
    assert await desk.published() == run_ids(60)


async def test_a_removed_task_is_published_no_more(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """What is due of tasks that are not known is left alone, and costs no busy loop."""
    await desk.learn(definition())
    await desk.until(30)
    await desk.learn()
    await desk.until(300)
    assert await desk.published() == []
    assert len(desk.cable.sent) < 150


async def test_a_task_that_comes_back_is_caught_up_with(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """It kept its place in ``due``."""
    await desk.learn(definition())
    await desk.until(30)
    await desk.learn()
    await desk.until(200)
    await desk.learn(definition())
    await desk.until(204)
    assert await desk.published() == run_ids(180)
    assert await stage.verdicts("g/t") == [("missed", "catch-up")]


async def test_a_coordinator_that_stalled_renews_before_it_writes(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """When its last renewal is older than two thirds of the lease; and the Leader hears of it."""
    await desk.learn(definition("*/7 * * * * *"))
    mail(desk.leader)
    await stage.until(7.5)
    [renewed] = mail(desk.leader)
    assert isinstance(renewed, LeaseRenewed)
    assert renewed.renewed_at_s == 7
    assert await desk.published() == run_ids(7)


async def test_a_deposed_coordinator_writes_nothing(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """It finds out on waking, says so, and sleeps."""
    await desk.learn(definition())
    mail(desk.leader)
    await stage.until(LEASE_S + 1)
    await stage.store.election.elect("other", "n", lease_ms=600_000)
    await stage.until(300)
    assert await desk.published() == []
    assert mail(desk.leader) == [WriteRefused(desk.term)]
    assert await desk.due() == {"g/t": at_ms(60)}


async def test_a_write_that_is_refused_ends_the_term_here(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """Another worker took over just after the last renewal: Redis compares the epoch."""
    await desk.learn(definition())
    await desk.until(59)
    await desk.renew()
    mail(desk.leader)
    await stage.store.election.resign(desk.term.value)
    await stage.store.election.elect("other", "n", lease_ms=600_000)
    await stage.until(61)
    assert await desk.published() == []
    assert mail(desk.leader) == [WriteRefused(desk.term)]


async def test_a_renewal_of_another_term_is_not_ours(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """It does not excuse from renewing."""
    await desk.learn(definition("*/7 * * * * *"))
    mail(desk.leader)
    await stage.until(6.5)
    other = LeaseRenewed(Term("x:1:y", LEASE_S), 6.5, Renewed(redis_ms=at_ms(6.5), minimum_ms=None, version=0))
    desk.mailbox.tell(other)
    await stage.until(7)
    assert len(mail(desk.leader)) == 1


async def test_an_outage_delays_and_loses_nothing(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """The slot is published when Redis is back, by a coordinator that never crashed."""
    await desk.learn(definition())
    await desk.until(57)
    stage.server.stop()
    await stage.until(62)
    stage.server.start()
    await stage.until(62.3)
    assert await desk.published() == run_ids(60)


async def read_one(stage: Stage) -> Entry:
    await stage.store.runs.make_groups()
    [entry] = await stage.store.runs.read("w", priorities=("low",), count=1, block_ms=None)
    return entry


async def fail_one(stage: Stage, *, delay_ms: int) -> str:
    """Read, claim and fail the first run there is; it is due again after a delay."""
    entry = await read_one(stage)
    [claimed] = await stage.store.runs.claim("w", "token", [entry], lease_ms=9_000)
    assert isinstance(claimed, Claimed)
    await stage.store.runs.fail("w", [Failure(Hold(entry.run_id, claimed.fence, "token"), delay_ms, "{}")])
    return entry.run_id


async def test_a_retry_is_queued_at_its_instant_when_told(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """Redis says in the wake stream what became due; the Catalog passes it on."""
    ids = await stage.store.catalog.start(wake=True)
    await desk.learn(definition())
    await desk.until(60.5)
    run_id = await fail_one(stage, delay_ms=1_000)
    events, _ = await stage.store.catalog.news(ids, block_ms=10)
    desk.mailbox.tell(Woken(tuple(event.due for event in events if event.due)))
    await stage.until(61.499)
    assert await desk.published() == []
    await stage.until(61.5)
    assert await desk.published() == [run_id]


async def test_a_wake_up_that_was_lost_costs_one_renewal(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """Its answer has the first instant of all."""
    await desk.learn(definition())
    await desk.until(60.5)
    run_id = await fail_one(stage, delay_ms=1_000)
    await stage.until(61.6)
    assert await desk.published() == []
    await desk.renew()
    assert await desk.published() == [run_id]


async def test_a_wake_up_without_particulars_has_redis_asked(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """Some may have been missed."""
    await desk.learn(definition())
    await desk.until(60.5)
    run_id = await fail_one(stage, delay_ms=1_000)
    desk.mailbox.tell(Woken(()))
    await stage.until(61.5)
    assert await desk.published() == [run_id]


async def test_a_retry_told_twice_is_queued_once(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """Read in the window and heard of as well."""
    ids = await stage.store.catalog.start(wake=True)
    await desk.learn(definition())
    await desk.until(60.5)
    run_id = await fail_one(stage, delay_ms=1_000)
    events, _ = await stage.store.catalog.news(ids, block_ms=10)
    desk.mailbox.tell(Woken(()))
    desk.mailbox.tell(Woken(tuple(event.due for event in events if event.due)))
    await stage.until(62)
    assert await desk.published() == [run_id]


async def test_redis_whose_clock_steps_back_is_believed(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """A slot that Redis calls early is published when Redis says that it is due, without a busy loop meanwhile."""
    await desk.learn(definition("*/10 * * * * *"))
    await desk.until(9)
    stage.redis_ahead_s = -2.0
    await stage.until(11.9)
    assert await desk.published() == []
    await stage.until(12.1)
    assert await desk.published() == run_ids(10)
    assert len(desk.cable.sent) < 30


async def test_a_missed_range_that_redis_calls_early_waits_for_its_clock(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """The coordinator would otherwise try again at once, and again."""
    await desk.learn(definition("*/10 * * * * *"))
    desk.mailbox.tell(LeadershipEnded())
    stage.redis_ahead_s = -15.0
    await stage.until(31)
    await desk.lead()
    await stage.settle()
    assert await desk.published() == run_ids(10)
    assert desk.tree._environment.clock.redis_ms() == at_ms(16)


async def test_a_paused_task_keeps_its_rhythm(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """Its slots are skipped, each with a verdict."""
    await desk.learn(definition())
    await stage.store.catalog.pause(["g/t"], "op", until_ms=at_ms(150), details="{}", who="me")
    await desk.until(181)
    assert await desk.published() == run_ids(180)
    [skipped] = await stage.ledger("g/t")
    assert (skipped.verdict, skipped.reason, skipped.count) == ("skipped", "paused", 2)


async def test_a_task_that_does_not_overlap_skips_while_its_run_is_queued(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """And runs again after it has ended."""
    await desk.learn(definition(allow_parallel=False))
    await desk.until(121)
    assert await desk.published() == run_ids(60)
    assert await stage.verdicts("g/t") == [("skipped", "overlap")]
    entry = await read_one(stage)
    [claimed] = await stage.store.runs.claim("w", "token", [entry], lease_ms=9_000)
    assert isinstance(claimed, Claimed)
    await stage.store.runs.complete("w", [Completion(Hold(entry.run_id, claimed.fence, "token"), "ran", "", "{}")])
    await desk.until(181)
    assert await desk.published() == run_ids(180)


async def test_a_retry_among_busy_tasks_is_not_late(autojump_clock: MockClock, stage: Stage) -> None:
    """Whatever else is due before it: the whole worker, no help from the test."""
    tasks = group()
    noting(tasks, "* * * * * *", name="busy")
    tried_s: list[float] = []

    @tasks.add_task("10 * * * * *", name="once", retry_backoff=1.3)
    async def once() -> None:
        await trio.lowlevel.checkpoint()
        tried_s.append(trio.current_time())
        if len(tried_s) == 1:
            raise ValueError("first")

    await stage.worker(tasks)
    await stage.until(20)
    assert tried_s == pytest.approx([10, 11.3], abs=0.01)


# -- beginning again -------------------------------------------------------------------------------------------------


async def test_a_coordinator_that_has_not_read_the_catalog_takes_no_turn(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """It would take what is due from its agenda without knowing what to do about it."""
    desk = await Desk(stage).start()
    await desk.lead()
    await desk.until(5)
    assert desk.cable.sent == []
    await desk.learn(definition())
    assert await desk.due() == {"g/t": at_ms(60)}


@pytest.mark.parametrize("crash_s", [10.9, 10.95, 10.99])
async def test_a_restart_just_before_a_slot_loses_none(autojump_clock: MockClock, stage: Stage, crash_s: float) -> None:
    """Whatever the Leader and the Catalog answer first; and no renewal is needed for it."""
    tasks = group()
    started_s = noting(tasks, "* * * * * *")
    worker = await stage.worker(tasks, leader_heartbeat_interval=20)
    await stage.until(crash_s)
    worker.crash("coordinator")
    await stage.until(20.5)
    worker.crashes.clear()
    assert worker.restarts("coordinator") == 1
    assert [int(start_s) for start_s in started_s] == list(range(1, 21))
    assert {verdict for verdict, _ in await stage.verdicts("g/t")} == {"ran"}


async def test_what_was_due_of_an_unknown_task_is_published_when_the_catalog_has_it(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """A leader with an older catalog passes it by, and looks again as soon as it has read the newer one."""
    await desk.learn(definition("0 0 1 1 *", name="other"))
    await stage.redis.zadd(stage.store.keys.due, {"t/g/t": at_ms(20)})
    await desk.until(21)
    assert await desk.published() == []
    await desk.learn(definition("0 0 1 1 *", name="other"), definition("*/20 * * * * *"))
    assert await desk.published() == run_ids(20)


# -- ``due`` in line with the catalog ----------------------------------------------------------------------------------


async def test_a_task_that_was_removed_and_made_again_between_two_looks_is_scheduled(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """The same tasks as before, and yet its instant is gone."""
    tasks = {"g/t": definition()}
    desk.mailbox.tell(CatalogRead(0, tasks, {}))
    await stage.settle()
    await stage.redis.zrem(stage.store.keys.due, "t/g/t")
    await stage.redis.set(stage.store.keys.version, 2)
    desk.mailbox.tell(CatalogRead(2, tasks, {}))
    await stage.settle()
    assert await desk.due() == {"g/t": at_ms(60)}


async def test_a_renewal_costs_nothing_where_there_are_no_tasks(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """Nothing is due then, and nothing was lost."""
    await desk.learn()
    before = len(desk.cable.sent)
    await desk.until(9)
    assert len(desk.cable.sent) == before


async def test_a_pause_costs_no_comparison(autojump_clock: MockClock, stage: Stage, desk: Desk) -> None:
    """However many tasks there are: the catalog has the same ones, one change later."""
    tasks = {"g/t": definition()}
    desk.mailbox.tell(CatalogRead(0, tasks, {}))
    await stage.settle()
    before = len(desk.cable.sent)
    for version in range(1, 50):
        desk.mailbox.tell(CatalogRead(version, tasks, {}))
    await stage.settle()
    assert len(desk.cable.sent) == before


async def test_a_timetable_that_redis_lost_is_made_again(autojump_clock: MockClock, stage: Stage) -> None:
    """The next renewal says that nothing is due, of tasks that there are."""
    tasks = group()
    started_s = noting(tasks, "* * * * * *")
    worker = await stage.worker(tasks)
    await stage.until(10.5)
    await stage.redis.delete(stage.store.keys.due)
    await stage.until(30.5)
    assert started_s[-1] == pytest.approx(30, abs=0.01)
    assert len(started_s) >= 30 - worker.config.leader_heartbeat_interval


async def test_a_catalog_that_is_not_the_newest_enrolls_nothing(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """The newer one, which will be read, may not have the task; nor does the coordinator ask on and on meanwhile."""
    await stage.redis.set(stage.store.keys.version, 2)
    desk.mailbox.tell(CatalogRead(1, {"g/t": definition()}, {}))
    await desk.until(100)
    assert await desk.due() == {}
    assert len(desk.cable.sent) < 200
    desk.mailbox.tell(CatalogRead(2, {"g/new": definition(name="new")}, {}))
    await stage.settle()
    assert await desk.due() == {"g/new": at_ms(120)}


# -- each slot once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leader", ["resigns", "restarts"])
async def test_a_clock_that_steps_back_opens_no_slot_again_for_the_next_leader(
    autojump_clock: MockClock, stage: Stage, leader: str
) -> None:
    """Every slot once, with one verdict: what was passed is known in Redis, whatever its clock says now."""
    tasks = group()
    slots: list[int] = []

    @tasks.add_task("* * * * * *", name="t")
    async def note() -> None:
        await trio.lowlevel.checkpoint()
        slot_ms = RunContext.current().slot_ms
        assert slot_ms is not None
        slots.append(slot_ms)

    workers = [await stage.worker(tasks), await stage.worker(tasks)]
    await stage.until(20.5)
    stage.redis_ahead_s = -3.0
    await stage.until(21)
    [leading] = [worker for worker in workers if worker.leads]
    if leader == "resigns":
        stage.nursery.start_soon(leading.stop)
    else:
        leading.crash("leader")
    await stage.until(40.5)
    leading.crashes.clear()
    assert slots == [at_ms(second) for second in range(1, 38)]
    assert [entry.from_ms for entry in await stage.ledger("g/t")] == slots


async def test_a_task_that_became_more_frequent_is_not_opened_again_after_a_step_back(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """It moves back, to the first instant after what was passed."""
    await desk.learn(definition("*/20 * * * * *"))
    await desk.until(20)
    assert await desk.published() == run_ids(20)
    stage.redis_ahead_s = -5.0
    await desk.lead()
    await desk.learn(definition("* * * * * *"))
    assert await desk.due() == {"g/t": at_ms(21)}


# -- keys that others have broken --------------------------------------------------------------------------------------


async def test_a_broken_task_is_left_alone_until_the_next_look(
    autojump_clock: MockClock, stage: Stage, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """With several open slots too. The log says so once, and of no slot that it is missed."""
    await desk.learn(definition("* * * * * *"), definition("* * * * * *", name="u"))
    await desk.until(5.5)
    key = stage.store.keys.ledger("g/t")
    await stage.redis.set(key, "not ours")
    stage.server.stop()
    await stage.until(8.5)
    stage.server.start()
    await desk.renew()
    before = len(desk.cable.sent)
    caplog.clear()
    await desk.until(15.5)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "g/t cannot be scheduled" in errors[0]
    assert not [record for record in caplog.records if "g/t missed" in record.message]
    assert (await desk.published())[-1:] == run_ids(15, task_id="g/u")
    assert len(desk.cable.sent) - before < 20
    await stage.redis.delete(key)
    await desk.until(20)
    assert run_ids(20)[0] in await desk.published()


async def test_the_age_of_the_renewal_is_looked_at_before_each_write(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """A slow answer to the first write of a turn may leave no time for the second."""
    await desk.learn(definition("* * * * * *"))
    await desk.until(2.5)
    await desk.renew()
    stage.server.stop()
    await stage.until(5.5)
    stage.server.start()
    desk.cable.slow_s = 1.2
    mail(desk.leader)
    await stage.until(11.7)
    renewed, *_ = mail(desk.leader)
    assert isinstance(renewed, LeaseRenewed)
    moved_s, renewed_s, published_s, *_ = [
        sent_s for sent_s, args in desk.cable.sent if sent_s > 5.5 and args[0] == "EVALSHA"
    ]
    assert moved_s < renewed_s == renewed.renewed_at_s < published_s
    assert await desk.published() == run_ids(1, 2, 6)


async def test_the_age_of_the_renewal_is_looked_at_before_slots_are_passed_over(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """What is due was read slowly: the first write of the turn may be too late already."""
    await desk.learn(definition("* * * * * *"))
    await desk.until(2.5)
    await desk.renew()
    stage.server.stop()
    await stage.until(5.9)
    stage.server.start()
    desk.cable.slow_s = 2.6
    mail(desk.leader)
    await stage.until(20)
    renewed, *_ = mail(desk.leader)
    assert isinstance(renewed, LeaseRenewed)
    renewed_s, moved_s, *_ = [sent_s for sent_s, args in desk.cable.sent if sent_s > 5.9 and args[0] == "EVALSHA"]
    assert renewed_s == renewed.renewed_at_s < moved_s


async def test_the_age_of_the_renewal_is_looked_at_before_runs_are_queued_again(
    autojump_clock: MockClock, stage: Stage, desk: Desk
) -> None:
    """The answer to the slots of this turn was slow."""
    await desk.learn(definition())
    await stage.redis.zadd(stage.store.keys.due, {"r/g/gone@1": at_ms(60)})
    await desk.until(54.5)
    await desk.renew()
    await stage.until(59.8)
    desk.mailbox.tell(Woken(()))
    await stage.settle()
    desk.cable.slow_s = 0.7
    mail(desk.leader)
    await stage.until(65)
    [renewed] = mail(desk.leader)
    assert isinstance(renewed, LeaseRenewed)
    published_s, renewed_s, requeued_s = [
        sent_s for sent_s, args in desk.cable.sent if sent_s >= 60 and args[0] == "EVALSHA"
    ]
    assert published_s < renewed_s == renewed.renewed_at_s < requeued_s
    assert await stage.redis.zscore(stage.store.keys.due, "r/g/gone@1") is None
