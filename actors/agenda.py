"""What the coordinator has before it, and what it decides about it: plain values and functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, final

from engine.domain.names import task_of
from engine.domain.policy import CatchUp, overlap_of
from engine.domain.run import Reason
from engine.domain.slot import catch_up
from engine.store.timetable import Due, Enrolment, Move, Slot

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from engine.domain.task import Definition

__all__ = ["WINDOW_MS", "Agenda", "Plan", "enrolments", "passing", "plan", "priority"]

WINDOW_MS = 10_000
"""How far ahead the coordinator keeps ``due`` in memory."""


@final
@dataclass(slots=True)
class Agenda:
    """The part of ``due`` that falls before ``horizon_ms``, earliest first. Redis is the truth, this is a copy."""

    horizon_ms: int = 0
    _heap: list[tuple[int, str, bool]] = field(default_factory=list)
    _left: list[int] = field(default_factory=list)
    """When that was due which is left alone until Redis is asked again."""

    def load(self, window: Iterable[Due], horizon_ms: int) -> None:
        """Replace everything by what Redis said."""
        self.horizon_ms = horizon_ms
        self._heap = [(due.at_ms, due.id, due.is_run) for due in window]
        self._left.clear()
        heapify(self._heap)

    def add(self, due: Due) -> None:
        """Note an instant, unless it lies beyond the horizon, where Redis will be asked again."""
        if due.at_ms < self.horizon_ms:
            heappush(self._heap, (due.at_ms, due.id, due.is_run))

    def note(self, news: Collection[Due]) -> None:
        """Take in what was heard of; no news in particular means that Redis is to be asked."""
        if not news:
            self.forget()
        for due in news:
            self.add(due)

    def take(self, now_ms: int) -> list[Due]:
        """Remove what is due, earliest first, each once however often it was noted."""
        taken: dict[Due, None] = {}
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, name, is_run = heappop(self._heap)
            taken[Due(id=name, at_ms=at_ms, is_run=is_run)] = None
        return list(taken)

    def leave(self, due: Due) -> None:
        """Put aside what was taken and stays in ``due``, until Redis is asked again."""
        self._left.append(due.at_ms)

    def knows(self, minimum_ms: int) -> bool:
        """Is the first instant in ``due`` no news?"""
        return minimum_ms >= min([self.first_ms, *self._left])

    @property
    def first_ms(self) -> int:
        """When there is something to do: the first instant, or the horizon."""
        return self._heap[0][0] if self._heap else self.horizon_ms

    def forget(self) -> None:
        """Know nothing: the next look asks Redis."""
        self.horizon_ms = 0
        self._heap.clear()
        self._left.clear()


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What to write about the slots that are due: first the slots missed, then one slot for each task."""

    moves: list[Move]
    slots: list[Slot]


def plan(due: Iterable[Due], tasks: Mapping[str, Definition], now_ms: int, *, allow_parallel: bool) -> Plan:
    """Decide about open slots by the tasks' catch-up policies. Tasks that are not in the catalog are left alone.

    ``allow_parallel`` is for tasks that do not say.
    """
    moves: list[Move] = []
    slots: list[Slot] = []
    for item in due:
        task = tasks.get(item.id)
        if item.is_run or task is None:
            continue
        decision = catch_up(task.schedule, item.at_ms, now_ms, CatchUp.LATEST)
        if decision.missed is not None:
            moves.append(
                Move(
                    task_id=item.id,
                    due_ms=item.at_ms,
                    next_ms=decision.next_ms if decision.publish_ms is None else decision.publish_ms,
                    count=decision.missed.count,
                    last_ms=decision.missed.to_ms,
                )
            )
        if decision.publish_ms is None:
            continue
        slots.append(
            Slot(
                task_id=item.id,
                due_ms=decision.publish_ms,
                next_ms=decision.next_ms,
                priority=priority(task),
                overlap=overlap_of(allow_parallel=task.allow_parallel, default=allow_parallel).value,
            )
        )
    return Plan(moves, slots)


def passing(tasks: Mapping[str, Definition], known: Mapping[str, int], retold: Mapping[str, int]) -> list[Move]:
    """The next step past slots whose runs Redis had forgotten and was told of: one for each task that has any.

    A slot before them of which nobody knows what became is missed: a later one is known to have started.
    """
    slots: dict[str, list[int]] = {}
    for run_id, slot_ms in retold.items():
        slots.setdefault(task_of(run_id), []).append(slot_ms)
    moves = []
    for task_id, told in slots.items():
        task, due_ms = tasks.get(task_id), known.get(task_id)
        if task is None or due_ms is None:
            continue
        open_slots = [ms for ms in told if ms >= due_ms]
        if not open_slots:
            continue
        slot_ms = min(open_slots)
        if slot_ms == due_ms:
            moves.append(Move(task_id, due_ms, task.schedule.next_after(slot_ms)))
            continue
        before_ms = task.schedule.latest_at_or_before(slot_ms - 1)
        last_ms = due_ms if before_ms is None else max(due_ms, before_ms)
        count = 1 + task.schedule.count(due_ms, last_ms)
        reason = Reason.FORGOTTEN.value
        moves.append(Move(task_id, due_ms, slot_ms, count=count, last_ms=last_ms, reason=reason))
    return moves


def enrolments(
    tasks: Mapping[str, Definition], known: Mapping[str, int], now_ms: int, *, passed_ms: int, allow_parallel: bool
) -> tuple[list[Enrolment], list[Move]]:
    """What brings ``due`` in line with the catalog: first instants for new tasks, others for changed schedules.

    A task whose due instant is no instant of its schedule, or not the next one, was declared with another schedule; if
    that slot was open, it is recorded as missed. Nothing is due again up to ``passed_ms``, where the clock of Redis
    stood already if it is behind that now.
    """
    after_ms = max(now_ms, passed_ms)
    new: list[Enrolment] = []
    moved: list[Move] = []
    for task_id, task in tasks.items():
        due_ms, first_ms = known.get(task_id), task.schedule.next_after(after_ms)
        if due_ms is None:
            if first_ms is not None:
                new.append(
                    Enrolment(
                        task_id=task_id,
                        first_ms=first_ms,
                        first_run_id=f"{task_id}@first" if task.run_on_first_start else "",
                        priority=priority(task),
                        overlap=overlap_of(allow_parallel=task.allow_parallel, default=allow_parallel).value,
                    )
                )
        elif not task.schedule.is_instant(due_ms) or (first_ms is not None and due_ms > first_ms):
            moved.append(
                Move(
                    task_id=task_id,
                    due_ms=due_ms,
                    next_ms=first_ms,
                    count=1 if due_ms <= now_ms else 0,
                    last_ms=due_ms,
                )
            )
    return new, moved


def priority(task: Definition) -> str:
    """The stream of a task's runs."""
    return "high" if task.high_priority else "low"
