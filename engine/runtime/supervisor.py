"""The supervising loop: one for each supervisor, fed by events, and never blocked by a child.

What happens to the children arrives as events. Each is taken into the plan, which decides (plan.py), and then
everything whose turn it is is done here: start, ask to stop, cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import trio

from engine.runtime.actor import ActorLife
from engine.runtime.context import Environment
from engine.runtime.events import ChildIgnoresCancellation, ChildStopOverdue, SupervisorEvent
from engine.runtime.failure import real_cause
from engine.runtime.plan import Plan
from engine.runtime.slot import Life, Slot, SupervisorSlot
from engine.runtime.strategy import Phase

_PATIENCE_WITH_CANCELLED_S = 1.0  # at least; cancellation takes no time unless someone resists it


@final
@dataclass(frozen=True, slots=True)
class _Started:
    slot: Slot


@final
@dataclass(frozen=True, slots=True)
class _Exited:
    slot: Slot
    crash: Exception | None


@final
@dataclass(frozen=True, slots=True)
class _StopRequested:
    pass


@final
@dataclass(frozen=True, slots=True)
class _RestartRequested:
    slot: Slot


_Event: TypeAlias = _Started | _Exited | _StopRequested | _RestartRequested


@final
class SupervisorLife:
    """One run of a supervisor over the slots of its children. Made for each start and used once."""

    def __init__(
        self,
        slot: SupervisorSlot,
        environment: Environment,
        on_event: Callable[[SupervisorEvent], None],
    ) -> None:
        self._slots = slot.children
        self._environment, self._emit = environment, on_event
        self._plan = Plan(slot, environment.random, on_event)
        self._events_in, self._events = trio.open_memory_channel[_Event](math.inf)

    @property
    def activity(self) -> str:
        """What the tree shows: nothing, since the children's lines say it."""
        return ""

    def request_stop(self) -> None:
        """Stop all children in reverse order, then end normally."""
        self._events_in.send_nowait(_StopRequested())

    def request_restart(self, slot: Slot) -> None:
        """Restart one child, and the siblings that the strategy ties to it, without counting it."""
        self._events_in.send_nowait(_RestartRequested(slot))

    async def run(self, on_started: Callable[[], None]) -> None:
        """Supervise; ``on_started`` is called once, when every child has started.

        Returns when all children have stopped, as asked. Cancelled, it cancels them all at once.

        Raises:
            RestartLimitExceeded: it gave up, and all children have stopped.
        """
        try:
            async with trio.open_nursery() as nursery:
                await self._supervise(nursery, on_started)
        finally:
            self._account_for_the_cancelled()
        if self._plan.gave_up is not None:
            raise self._plan.gave_up

    async def _supervise(self, nursery: trio.Nursery, on_started: Callable[[], None]) -> None:
        announced = False
        self._advance(nursery)
        while not self._plan.over:
            if self._plan.complete and not announced:
                announced = True
                on_started()
            with trio.move_on_at(self._next_instant_s()):
                self._take_in(await self._events.receive())
            self._advance(nursery)

    def _take_in(self, event: _Event) -> None:
        match event:
            case _Started(slot):
                self._plan.has_started(slot, now_s=self._now_s())
            case _Exited(slot, crash):
                self._plan.has_exited(slot, crash, now_s=self._now_s())
            case _RestartRequested(slot):
                self._plan.restart_by_hand(slot)
            case _StopRequested():
                self._plan.halt()

    def _advance(self, nursery: trio.Nursery) -> None:
        """Do all that is to be done by now. Waits for nothing."""
        now_s = self._now_s()
        for slot in self._slots:
            if slot.phase is Phase.STOPPING and slot.cancel_at_s <= now_s:
                self._lose_patience(slot, now_s)
        for slot in self._plan.to_stop():
            self._ask_to_stop(slot, now_s)
        for slot in self._plan.to_start():
            if slot.not_before_s <= now_s:
                self._start(slot, nursery)

    def _next_instant_s(self) -> float:
        """When ``_advance`` has something to do even if nothing happens."""
        patience_ends_s = [slot.cancel_at_s for slot in self._slots if slot.phase is Phase.STOPPING]
        backoff_ends_s = [slot.not_before_s for slot in self._plan.to_start()]
        return min([*patience_ends_s, *backoff_ends_s], default=math.inf)

    def _start(self, slot: Slot, nursery: trio.Nursery) -> None:
        slot.phase = Phase.STARTING
        slot.starts += 1
        slot.scope = trio.CancelScope()
        slot.life = self._new_life(slot)
        nursery.start_soon(self._run_child, slot, slot.life, name=slot.path)

    def _new_life(self, slot: Slot) -> Life:
        if isinstance(slot, SupervisorSlot):
            return SupervisorLife(slot, self._environment, self._emit)
        start, mailbox = slot.spec.start, slot.mailbox
        return ActorLife(start, path=slot.path, mailbox=mailbox, environment=self._environment)

    async def _run_child(self, slot: Slot, life: Life) -> None:
        crash: Exception | None = None
        try:
            try:
                with slot.scope:
                    await life.run(lambda: self._events_in.send_nowait(_Started(slot)))
            except* Exception as group:  # noqa: BLE001  # a supervisor is where every crash is taken in
                crash = real_cause(group)
        except BaseException:  # cancellation from outside, KeyboardInterrupt, SystemExit: they end everything
            self._plan.halt()
            raise
        finally:
            self._events_in.send_nowait(_Exited(slot, crash))

    def _ask_to_stop(self, slot: Slot, now_s: float) -> None:
        slot.phase = Phase.STOPPING
        slot.cancelled_at_s = None
        slot.cancel_at_s = now_s + slot.shutdown_s
        if slot.life is not None:
            slot.life.request_stop()

    def _lose_patience(self, slot: Slot, now_s: float) -> None:
        """Cancel the child; the next time, say that it resists. No task can be abandoned: the stop waits."""
        if slot.cancelled_at_s is None:
            slot.cancelled_at_s = now_s
            slot.cancel_at_s = now_s + max(slot.shutdown_s, _PATIENCE_WITH_CANCELLED_S)
            slot.scope.cancel()
            self._emit(ChildStopOverdue(slot.path, slot.shutdown_s))
        else:
            slot.cancel_at_s = math.inf
            self._emit(ChildIgnoresCancellation(slot.path, now_s - slot.cancelled_at_s))

    def _account_for_the_cancelled(self) -> None:
        """After cancellation from outside: take in the exits that the loop did not live to see."""
        self._plan.halt()
        while self._events.statistics().current_buffer_used:
            event = self._events.receive_nowait()
            if isinstance(event, _Exited):
                self._take_in(event)

    def _now_s(self) -> float:
        return self._environment.clock.monotonic()
