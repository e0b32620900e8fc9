"""One child crashes or ends: who comes back, when, and with which mail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.runtime import Actor, Backoff, ChildEnded, ChildFailed, ChildStarted, Restart, State
from tests.unit.runtime.scripted import (
    NO_DELAY,
    Boom,
    Crash,
    CrashOwnTask,
    Finish,
    Order,
    Say,
    Stage,
    failing_first,
    group,
    states,
)


async def test_each_child_starts_after_the_one_before_has_started(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """``started`` of the former returns first, however long it takes."""

    async def slowly() -> None:
        await trio.sleep(3)

    await stage.run(nursery, group(stage.child("a", starting=slowly), stage.child("b")))

    assert stage.journal.entries == [(3, "+a"), (3, "+b")]


async def test_crashed_child_is_started_again_alone(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Under one_for_one a crash concerns nobody else, and no hook runs on the way down."""
    await stage.run(nursery, group(stage.child("a"), stage.child("b"), stage.child("c")))
    stage.mail["b"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert stage.journal.since(3) == ["xb", "+b"]


async def test_mail_behind_the_poison_survives_in_order(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The message in progress at the crash is gone; those behind it stay."""
    await stage.run(nursery, group(stage.child("a")))
    for order in (Say("1"), Crash(Boom()), Say("2"), Say("3")):
        stage.mail["a"].tell(order)
    await wait_all_tasks_blocked()

    assert stage.journal.texts == ["+a", "1", "xa", "+a", "2", "3"]


async def test_crash_of_an_own_task_is_the_actors_crash(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The message in progress is cancelled with it, and the tree shows the real exception, not its groups."""
    tree = await stage.run(nursery, group(stage.child("a")))
    stage.mail["a"].tell(CrashOwnTask(Boom("in a task")))
    await wait_all_tasks_blocked()

    assert stage.journal.texts == ["+a", "xa", "+a"]
    failure = tree.snapshot().children[0].last_failure
    assert failure is not None
    assert failure.error == "Boom: in a task"
    assert "async def crash" not in failure.traceback
    assert "in crash\n    raise error" in failure.traceback


async def test_crash_while_starting_is_a_crash(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """It is counted and backed off, and those behind go on waiting for their turn."""
    shaky = stage.child("a", starting=failing_first(2, Boom()), backoff=Backoff(1.0, 1.0))
    tree = await stage.run(nursery, group(shaky, stage.child("b")))

    assert stage.journal.texts == ["xa", "xa", "+a", "+b"]
    assert tree.snapshot().children[0].restarts == 2
    assert 1.0 <= trio.current_time() <= 2.0


async def test_factory_that_raises_is_a_crash(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """A ``start`` that cannot build its actor is treated like an actor that crashes at once."""
    healthy = stage.child("a")
    attempts: list[float] = []

    def start() -> Actor[Any]:
        attempts.append(trio.current_time())
        if len(attempts) == 1:
            raise Boom
        return healthy.start()

    await stage.run(nursery, group(replace(healthy, start=start)))

    assert attempts == [0, 0]
    assert stage.journal.texts == ["+a"]


@pytest.mark.parametrize(
    ("restart", "order", "state"),
    [
        (Restart.PERMANENT, Finish(), State.RUNNING),
        (Restart.PERMANENT, Crash(Boom()), State.RUNNING),
        (Restart.TRANSIENT, Finish(), State.STOPPED),
        (Restart.TRANSIENT, Crash(Boom()), State.RUNNING),
        (Restart.TEMPORARY, Finish(), State.STOPPED),
        (Restart.TEMPORARY, Crash(Boom()), State.FAILED),
    ],
)
async def test_restart_kind_says_who_comes_back(
    autojump_clock: MockClock, restart: Restart, order: Order, state: State
) -> None:
    """Permanent: always. Transient: after a crash. Temporary: never."""
    stage = Stage()
    async with trio.open_nursery() as nursery:
        tree = await stage.run(nursery, group(stage.child("a", restart=restart)))
        stage.mail["a"].tell(order)
        await wait_all_tasks_blocked()
        seen = tree.snapshot().children[0].state
        tree.stop()

    assert seen is state
    assert stage.journal.texts.count("+a") == (2 if state is State.RUNNING else 1)


async def test_normal_end_is_reported_with_what_follows(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The end of a permanent child counts as a restart; that of a transient one is just its end."""
    children = (stage.child("a"), stage.child("b", restart=Restart.TRANSIENT))
    await stage.run(nursery, group(*children, max_restarts=3))
    stage.mail["a"].tell(Finish())
    await wait_all_tasks_blocked()
    stage.mail["b"].tell(Finish())
    await wait_all_tasks_blocked()

    assert stage.happened(ChildEnded) == [ChildEnded("root.a", 0.0, 2), ChildEnded("root.b", None, 2)]


async def test_backoff_of_one_child_delays_nobody_else(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """While one waits an hour, its neighbours work, and crash and come back at once."""
    slow = stage.child("a", backoff=Backoff(3600.0, 3600.0))
    tree = await stage.run(nursery, group(slow, stage.child("b")))
    stage.mail["a"].tell(Crash(Boom()))
    stage.mail["b"].tell(Crash(Boom()))
    stage.mail["b"].tell(Say("still here"))
    await wait_all_tasks_blocked()

    assert trio.current_time() == 0
    assert states(tree.snapshot()) == {"root": "running", "a": "backing_off", "b": "running"}
    assert stage.journal.texts[-1] == "still here"


async def test_backoff_doubles_while_the_child_fails_and_starts_over_when_it_held(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A run of ``within_s`` seconds without a crash ends the row."""
    spec = group(stage.child("a"), max_restarts=2, within_s=4.0, backoff=Backoff(1.0, 60.0))
    await stage.run(nursery, spec)

    for pause_s in (1.5, 10.0, 10.0, 10.0):
        stage.mail["a"].tell(Crash(Boom()))
        await trio.sleep(pause_s)

    delays_s = [event.restart_in_s for event in stage.happened(ChildFailed) if isinstance(event, ChildFailed)]
    bounds_s = [1.0, 2.0, 1.0, 1.0]
    for delay_s, bound_s in zip(delays_s, bounds_s, strict=True):
        assert delay_s is not None
        assert bound_s / 2 <= delay_s <= bound_s


async def test_same_chance_gives_the_same_delays(autojump_clock: MockClock) -> None:
    """Jitter comes from the environment's generator, so a test governs it."""

    async def delays() -> list[float]:
        stage = Stage()
        async with trio.open_nursery() as nursery:
            tree = await stage.run(nursery, group(stage.child("a"), backoff=Backoff(1.0, 8.0)))
            began_s = trio.current_time()
            for _ in range(4):
                stage.mail["a"].tell(Crash(Boom()))
            await trio.sleep(60)
            tree.stop()
        return [round(at_s - began_s, 6) for at_s in stage.journal.times("+a")]

    first = await delays()
    assert len(first) == 5
    assert await delays() == first


async def test_restart_by_hand_is_ordered_and_counts_for_nothing(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The actor finishes what it does, takes leave, and comes back, even with no restart granted."""
    spec = group(stage.child("a"), stage.child("b"), max_restarts=0)
    tree = await stage.run(nursery, spec)
    stage.mail["a"].tell(Say("done", after_s=2))
    await wait_all_tasks_blocked()
    tree.restart("root.a")
    await trio.sleep(3)

    assert stage.journal.since(2) == ["done", "-a", "xa", "+a"]
    assert tree.snapshot().children[0].restarts == 1


async def test_restart_by_hand_ends_a_backoff_and_revives_what_has_ended(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Neither the delay nor the restart kind stands in the way of a person."""
    waiting = stage.child("a", backoff=Backoff(3600.0, 3600.0))
    ended = stage.child("b", restart=Restart.TEMPORARY)
    tree = await stage.run(nursery, group(waiting, ended))
    stage.mail["a"].tell(Crash(Boom()))
    stage.mail["b"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()
    tree.restart("root.a")
    tree.restart("root.b")
    await wait_all_tasks_blocked()

    assert trio.current_time() == 0
    assert states(tree.snapshot()) == {"root": "running", "a": "running", "b": "running"}


async def test_restart_by_hand_while_it_stops_for_one_already_restarts_once(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A second request while the first is under way merges with it."""
    tree = await stage.run(nursery, group(stage.child("a")))
    stage.mail["a"].tell(Say("done", after_s=2))
    await wait_all_tasks_blocked()
    tree.restart("root.a")
    await wait_all_tasks_blocked()
    tree.restart("root.a")
    await trio.sleep(10)

    assert stage.journal.texts == ["+a", "done", "-a", "xa", "+a"]


async def test_every_start_is_reported_with_its_number(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """0 is the first start; each restart counts up."""
    await stage.run(nursery, group(stage.child("a", backoff=NO_DELAY)))
    stage.mail["a"].tell(Crash(Boom()))
    await wait_all_tasks_blocked()

    assert stage.happened(ChildStarted) == [ChildStarted("root.a", 0), ChildStarted("root.a", 1)]
