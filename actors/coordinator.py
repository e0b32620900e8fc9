"""Coordinator: due slots into streams, while this worker leads."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, assert_never, final

from actors.agenda import WINDOW_MS, Agenda, enrolments, plan
from actors.messages import (
    CatalogAsked,
    CatalogRead,
    CoordinatorInbox,
    LeadershipEnded,
    LeadershipTaken,
    LeaseRenewed,
    Term,
    TermAsked,
    Turn,
    Woken,
    WriteRefused,
)
from actors.outage import PAUSE_S
from actors.timer import Timer
from engine.errors import RedisUnavailable
from engine.runtime import Actor
from engine.store.election import Lost
from engine.store.session import Broken, Deposed
from engine.store.timetable import Due, Early, Ended, Moved, Published, Queued, Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.messages import CatalogInbox, LeaderInbox
    from engine.config import Config
    from engine.domain.task import Definition
    from engine.runtime import Mailbox
    from engine.store.store import Store
    from engine.store.timetable import Move, Slot

log = logging.getLogger("fastapi.task-manager.coordinator")

LATE_MS = 5_000
"""A slot published later than this is worth a line in the log."""


@final
class Coordinator(Actor[CoordinatorInbox]):
    """Sleeps until the first due instant, then moves every due task past its slot, in one call for many.

    Owns nothing: ``due`` in Redis is the truth, the agenda a copy of its next ten seconds. A restart starts empty and
    asks the Leader and the Catalog to tell it again. Costs Redis as much as there is due, whatever there is.
    """

    def __init__(
        self, *, config: Config, store: Store, leader: Mailbox[LeaderInbox], catalog: Mailbox[CatalogInbox]
    ) -> None:
        self._config, self._store, self._leader, self._catalog = config, store, leader, catalog
        self._agenda = Agenda()
        self._term: Term | None = None
        self._renewed_at_s = 0.0
        self._tasks: Mapping[str, Definition] = {}
        self._enrolled: Mapping[str, Definition] | None = None
        """The tasks that ``due`` was brought in line with in this term."""

    async def started(self) -> None:
        """Wait for a term."""
        self._timer = Timer[CoordinatorInbox](self.context, Turn())
        self._leader.tell(TermAsked())
        self._catalog.tell(CatalogAsked())
        self.context.doing("following")

    async def receive(self, message: CoordinatorInbox) -> None:
        """Learn what changed, then take a turn."""
        match message:
            case LeadershipTaken() if message.term == self._term:
                return  # somebody else asked
            case LeadershipTaken():
                self._term, self._renewed_at_s = message.term, message.renewed_at_s
                self._enrolled = None
                self._agenda.forget()
            case LeadershipEnded():
                self._term = None
                self._timer.stop()
                self.context.doing("following")
            case LeaseRenewed():
                if not self._renewed(message):
                    return
            case CatalogRead():
                self._tasks = message.tasks
            case Woken():
                self._agenda.note(message.due)
            case Turn():
                pass
            case _:
                assert_never(message)
        await self._turn()

    def _renewed(self, message: LeaseRenewed) -> bool:
        """Note a renewal; True if it shows that something is due earlier than the agenda knows: a lost wake-up."""
        if message.term != self._term:
            return False
        self._renewed_at_s = max(self._renewed_at_s, message.renewed_at_s)
        minimum_ms = message.answer.minimum_ms
        if minimum_ms is None or minimum_ms >= self._agenda.first_ms:
            return False
        self._agenda.forget()
        return True

    async def _turn(self) -> None:
        if self._term is None:
            return
        try:
            await self._work(self._term)
        except RedisUnavailable:
            self._agenda.forget()
            self._timer.after(PAUSE_S)
        except Deposed:
            self._refused(self._term)

    async def _work(self, term: Term) -> None:
        """One turn: renew if need be, bring ``due`` in line, publish what is due, sleep until the next instant."""
        if not await self._may_write(term):
            return
        while self._enrolled is not self._tasks:
            await self._enroll(term)
        if self._agenda.horizon_ms <= self._now_ms():
            horizon_ms = self._now_ms() + WINDOW_MS
            self._agenda.load(await self._store.timetable.window(horizon_ms), horizon_ms)
        due = self._agenda.take(self._now_ms())
        if due and await self._may_write(term):
            await self._publish(term, due)
        self._timer.after((self._agenda.first_ms - self._now_ms()) / 1000)
        self.context.doing(f"scheduling {len(self._tasks)} tasks")

    async def _may_write(self, term: Term) -> bool:
        """Is the last renewal younger than two thirds of the lease? If not, renew before anything else.

        A process that stalled finds out here, before it writes; what it had sent already is refused by the epoch.
        """
        sent_at_s = self.context.clock.monotonic()
        if sent_at_s - self._renewed_at_s < term.lease_s * 2 / 3:
            return True
        match await self._store.election.renew(term.value, lease_ms=round(term.lease_s * 1000)):
            case Lost():
                self._refused(term)
                return False
            case answer:
                self.context.clock.saw_redis_ms(
                    answer.redis_ms, sent=sent_at_s, received=self.context.clock.monotonic()
                )
                self._renewed_at_s = sent_at_s
                self._leader.tell(LeaseRenewed(term, sent_at_s, answer))
                return True

    def _refused(self, term: Term) -> None:
        self._term = None
        self._timer.stop()
        self._leader.tell(WriteRefused(term))

    async def _enroll(self, term: Term) -> None:
        """Bring ``due`` in line with the catalog: all of it in a new term, then only what changed.

        Not done (to be repeated) when Redis says that this process's estimate of its time was wrong.
        """
        tasks, former = self._tasks, self._enrolled
        if former is None:
            changed: Mapping[str, Definition] = tasks
            known: Mapping[str, int | None] = await self._store.timetable.tasks()
        else:
            changed = {task_id: task for task_id, task in tasks.items() if former.get(task_id) != task}
            known = await self._store.timetable.instants(list(changed))
        new, moved = enrolments(changed, known, self._now_ms(), allow_parallel=self._config.allow_parallel)
        if moved and not await self._move(term, moved):
            return
        if new:
            await self._store.timetable.enroll(term.value, new)
        if new or moved:
            log.info("Scheduled %d new task(s), rescheduled %d", len(new), len(moved))
            self._agenda.forget()
        self._enrolled = tasks

    async def _move(self, term: Term, moves: list[Move]) -> bool:
        """False if one was early; the clock is corrected then, and what is known of ``due`` may be wrong."""
        early = [r for r in await self._store.timetable.move(term.value, moves) if isinstance(r, Early)]
        if early:
            self._correct(early[-1].redis_ms)
            self._agenda.forget()
        return not early

    async def _publish(self, term: Term, due: list[Due]) -> None:
        now_ms = self._now_ms()
        planned = plan(due, self._tasks, now_ms, allow_parallel=self._config.allow_parallel)
        if planned.moves:
            if not await self._move(term, planned.moves):
                return
            for move in planned.moves:
                log.warning("Task %s missed %d slot(s), as its catch-up policy says", move.task_id, move.count)
        if planned.slots:
            cap = self._config.queue_cap
            replies = await self._store.timetable.publish(term.value, planned.slots, queue_cap=cap)
            for slot, reply in zip(planned.slots, replies, strict=True):
                self._note(slot, reply, now_ms)
        runs = [item for item in due if item.is_run]
        if runs:
            for item, answer in zip(runs, await self._store.timetable.requeue(term.value, runs), strict=True):
                self._note_run(item, answer)

    def _note(self, slot: Slot, reply: Published | Skipped | Early | Moved | Broken, now_ms: int) -> None:
        match reply:
            case Published() | Skipped():
                if slot.next_ms is not None:
                    self._agenda.add(Due(slot.task_id, slot.next_ms, is_run=False))
                if isinstance(reply, Skipped):
                    log.info("Task %s: slot %d skipped (%s)", slot.task_id, slot.due_ms, reply.reason)
                elif now_ms - slot.due_ms > LATE_MS:
                    log.warning(
                        "Republished overdue task %s (%.1f s late)",
                        slot.task_id,
                        (now_ms - slot.due_ms) / 1000,
                    )
            case Early(redis_ms):
                self._correct(redis_ms)
                self._agenda.add(Due(slot.task_id, slot.due_ms, is_run=False))
            case Moved(due_ms):
                if due_ms is not None:
                    self._agenda.add(Due(slot.task_id, due_ms, is_run=False))
            case Broken(why):
                log.error("Task %s cannot be scheduled: a key of it is broken: %s", slot.task_id, why)
            case _:
                assert_never(reply)

    def _note_run(self, item: Due, reply: Queued | Ended | Early | Moved | Broken) -> None:
        match reply:
            case Queued() | Moved():
                pass
            case Ended(verdict, reason):
                log.info("Run %s is not tried again: %s (%s)", item.id, verdict, reason)
            case Early(redis_ms):
                self._correct(redis_ms)
                self._agenda.add(item)
            case Broken(why):
                log.error("Run %s cannot be queued: a key of it is broken: %s", item.id, why)
            case _:
                assert_never(reply)

    def _correct(self, redis_ms: int) -> None:
        """Redis is behind what this process took for its time."""
        now_s = self.context.clock.monotonic()
        self.context.clock.saw_redis_ms(redis_ms, sent=now_s, received=now_s)

    def _now_ms(self) -> int:
        return self.context.clock.redis_ms()
