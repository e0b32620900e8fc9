"""Mailboxes: room, order, answers, and the figures."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.errors import AskTimeout, MailboxClosed, MailboxFull, SupervisorSpecError
from engine.runtime import Mailbox, MailboxStatistics, Reply


@dataclass(frozen=True)
class Question:
    """Asks for a number."""

    reply: Reply[int]


async def test_messages_come_out_in_the_order_they_went_in() -> None:
    mailbox: Mailbox[int] = Mailbox("m")
    for number in range(3):
        mailbox.tell(number)

    assert [await mailbox.receive() for _ in range(3)] == [0, 1, 2]


async def test_full_mailbox_refuses_to_be_told() -> None:
    """The message is not kept, and the error says whose mailbox it was."""
    mailbox: Mailbox[int] = Mailbox("m", capacity=1)
    mailbox.tell(1)
    with pytest.raises(MailboxFull, match="mailbox 'm' is full: 1 messages wait"):
        mailbox.tell(2)

    assert await mailbox.receive() == 1
    assert mailbox.statistics().depth == 0


async def test_send_waits_for_room_and_nobody_overtakes(nursery: trio.Nursery) -> None:
    """Waiting senders come in the order of arrival; a tell does not steal the room that was freed for them."""
    mailbox: Mailbox[int] = Mailbox("m", capacity=1)
    mailbox.tell(1)
    for number in (2, 3):
        nursery.start_soon(mailbox.send, number)
        await wait_all_tasks_blocked()

    assert mailbox.take() == 1
    with pytest.raises(MailboxFull):
        mailbox.tell(4)
    assert [await mailbox.receive() for _ in range(2)] == [2, 3]


async def test_cancelled_send_leaves_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Cancelled while waiting for room: the message was not sent."""
    mailbox: Mailbox[int] = Mailbox("m", capacity=1)
    mailbox.tell(1)
    with trio.move_on_after(1) as scope:
        await mailbox.send(2)

    assert scope.cancelled_caught
    assert await mailbox.receive() == 1
    assert mailbox.statistics().depth == 0


async def test_ask_returns_the_answer(nursery: trio.Nursery) -> None:
    """The first answer counts; a second is ignored."""
    mailbox: Mailbox[Question] = Mailbox("m")

    async def answer_twice() -> None:
        question = await mailbox.receive()
        question.reply.send(42)
        question.reply.send(43)

    nursery.start_soon(answer_twice)
    assert await mailbox.ask(Question, timeout_s=1) == 42


async def test_ask_gives_up_in_time_and_the_late_answer_is_ignored(autojump_clock: MockClock) -> None:
    """The question stays in the mailbox; nobody hears the answer."""
    mailbox: Mailbox[Question] = Mailbox("m")
    with pytest.raises(AskTimeout, match="mailbox 'm' did not answer Question within 2 s"):
        await mailbox.ask(Question, timeout_s=2)

    assert trio.current_time() == 2
    (await mailbox.receive()).reply.send(42)


async def test_time_of_an_ask_covers_the_wait_for_room(autojump_clock: MockClock) -> None:
    mailbox: Mailbox[Question] = Mailbox("m", capacity=1)
    mailbox.tell(Question(Reply()))
    with pytest.raises(AskTimeout):
        await mailbox.ask(Question, timeout_s=2)

    assert mailbox.statistics().received == 1


async def test_close_wakes_everyone_who_waits(nursery: trio.Nursery) -> None:
    """Asker, sender and reader are told that nothing will come."""
    full: Mailbox[Question] = Mailbox("full", capacity=1)
    empty: Mailbox[Question] = Mailbox("empty")
    told: list[str] = []

    async def expect_closed(who: str, wait: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(MailboxClosed):
            await wait()
        told.append(who)

    nursery.start_soon(expect_closed, "asker", partial(full.ask, Question, timeout_s=60))
    await wait_all_tasks_blocked()
    nursery.start_soon(expect_closed, "sender", partial(full.send, Question(Reply())))
    nursery.start_soon(expect_closed, "reader", empty.receive)
    await wait_all_tasks_blocked()
    full.close()
    empty.close()
    await wait_all_tasks_blocked()

    assert sorted(told) == ["asker", "reader", "sender"]
    assert full.statistics().depth == 0
    with pytest.raises(MailboxClosed):
        await full.send(Question(Reply()))


async def test_statistics_tell_depth_peak_age_and_total(autojump_clock: MockClock) -> None:
    """The age is that of the message whose turn is next."""
    mailbox: Mailbox[int] = Mailbox("m", capacity=5)
    assert mailbox.statistics() == MailboxStatistics(0, 5, 0, 0.0, 0)

    mailbox.tell(1)
    await trio.sleep(2)
    mailbox.tell(2)
    mailbox.tell(3)
    await trio.sleep(1)
    assert mailbox.statistics() == MailboxStatistics(3, 5, 3, 3.0, 3)

    mailbox.take()
    assert mailbox.statistics() == MailboxStatistics(2, 5, 3, 1.0, 3)

    mailbox.take()
    mailbox.tell(4)
    assert mailbox.statistics() == MailboxStatistics(2, 5, 3, 1.0, 4)


async def test_sending_is_always_a_checkpoint(autojump_clock: MockClock) -> None:
    """Even with room, so that a busy sender lets others run and can be cancelled."""
    mailbox: Mailbox[int] = Mailbox("m")
    with trio.testing.assert_checkpoints():
        await mailbox.send(1)
    with trio.testing.assert_checkpoints():
        await mailbox.wait_mail()


def test_capacity_must_be_positive() -> None:
    with pytest.raises(SupervisorSpecError, match="mailbox 'm': capacity must be at least 1, not 0"):
        Mailbox("m", capacity=0)


@pytest.mark.parametrize("error", [MailboxFull("m", 3), MailboxClosed("m"), AskTimeout("m", "Question", 2.0)])
def test_errors_pickle(error: Exception) -> None:
    """Facts are fields, and args match them."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert vars(copy) == vars(error)
