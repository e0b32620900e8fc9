"""Bounded mailboxes: how actors talk. Delivery is in order and at most once, within one trio run."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

import trio

from engine.errors import AskTimeout, MailboxClosed, MailboxFull, SupervisorSpecError

M = TypeVar("M")
R = TypeVar("R")


@final
@dataclass(frozen=True, slots=True)
class MailboxStatistics:
    """The figures of one mailbox at one instant."""

    depth: int
    """Messages waiting, without those whose sender waits for room."""
    capacity: int
    high_water: int
    """The greatest depth there has been."""
    oldest_age_s: float
    """How long the next message has waited; 0.0 when none waits."""
    received: int
    """Messages accepted since the mailbox was made."""


@final
class Reply(Generic[R]):
    """Where the answer to one ``ask`` goes. A message carries it as a field; the actor calls ``send`` once.

    A second answer is ignored, and so is one that comes after the asker has left.
    """

    __slots__ = ("_answers", "_settled")

    def __init__(self) -> None:
        self._answers: list[R] = []
        self._settled = trio.Event()

    def send(self, value: R) -> None:
        """Answer. Never waits and never fails."""
        if not self._settled.is_set():
            self._answers.append(value)
            self._settled.set()

    def abandon(self) -> None:
        """The mailbox's: nobody waits any more."""
        self._settled.set()

    async def wait(self, mailbox: str) -> R:
        """The mailbox's: wait for the answer.

        Raises:
            MailboxClosed: the tree of ``mailbox`` stopped first.
        """
        await self._settled.wait()
        if not self._answers:
            raise MailboxClosed(mailbox)
        return self._answers[0]


@final
@dataclass(slots=True, eq=False)
class _WaitingSender(Generic[M]):
    message: M
    accepted: bool = False


@final
class Mailbox(Generic[M]):
    """A bounded queue of typed messages with one reader.

    It belongs to the child's place in the tree and not to the actor, so mail survives a restart. All methods
    are for tasks of one trio run; from another thread, go through ``trio.from_thread``.
    """

    def __init__(self, name: str, *, capacity: int = 1000) -> None:
        if capacity < 1:
            raise SupervisorSpecError(f"mailbox {name!r}", f"capacity must be at least 1, not {capacity}")
        self.name = name
        self.capacity = capacity
        self._queue: deque[tuple[float, M]] = deque()  # with the instant of acceptance
        self._senders: OrderedDict[trio.lowlevel.Task, _WaitingSender[M]] = OrderedDict()
        self._questions: set[Reply[Any]] = set()
        self._reader = trio.lowlevel.ParkingLot()
        self._closed = False
        self._high_water = 0
        self._received = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._queue)}/{self.capacity}"
        return f"<Mailbox {self.name!r} {state}>"

    @property
    def closed(self) -> bool:
        """True once the tree has stopped. It never opens again."""
        return self._closed

    def tell(self, message: M) -> None:
        """Leave a message and go on.

        Raises:
            MailboxFull: there is no room; the message is not kept.
            MailboxClosed: the tree has stopped.
        """
        self._check_open()
        if len(self._queue) >= self.capacity:
            raise MailboxFull(self.name, self.capacity)
        self._accept(message)

    async def send(self, message: M) -> None:
        """Leave a message, waiting for room in the order of arrival. If cancelled meanwhile, it was not left.

        Raises:
            MailboxClosed: the tree has stopped, perhaps while waiting.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if len(self._queue) < self.capacity:
            self._accept(message)
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        task, sender = trio.lowlevel.current_task(), _WaitingSender(message)
        self._senders[task] = sender

        def leave(_: object) -> trio.lowlevel.Abort:
            del self._senders[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        if not sender.accepted:
            raise MailboxClosed(self.name)

    async def ask(self, make: Callable[[Reply[R]], M], *, timeout_s: float) -> R:
        """Send the message that ``make`` builds around a fresh ``Reply``, and wait for the answer.

        The time covers waiting for room as well. When it is over, the question may still be answered, to
        nobody.

        Raises:
            AskTimeout: no answer within ``timeout_s`` seconds; also when the actor crashed on the question.
            MailboxClosed: the tree has stopped.
        """
        reply: Reply[R] = Reply()
        question = make(reply)
        self._questions.add(reply)
        try:
            with trio.move_on_after(timeout_s):
                await self.send(question)
                return await reply.wait(self.name)
        finally:
            self._questions.discard(reply)
            reply.abandon()
        raise AskTimeout(self.name, type(question).__name__, timeout_s)

    async def wait_mail(self) -> None:
        """Wait until there is a message to take. Always a checkpoint.

        Raises:
            MailboxClosed: the tree has stopped.
        """
        await trio.lowlevel.checkpoint()
        while not self._queue:
            self._check_open()
            await self._reader.park()

    def take(self) -> M:
        """Remove the oldest message. Only after ``wait_mail``, by the only reader."""
        _, message = self._queue.popleft()
        if self._senders:
            task, sender = self._senders.popitem(last=False)
            sender.accepted = True
            self._accept(sender.message)
            trio.lowlevel.reschedule(task)
        return message

    async def receive(self) -> M:
        """Wait for the oldest message and remove it: for a reader that is not an actor.

        Raises:
            MailboxClosed: the tree has stopped.
        """
        await self.wait_mail()
        return self.take()

    def close(self) -> None:
        """Drop the queue, refuse mail from now on, and wake with ``MailboxClosed`` whoever waits."""
        self._closed = True
        self._queue.clear()
        while self._senders:
            task, _ = self._senders.popitem(last=False)
            trio.lowlevel.reschedule(task)
        for reply in self._questions:
            reply.abandon()
        self._reader.unpark_all()

    def statistics(self) -> MailboxStatistics:
        """The figures now. Cheap enough to poll."""
        oldest_age_s = trio.current_time() - self._queue[0][0] if self._queue else 0.0
        return MailboxStatistics(
            depth=len(self._queue),
            capacity=self.capacity,
            high_water=self._high_water,
            oldest_age_s=oldest_age_s,
            received=self._received,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise MailboxClosed(self.name)

    def _accept(self, message: M) -> None:
        self._queue.append((trio.current_time(), message))
        self._received += 1
        self._high_water = max(self._high_water, len(self._queue))
        self._reader.unpark()
