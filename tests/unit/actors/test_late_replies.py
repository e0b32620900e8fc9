"""What a worker may still do when Redis answered late, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.messages import LeasesInDanger
from engine.store.transport import Lane
from tests.unit.actors.stage import Gate, Publisher, group
from tests.unit.actors.wires import DelaysReplies, LosesReplies

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage, Worker

YEARLY = "0 0 1 1 *"
LEASE_S = 9.0


@pytest.fixture
async def publisher(stage: Stage) -> Publisher:
    return await Publisher.elected(stage)


async def executor(stage: Stage, body: Gate, **settings: Any) -> Worker:
    """A worker that does not lead, and knows one task."""
    tasks = group()
    tasks.add_task(YEARLY, name="t")(body.walk)
    worker = await stage.worker(tasks, can_lead=False, **settings)
    await stage.settle()
    return worker


async def test_a_claim_that_is_asked_for_again_holds_a_whole_lease(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The reply was lost and Redis away for most of the lease: with the answer to the repeat the body begins."""
    gate = Gate()
    worker = await executor(stage, gate)

    def cut() -> None:
        worker.cable.cut()
        stage.nursery.start_soon(join)

    async def join() -> None:
        await trio.sleep(LEASE_S - 0.7)
        worker.cable.join()

    lossy = LosesReplies(worker.cable, "claim", cut)
    await publisher.queue("g/t")
    await gate.entered.wait()
    assert lossy.lost == 1
    [lease] = await stage.store.leases.expiring(2**52)
    assert lease.expiry_ms - stage.now_ms() > LEASE_S * 900
    gate.open.set()
    await stage.until(20)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_claim_whose_answer_is_older_than_its_lease_starts_no_body(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Somebody else may have the run by now: it is handed back, uncounted, and claimed anew."""
    gate = Gate()
    worker = await executor(stage, gate)
    slow = DelaysReplies(worker.cable, "claim", LEASE_S * 5 / 6)
    [run_id] = await publisher.queue("g/t")
    record = stage.store.keys.run(run_id)
    await stage.settle()
    first = int(await stage.redis.hget(record, "fence"))
    await gate.entered.wait()
    assert slow.lost == 1
    assert trio.current_time() >= LEASE_S * 5 / 6
    assert int(await stage.redis.hget(record, "fence")) > first + 1  # by the hand-back, and by the second claim
    assert await stage.redis.hmget(record, "attempt", "deliveries") == ["1", "0"]
    gate.open.set()
    await stage.until(30)
    assert (gate.most_inside, gate.passed) == (1, 1)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_run_that_was_just_handed_back_is_not_put_aside_by_the_same_worker(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It reads the new entry before it hears that Redis has the run back: nobody need look for it later."""
    gate = Gate()
    worker = await executor(stage, gate)
    await publisher.queue("g/t")
    await stage.until(1)
    late = DelaysReplies(worker.cable, "hand_back", 0.1)
    worker.mailbox("consumer").tell(LeasesInDanger())
    await stage.until(2)
    assert late.lost == 1
    assert gate.inside == 1
    gate.open.set()
    await stage.until(3)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_what_a_read_brings_while_the_worker_drains_goes_back(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The reply was on its way when the drain began: another worker starts the run, and this one waits for nothing."""
    gate = Gate()
    worker = await executor(stage, gate)
    lanes = worker.cable._inner._lanes
    lane = lanes[Lane.RUNS]

    class Late:
        def __getattr__(self, name: str) -> Any:
            return getattr(lane, name)

        async def request(self, args: tuple[Any, ...], block_s: float) -> Any:
            reply = await lane.request(args, block_s)
            if reply and args[0] == "XREADGROUP":
                await trio.sleep(1)
            return reply

    await stage.until(1)
    lanes[Lane.RUNS] = Late()  # type: ignore[assignment]
    await stage.until(10)  # the read that was in progress has ended
    [run_id] = await publisher.queue("g/t")
    await stage.until(10.5)
    await worker.stop()
    assert trio.current_time() < 12
    assert await stage.redis.hmget(stage.store.keys.run(run_id), "state", "fence") == ["queued", "0"]
    assert (await stage.store.leases.pending(min_idle_ms=0)).entries == ()
    assert gate.entered.is_set() is False


async def test_a_run_that_was_claimed_when_the_consumer_crashed_is_handed_back(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The answer to the claim found nobody: the successor gives the run back, and no lease has to end for it."""
    gate = Gate()
    worker = await executor(stage, gate)
    slow = DelaysReplies(worker.cable, "claim", 3)
    [run_id] = await publisher.queue("g/t")
    await stage.until(1)
    assert slow.lost == 1
    assert await stage.redis.hget(stage.store.keys.run(run_id), "state") == "running"
    worker.crash("consumer")
    await stage.until(2)
    assert (len(worker.crashes), gate.inside) == (1, 1)
    worker.crashes.clear()
    assert await stage.redis.hmget(stage.store.keys.run(run_id), "attempt", "deliveries") == ["1", "0"]
    gate.open.set()
    await stage.until(20)
    assert (gate.most_inside, gate.passed) == (1, 1)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_what_a_worker_holds_is_not_handed_back_after_a_reconnect(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Runs in progress are its own, and those whose end Redis has not heard of yet."""
    gate = Gate()
    worker = await executor(stage, gate)
    [run_id] = await publisher.queue("g/t")
    await stage.until(1)
    fence = await stage.redis.hget(stage.store.keys.run(run_id), "fence")
    worker.cable.cut()
    await stage.until(2)
    worker.cable.join()
    await stage.until(3)
    assert await stage.redis.hget(stage.store.keys.run(run_id), "fence") == fence
    worker.cable.cut()
    gate.open.set()
    await stage.until(4)
    worker.cable.join()
    await stage.until(5)
    assert (gate.most_inside, gate.passed) == (1, 1)
    assert await stage.verdicts("g/t") == [("ran", "")]
