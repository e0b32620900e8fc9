"""How runs ended: told to Redis in batches, repeated until it answers, and never turned into something else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.in_flight import InFlight
from actors.intake import Intake
from actors.memory import RecentEnds, adoptions
from actors.messages import RunsEnded
from actors.pace import Pace
from actors.settlement import Settlement
from engine.runtime import Mailbox
from engine.store.retelling import Tables
from engine.store.runs import Claimed, Completion, Failure, Hold
from engine.store.script import MAX_ITEMS
from tests.unit.actors.stage import Cable, Publisher, config, mail
from tests.unit.actors.test_ending import running
from tests.unit.actors.wires import DelaysReplies

if TYPE_CHECKING:
    from trio.testing import MockClock

    from actors.running import Running
    from engine.store.retelling import Adoption
    from tests.unit.actors.stage import Stage


class Ledgerman:
    """A Settlement with claimed runs to settle."""

    def __init__(self, stage: Stage, cable: Cable | None = None) -> None:
        self.stage, self.cable = stage, cable or Cable(stage.server)
        self.stats = Mailbox[Any]("stats")
        self.in_flight, self.pace = InFlight(10), Pace()
        self.recent = RecentEnds(config())
        self.store = stage.new_store(self.cable)
        self.settlement = Settlement(
            store=self.store,
            worker="w",
            stats=self.stats,
            recent=self.recent,
            in_flight=self.in_flight,
            intake=Intake(store=self.store, worker="w", block_ms=1_000, capacity=10),
            pace=self.pace,
        )
        self.bodies = trio.CancelScope()

    async def start(self) -> Ledgerman:
        self.stage.nursery.start_soon(self._run)
        await self.stage.settle()
        return self

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.settlement.run)
            try:
                with self.bodies:
                    await trio.sleep_forever()
            finally:
                self.settlement.close()

    def last_body_ends(self) -> None:
        """Nothing more will be added."""
        self.bodies.cancel()

    async def claim(self, publisher: Publisher, count: int = 1) -> list[Running]:
        runs = self.stage.store.runs
        await runs.make_groups()
        await publisher.queue("g/t", count)
        entries = await runs.read("w", priorities=("low",), count=count, block_ms=None)
        claimed_runs = []
        for claimed in await runs.claim("w", "token", entries, lease_ms=9_000):
            assert isinstance(claimed, Claimed)
            run = running()
            run.claimed, run.hold = claimed, Hold(claimed.run_id, claimed.fence, "token")
            self.in_flight.add(run)
            claimed_runs.append(run)
        return claimed_runs

    def outcomes(self) -> list[str]:
        """What Stats was told, in order."""
        return [end.outcome for news in mail(self.stats) if isinstance(news, RunsEnded) for end in news.ends]


def adoption_of(run: Running) -> Adoption:
    """As a worker remembers it that has it in progress."""
    [found] = adoptions([run], [], exists={run.claimed.task_id}, config=config())
    return found


def ran(run: Running) -> Completion:
    return Completion(run.hold, "ran", "", "{}")


@pytest.fixture
async def publisher(stage: Stage) -> Publisher:
    return await Publisher.elected(stage)


@pytest.fixture
async def ledgerman(stage: Stage) -> Ledgerman:
    return await Ledgerman(stage).start()


async def test_ends_of_one_turn_are_told_together(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """One call for each kind of end."""
    a, b, c, d, e = await ledgerman.claim(publisher, 5)
    ledgerman.settlement.add(a, ran(a), 1)
    ledgerman.settlement.add(b, Failure(b.hold, 1_000, "{}"), 1)
    ledgerman.settlement.add(c, c.hold, 1)
    ledgerman.settlement.add(d, None, 1)
    ledgerman.settlement.add(e, Completion(e.hold, "failed", "raised", "{}"), 1)
    await stage.settle()
    assert ledgerman.outcomes() == ["ran", "retrying", "handed back", "lost", "failed"]
    assert len(ledgerman.in_flight) == 0
    assert len([args for _, args in ledgerman.cable.sent if args[0] == "EVALSHA"]) == 3


async def test_what_was_not_answered_is_told_again(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """The run keeps its slot until then."""
    [run] = await ledgerman.claim(publisher)
    ledgerman.cable.cut()
    ledgerman.settlement.add(run, ran(run), 1)
    await stage.until(3_600)
    assert list(ledgerman.in_flight) == [run]
    ledgerman.cable.join()
    await stage.until(3_601)
    assert ledgerman.outcomes() == ["ran"]
    assert await stage.verdicts("g/t") == [("ran", "")]


@pytest.mark.parametrize(
    ("duration_s", "retries", "replicas", "room"),
    [(0.0, False, False, 10), (1.0, False, False, 8), (0.0, True, False, 8), (0.0, False, True, 8)],
    ids=["swift", "slow", "a retry among them", "replicas are waited for"],
)
async def test_swift_runs_leave_their_slots_when_redis_is_told_and_others_when_it_has_heard(
    autojump_clock: MockClock,
    stage: Stage,
    publisher: Publisher,
    ledgerman: Ledgerman,
    duration_s: float,
    *,
    retries: bool,
    replicas: bool,
    room: int,
) -> None:
    """Only where what is claimed from then on is claimed after their end: in the order of one connection."""
    if replicas:
        slow, cable = Cable(stage.server), Cable(stage.server)
        slow.slow_s, cable.replicated = 1.0, slow.commands
        ledgerman = await Ledgerman(stage, cable).start()
    ledgerman.pace.note([0.0], now_s=trio.current_time())
    ledgerman.cable.slow_s = 1.0
    a, b = await ledgerman.claim(publisher, 2)
    ledgerman.settlement.add(a, ran(a), duration_s)
    ledgerman.settlement.add(b, Failure(b.hold, 1_000, "{}") if retries else ran(b), duration_s)
    await stage.settle()
    assert ledgerman.in_flight.room == room
    await stage.until(10)
    assert ledgerman.in_flight.room == 10


async def test_more_ends_than_one_call_takes_leave_their_slots_when_redis_has_heard(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """What is claimed meanwhile would be claimed before the second call."""
    runs = await ledgerman.claim(publisher, MAX_ITEMS + 1)
    ledgerman.pace.note([0.0], now_s=trio.current_time())
    ledgerman.cable.slow_s = 1.0
    for run in runs:
        ledgerman.settlement.add(run, ran(run), 0.0)
    await stage.settle()
    assert ledgerman.in_flight.room == 10 - len(runs)
    await stage.until(10)
    assert ledgerman.in_flight.room == 10


async def test_a_run_that_is_gone_on_a_repeat_was_settled_before(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """The reply was lost, not the write."""
    [run] = await ledgerman.claim(publisher)
    ledgerman.cable.cut()
    ledgerman.settlement.add(run, ran(run), 1)
    await stage.until(1)
    await stage.store.runs.complete("w", [ran(run)])
    ledgerman.cable.join()
    await stage.until(2)
    assert ledgerman.outcomes() == ["ran"]
    assert await stage.verdicts("g/t") == [("ran", "")]
    told_later = ledgerman.recent.remembered(now_s=trio.current_time(), sure_until_s=trio.current_time() + 1)
    assert [end.hold for end in told_later] == [run.hold]


async def test_an_end_that_was_accepted_while_redis_forgot_is_told_again(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """The answer was on its way for so long that the run was told of anew, as one in progress."""
    [run] = await ledgerman.claim(publisher)
    DelaysReplies(ledgerman.cable, "complete", 5)
    ledgerman.settlement.add(run, ran(run), 1)
    await stage.until(1)
    await stage.redis.delete(ledgerman.store.keys.ledger("g/t"))
    ledgerman.store.history.saw("another")
    told = adoption_of(run)
    assert await stage.store.retelling.adopt("w", [told], lease_ms=9_000, tables=Tables(0)) == ["told"]
    ledgerman.store.history.told = "another"
    await stage.until(20)
    assert ledgerman.outcomes() == ["ran"]
    assert await stage.verdicts("g/t") == [("ran", "")]
    assert await stage.store.runs.live("g/t") == {}


async def test_an_end_that_is_told_again_for_nothing_was_not_refused(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """Redis goes on with another history, in which the verdict is."""
    [run] = await ledgerman.claim(publisher)
    DelaysReplies(ledgerman.cable, "complete", 5)
    ledgerman.settlement.add(run, ran(run), 1)
    await stage.until(1)
    await stage.store.runs.complete("w", [ran(run)])
    ledgerman.store.history.saw("another")
    ledgerman.store.history.told = "another"
    await stage.until(20)
    assert ledgerman.outcomes() == ["ran"]
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_run_that_is_gone_at_once_was_refused(
    autojump_clock: MockClock,
    stage: Stage,
    publisher: Publisher,
    ledgerman: Ledgerman,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ended elsewhere: logged and counted."""
    [run] = await ledgerman.claim(publisher)
    await stage.store.runs.complete("w", [ran(run)])
    with caplog.at_level(logging.WARNING):
        ledgerman.settlement.add(run, ran(run), 1)
        await stage.settle()
    assert ledgerman.outcomes() == ["refused"]
    assert f"Run {run.run_id} has ended elsewhere" in caplog.text


async def test_a_lost_run_cannot_be_settled(
    autojump_clock: MockClock,
    stage: Stage,
    publisher: Publisher,
    ledgerman: Ledgerman,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its fence is another by now."""
    completed, failed, returned = await ledgerman.claim(publisher, 3)
    for run in (completed, failed, returned):
        await publisher.lose(run.run_id)
    ledgerman.settlement.add(completed, ran(completed), 1)
    ledgerman.settlement.add(failed, Failure(failed.hold, 1_000, "{}"), 1)
    ledgerman.settlement.add(returned, returned.hold, 1)
    await stage.settle()
    assert ledgerman.outcomes() == ["refused"] * 3
    assert await stage.ledger("g/t") == []
    assert caplog.text.count("was lost to another worker") == 3


async def test_what_is_left_when_it_is_closed_is_still_told(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """The last body ended in the same turn."""
    [run] = await ledgerman.claim(publisher)
    ledgerman.settlement.add(run, ran(run), 1)
    ledgerman.last_body_ends()
    await stage.settle()
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_last_words_do_not_wait_for_redis_for_ever(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """The lease ends what could not be told."""
    [run] = await ledgerman.claim(publisher)
    ledgerman.cable.cut()
    ledgerman.settlement.add(run, ran(run), 1)
    ledgerman.last_body_ends()
    await stage.until(2.1)
    ledgerman.cable.join()
    await stage.until(60)
    assert await stage.ledger("g/t") == []


async def test_a_run_whose_key_is_broken_stops_no_other(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, ledgerman: Ledgerman
) -> None:
    """It is refused, and its slot is free."""
    broken, sound = await ledgerman.claim(publisher, 2)
    redis, key = stage.redis, stage.store.keys.run(broken.run_id)
    await redis.delete(key)
    await redis.set(key, "not a run")
    ledgerman.settlement.add(broken, ran(broken), 1)
    ledgerman.settlement.add(sound, ran(sound), 1)
    await stage.settle()
    assert ledgerman.outcomes() == ["refused", "ran"]
