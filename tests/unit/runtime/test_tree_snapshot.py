"""The tree as data and as a drawing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import TreeFormatError
from engine.runtime import (
    Backoff,
    Failure,
    Kind,
    MailboxStatistics,
    Node,
    State,
    Strategy,
    Supervision,
    render,
)
from tests.unit.runtime.scripted import Boom, Crash, Say, Stage, failing_first, group, states


async def test_states_follow_the_life_of_the_tree(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """starting, running, backing_off, stopping, stopped."""

    async def slowly() -> None:
        await trio.sleep(2)

    slow = stage.child("b", starting=slowly, stopping=slowly, backoff=Backoff(4.0, 4.0))
    tree = Supervision(group(stage.child("a"), slow, stage.child("c")), stage.environment)
    assert states(tree.snapshot()) == {"root": "starting", "a": "starting", "b": "starting", "c": "starting"}

    nursery.start_soon(tree.run)
    await trio.sleep(1)
    assert states(tree.snapshot()) == {"root": "starting", "a": "running", "b": "starting", "c": "starting"}
    await trio.sleep(2)
    assert states(tree.snapshot()) == {"root": "running", "a": "running", "b": "running", "c": "running"}
    stage.mail["b"].tell(Crash(Boom()))
    await trio.sleep(1)
    assert states(tree.snapshot()) == {"root": "running", "a": "running", "b": "backing_off", "c": "running"}
    await trio.sleep(9)
    tree.stop()
    await trio.sleep(1)
    assert states(tree.snapshot()) == {"root": "stopping", "a": "stopping", "b": "stopping", "c": "stopped"}
    await tree.wait_stopped()
    assert states(tree.snapshot()) == {"root": "stopped", "a": "stopped", "b": "stopped", "c": "stopped"}


async def test_figures_of_a_node(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Uptime starts anew with the actor; restarts, mailbox and last failure stay with the place."""
    tree = await stage.run(nursery, group(stage.child("a")))
    await trio.sleep(10)
    for order in (Crash(Boom("why")), Say("1", after_s=60), Say("2"), Say("3")):
        stage.mail["a"].tell(order)
    await trio.sleep(7)

    root = tree.snapshot()
    [node] = root.children
    assert (root.kind, root.strategy, root.uptime_s, root.mailbox) == (
        Kind.SUPERVISOR,
        Strategy.ONE_FOR_ONE,
        17.0,
        None,
    )
    assert (node.kind, node.strategy, node.path, node.uptime_s, node.restarts) == (
        Kind.ACTOR,
        None,
        "root.a",
        7.0,
        1,
    )
    assert node.mailbox == MailboxStatistics(depth=2, capacity=1000, high_water=4, oldest_age_s=7.0, received=4)
    assert node.doing == "handling Say"
    assert node.last_failure is not None
    assert (node.last_failure.error, node.last_failure.age_s) == ("Boom: why", 7.0)
    assert node.last_failure.traceback.rstrip().endswith("Boom: why")


async def test_snapshot_of_a_supervisor_that_backs_off_shows_its_children_down(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It gave up on one; the other was stopped in order."""
    inner = group(stage.child("a"), stage.child("b"), name="inner", max_restarts=0)
    tree = await stage.run(nursery, group(inner, backoff=Backoff(60.0, 60.0)))
    stage.mail["a"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert states(tree.snapshot()) == {
        "root": "running",
        "inner": "backing_off",
        "a": "failed",
        "b": "stopped",
    }


async def test_long_traceback_keeps_its_end(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """A snapshot travels: an error of a megabyte does not, and takes one line."""
    error = Boom("long\n" * 200_000 + "the end")
    tree = await stage.run(nursery, group(stage.child("a", starting=failing_first(1, error))))

    failure = tree.snapshot().children[0].last_failure
    assert failure is not None
    assert len(failure.traceback) == 8_000
    assert failure.traceback.endswith("the end\n")
    assert len(failure.error) == 300
    assert "\n" not in failure.error


TREE = Node(
    name="engine",
    path="engine",
    kind=Kind.SUPERVISOR,
    strategy=Strategy.ONE_FOR_ONE,
    state=State.RUNNING,
    uptime_s=3725.0,
    restarts=0,
    last_failure=None,
    mailbox=None,
    doing="",
    children=(
        Node(
            name="link",
            path="engine.link",
            kind=Kind.ACTOR,
            strategy=None,
            state=State.BACKING_OFF,
            uptime_s=0.0,
            restarts=2,
            last_failure=Failure(error="Boom: two\nlines", traceback="...", age_s=4.2),
            mailbox=MailboxStatistics(depth=3, capacity=9, high_water=7, oldest_age_s=1.5, received=99),
            doing="",
        ),
        Node(
            name="scheduling",
            path="engine.scheduling",
            kind=Kind.SUPERVISOR,
            strategy=Strategy.REST_FOR_ONE,
            state=State.RUNNING,
            uptime_s=61.0,
            restarts=0,
            last_failure=None,
            mailbox=None,
            doing="",
            children=(
                Node(
                    name="leader",
                    path="engine.scheduling.leader",
                    kind=Kind.ACTOR,
                    strategy=None,
                    state=State.RUNNING,
                    uptime_s=200_000.0,
                    restarts=0,
                    last_failure=None,
                    mailbox=MailboxStatistics(depth=0, capacity=10, high_water=1, oldest_age_s=0.0, received=5),
                    doing="leading, epoch 7",
                ),
            ),
        ),
        Node(
            name="last",
            path="engine.last",
            kind=Kind.ACTOR,
            strategy=None,
            state=State.STOPPED,
            uptime_s=0.0,
            restarts=0,
            last_failure=None,
            mailbox=None,
            doing="",
        ),
    ),
)

DRAWING = """\
engine         one_for_one   running      up 1h02m   restarts 0
├─ link                      backing_off             restarts 2  mail 3/9 (peak 7, received 99, oldest 1.5s)\
  failed 4.2s ago: Boom: two lines
├─ scheduling  rest_for_one  running      up 1m01s   restarts 0
│  └─ leader                 running      up 2d07h   restarts 0  mail 0/10 (peak 1, received 5)\
  leading, epoch 7
└─ last                      stopped                 restarts 0"""


def test_drawing_has_one_line_for_each_node() -> None:
    assert render(TREE) == DRAWING


def test_snapshot_of_another_process_is_drawn_the_same() -> None:
    """Through JSON nothing is lost; unknown fields and a lost fraction do not matter."""
    stored = json.loads(json.dumps(TREE.to_dict()))
    stored["colour"] = "blue"
    stored["uptime_s"] = 3725
    assert Node.from_dict(stored) == TREE
    assert render(Node.from_dict(stored)) == DRAWING


numbers = st.integers(0, 10**9)
seconds = st.floats(0, 1e9)
nodes = st.recursive(
    st.just(()),
    lambda children: st.lists(
        st.builds(
            Node,
            name=st.text(),
            path=st.text(),
            kind=st.sampled_from(Kind),
            strategy=st.none() | st.sampled_from(Strategy),
            state=st.sampled_from(State),
            uptime_s=seconds,
            restarts=numbers,
            last_failure=st.none() | st.builds(Failure, st.text(), st.text(), seconds),
            mailbox=st.none() | st.builds(MailboxStatistics, numbers, numbers, numbers, seconds, numbers),
            doing=st.text(),
            children=children,
        ),
        max_size=2,
    ).map(tuple),
    max_leaves=4,
)


@given(nodes)
def test_json_round_trip_is_exact(forest: tuple[Node, ...]) -> None:
    for node in forest:
        assert Node.from_dict(json.loads(json.dumps(node.to_dict()))) == node


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"state": "dancing"}, "tree snapshot, engine: state has an unknown value: 'dancing'"),
        ({"restarts": "many"}, "tree snapshot, engine: restarts is not of type int: 'many'"),
        ({"restarts": True}, "restarts is not of type int: True"),
        ({"children": None}, "tree snapshot, engine: children is not a list: None"),
        ({"children": [7]}, "tree snapshot, root: expected an object, not int"),
        ({"mailbox": {"depth": 1}}, "tree snapshot, engine, mailbox: capacity is missing"),
        ({"path": None}, "tree snapshot, root: path is not of type str: None"),
    ],
)
def test_malformed_snapshot_is_refused_with_the_place(change: dict[str, Any], complaint: str) -> None:
    """What comes from Redis may have been written by anyone."""
    with pytest.raises(TreeFormatError, match=re.escape(complaint)):
        Node.from_dict({**TREE.to_dict(), **change})
