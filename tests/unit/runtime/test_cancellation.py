"""Cancellation from outside, and the exceptions that are no actor's crash."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import MailboxClosed
from engine.runtime import Backoff, ChildFailedStopping, Supervision
from tests.unit.runtime.scripted import Boom, Crash, Say, Stage, group, states


async def test_cancellation_from_outside_ends_all_at_once(stage: Stage, autojump_clock: MockClock) -> None:
    """In the middle of a message: no hook, no deadline, no restart, no task left, mailboxes closed."""
    inner = group(stage.child("b"), name="inner")
    tree = Supervision(group(stage.child("a", shutdown_s=60.0), inner), stage.environment)
    stage.mail["a"].tell(Say("never", after_s=100))

    with trio.move_on_after(3) as scope:
        await tree.run()

    assert scope.cancelled_caught
    assert trio.current_time() == 3
    assert sorted(stage.journal.since(2)) == ["xa", "xb"]
    assert states(tree.snapshot()) == dict.fromkeys(["root", "a", "inner", "b"], "stopped")
    with pytest.raises(MailboxClosed):
        stage.mail["b"].tell(Say("late"))
    await tree.wait_stopped()


async def test_cancellation_during_a_backoff_leaves_the_child_down(stage: Stage, autojump_clock: MockClock) -> None:
    """Nothing waits for its turn any more, and the tree says so."""
    tree = Supervision(group(stage.child("a"), backoff=Backoff(60.0, 60.0)), stage.environment)
    stage.mail["a"].tell(Crash(Boom()))
    with trio.move_on_after(3):
        await tree.run()

    assert states(tree.snapshot()) == {"root": "stopped", "a": "stopped"}


async def test_failure_during_cancellation_is_reported_and_does_not_replace_it(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A clean-up that raises is news, and the cancellation is still a cancellation."""
    error = Boom("in clean-up")

    async def wait_badly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as own:
            tree = await stage.run(own, group(stage.child("a", stopping=wait_badly, shutdown_s=60.0)))
            tree.stop()
            await wait_all_tasks_blocked()
            scope.cancel()

    assert scope.cancelled_caught
    assert stage.happened(ChildFailedStopping) == [ChildFailedStopping("root.a", error)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_interrupt_and_exit_are_nobodys_crash(
    stage: Stage, autojump_clock: MockClock, error: BaseException
) -> None:
    """They pass through every supervisor, ending all at once."""
    inner = group(stage.child("b"), name="inner")
    tree = Supervision(group(stage.child("a"), inner), stage.environment)
    stage.mail["b"].tell(Crash(error))

    with pytest.raises(BaseExceptionGroup) as caught:
        await tree.run()

    assert caught.value.split(type(error))[1] is None

    assert states(tree.snapshot()) == dict.fromkeys(["root", "a", "inner", "b"], "stopped")
    assert stage.journal.texts.count("+b") == 1
