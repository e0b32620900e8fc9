"""An actor is made to crash from outside: nothing tells it from a crash of its own."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import CannotCrash, RestartLimitExceeded, UnknownActor
from engine.runtime import Actor, Backoff, Child, ChildEnded, ChildFailed, Restart, Strategy, Supervision
from tests.unit.runtime.scripted import Boom, Say, Stage, failing_first, group, states


async def test_an_actor_that_is_made_to_crash_fails_and_comes_back_with_backoff(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It is counted and reported, no hook runs on the way down, and the tree shows the error."""
    child = stage.child("a", backoff=Backoff(2.0, 2.0))
    tree = await stage.run(nursery, group(child, stage.child("b"), max_restarts=3))
    error = Boom("by hand")
    tree.crash("root.a", error)
    await wait_all_tasks_blocked()

    [event] = stage.happened(ChildFailed)
    assert isinstance(event, ChildFailed)
    assert event.restart_in_s is not None
    assert (event.child, event.error, event.restarts_left) == ("root.a", error, 2)
    assert 1.0 <= event.restart_in_s <= 2.0
    assert states(tree.snapshot()) == {"root": "running", "a": "backing_off", "b": "running"}

    await trio.sleep(2.5)
    assert stage.journal.since(2) == ["xa", "+a"]
    [node, _] = tree.snapshot().children
    assert (node.state.value, node.restarts) == ("running", 1)
    assert node.last_failure is not None
    assert node.last_failure.error == "Boom: by hand"


async def test_the_message_in_progress_is_lost_at_a_crash_by_hand_and_those_behind_it_are_not(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """As at any crash."""
    tree = await stage.run(nursery, group(stage.child("a")))
    for order in (Say("1", after_s=60), Say("2"), Say("3")):
        stage.mail["a"].tell(order)
    await trio.sleep(1)
    tree.crash("root.a", Boom())
    await wait_all_tasks_blocked()

    assert trio.current_time() == 1
    assert stage.journal.texts == ["+a", "xa", "+a", "2", "3"]


async def test_an_actor_crashes_by_hand_while_it_starts(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Those behind it go on waiting for their turn."""
    waits = iter([60.0, 1.0])

    async def slowly() -> None:
        await trio.sleep(next(waits))

    tree = Supervision(group(stage.child("a", starting=slowly), stage.child("b")), stage.environment)
    nursery.start_soon(tree.run)
    await trio.sleep(5)
    tree.crash("root.a", Boom())
    await trio.sleep(5)

    assert stage.journal.entries == [(5, "xa"), (6, "+a"), (6, "+b")]


async def test_siblings_tied_by_the_strategy_go_with_one_that_is_made_to_crash(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Under rest_for_one those after it."""
    children = (stage.child("a"), stage.child("b"), stage.child("c"))
    tree = await stage.run(nursery, group(*children, strategy=Strategy.REST_FOR_ONE))
    tree.crash("root.b", Boom())
    await wait_all_tasks_blocked()

    assert stage.journal.since(3) == ["xb", "-c", "xc", "+b", "+c"]


async def test_one_crash_by_hand_too_many_ends_the_supervisor(stage: Stage, autojump_clock: MockClock) -> None:
    """The error is the cause of its giving up."""
    tree = Supervision(group(stage.child("a"), max_restarts=2), stage.environment)
    error = Boom("the last")
    with pytest.RaisesGroup(RestartLimitExceeded) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(tree.run)
            for each in (Boom("1"), Boom("2"), error):
                tree.crash("a", each)
                await wait_all_tasks_blocked()
    assert caught.value.exceptions[0].__cause__ is error


async def test_a_path_may_leave_out_the_name_of_the_root(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """For restarts, crashes by hand, and the nearest name in the error."""
    tree = await stage.run(nursery, group(group(stage.child("leader"), name="scheduling"), stage.child("b")))
    tree.crash("scheduling.leader", Boom())
    await wait_all_tasks_blocked()
    tree.restart("scheduling.leader")
    tree.restart("b")
    await wait_all_tasks_blocked()
    tree.restart("scheduling")
    await wait_all_tasks_blocked()

    # Each in the order of its own; who of two siblings was first does not matter.
    leader = [text for text in stage.journal.texts if text.endswith("leader")]
    assert leader == ["+leader", "xleader", "+leader", "-leader", "xleader", "+leader", "-leader", "xleader", "+leader"]
    assert [text for text in stage.journal.texts if text.endswith("b")] == ["+b", "-b", "xb", "+b"]

    for path, near in (
        ("scheduling.leadr", "scheduling.leader"),
        ("root.scheduling.leadr", "root.scheduling.leader"),
        ("leader", "scheduling.leader"),
    ):
        for ask in (tree.restart, lambda path: tree.crash(path, Boom())):
            with pytest.raises(UnknownActor) as caught:
                ask(path)
            assert (caught.value.path, caught.value.near) == (path, near)
            assert str(caught.value) == f"no actor has the path {path!r}; did you mean {near!r}?"


async def test_a_supervisor_cannot_be_made_to_crash(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It runs nobody's code. The error names its children, one of which is probably meant."""
    tree = await stage.run(nursery, group(group(stage.child("a"), stage.child("b"), name="inner")))
    for path in ("inner", "root.inner"):
        with pytest.raises(CannotCrash, match=r"'root\.inner' .* it is a supervisor; crash one of root\.inner\.a, "):
            tree.crash(path, Boom())
    with pytest.raises(CannotCrash, match=r"'root' .* it is a supervisor; crash one of root\.inner$"):
        tree.crash("root", Boom())
    assert stage.happened(ChildFailed) == []


async def test_an_actor_that_is_not_up_cannot_be_made_to_crash(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Waiting, backing off, stopping, stopped, failed: the error says which, and nothing is counted."""

    async def slowly() -> None:
        await trio.sleep(4)

    children = (
        stage.child("a", starting=slowly),
        stage.child("b", stopping=slowly),
        stage.child("c", restart=Restart.TEMPORARY),
        stage.child("d", starting=failing_first(1, Boom()), backoff=Backoff(20.0, 20.0)),
    )
    tree = Supervision(group(*children), stage.environment, on_event=stage.events.append)

    def refused(path: str) -> str:
        before = len(stage.events)
        with pytest.raises(CannotCrash) as caught:
            tree.crash(path, Boom("refused"))
        assert len(stage.events) == before
        assert caught.value.path == f"root.{path}"
        return caught.value.reason

    assert refused("b") == "it is not up (starting)"
    nursery.start_soon(tree.run)
    await trio.sleep(1)
    assert refused("b") == "it is not up (starting)"  # its turn has not come
    await trio.sleep(4)
    assert refused("d") == "it is not up (backing off)"
    tree.crash("c", Boom())
    await wait_all_tasks_blocked()
    assert refused("c") == "it is not up (failed)"
    tree.restart("b")
    await trio.sleep(1)
    assert refused("b") == "it is not up (stopping)"
    await trio.sleep(4)
    tree.stop()
    await tree.wait_stopped()
    assert refused("b") == "it is not up (stopped)"
    assert "refused" not in str(stage.events)


async def test_an_actor_that_has_just_ended_cannot_be_made_to_crash(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its last tasks are being cancelled, and its supervisor does not know yet: it ended normally, and that stands."""
    refused: list[str] = []

    class Ending(Actor[object]):
        async def started(self) -> None:
            self.context.nursery.start_soon(self.last_words)
            self.context.finish()

        async def last_words(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with pytest.raises(CannotCrash) as caught:
                    tree.crash("a", Boom())
                refused.append(caught.value.reason)

    spec = group(Child("a", Ending, restart=Restart.TEMPORARY))
    tree = Supervision(spec, stage.environment, on_event=stage.events.append)
    nursery.start_soon(tree.run)
    await wait_all_tasks_blocked()

    assert refused == ["it is not up (just beginning, or just ending)"]
    assert stage.happened(ChildFailed) == []
    assert stage.happened(ChildEnded) == [ChildEnded("root.a", None, 5)]


async def test_two_crashes_by_hand_in_the_same_moment_are_one(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """One life ends once, whoever ends it."""
    tree = await stage.run(nursery, group(stage.child("a")))
    tree.crash("a", Boom("1"))
    tree.crash("a", Boom("2"))
    await wait_all_tasks_blocked()

    assert len(stage.happened(ChildFailed)) == 1
    assert stage.journal.texts == ["+a", "xa", "+a"]
