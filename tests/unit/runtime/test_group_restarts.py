"""one_for_all and rest_for_one: who goes down with whom, and in which order they come back."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.runtime import Backoff, ChildFailed, ChildFailedStopping, Restart, Strategy
from tests.unit.runtime.scripted import (
    Boom,
    Crash,
    Finish,
    Say,
    Stage,
    failing_first,
    group,
    states,
)


async def test_one_for_all_stops_in_reverse_and_starts_in_order(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """All siblings go down in order, and all come back after the backoff."""
    children = (stage.child("a"), stage.child("b"), stage.child("c"))
    spec = group(*children, strategy=Strategy.ONE_FOR_ALL, backoff=Backoff(10.0, 10.0))
    await stage.run(nursery, spec)
    stage.mail["b"].tell(Crash(Boom()))
    await trio.sleep(1)
    assert stage.journal.since(3) == ["xb", "-c", "xc", "-a", "xa"]

    await trio.sleep(10)
    assert stage.journal.since(8) == ["+a", "+b", "+c"]
    assert 5 <= stage.journal.times("+a")[1] <= 10


async def test_rest_for_one_leaves_those_before_alone(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The crashed child and those after it; nobody before it."""
    children = (stage.child("a"), stage.child("b"), stage.child("c"), stage.child("d"))
    await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE))
    stage.mail["b"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert stage.journal.since(4) == ["xb", "-d", "xd", "-c", "xc", "+b", "+c", "+d"]


async def test_sibling_finishes_its_message_before_the_group_comes_back(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Nothing starts before everything condemned is down."""
    children = (stage.child("a"), stage.child("b"))
    await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE))
    stage.mail["b"].tell(Say("done", after_s=3))
    stage.mail["b"].tell(Say("later"))
    await wait_all_tasks_blocked()
    stage.mail["a"].tell(Crash(Boom()))
    await trio.sleep(4)

    assert stage.journal.since(2) == ["xa", "done", "-b", "xb", "+a", "+b", "later"]


async def test_crash_of_an_earlier_child_widens_a_restart_under_way(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """While the crash of b is stopping c, a crashes: one recovery from a on, two restarts counted."""
    children = (stage.child("a"), stage.child("b"), stage.child("c"))
    await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE, max_restarts=5))
    stage.mail["c"].tell(Say("c is done", after_s=4))
    await wait_all_tasks_blocked()
    stage.mail["b"].tell(Crash(Boom("b")))
    await trio.sleep(1)
    stage.mail["a"].tell(Crash(Boom("a")))
    await trio.sleep(10)

    assert stage.journal.since(3) == ["xb", "xa", "c is done", "-c", "xc", "+a", "+b", "+c"]
    failed = [event for event in stage.events if isinstance(event, ChildFailed)]
    assert [(event.child, event.restarts_left) for event in failed] == [("root.b", 4), ("root.a", 3)]


async def test_crash_of_a_child_that_was_to_be_stopped_anyway_merges(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It is reported and not counted: the restart under way covers it."""
    children = (stage.child("a"), stage.child("b"), stage.child("c"))
    await stage.run(nursery, group(*children, strategy=Strategy.ONE_FOR_ALL, max_restarts=1))
    stage.mail["c"].tell(Say("c is done", after_s=4))
    await wait_all_tasks_blocked()
    stage.mail["a"].tell(Crash(Boom("a")))
    await trio.sleep(1)
    stage.mail["b"].tell(Crash(Boom("b")))
    await trio.sleep(10)

    assert stage.journal.since(3) == ["xa", "xb", "c is done", "-c", "xc", "+a", "+b", "+c"]
    merged = [event for event in stage.events if isinstance(event, ChildFailedStopping)]
    assert [event.child for event in merged] == ["root.b"]


async def test_crash_during_the_backoff_widens_and_the_later_end_holds(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """While c waits for 100 s, a crashes with a short delay: a is back soon, and c keeps its own delay."""
    children = (
        stage.child("a", backoff=Backoff(1.0, 1.0)),
        stage.child("b"),
        stage.child("c", backoff=Backoff(100.0, 100.0)),
    )
    tree = await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE))
    stage.mail["c"].tell(Crash(Boom()))
    await trio.sleep(1)
    stage.mail["a"].tell(Crash(Boom()))
    await trio.sleep(10)
    assert states(tree.snapshot()) == {"root": "running", "a": "running", "b": "running", "c": "backing_off"}

    await trio.sleep(100)
    assert stage.journal.since(3) == ["xc", "xa", "-b", "xb", "+a", "+b", "+c"]


async def test_crash_while_the_group_starts_again_starts_over_from_there(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Under rest_for_one, b failing in its second start does not touch a again, and c still waits for b."""
    starts = 0

    async def fail_the_second_time() -> None:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise Boom

    children = (stage.child("a"), stage.child("b", starting=fail_the_second_time), stage.child("c"))
    await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE))
    stage.mail["a"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert stage.journal.since(3) == ["xa", "-c", "xc", "-b", "xb", "+a", "xb", "+b", "+c"]


async def test_one_for_all_start_that_fails_takes_down_those_already_up(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """At the first start too: b's failure stops a, then both start in order."""
    children = (stage.child("a"), stage.child("b", starting=failing_first(1, Boom())))
    await stage.run(nursery, group(*children, strategy=Strategy.ONE_FOR_ALL))

    assert stage.journal.texts == ["+a", "xb", "-a", "xa", "+a", "+b"]


async def test_temporary_sibling_goes_down_with_the_group_and_stays_down(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its own crash, in turn, takes nobody down."""
    children = (
        stage.child("a"),
        stage.child("b", restart=Restart.TEMPORARY),
        stage.child("c", restart=Restart.TEMPORARY),
    )
    tree = await stage.run(nursery, group(*children, strategy=Strategy.ONE_FOR_ALL))
    stage.mail["b"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()
    assert states(tree.snapshot()) == {"root": "running", "a": "running", "b": "failed", "c": "running"}

    stage.mail["a"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()
    assert states(tree.snapshot()) == {"root": "running", "a": "running", "b": "failed", "c": "stopped"}


async def test_transient_sibling_that_had_ended_runs_again_with_its_group(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What it prepared may have been lost with those it prepared it for."""
    children = (stage.child("a"), stage.child("b", restart=Restart.TRANSIENT), stage.child("c"))
    await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE))
    stage.mail["b"].tell(Finish())
    await wait_all_tasks_blocked()
    mark = len(stage.journal)
    stage.mail["a"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert stage.journal.since(mark) == ["xa", "-c", "xc", "+a", "+b", "+c"]


async def test_restart_by_hand_takes_the_tied_siblings_along(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """They lean on the state of the one that is restarted, whoever asked for it."""
    children = (stage.child("a"), stage.child("b"), stage.child("c"))
    tree = await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE, max_restarts=0))
    tree.restart("root.b")
    await wait_all_tasks_blocked()

    assert stage.journal.since(3) == ["-c", "xc", "-b", "xb", "+b", "+c"]
