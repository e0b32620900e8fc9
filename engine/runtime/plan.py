"""What a supervisor intends: takes in what happened, says whose turn it is, starts and stops nobody."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import final

from engine.errors import RestartLimitExceeded
from engine.runtime.events import (
    ChildEnded,
    ChildFailed,
    ChildFailedStopping,
    ChildStarted,
    ChildStopped,
    SupervisorEvent,
    SupervisorGaveUp,
)
from engine.runtime.failure import RecordedFailure
from engine.runtime.intensity import Intensity
from engine.runtime.slot import Slot, SupervisorSlot
from engine.runtime.spec import Restart, Strategy
from engine.runtime.strategy import LEAVING, UP, Phase, affected, next_to_start, next_to_stop, restarts


@final
class Plan:
    """The intentions of one run of a supervisor, kept as the phases of its children's slots.

    Level-triggered: whose turn it is follows from the phases alone, so a crash in the middle of a restart, a
    stop or a backoff only changes phases, and what is under way goes on from there.
    """

    def __init__(self, slot: SupervisorSlot, chance: random.Random, emit: Callable[[SupervisorEvent], None]) -> None:
        self._path, self._spec, self._slots = slot.path, slot.spec, slot.children
        self._chance, self._emit = chance, emit
        self._intensity = Intensity(slot.spec.max_restarts, slot.spec.within_s)
        self._halting = False
        self.gave_up: RestartLimitExceeded | None = None
        """Set with the last crash as its cause; to be raised when all children are down."""
        for child in self._slots:
            child.phase, child.fresh, child.failed = Phase.WAITING, True, False
            child.not_before_s = -math.inf

    @property
    def complete(self) -> bool:
        """Every child has started once (or will not), and nobody stops them."""
        return not self._halting and all(slot.phase is Phase.DONE or not slot.fresh for slot in self._slots)

    @property
    def over(self) -> bool:
        """All are down, for good."""
        return self._halting and all(slot.phase is Phase.DONE for slot in self._slots)

    def to_stop(self) -> list[Slot]:
        """Whom to ask now: one after the other, except under one_for_one, where each goes by itself."""
        in_order = self._halting or self._spec.strategy is not Strategy.ONE_FOR_ONE
        return [self._slots[index] for index in next_to_stop(self._phases(), in_order=in_order)]

    def to_start(self) -> list[Slot]:
        """Whose turn it is, once the backoff is over."""
        fresh = [slot.fresh for slot in self._slots]
        return [self._slots[index] for index in next_to_start(self._spec.strategy, self._phases(), fresh)]

    def has_started(self, slot: Slot, *, now_s: float) -> None:
        """The child's ``started`` has returned."""
        slot.fresh = False
        slot.up_since_s = now_s
        if slot.phase is Phase.STARTING:
            slot.phase = Phase.RUNNING
        self._emit(ChildStarted(slot.path, slot.restarts))

    def has_exited(self, slot: Slot, crash: Exception | None, *, now_s: float) -> None:
        """The child is down, whether by itself or as asked."""
        if slot.uptime_s(now_s) >= self._spec.within_s:
            slot.failures_in_a_row = 0
        slot.life, slot.up_since_s = None, None
        if crash is not None:
            slot.last_failure = RecordedFailure.of(crash, at_s=now_s)
        if slot.phase in LEAVING:  # what was planned for it stands
            slot.phase = Phase.WAITING if slot.start_again else Phase.DONE
            self._emit(ChildStopped(slot.path) if crash is None else ChildFailedStopping(slot.path, crash))
        elif restarts(slot.restart, crashed=crash is not None):
            self._restart(slot, crash, now_s=now_s)
        else:
            self._leave_down(slot, crash)

    def restart_by_hand(self, slot: Slot) -> None:
        """Someone wants the child restarted. Counts for nothing; ignored while stopping."""
        if self._halting:
            return
        slot.not_before_s = -math.inf
        if slot.phase in UP:
            slot.phase = Phase.CONDEMNED
        elif slot.phase is Phase.DONE:
            slot.phase = Phase.WAITING
        slot.start_again, slot.failed = True, False
        self._tie_siblings(slot)

    def halt(self) -> None:
        """Nobody is started any more; all go down in reverse order."""
        self._halting = True
        for slot in self._slots:
            slot.start_again = False
            if slot.phase in UP:
                slot.phase = Phase.CONDEMNED
            elif slot.phase is Phase.WAITING:
                slot.phase = Phase.DONE

    def _restart(self, slot: Slot, crash: Exception | None, *, now_s: float) -> None:
        """The child ended by itself and comes back, if the intensity grants it."""
        self._intensity = self._intensity.add(now_s)
        if self._intensity.exceeded:
            self._give_up(slot, crash)
            return
        slot.phase = Phase.WAITING
        slot.failures_in_a_row += 1
        backoff = self._spec.backoff if slot.backoff is None else slot.backoff
        delay_s = backoff.delay_s(slot.failures_in_a_row, self._chance)
        self._tie_siblings(slot)
        for tied in self._affected(slot):
            tied.not_before_s = max(tied.not_before_s, now_s + delay_s)
        self._report_exit(slot, crash, restart_in_s=delay_s)

    def _give_up(self, slot: Slot, crash: Exception | None) -> None:
        max_restarts, within_s = self._spec.max_restarts, self._spec.within_s
        self._leave_down(slot, crash)
        slot.failed = True  # even if it did not crash: it ended too often
        self.gave_up = RestartLimitExceeded(slot.path, max_restarts, within_s)
        self.gave_up.__cause__ = crash
        self._emit(SupervisorGaveUp(self._path, slot.path, max_restarts, within_s))
        self.halt()

    def _leave_down(self, slot: Slot, crash: Exception | None) -> None:
        slot.phase, slot.failed = Phase.DONE, crash is not None
        self._report_exit(slot, crash, restart_in_s=None)

    def _tie_siblings(self, slot: Slot) -> None:
        """The siblings that the strategy ties to ``slot`` go down, if they are up, and come back with it."""
        for sibling in self._affected(slot):
            comes_back = sibling.restart is not Restart.TEMPORARY
            if sibling is slot:
                continue
            if sibling.phase in UP:
                sibling.phase, sibling.start_again = Phase.CONDEMNED, comes_back
            elif sibling.phase is Phase.DONE and comes_back:
                sibling.phase = Phase.WAITING

    def _affected(self, slot: Slot) -> list[Slot]:
        indexes = affected(self._spec.strategy, self._slots.index(slot), len(self._slots))
        return [self._slots[index] for index in indexes]

    def _phases(self) -> list[Phase]:
        return [slot.phase for slot in self._slots]

    def _report_exit(self, slot: Slot, crash: Exception | None, *, restart_in_s: float | None) -> None:
        left = self._intensity.left
        if crash is None:
            self._emit(ChildEnded(slot.path, restart_in_s, left))
        else:
            self._emit(ChildFailed(slot.path, crash, restart_in_s, left))
