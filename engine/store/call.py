"""One command on its way to Redis and back to the task that waits for it."""

from __future__ import annotations

from typing import Any, Final, final

import hiredis
from redis.exceptions import DataError
from trio.lowlevel import Abort, Task, reschedule

PENDING: Final = object()
"""In place of a reply that has not come."""


@final
class Failed:
    """In place of a reply: what the waiting task should raise."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


@final
class Call:
    """A command on its way: queued, then sent, then answered. ``task`` is None once nobody waits for it.

    Or several commands, ``count``, that are sent together: ``earlier`` are the replies before the last one.
    """

    __slots__ = ("at_s", "block_s", "count", "deadline_s", "earlier", "packed", "reply", "task")

    def __init__(
        self, packed: bytes, task: Task, at_s: float, block_s: float, deadline_s: float, *, count: int = 1
    ) -> None:
        self.packed = packed
        self.count = count
        self.earlier: list[Any] = []
        self.task: Task | None = task
        self.at_s = at_s
        self.block_s = block_s
        self.deadline_s = deadline_s
        self.reply: Any = PENDING

    def abandon(self, _raise_cancel: object) -> Abort:
        """The waiting task was cancelled; the reply will be dropped when it comes."""
        self.task = None
        return Abort.SUCCEEDED

    def take(self, reply: object) -> bool:
        """The next reply, in order; True if that was the last."""
        if len(self.earlier) + 1 < self.count:
            self.earlier.append(reply)
            return False
        self.answer(reply)
        return True

    def answer(self, reply: object) -> None:
        """Wake the waiting task, if there still is one."""
        self.reply = reply
        task = self.task
        if task is not None:
            self.task = None
            reschedule(task)


def pack(args: tuple[Any, ...]) -> bytes:
    """A command as it is on the wire.

    Raises:
        redis.exceptions.DataError: an argument is neither text, bytes nor number.
    """
    try:
        packed: bytes = hiredis.pack_command(args)
    except TypeError:
        packed = _pack_others(args)
    return packed


def _pack_others(args: tuple[Any, ...]) -> bytes:
    """Pack a command that holds other kinds of bytes, or what is no bytes at all."""
    try:
        plain: tuple[Any, ...] = tuple(bytes(arg) if isinstance(arg, bytearray | memoryview) else arg for arg in args)
        packed: bytes = hiredis.pack_command(plain)
    except TypeError as error:
        kinds = ", ".join(type(arg).__name__ for arg in args[1:])
        raise DataError(f"{args[0]}: an argument is neither str, bytes, int nor float ({kinds})") from error
    return packed
