"""Which runs a worker holds, and whether it may take more: decisions about plain values."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from actors.in_flight import InFlight
from actors.running import Running
from engine.domain.run import RunContext
from engine.domain.task import Definition, Task
from engine.store.runs import Claimed, Hold

TASK = Task(Definition(group="g", name="t", function="f", expression="0 0 1 1 *"), trio.lowlevel.checkpoint)


def running(number: int, *, last_delivery: bool = False) -> Running:
    """A run that was claimed just now."""
    run_id = f"g/t@{number}"
    context = RunContext(
        run_id=run_id, task_id="g/t", group="g", name="t", slot_ms=number, attempt=1, fence=7, worker_id="w"
    )
    claimed = Claimed(run_id, 7, "g/t", number, 1, 0, "")
    return Running(
        claimed=claimed, task=TASK, context=context, hold=Hold(run_id, 7, "token"), last_delivery=last_delivery
    )


def test_of_several_runs_that_must_be_alone_the_first_goes_first() -> None:
    """Each begins when all before it have ended, and those that must not be alone have too."""
    in_flight = InFlight(5)
    other, first, second = running(1), running(2, last_delivery=True), running(3, last_delivery=True)
    for run in (other, first, second):
        in_flight.add(run)
    assert not in_flight.is_alone(first)
    in_flight.remove([other])
    assert in_flight.is_alone(first)
    assert not in_flight.is_alone(second)
    in_flight.remove([first])
    assert in_flight.is_alone(second)


def test_there_is_no_room_beside_a_run_that_must_be_alone() -> None:
    """When it has ended, all of the capacity is there again."""
    in_flight, lone = InFlight(3), running(1, last_delivery=True)
    in_flight.add(lone)
    assert in_flight.room == 0
    in_flight.remove([lone])
    assert in_flight.room == 3


def test_a_run_that_must_be_alone_waits_for_those_that_are_being_claimed() -> None:
    """They may be granted any moment; and what is not claimed yet must not be."""
    in_flight, lone = InFlight(5), running(1, last_delivery=True)
    assert in_flight.reserve(3) == 3
    assert in_flight.room == 2
    in_flight.add(lone)
    assert not in_flight.is_alone(lone)
    assert in_flight.lonely
    in_flight.free(3)
    assert in_flight.is_alone(lone)


def test_a_run_that_must_be_alone_waits_for_the_end_of_a_read() -> None:
    """What it brings would be lost with the worker, if this run kills it."""
    in_flight, lone = InFlight(5), running(1, last_delivery=True)
    in_flight.add(lone)
    with in_flight.reading():
        assert not in_flight.is_alone(lone)
    assert in_flight.is_alone(lone)


def test_no_more_slots_are_reserved_than_there_are() -> None:
    """A wait for two streams may bring one entry too many."""
    in_flight = InFlight(2)
    assert in_flight.reserve(3) == 2
    assert in_flight.room == 0
    assert in_flight.reserve(1) == 0


def test_a_run_of_whose_end_redis_is_told_takes_no_slot_unless_it_did_not_hear() -> None:
    """It takes it again then, though another may have been claimed by now."""
    in_flight, runs = InFlight(2), [running(1), running(2)]
    for run in runs:
        in_flight.add(run)
    with in_flight.leaving(runs):
        assert in_flight.room == 2
        in_flight.add(running(3))
        assert in_flight.room == 1
    assert in_flight.room == -1
    assert in_flight.reserve(1) == 0
    in_flight.remove(runs)
    assert in_flight.room == 1


def test_a_run_that_waited_in_vain_is_admitted_when_those_before_it_have_ended() -> None:
    """Those that came later do not keep it away."""
    in_flight, before, later, lone = InFlight(5), running(1), running(2), running(3, last_delivery=True)
    in_flight.add(before)
    in_flight.add(lone)
    in_flight.keep_away(lone)
    in_flight.remove([lone])
    in_flight.add(later)
    assert not in_flight.admits(lone.run_id)
    in_flight.remove([before])
    assert in_flight.admits(lone.run_id)


async def test_who_waits_for_a_condition_looks_again_after_each_change() -> None:
    """A change that does not bring it about wakes nobody for good."""
    in_flight, runs, returned = InFlight(2), [running(1), running(2)], trio.Event()
    for run in runs:
        in_flight.add(run)

    async def wait_until_idle() -> None:
        await in_flight.wait_until(lambda: len(in_flight) == 0)
        returned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_until_idle)
        await wait_all_tasks_blocked()
        in_flight.remove([runs[0]])
        await wait_all_tasks_blocked()
        assert not returned.is_set()
        in_flight.remove([runs[1]])
        await wait_all_tasks_blocked()
        assert returned.is_set()
