"""What an actor sees of the runtime."""

from __future__ import annotations

from typing import Any, Never

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import UnknownActor
from engine.runtime import Actor, Child, Mailbox, Restart
from tests.unit.runtime.scripted import Ask, Boom, Finish, Say, Stage, group


async def test_actor_knows_its_path_and_answers(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The path is the names from the root down."""
    await stage.run(nursery, group(group(stage.child("leader"), name="scheduling"), name="engine"))

    assert await stage.mail["leader"].ask(Ask, timeout_s=1) == "engine.scheduling.leader"


async def test_messages_are_handled_one_at_a_time(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A later short message does not overtake an earlier long one."""
    await stage.run(nursery, group(stage.child("a")))
    stage.mail["a"].tell(Say("long", after_s=5))
    stage.mail["a"].tell(Say("short"))
    await trio.sleep(6)

    assert stage.journal.entries == [(0, "+a"), (5, "long"), (5, "short")]


async def test_finish_ends_after_the_message_in_progress(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """``stopping`` runs, own tasks are cancelled, and the rest of the mail stays for the next one."""
    tree = await stage.run(nursery, group(stage.child("a", restart=Restart.TRANSIENT)))
    stage.mail["a"].tell(Finish())
    stage.mail["a"].tell(Say("for the next one"))
    await wait_all_tasks_blocked()
    assert stage.journal.texts == ["+a", "-a", "xa"]

    tree.restart("root.a")
    await wait_all_tasks_blocked()
    assert stage.journal.since(3) == ["+a", "for the next one"]


class Timer(Actor[Never]):
    """Ends by itself from a task of its own; has no mail."""

    async def started(self) -> None:
        self.context.nursery.start_soon(self.tick)

    async def tick(self) -> None:
        self.context.doing(f"waiting since {self.context.clock.wall():.0f} as {self.context.new_id()}")
        await trio.sleep(3)
        self.context.finish()


async def test_own_task_can_end_the_actor_while_it_waits_for_mail(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Time, chance and ids come from the environment; what it does is in the tree until it ends."""
    spec = group(Child(name="timer", start=Timer, restart=Restart.TEMPORARY))
    tree = await stage.run(nursery, spec)
    await trio.sleep(1)
    assert tree.snapshot().children[0].doing == "waiting since 1700000000 as id-1"

    await trio.sleep(3)
    node = tree.snapshot().children[0]
    assert (node.state.value, node.doing) == ("stopped", "")


class FinishedAtOnce(Actor[Never]):
    """Does all its work in ``started``."""

    async def started(self) -> None:
        self.context.finish()
        await trio.sleep(1)


async def test_finish_while_starting_lets_the_start_complete(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """An actor may do all its work in ``started``; those behind it start as after any other."""
    first = Child(name="import", start=FinishedAtOnce, restart=Restart.TRANSIENT)
    tree = await stage.run(nursery, group(first, stage.child("b")))
    await wait_all_tasks_blocked()

    assert stage.journal.entries == [(1, "+b")]
    assert tree.snapshot().children[0].state.value == "stopped"


async def test_message_in_progress_is_what_the_actor_does_unless_it_says_more(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Idle, it does nothing."""
    tree = await stage.run(nursery, group(stage.child("a")))
    assert tree.snapshot().children[0].doing == ""

    stage.mail["a"].tell(Say("x", after_s=5))
    await wait_all_tasks_blocked()
    assert tree.snapshot().children[0].doing == "handling Say"

    await trio.sleep(6)
    assert tree.snapshot().children[0].doing == ""


async def test_message_for_an_actor_without_receive_is_its_crash(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A bug of the sender is seen, and named."""
    mailbox: Mailbox[Any] = Mailbox("timer")
    tree = await stage.run(nursery, group(Child(name="timer", start=Timer, mailbox=mailbox)))
    mailbox.tell("surprise")
    await wait_all_tasks_blocked()

    failure = tree.snapshot().children[0].last_failure
    assert failure is not None
    assert failure.error == "NotImplementedError: Timer got 'surprise' and has no receive()"


class TwoFailures(Actor[Never]):
    """Two of its tasks fail in the same turn."""

    async def started(self) -> None:
        self.context.nursery.start_soon(self.fail, Boom("one"))
        self.context.nursery.start_soon(self.fail, KeyError("two"))

    async def fail(self, error: Exception) -> None:
        raise error


async def test_failures_that_come_together_are_all_shown(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A group of several is told whole, on one line."""
    spec = group(Child(name="a", start=TwoFailures, restart=Restart.TEMPORARY))
    tree = await stage.run(nursery, spec)
    await wait_all_tasks_blocked()

    failure = tree.snapshot().children[0].last_failure
    assert failure is not None
    assert sorted(failure.error.split("; ")) == ["Boom: one", "KeyError: 'two'"]


async def test_unknown_path_names_the_nearest(stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """The root is no child of anyone and cannot be restarted."""
    tree = await stage.run(nursery, group(stage.child("leader")))
    with pytest.raises(UnknownActor, match=r"no actor has the path 'root.leadr'; did you mean 'root.leader'\?"):
        tree.restart("root.leadr")
    with pytest.raises(UnknownActor, match=r"no actor has the path 'xyz'$"):
        tree.restart("xyz")
    with pytest.raises(UnknownActor):
        tree.restart("root")
