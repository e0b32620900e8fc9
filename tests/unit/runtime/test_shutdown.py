"""The ordered stop: in reverse, with a deadline for each, and never stuck in silence."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import MailboxClosed
from engine.runtime import (
    Backoff,
    ChildFailedStopping,
    ChildIgnoresCancellation,
    ChildStopOverdue,
    Strategy,
    Supervision,
)
from tests.unit.runtime.scripted import Ask, Boom, Crash, Say, Stage, group, states


async def test_children_stop_in_reverse_start_order_each_waiting_for_the_one_after_it(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Through every level: a nested supervisor stops its own children first."""

    async def slowly() -> None:
        await trio.sleep(2)

    inner = group(stage.child("b"), stage.child("c", stopping=slowly), name="inner")
    tree = await stage.run(nursery, group(stage.child("a"), inner, stage.child("d", stopping=slowly)))
    tree.stop()
    await tree.wait_stopped()

    assert stage.journal.entries[4:] == [
        (2, "-d"),
        (2, "xd"),
        (4, "-c"),
        (4, "xc"),
        (4, "-b"),
        (4, "xb"),
        (4, "-a"),
        (4, "xa"),
    ]


async def test_message_in_progress_is_finished_and_those_behind_it_are_not_begun(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Then ``stopping`` runs, with the actor's own tasks still alive, then they are cancelled."""
    tree = await stage.run(nursery, group(stage.child("a")))
    stage.mail["a"].tell(Say("in progress", after_s=3))
    stage.mail["a"].tell(Say("behind"))
    await wait_all_tasks_blocked()
    tree.stop()
    await tree.wait_stopped()

    assert stage.journal.entries == [(0, "+a"), (3, "in progress"), (3, "-a"), (3, "xa")]
    assert stage.happened(ChildStopOverdue) == []


async def test_child_that_does_not_stop_in_time_is_cancelled_and_named(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Each has its own deadline, which begins when it is asked."""
    children = (
        stage.child("a", stopping=trio.sleep_forever, shutdown_s=1.0),
        stage.child("b", shutdown_s=2.0),
    )
    tree = await stage.run(nursery, group(*children))
    stage.mail["b"].tell(Say("never", after_s=3600))
    await wait_all_tasks_blocked()
    tree.stop()
    await tree.wait_stopped()

    assert stage.journal.entries[2:] == [(2, "xb"), (3, "xa")]
    assert stage.happened(ChildStopOverdue) == [
        ChildStopOverdue("root.b", 2.0),
        ChildStopOverdue("root.a", 1.0),
    ]


async def test_child_that_shields_itself_is_reported_and_waited_for(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """No task can be abandoned, so the stop takes as long as it takes; who is to blame is known early."""

    async def resist() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    children = (stage.child("a"), stage.child("b", stopping=resist, shutdown_s=3.0))
    tree = await stage.run(nursery, group(*children))
    tree.stop()
    await trio.sleep(7)
    assert stage.happened(ChildStopOverdue) == [ChildStopOverdue("root.b", 3.0)]
    assert stage.happened(ChildIgnoresCancellation) == [ChildIgnoresCancellation("root.b", 3.0)]
    assert states(tree.snapshot()) == {"root": "stopping", "a": "stopping", "b": "stopping"}

    await tree.wait_stopped()
    assert trio.current_time() == 100
    assert stage.journal.texts[-1] == "xa"


async def test_each_stop_has_its_deadline_anew(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """A child that was overdue once is asked, cancelled and reported again the next time."""
    tree = await stage.run(nursery, group(stage.child("a", stopping=trio.sleep_forever, shutdown_s=2.0)))
    tree.restart("root.a")
    await trio.sleep(3)
    tree.stop()
    await tree.wait_stopped()

    assert stage.journal.entries == [(0, "+a"), (2, "xa"), (2, "+a"), (5, "xa")]
    assert stage.happened(ChildStopOverdue) == [ChildStopOverdue("root.a", 2.0)] * 2


async def test_restart_by_hand_is_ignored_while_the_tree_stops(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What is down stays down."""

    async def slowly() -> None:
        await trio.sleep(2)

    tree = await stage.run(nursery, group(stage.child("a", stopping=slowly), stage.child("b")))
    tree.stop()
    await trio.sleep(1)
    tree.restart("root.a")
    tree.restart("root.b")
    await tree.wait_stopped()

    assert stage.journal.texts == ["+a", "+b", "-b", "xb", "-a", "xa"]


async def test_failure_while_stopping_is_reported_and_the_stop_goes_on(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Nothing is restarted for it."""
    error = Boom("on the way out")

    async def fail() -> None:
        raise error

    tree = await stage.run(nursery, group(stage.child("a"), stage.child("b", stopping=fail)))
    tree.stop()
    await tree.wait_stopped()

    assert stage.journal.texts == ["+a", "+b", "xb", "-a", "xa"]
    assert stage.happened(ChildFailedStopping) == [ChildFailedStopping("root.b", error)]
    failure = tree.snapshot().children[1].last_failure
    assert failure is not None
    assert failure.error == "Boom: on the way out"


async def test_crash_of_a_child_whose_turn_to_stop_has_not_come_restarts_nothing(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The tree is going down; so is the child."""
    tree = await stage.run(nursery, group(stage.child("a"), stage.child("b")))
    stage.mail["b"].tell(Say("done", after_s=3))
    await wait_all_tasks_blocked()
    tree.stop()
    await wait_all_tasks_blocked()
    stage.mail["a"].tell(Crash(Boom()))
    await tree.wait_stopped()

    assert stage.journal.texts == ["+a", "+b", "xa", "done", "-b", "xb"]


async def test_stop_during_a_backoff_does_not_wait_for_it(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What is down stays down."""
    tree = await stage.run(nursery, group(stage.child("a"), backoff=Backoff(3600.0, 3600.0)))
    stage.mail["a"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()
    tree.stop()
    await tree.wait_stopped()

    assert trio.current_time() == 0
    assert stage.journal.texts == ["+a", "xa"]


async def test_stop_in_the_middle_of_a_group_restart_ends_it(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Siblings that were stopped to come back do not."""
    children = (stage.child("a"), stage.child("b"), stage.child("c"))
    tree = await stage.run(nursery, group(*children, strategy=Strategy.ONE_FOR_ALL))
    stage.mail["c"].tell(Say("done", after_s=2))
    await wait_all_tasks_blocked()
    stage.mail["b"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()
    tree.stop()
    await tree.wait_stopped()

    assert stage.journal.since(3) == ["xb", "done", "-c", "xc", "-a", "xa"]


async def test_child_that_is_still_starting_is_cancelled_at_once(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It has nothing to finish. Those behind it never start; who waited for the start gets the handle."""

    async def slowly() -> None:
        await trio.sleep(2)

    children = (stage.child("a", stopping=slowly), stage.child("b", starting=trio.sleep_forever), stage.child("c"))
    tree = Supervision(group(*children), stage.environment)

    async def stop_soon() -> None:
        await trio.sleep(1)
        tree.stop()
        await trio.sleep(1)
        assert states(tree.snapshot()) == {"root": "stopping", "a": "stopping", "b": "stopped", "c": "stopped"}

    nursery.start_soon(stop_soon)
    handle = await nursery.start(tree.run)

    assert handle is tree
    assert stage.journal.entries == [(0, "+a"), (1, "xb"), (3, "-a"), (3, "xa")]
    assert states(tree.snapshot()) == dict.fromkeys(["root", "a", "b", "c"], "stopped")


async def test_stop_that_comes_before_the_run_stops_it_as_it_begins(stage: Stage, autojump_clock: MockClock) -> None:
    """A handle made ahead of the run can be stopped ahead of it."""
    tree = Supervision(group(stage.child("a")), stage.environment)
    tree.stop()
    await tree.run()

    assert states(tree.snapshot()) == {"root": "stopped", "a": "stopped"}


async def test_supervision_runs_once(stage: Stage, autojump_clock: MockClock) -> None:
    """Its mailboxes are closed for good."""
    tree = Supervision(group(stage.child("a")), stage.environment)
    tree.stop()
    await tree.run()

    with pytest.raises(RuntimeError, match="make a new one"):
        await tree.run()


async def test_stopped_tree_closes_its_mailboxes(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Who waits for an answer or for room is told, and so is who comes later."""
    tree = await stage.run(nursery, group(stage.child("a")))
    stage.mail["a"].tell(Say("busy", after_s=2))
    told: list[str] = []

    async def ask() -> None:
        with pytest.raises(MailboxClosed):
            await stage.mail["a"].ask(Ask, timeout_s=60)
        told.append("asker")

    nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    tree.stop()
    await tree.wait_stopped()
    await wait_all_tasks_blocked()

    assert told == ["asker"]
    with pytest.raises(MailboxClosed, match="mailbox 'a' is closed"):
        stage.mail["a"].tell(Say("late"))
