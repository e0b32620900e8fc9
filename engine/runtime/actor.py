"""The actor, and one life of it: from its start to its end or crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

import trio

from engine.runtime.context import Context, Environment
from engine.runtime.mailbox import Mailbox

M = TypeVar("M")


class Actor(Generic[M]):
    """State and behaviour behind a mailbox. Subclasses handle one message at a time, so they need no locks.

    An exception that leaves any method, or a task in ``context.nursery``, is a crash: the instance is thrown
    away with the message in progress, and the supervisor starts a fresh one. No hook runs at a crash, since
    the state cannot be trusted; what must be released belongs in ``with`` or ``finally``.
    """

    context: Context[M]
    """Bound by the runtime before ``started``."""

    async def started(self) -> None:
        """Prepare. The next sibling starts when this has returned. A request to stop cancels it."""

    async def receive(self, message: M) -> None:
        """Handle one message."""
        raise NotImplementedError(f"{type(self).__name__} got {message!r} and has no receive()")

    async def stopping(self) -> None:
        """Take leave: asked to stop, or after ``context.finish()``. Own tasks still run.

        Asked to stop, the message in progress and this share the child's ``shutdown_s``; over it they are
        cancelled.
        """


@final
class ActorLife:
    """One instance of an actor at work. Made for each start and used once."""

    def __init__(
        self, start: Callable[[], Actor[Any]], *, path: str, mailbox: Mailbox[Any], environment: Environment
    ) -> None:
        self._start = start
        self._path, self._mailbox, self._environment = path, mailbox, environment
        self._ending = False
        self._starting = trio.CancelScope()
        self._idle = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._doing: str | Callable[[], str] = ""
        self._handling = ""

    @property
    def activity(self) -> str:
        """What the actor says it does, or else the message in progress."""
        doing = self._doing
        return (doing if isinstance(doing, str) else doing()) or self._handling

    def doing(self, what: str | Callable[[], str]) -> None:
        """The actor says what it does."""
        self._doing = what

    def finish(self) -> None:
        """End after the message in progress."""
        self._ending = True
        self._idle.cancel()

    def request_stop(self) -> None:
        """End after the message in progress; before the first one there is nothing to finish, so at once."""
        self.finish()
        self._starting.cancel()

    def crash(self, error: Exception) -> bool:
        """Raise ``error`` in the actor's nursery, as a task of its own would. False if that is not open."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(_fail, error)
        return True

    async def run(self, on_started: Callable[[], None]) -> None:
        """Live. Returns at a normal end; what is raised, alone or in a group, is the crash."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self._live(nursery, on_started)
            finally:
                self._nursery = None  # here, since it closes when its last task has ended, and takes no more

    async def _live(self, nursery: trio.Nursery, on_started: Callable[[], None]) -> None:
        actor = self._start()
        actor.context = Context(
            path=self._path,
            mailbox=self._mailbox,
            nursery=nursery,
            environment=self._environment,
            life=self,
        )
        with self._starting:
            await actor.started()
        if not self._starting.cancelled_caught:
            on_started()
            while await self._has_mail():
                await self._handle_one(actor)
            await actor.stopping()
        nursery.cancel_scope.cancel()

    async def _has_mail(self) -> bool:
        """Wait for a message; false when it is time to end."""
        if not self._ending:
            with trio.CancelScope() as self._idle:
                await self._mailbox.wait_mail()
        return not self._ending

    async def _handle_one(self, actor: Actor[Any]) -> None:
        message = self._mailbox.take()  # taken before it is handled: a message that kills its actor must not come back
        self._handling = f"handling {type(message).__name__}"
        await actor.receive(message)
        self._handling = ""


async def _fail(error: Exception) -> None:
    raise error
