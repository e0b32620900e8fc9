"""Coordinator: due slots into streams, while this worker leads."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, assert_never, final

from actors.agenda import WINDOW_MS, Agenda, enrolments, passing, plan
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
from engine.domain.names import task_of
from engine.errors import RedisUnavailable
from engine.runtime import Actor
from engine.store.election import Lost
from engine.store.session import Broken, Deposed, Done
from engine.store.timetable import Due, Early, Ended, Moved, Published, Queued, Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.messages import CatalogInbox, LeaderInbox
    from engine.config import Config
    from engine.domain.task import Definition
    from engine.runtime import Mailbox
    from engine.store.store import Store
    from engine.store.timetable import Move, MoveReply, Slot

log = logging.getLogger("fastapi.task-manager.coordinator")
overdue_log = logging.getLogger("fastapi.task-manager.reconciler")
"""Where those who watch for overdue tasks look."""

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
        self._catalog_read: CatalogRead | None = None
        """None: not yet in this life, so nobody knows what the entries of ``due`` are."""
        self._in_line: CatalogRead | None = None
        """The catalog that ``due`` was brought in line with in this term."""
        self._outdated: CatalogRead | None = None
        """The catalog of which Redis says that there is a newer one, which will be read."""
        self._broken: set[str] = set()
        """Tasks and runs that cannot be scheduled, of which the log was told."""
        self._beyond = False
        """Something in ``due`` lies beyond all instants."""

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
                self._in_line = self._outdated = None
                self._agenda.forget()
            case LeadershipEnded():
                self._term = None
                self._timer.stop()
                self.context.doing("following")
            case LeaseRenewed():
                if not self._renewed(message):
                    return
            case CatalogRead():
                self._learn(message)
            case Woken():
                self._agenda.note(message.due)
            case Turn():
                pass
            case _:
                assert_never(message)
        await self._turn()

    def _renewed(self, message: LeaseRenewed) -> bool:
        """Note a renewal; True if it has news of ``due``: it is lost, or has something earlier than the agenda."""
        if message.term != self._term:
            return False
        self._renewed_at_s = max(self._renewed_at_s, message.renewed_at_s)
        minimum_ms = message.answer.minimum_ms
        if message.answer.beyond:
            self._beyond = True
        elif minimum_ms is None:
            if self._catalog_read is None or not self._catalog_read.tasks:
                return False
            self._in_line = None  # there are tasks, and none is due: Redis has lost ``due``
        elif self._agenda.knows(minimum_ms):
            return False
        self._agenda.forget()
        return True

    def _learn(self, news: CatalogRead) -> None:
        """Take in the catalog. If it changed, all that is due is looked at again, also what belonged to no task."""
        former, self._catalog_read = self._catalog_read, news
        if former is not None and former is self._in_line and same_tasks(former, news):
            self._in_line = news
        else:
            self._agenda.forget()

    async def _turn(self) -> None:
        if self._term is None or self._catalog_read is None:
            return
        try:
            await self._work(self._term, self._catalog_read)
        except RedisUnavailable:
            self._agenda.forget()
            self._timer.after(PAUSE_S)
        except Deposed:
            self._refused(self._term)

    async def _work(self, term: Term, catalog: CatalogRead) -> None:
        """One turn: renew if need be, bring ``due`` in line, publish what is due, sleep until the next instant."""
        await self._may_write(term)
        while catalog is not self._in_line and catalog is not self._outdated:
            await self._enroll(term, catalog)
        if self._agenda.horizon_ms <= self._now_ms():
            horizon_ms = self._now_ms() + WINDOW_MS
            window, all_ours = await self._store.timetable.look(horizon_ms)
            if self._beyond or not all_ours:
                await self._tidy(term, catalog)
                window = await self._store.timetable.window(horizon_ms)
            self._agenda.load(window, horizon_ms)
        due = self._agenda.take(self._now_ms())
        if due:
            await self._publish(term, catalog.tasks, due)
        self._timer.after((self._agenda.first_ms - self._now_ms()) / 1000)
        self.context.doing(f"scheduling {len(catalog.tasks)} tasks")

    async def _tidy(self, term: Term, catalog: CatalogRead) -> None:
        """Somebody else wrote into ``due``: take it out of the way, and schedule anew what was lost by it."""
        await self._may_write(term)
        await self._store.timetable.tidy()
        self._beyond = False
        await self._enroll(term, catalog)

    async def _may_write(self, term: Term) -> None:
        """Before each write: is the last renewal younger than two thirds of the lease? If not, renew first.

        A process that stalled finds out here, before it writes; what it had sent already is refused by the epoch.

        Raises:
            Deposed: the lease is lost.
        """
        sent_at_s = self.context.clock.monotonic()
        if sent_at_s - self._renewed_at_s < term.lease_s * 2 / 3:
            return
        match await self._store.election.renew(term.value, lease_ms=round(term.lease_s * 1000)):
            case Lost():
                raise Deposed(term.value)
            case answer:
                self.context.clock.saw_redis_ms(
                    answer.redis_ms, sent=sent_at_s, received=self.context.clock.monotonic()
                )
                self._renewed_at_s = sent_at_s
                self._leader.tell(LeaseRenewed(term, sent_at_s, answer))

    def _refused(self, term: Term) -> None:
        self._term = None
        self._timer.stop()
        self._leader.tell(WriteRefused(term))

    async def _enroll(self, term: Term, catalog: CatalogRead) -> None:
        """Bring ``due`` in line with the catalog: first instants for those that have none, others where need be.

        Not done (to be repeated) when Redis says that this process's estimate of its time was wrong.
        """
        timetable, default = self._store.timetable, self._config.allow_parallel
        await self._pass_retold(term, catalog)
        known, passed_ms = await timetable.tasks(), await timetable.passed_ms()
        new, moved = enrolments(catalog.tasks, known, self._now_ms(), passed_ms=passed_ms, allow_parallel=default)
        self._agenda.forget()
        if new:
            await self._may_write(term)
            replies = await timetable.enroll(term.value, new, version=catalog.version)
            if "outdated" in replies:
                self._outdated = catalog
                return
            for enrolment, enrolled in zip(new, replies, strict=True):
                if isinstance(enrolled, Broken):
                    self._complain(enrolment.task_id, enrolled)
        for move, reply in await self._move(term, moved):
            match reply:
                case Early():
                    return
                case Broken():
                    self._complain(move.task_id, reply)
                case _:
                    pass
        if new or moved:
            log.info("Scheduled %d new task(s), rescheduled %d", len(new), len(moved))
        self._in_line = catalog

    async def _pass_retold(self, term: Term, catalog: CatalogRead) -> None:
        """Move tasks past the slots whose runs Redis had forgotten and was told of, before they are published again."""
        timetable = self._store.timetable
        latest_ms = self._now_ms() + WINDOW_MS  # none is told of before its slot
        retold = {run_id: slot_ms for run_id, slot_ms in (await timetable.retold()).items() if slot_ms <= latest_ms}
        if not retold:
            return
        while moves := passing(catalog.tasks, await timetable.tasks(), retold):
            replies = await self._move(term, moves)
            stuck = {move.task_id for move, reply in replies if not isinstance(reply, Done | Moved)}
            retold = {run_id: slot_ms for run_id, slot_ms in retold.items() if task_of(run_id) not in stuck}
        await self._may_write(term)
        await timetable.strike(
            term.value, {run: at_ms for run, at_ms in retold.items() if task_of(run) in catalog.tasks}
        )

    async def _move(self, term: Term, moves: list[Move]) -> list[tuple[Move, MoveReply]]:
        """If one was early, the clock is corrected then, and what is known of ``due`` may be wrong."""
        if not moves:
            return []
        await self._may_write(term)
        replies = await self._store.timetable.move(term.value, moves)
        early = [reply for reply in replies if isinstance(reply, Early)]
        if early:
            self._correct(early[-1].redis_ms)
            self._agenda.forget()
        return list(zip(moves, replies, strict=True))

    async def _publish(self, term: Term, tasks: Mapping[str, Definition], due: list[Due]) -> None:
        for item in due:
            if not item.is_run and item.id not in tasks:
                self._agenda.leave(item)
        now_ms = self._now_ms()
        planned = plan(due, tasks, now_ms, allow_parallel=self._config.allow_parallel)
        stuck = {
            move.task_id for move, reply in await self._move(term, planned.moves) if not self._note_move(move, reply)
        }
        slots = [slot for slot in planned.slots if slot.task_id not in stuck]
        if slots:
            await self._may_write(term)
            replies = await self._store.timetable.publish(term.value, slots, queue_cap=self._config.queue_cap)
            for slot, reply in zip(slots, replies, strict=True):
                self._note(slot, reply, now_ms)
        runs = [item for item in due if item.is_run]
        if runs:
            await self._may_write(term)
            for item, answer in zip(runs, await self._store.timetable.requeue(term.value, runs), strict=True):
                self._note_run(item, answer)

    def _note_move(self, move: Move, reply: MoveReply) -> bool:
        """Were the slots passed over, so that the one behind them can be published?"""
        match reply:
            case Done():
                log.warning("Task %s missed %d slot(s), as its catch-up policy says", move.task_id, move.count)
            case Early():
                pass  # the agenda was forgotten
            case Moved(due_ms):
                if due_ms is not None:
                    self._agenda.add(Due(move.task_id, due_ms, is_run=False))
            case Broken():
                self._complain(move.task_id, reply)
                self._agenda.leave(Due(move.task_id, move.due_ms, is_run=False))
            case _:
                assert_never(reply)
        return isinstance(reply, Done)

    def _note(self, slot: Slot, reply: Published | Skipped | Early | Moved | Broken, now_ms: int) -> None:
        match reply:
            case Published() | Skipped():
                self._broken.discard(slot.task_id)
                if slot.next_ms is not None:
                    self._agenda.add(Due(slot.task_id, slot.next_ms, is_run=False))
                if isinstance(reply, Skipped):
                    log.info("Task %s: slot %d skipped (%s)", slot.task_id, slot.due_ms, reply.reason)
                elif now_ms - slot.due_ms > LATE_MS:
                    overdue_log.warning(
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
            case Broken():
                self._complain(slot.task_id, reply)
                self._agenda.leave(Due(slot.task_id, slot.due_ms, is_run=False))
            case _:
                assert_never(reply)

    def _note_run(self, item: Due, reply: Queued | Ended | Early | Moved | Broken) -> None:
        match reply:
            case Queued() | Moved():
                self._broken.discard(item.id)
            case Ended(verdict, reason):
                log.info("Run %s is not tried again: %s (%s)", item.id, verdict, reason)
            case Early(redis_ms):
                self._correct(redis_ms)
                self._agenda.add(item)
            case Broken(why):
                if item.id not in self._broken:
                    self._broken.add(item.id)
                    log.error("Run %s cannot be queued: a key of it is broken: %s", item.id, why)
                self._agenda.leave(item)
            case _:
                assert_never(reply)

    def _complain(self, task_id: str, broken: Broken) -> None:
        """Once, until it is scheduled again."""
        if task_id not in self._broken:
            self._broken.add(task_id)
            log.error("Task %s cannot be scheduled: a key of it is broken: %s", task_id, broken.why)

    def _correct(self, redis_ms: int) -> None:
        """Redis is behind what this process took for its time."""
        now_s = self.context.clock.monotonic()
        self.context.clock.saw_redis_ms(redis_ms, sent=now_s, received=now_s)

    def _now_ms(self) -> int:
        return self.context.clock.redis_ms()


def same_tasks(former: CatalogRead, news: CatalogRead) -> bool:
    """Can no task have left ``due`` between the two? True of a pause and a resumption.

    The Catalog makes new tasks when a declaration is another one or was made again. Over several changes that were read
    together a dynamic task may have gone and come back just as it was.
    """
    return news is former or (news.tasks is former.tasks and news.version == former.version + 1)
