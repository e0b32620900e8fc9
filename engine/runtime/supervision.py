"""The whole tree from outside: run it, look at it, stop it."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import final

import trio

from engine.errors import CannotCrash, RestartLimitExceeded, UnknownActor
from engine.runtime.actor import ActorLife
from engine.runtime.context import Environment
from engine.runtime.events import SupervisorEvent, log_event
from engine.runtime.failure import RecordedFailure
from engine.runtime.slot import ActorSlot, Slot, SupervisorSlot
from engine.runtime.spec import Supervisor
from engine.runtime.strategy import UP, Phase
from engine.runtime.supervisor import SupervisorLife
from engine.runtime.tree import Node


@final
class Supervision:
    """One run of a supervision tree. All methods are for tasks of the trio run it lives in.

    ``on_event`` hears every event after it was logged, between two steps of a supervisor: it must not raise.
    """

    def __init__(
        self,
        spec: Supervisor,
        environment: Environment,
        *,
        on_event: Callable[[SupervisorEvent], None] | None = None,
    ) -> None:
        self._environment = environment
        self._on_event = on_event
        self._root = SupervisorSlot(spec)
        self._life = SupervisorLife(self._root, environment, self._heard)
        self._begun = False
        self._announced = False
        self._stopped = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[Supervision] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the children, supervise them, and return when the tree has stopped after ``stop``.

        ``task_status`` is started when every child has (or when it was all stopped before that). Cancelled,
        everything is cancelled at once, without the deadlines of an ordered stop. In any case the mailboxes
        are closed at the end.

        Raises:
            RestartLimitExceeded: the root gave up; everything has stopped. ``__cause__`` is the last crash.
        """
        if self._begun:
            raise RuntimeError("this Supervision has run already; make a new one")
        self._begun = True
        root, self._root.life = self._root, self._life
        root.phase, root.starts = Phase.STARTING, 1

        def announce() -> None:
            root.phase, root.up_since_s = Phase.RUNNING, self._environment.clock.monotonic()
            self._announce(task_status)

        try:
            await self._life.run(announce)
        except RestartLimitExceeded as error:
            root.failed = True
            root.last_failure = RecordedFailure.of(error, at_s=self._environment.clock.monotonic())
            raise
        finally:
            root.phase, root.life, root.up_since_s = Phase.DONE, None, None
            for slot in root.walk():
                if isinstance(slot, ActorSlot):
                    slot.mailbox.close()
            self._stopped.set()
        self._announce(task_status)

    def stop(self) -> None:
        """Ask for the ordered stop, and return at once. Again: no effect."""
        if self._root.phase in {Phase.STARTING, Phase.RUNNING}:
            self._root.phase = Phase.CONDEMNED
        self._life.request_stop()

    async def wait_stopped(self) -> None:
        """Wait until no task of the tree is left, whatever ended it."""
        await self._stopped.wait()

    def restart(self, path: str) -> None:
        """Ask for one actor or supervisor below the root to be restarted, and return at once.

        It is stopped as at the end, with its deadline, and started again without backoff, whatever its
        restart kind; one that has ended comes back. Siblings tied to it by the strategy go with it. Nothing
        counts against the restart intensity. No effect while its supervisor is down or stopping.

        ``path`` is that of the snapshot; the name of the root before it may be left out.

        Raises:
            UnknownActor: nothing below the root has this path; names the nearest.
        """
        slot = self._find(path)
        if slot.parent is None:
            raise UnknownActor(path, None)
        if isinstance(slot.parent.life, SupervisorLife):
            slot.parent.life.request_restart(slot)

    def crash(self, path: str, error: Exception) -> None:
        """Have one actor fail with ``error``, as if a task in its nursery had raised it, and return at once.

        Its supervisor does what it does at any crash: it counts it and restarts the actor after its backoff, or gives
        up. For tests that need a failing part.

        Raises:
            UnknownActor: nothing has this path; names the nearest.
            CannotCrash: it is a supervisor, or an actor that is not up.
        """
        slot = self.actor(path)
        if slot.phase not in UP:
            state = slot.state(self._environment.clock.monotonic())
            raise CannotCrash(slot.path, f"it is not up ({state.value.replace('_', ' ')})")
        if not isinstance(slot.life, ActorLife) or not slot.life.crash(error):
            raise CannotCrash(slot.path, "it is not up (just beginning, or just ending)")

    def actor(self, path: str) -> ActorSlot:
        """The place of an actor. From any thread, since places never change.

        Raises:
            UnknownActor: nothing has this path; names the nearest.
            CannotCrash: it is a supervisor.
        """
        slot = self._find(path)
        if isinstance(slot, SupervisorSlot):
            children = ", ".join(child.path for child in slot.children)
            raise CannotCrash(slot.path, f"it is a supervisor; crash one of {children}")
        return slot

    def snapshot(self) -> Node:
        """The tree now. Cheap enough to poll: it takes no lock and asks no actor."""
        return self._root.snapshot(self._environment.clock.monotonic())

    def _find(self, path: str) -> Slot:
        """The place with this path; the name of the root before it may be left out."""
        below = len(self._root.path) + 1
        slots: dict[str, Slot] = {slot.path[below:]: slot for slot in self._root.walk() if slot is not self._root}
        slots |= {slot.path: slot for slot in self._root.walk()}
        if path not in slots:
            near = get_close_matches(path, slots.keys() - {self._root.path}, n=1, cutoff=0.5)
            raise UnknownActor(path, next(iter(near), None))
        return slots[path]

    def _announce(self, task_status: trio.TaskStatus[Supervision]) -> None:
        if not self._announced:
            self._announced = True
            task_status.started(self)

    def _heard(self, event: SupervisorEvent) -> None:
        log_event(event)
        if self._on_event is not None:
            self._on_event(event)


async def supervise(
    spec: Supervisor,
    environment: Environment,
    *,
    on_event: Callable[[SupervisorEvent], None] | None = None,
    task_status: trio.TaskStatus[Supervision] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a supervision tree: ``tree = await nursery.start(supervise, spec, environment)``.

    A program that wants to see or stop the tree while it still starts makes a ``Supervision`` and runs that
    instead. What is returned and raised is told there.
    """
    await Supervision(spec, environment, on_event=on_event).run(task_status=task_status)
