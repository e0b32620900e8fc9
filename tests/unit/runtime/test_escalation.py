"""Restart intensity: the one restart too many, and what the supervisors above make of it."""

from __future__ import annotations

import pickle

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import RestartLimitExceeded
from engine.runtime import Backoff, Restart, Strategy, Supervision, SupervisorGaveUp
from tests.unit.runtime.scripted import Boom, Crash, Finish, Say, Stage, failing_first, group, states


async def test_one_crash_too_many_ends_the_root(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The fourth crash within 10 s is one too many for max_restarts=3. The others stop, then it raises."""
    tree = Supervision(group(stage.child("a"), stage.child("b"), max_restarts=3, within_s=10.0), stage.environment)

    async def crash_every_second() -> None:
        for number in range(4):
            await trio.sleep(1)
            stage.mail["b"].tell(Crash(Boom(number)))

    nursery.start_soon(crash_every_second)
    with pytest.raises(RestartLimitExceeded) as caught:
        await tree.run()

    error = caught.value
    assert (error.child, error.restarts, error.within_s) == ("root.b", 3, 10.0)
    assert str(error) == "child 'root.b' needed more than 3 restarts in 10 s"
    assert repr(error.__cause__) == "Boom(3)"
    assert stage.journal.times("+b") == [0, 1, 2, 3]
    assert stage.journal.texts[-3:] == ["xb", "-a", "xa"]
    assert states(tree.snapshot()) == {"root": "failed", "a": "stopped", "b": "failed"}


async def test_supervise_raises_it_bare(stage: Stage, autojump_clock: MockClock) -> None:
    """No group around it, whatever nurseries it crossed."""
    inner = group(stage.child("a", starting=failing_first(99, Boom("again"))), name="inner", max_restarts=1)
    tree = Supervision(group(inner, max_restarts=0), stage.environment)

    with pytest.raises(RestartLimitExceeded) as caught:
        await tree.run()

    assert caught.value.child == "root.inner"
    assert isinstance(caught.value.__cause__, RestartLimitExceeded)
    assert caught.value.__cause__.child == "root.inner.a"
    assert isinstance(caught.value.__cause__.__cause__, Boom)
    failure = tree.snapshot().last_failure
    assert failure is not None
    assert "Boom: again" in failure.traceback


async def test_crashes_far_apart_are_forgiven(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Only those within ``within_s`` count."""
    await stage.run(nursery, group(stage.child("a"), max_restarts=1, within_s=10.0))
    for _ in range(5):
        stage.mail["a"].tell(Crash(Boom()))
        await trio.sleep(10.1)

    assert stage.journal.texts.count("+a") == 6


async def test_nested_supervisor_that_gives_up_is_restarted_by_its_parents_intensity(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It stops its children in reverse, fails upward, and starts afresh: new budget, old mail."""
    inner = group(stage.child("b"), stage.child("c"), name="inner", max_restarts=1)
    tree = await stage.run(nursery, group(stage.child("a"), inner, stage.child("d"), max_restarts=1))
    stage.mail["b"].tell(Crash(Boom("costs b its one restart")))
    await wait_all_tasks_blocked()
    stage.mail["b"].tell(Crash(Boom("costs the supervisor")))
    stage.mail["b"].tell(Say("kept"))
    await wait_all_tasks_blocked()
    assert stage.journal.since(4)[:6] == ["xb", "+b", "xb", "-c", "xc", "+b"]
    assert set(stage.journal.since(10)) == {"+c", "kept"}

    stage.mail["b"].tell(Crash(Boom("costs one of the new budget")))
    await wait_all_tasks_blocked()
    assert stage.journal.since(12) == ["xb", "+b"]
    assert stage.happened(SupervisorGaveUp) == [SupervisorGaveUp("root.inner", "root.inner.b", 1, 30.0)]
    node = tree.snapshot().children[1]
    assert node.state.value == "running"
    assert node.restarts == 1
    assert node.last_failure is not None
    assert node.last_failure.error.startswith("RestartLimitExceeded: child 'root.inner.b' needed more than 1")


async def test_restarted_supervisor_starts_its_children_as_at_first(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """In order, each after the one before has started, and without what was left of an old backoff."""

    async def slowly() -> None:
        await trio.sleep(2)

    slow = stage.child("a", starting=slowly, backoff=Backoff(3600.0, 3600.0))
    await stage.run(nursery, group(group(slow, stage.child("b"), name="inner", max_restarts=1)))
    stage.mail["a"].tell(Crash(Boom()))
    await trio.sleep(1)
    stage.mail["b"].tell(Crash(Boom()))
    await trio.sleep(3)

    assert stage.journal.entries[-2:] == [(5, "+a"), (5, "+b")]


async def test_escalation_takes_the_tied_siblings_of_the_supervisor_along(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """For its parent a supervisor is a child like any other."""
    inner = group(stage.child("b"), name="inner", max_restarts=0)
    spec = group(stage.child("a"), inner, stage.child("c"), strategy=Strategy.REST_FOR_ONE)
    await stage.run(nursery, spec)
    stage.mail["b"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert stage.journal.since(3) == ["xb", "-c", "xc", "+b", "+c"]


async def test_temporary_crash_counts_for_nothing(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What is not restarted needs no restart to be granted."""
    tree = await stage.run(nursery, group(stage.child("a", restart=Restart.TEMPORARY), max_restarts=0))
    stage.mail["a"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert states(tree.snapshot()) == {"root": "running", "a": "failed"}


async def test_permanent_child_that_keeps_ending_is_a_failure_without_a_cause(
    stage: Stage, autojump_clock: MockClock
) -> None:
    """A loop of normal ends is a loop all the same."""
    stage_child = stage.child("a")
    tree = Supervision(group(stage_child, max_restarts=1), stage.environment)
    stage.mail["a"].tell(Finish())
    stage.mail["a"].tell(Finish())

    with pytest.raises(RestartLimitExceeded) as caught:
        await tree.run()

    assert caught.value.__cause__ is None
    assert states(tree.snapshot()) == {"root": "failed", "a": "failed"}


async def test_crash_while_giving_up_changes_nothing(stage: Stage, autojump_clock: MockClock) -> None:
    """The cause stays the crash that was one too many."""

    async def fail() -> None:
        raise Boom("while stopping")

    spec = group(stage.child("a", stopping=fail), stage.child("b"), max_restarts=0)
    stage.mail["b"].tell(Crash(Boom("too many")))

    with pytest.raises(RestartLimitExceeded) as caught:
        await Supervision(spec, stage.environment).run()

    assert repr(caught.value.__cause__) == "Boom('too many')"


def test_restart_limit_exceeded_pickles() -> None:
    """Facts are fields, and args match them."""
    copy = pickle.loads(pickle.dumps(RestartLimitExceeded("root.a", 5, 30.0)))  # noqa: S301  # our own bytes
    assert (copy.child, copy.restarts, copy.within_s) == ("root.a", 5, 30.0)
