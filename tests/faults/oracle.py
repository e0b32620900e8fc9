"""The judge outside of Redis: what happened, against what should have. Pure functions; no clock and no socket.

It reads four things: the effect logs of the processes, which survive them; what Redis answered on the wire; the
verdicts that Redis has in the end; and the slots that follow from the cron. Of each slot, and of each other run:

doubled    It was published twice, or has two verdicts, or ran twice to an accepted end; a body began under a fence that
           another start had, that was superseded, or whose run had its verdict; or it began while an earlier start went
           on whose worker renewed the lease, or could have, since nothing was wrong with it; or it was taken from its
           worker before that could have renewed, when Redis was back.
lost       It has no verdict, or one that says *ran* although no body returned.
forgotten  Redis had acknowledged something about it, and does not know it in the end, or has contradicted it since.
retold     Redis had forgotten something about it, and a worker that remembered has told it.
refused    A write of a holder that had lost its run was accepted, or a verdict says that a run did not start which did.

The order of two commands of different connections counts only where one was answered before the other was sent.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, final

from croniter import croniter_range

from tests.faults.facts import facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engine.store.ledger import LedgerEntry
    from tests.faults.facts import Fact
    from tests.faults.wire import Exchange
    from tests.system.cluster import Effect

AT_ONCE_S: Final = 0.5
"""How soon after it was stopped a process is at the next line of its program."""

NOT_STARTED: Final = ("skipped", "missed")
"""Verdicts that say that no body began."""


@final
@dataclass(frozen=True, slots=True)
class Outage:
    """A time during which a worker (None: every one) could not reach Redis, or did not run. Monotonic."""

    pid: int | None
    from_s: float
    to_s: float


@final
@dataclass(slots=True)
class Evidence:
    """What is known of what happened."""

    lease_s: float
    crons: Mapping[str, str]
    """Task id -> expression, of the tasks whose every slot is expected."""

    until_ms: int
    """Slots before this are judged: Redis is behind them with all tasks."""

    effects: Sequence[Effect]
    exchanges: Sequence[Exchange]
    ledgers: Mapping[str, Sequence[LedgerEntry]]
    unfinished: frozenset[str] = frozenset()
    """Runs that have a record in the end: they may still get their verdict."""

    outages: Sequence[Outage] = ()
    died_s: Mapping[int, float] = field(default_factory=dict)
    """Process id -> when it was gone."""


@final
@dataclass(slots=True)
class Judgement:
    """Slots and runs by what became of them, each with what was seen."""

    slots: int = 0
    verdicts: int = 0
    doubled: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    forgotten: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    retold: set[str] = field(default_factory=set)
    idle: list[str] = field(default_factory=list)
    """Tasks that should have had slots, and of which Redis was never told an instant in that time."""

    ran: int = 0
    """Verdicts that say *ran*."""


@final
@dataclass(slots=True)
class _Run:
    """All that is known of one run."""

    id: str
    facts: list[Fact] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.kind in kinds]

    @property
    def starts(self) -> list[Effect]:
        return [effect for effect in self.effects if effect.event == "start"]


def judge(evidence: Evidence) -> Judgement:
    """What became of everything."""
    known = facts(evidence.exchanges)
    found, runs = Judgement(), _runs(evidence, known)
    expected = {
        f"{task}@{slot_ms}" for task, cron in evidence.crons.items() for slot_ms in _slots(task, cron, evidence, known)
    }
    found.slots = len(expected)
    found.idle = _idle(expected, evidence, known)
    reopened = _reopened(evidence, known)
    found.retold = {run.id for run in runs.values() if run.of("retold")}
    for run in runs.values():
        _judge_forgotten(run, evidence, found)
        _judge_doubled(run, evidence, found)
        _judge_writes(run, found)
        _judge_verdicts(run, found)
    for run_id in expected | {run.id for run in runs.values() if run.of("queued", "published")}:
        run = runs.get(run_id, _Run(run_id))
        if run.verdicts or (run_id in found.forgotten and run.of("ended", "passed")):
            continue
        if run_id in evidence.unfinished and run_id not in expected:
            continue
        found.lost[run_id] = "it has no verdict"
        if run_id in reopened:
            found.forgotten.setdefault(run_id, "the task was due then, and Redis had to be told again when it is")
    judged = [runs[run_id] for run_id in expected if run_id in runs]
    found.verdicts = sum(bool(run.verdicts or run.of("ended", "passed")) for run in judged)
    found.ran = sum("ran" in run.verdicts for run in judged)
    return found


def _runs(evidence: Evidence, known: Iterable[Fact]) -> dict[str, _Run]:
    runs: dict[str, _Run] = {}

    def run_of(run_id: str) -> _Run:
        return runs.setdefault(run_id, _Run(run_id))

    for fact in known:
        if fact.kind == "missed" and fact.id in evidence.crons:
            for slot_ms in between(evidence.crons[fact.id], fact.at_ms, fact.to_ms):
                run_of(f"{fact.id}@{slot_ms}").facts.append(replace(fact, kind="passed", what="missed"))
        elif fact.kind not in ("enrolled", "due", "missed", "dismissed"):
            run_of(fact.id).facts.append(fact)
    for effect in sorted(evidence.effects, key=lambda one: one.at_s):
        run_of(effect.run).effects.append(effect)
    for task, entries in evidence.ledgers.items():
        for entry in entries:
            for run_id in covered(task, entry, evidence.crons.get(task)):
                run_of(run_id).verdicts.append(entry.verdict)
    return runs


def covered(task: str, entry: LedgerEntry, cron: str | None) -> list[str]:
    """The slots, or the run, that a verdict is about."""
    if entry.run_id is not None:
        return [entry.run_id]
    assert entry.from_ms is not None
    assert entry.to_ms is not None
    slots = [entry.from_ms] if cron is None else between(cron, entry.from_ms, entry.to_ms)
    assert len(slots) == entry.count, f"{task}: {entry} covers {len(slots)} slots"
    return [f"{task}@{slot_ms}" for slot_ms in slots]


def between(cron: str, from_ms: int, to_ms: int) -> list[int]:
    """The instants of an expression from one to another, both included."""
    first, last = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (from_ms, to_ms))
    slots = croniter_range(first, last, cron, second_at_beginning=True)
    return [round(slot.timestamp() * 1000) for slot in slots]


def _slots(task: str, cron: str, evidence: Evidence, known: Iterable[Fact]) -> list[int]:
    """Every slot from the first instant at which Redis had the task due, up to the end, or to where it was dismissed.

    While a task is dismissed nobody expects anything of it.
    """
    found: list[int] = []
    first_ms = due_ms = 0
    for fact in known:
        if fact.id != task:
            continue
        if fact.kind == "enrolled" and not first_ms:
            first_ms = fact.at_ms
        if fact.kind in ("enrolled", "due"):
            due_ms = fact.at_ms
        if fact.kind == "dismissed" and first_ms:
            found += between(cron, first_ms, due_ms - 1)
            first_ms = 0
    if first_ms and first_ms < evidence.until_ms:
        found += between(cron, first_ms, evidence.until_ms - 1)
    return found


def _idle(expected: Iterable[str], evidence: Evidence, known: Iterable[Fact]) -> list[str]:
    from_ms = min((fact.at_ms for fact in known if fact.kind == "enrolled"), default=evidence.until_ms)
    busy = {run_id.rpartition("@")[0] for run_id in expected}
    return [
        task
        for task, cron in evidence.crons.items()
        if task not in busy and from_ms < evidence.until_ms and between(cron, from_ms, evidence.until_ms - 1)
    ]


def _reopened(evidence: Evidence, known: Iterable[Fact]) -> set[str]:
    """Slots between the instant at which a task was due and that at which Redis, which forgot it, was told anew."""
    found: set[str] = set()
    due_ms: dict[str, int] = {}
    for fact in known:
        if fact.kind == "enrolled" and fact.id in evidence.crons and due_ms.get(fact.id):
            slots = between(evidence.crons[fact.id], due_ms[fact.id], fact.at_ms - 1)
            found.update(f"{fact.id}@{slot_ms}" for slot_ms in slots)
        if fact.kind in ("enrolled", "due"):
            due_ms[fact.id] = fact.at_ms
        if fact.kind == "dismissed":
            due_ms.pop(fact.id, None)
    return found


# -- Redis forgot ---------------------------------------------------------------------------------------------------


def _judge_forgotten(run: _Run, evidence: Evidence, found: Judgement) -> None:
    ends = run.of("ended", "passed")
    if ends and not run.verdicts:
        found.forgotten[run.id] = f"its verdict was {ends[-1].what}, and is gone"
    if run.of("published", "queued", "claimed") and not run.verdicts and run.id not in evidence.unfinished:
        found.forgotten.setdefault(run.id, "it was acknowledged, and there is no trace of it")
    for before, after in pairwise(run.of("published", "passed")):
        if before.surely_before(after):
            found.forgotten[run.id] = "its task was moved past it twice"
    for end in ends:
        if any(end.surely_before(fact) for fact in run.of("published", "claimed", "renewed", "closed")):
            found.forgotten[run.id] = f"it went on after its verdict, {end.what}"
    fences = sorted({fact.fence: fact for fact in run.of("claimed")}.items())
    for (fence, former), (_, latter) in pairwise(fences):
        closed = [fact for fact in run.of("closed", "ended") if fact.fence == fence]
        if not closed and former.surely_before(latter) and not _unanswered(run.id, fence, evidence):
            found.forgotten[run.id] = f"it was claimed with fence {latter.fence}, and {fence} had not ended"


def _unanswered(run_id: str, fence: int, evidence: Evidence) -> bool:
    """May the claim have been ended by a command whose reply nobody has seen?"""
    return any(
        exchange.replied_s is None
        and exchange.name in ("reclaim", "hand_back", "fail", "complete")
        and run_id in exchange.argv
        and str(fence) in exchange.argv
        for exchange in evidence.exchanges
    )


# -- twice ----------------------------------------------------------------------------------------------------------


def _judge_doubled(run: _Run, evidence: Evidence, found: Judgement) -> None:
    def doubled(text: str) -> None:
        found.doubled.setdefault(run.id, text)

    if len(run.of("published")) > 1:
        doubled("it was published twice")
    if len(run.verdicts) > 1:
        doubled(f"it has the verdicts {', '.join(run.verdicts)}")
    completed = {fact.fence for fact in run.of("ended") if fact.what == "ran"}
    if len(completed) > 1:
        doubled(f"it ran to an accepted end under the fences {sorted(completed)}")
    for start in run.starts:
        if why := _taken_too_soon(run, start, evidence):
            doubled(why)
    for number, start in enumerate(run.starts):
        if why := _wrong_start(run, start, run.starts[:number], evidence):
            doubled(why)


def _wrong_start(run: _Run, start: Effect, before: Iterable[Effect], evidence: Evidence) -> str:
    """Why this body should not have begun; empty if it is fine."""
    for earlier in before:
        if earlier.fence == start.fence:
            return f"two bodies began under fence {start.fence}"
        if earlier.fence < start.fence and (why := _could_renew(run, earlier, start, evidence)):
            return f"fence {start.fence} began while {earlier.fence} went on, {why}"
    for fact in run.facts:
        superseded = fact.replied_s < start.at_s and fact.kind == "claimed" and fact.fence > start.fence
        if superseded and not _stopped_before(run, start, evidence):
            return f"fence {start.fence} began when {fact.fence} had been given"
        if fact.replied_s < start.at_s and fact.kind == "ended" and fact.fence != start.fence:
            return f"fence {start.fence} began after the verdict, {fact.what}"
    return ""


def _taken_too_soon(run: _Run, start: Effect, evidence: Evidence) -> str:
    """Why this start's run should not have been reclaimed when it was; empty if it was not, or rightly.

    When Redis was away, every lease may have ended: from then on its worker has half of one to renew, or to tell.
    """
    for fact in run.of("closed"):
        if fact.what != "reclaim" or fact.fence != start.fence:
            continue
        if evidence.died_s.get(start.pid, float("inf")) <= fact.replied_s:
            continue
        own = [o for o in evidence.outages if o.pid == start.pid]
        if any(o.from_s < fact.replied_s and o.to_s > fact.sent_s - 1.5 * evidence.lease_s for o in own):
            continue
        back_s = max((o.to_s for o in evidence.outages if o.pid is None and o.to_s <= fact.replied_s), default=None)
        if back_s is not None and fact.replied_s - back_s < 0.4 * evidence.lease_s:
            return f"fence {start.fence} was taken {fact.replied_s - back_s:.3f} s after Redis was back"
    return ""


def _stopped_before(run: _Run, start: Effect, evidence: Evidence) -> bool:
    """Was its process stopped when it knew of its claim, and about to begin? Just after, nobody would mind.

    That it can find out on waking what an answer is worth that came while it was stopped, is expected of it.
    """
    told_s = min((f.left_s for f in run.of("claimed") if f.fence == start.fence), default=float("inf"))
    return any(
        outage.pid == start.pid and told_s < outage.from_s < start.at_s < outage.to_s + AT_ONCE_S
        for outage in evidence.outages
    )


def _could_renew(run: _Run, earlier: Effect, start: Effect, evidence: Evidence) -> str:
    """Why the earlier start should have kept its run; empty if its worker was lost, or its body was over."""
    if _over_s(run, earlier, evidence) <= start.at_s:
        return ""
    own = [fact for fact in run.facts if fact.fence == earlier.fence]
    closed = next((fact for fact in own if fact.kind == "closed"), None)
    if closed is not None and closed.what != "reclaim":
        return f"which was closed by {closed.what} before its body had ended"
    lost_s = start.at_s if closed is None else closed.replied_s
    renewed_s = max((f.sent_s for f in own if f.kind in ("claimed", "renewed") and f.replied_s <= lost_s), default=None)
    if renewed_s is not None and lost_s - renewed_s < evidence.lease_s:
        return f"whose lease was renewed {lost_s - renewed_s:.3f} s before it was taken"
    since_s = lost_s - 1.5 * evidence.lease_s
    if not any(
        outage.pid in (None, earlier.pid) and outage.from_s < lost_s and outage.to_s > since_s
        for outage in evidence.outages
    ):
        return "whose worker could reach Redis"
    return ""


def _over_s(run: _Run, start: Effect, evidence: Evidence) -> float:
    """When this body was over: it ended, or its process did."""
    ends = [e.at_s for e in run.effects if e.event != "start" and (e.pid, e.fence) == (start.pid, start.fence)]
    return min([*ends, evidence.died_s.get(start.pid, float("inf"))])


# -- what should have been refused -----------------------------------------------------------------------------------


def _judge_writes(run: _Run, found: Judgement) -> None:
    if run.id in found.forgotten or run.id in found.retold:
        return  # Redis cannot refuse for what it does not know
    writes: dict[tuple[str, int, str], Fact] = {}
    for fact in run.of("ended", "closed"):
        if fact.fence:  # of repeats, which get the first reply again, the first
            writes.setdefault((fact.kind, fact.fence, fact.what), fact)
    for write in writes.values():
        for fact in run.facts:
            lost = (fact.kind == "claimed" and fact.fence > write.fence) or (
                fact.kind == "closed" and fact.fence == write.fence and fact is not write and fact.what != write.what
            )
            if lost and fact.surely_before(write):
                found.refused[run.id] = (
                    f"{write.what} of fence {write.fence} was accepted after {fact.what} {fact.kind} {fact.fence}"
                )
    for before, after in pairwise(run.of("claimed")):
        if after.fence < before.fence and before.surely_before(after):
            found.refused[run.id] = f"fence {after.fence} was given after {before.fence}"


def _judge_verdicts(run: _Run, found: Judgement) -> None:
    if any(verdict in NOT_STARTED for verdict in run.verdicts) and run.starts and run.id not in found.forgotten:
        found.refused[run.id] = f"it started, and its verdict says {run.verdicts}"
    if "ran" in run.verdicts and not any(effect.event == "end" for effect in run.effects):
        found.lost[run.id] = "its verdict says that it ran, and no body has returned"


def explain(judgement: Judgement, most: int = 5) -> list[str]:
    """The first few of each kind, for people."""
    lines = []
    for kind in ("doubled", "lost", "refused", "forgotten"):
        of_kind: dict[str, Any] = getattr(judgement, kind)
        lines += [f"{kind}: {run_id}: {text}" for run_id, text in list(of_kind.items())[:most]]
    return lines


def stories(evidence: Evidence, run_ids: Iterable[str]) -> list[str]:
    """All that is known of some runs, in order, for people."""
    lines: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for fact in facts(evidence.exchanges):
        lines[fact.id].append((fact.replied_s, f"{fact.kind} {fact.what} fence {fact.fence}, sent {fact.sent_s:.3f}"))
    for effect in evidence.effects:
        lines[effect.run].append((effect.at_s, f"body: {effect.event} of process {effect.pid}, fence {effect.fence}"))
    return [
        line
        for run_id in run_ids
        for line in (run_id, *(f"  {at_s:.3f} {text}" for at_s, text in sorted(lines[run_id])))
    ]
