"""The judge outside of Redis. It hears every command, in the order of execution, and every start of a body.

What each check reads:

G0  No actor crashes by itself, no script refuses or answers ``broken``: the events of supervisors, the replies.
G1  A slot is published once, a body starts once for each fence, fences of a run grow: the replies of publish and
    claim, the effect log.
G2  When all is quiet, every slot from a task's first to the last before its ``due`` instant has one verdict, as has
    every run that was queued: the ledgers, against slots that follow from the period alone; what says *ran* returned in
    the effect log under that fence, what says *skipped* or *missed* never started. At any time: no second verdict.
G3  No body starts while an earlier start of its run goes on at a process that renewed its lease within the last half of
    one, and no lease is reclaimed before it has ended by the clock of Redis and half a lease has passed since it was
    renewed or Redis was disturbed: the effect log, the replies of claim, beat and reclaim.
G4  Nothing that a fenced-off holder tells is accepted: replies of complete, fail and hand_back, against who holds what
    by the replies of claim, reclaim and these; and a run that is taken from its holder has another fence than he has.
    What tells of ends and keeps leases is never refused for memory.
G5  Epochs grow, and what only a leader may write is accepted from the last elected alone: the replies of elect and of
    every script that shows a leader's value.
G6  What is paused stays paused until it is resumed: no slot of it is published and no fresh run of it claimed without
    force, and the pause is there at the end. Nothing is left behind: no lease of a worker that stopped in order, and no
    lease, live entry, record, stream entry, pending entry or waiting run when all is quiet.
G8  A run is dead only after ``max_deliveries`` lost workers, and whoever wants to revive it finds it: the replies of
    reclaim, the dead runs at the end.
G9  Redis is told again only what it forgot. What it forgot is seen at the instant of the loss (losses.py): from then on
    the other rules go by what is left, and only slots of which an acknowledged write is missing may be doubled or lost.
    Where a worker saw the loss undisturbed, somebody leads after two leases, the pauses and dynamic tasks that it
    remembered are there again, and the loss was announced. Fences and epochs grow on wherever a worker told the time.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

import trio

from engine.store.keys import Keys
from engine.store.script import Script
from tests.simulation.losses import Image, forgotten
from tests.unit.actors.stage import EPOCH_MS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.simulation.effects import EffectLog, Start

LATE_MS = 5
"""Round trips and rounding."""

LEADERS_ONLY = ("publish", "move", "requeue", "enroll", "reclaim", "dismiss")
"""Scripts of ``lib.lua`` that show a leader's value as their second argument."""

FREEING = ("beat", "complete", "fail", "hand_back", "resign", "adopt", "told")
"""Scripts that get through when memory is full."""

ALIASES: dict[str, str] = {}
"""SHAs of scripts that stand in for others during a test, and the names of those."""

NAMES = (
    *LEADERS_ONLY,
    "claim",
    "complete",
    "fail",
    "hand_back",
    "elect",
    "beat",
    "pause",
    "trigger",
    "forget",
    "define",
    "enter",
    "adopt",
    "restore",
    "told",
    "resign",
)


SHAS = {Script.load(name).sha: name for name in NAMES}


@final
@dataclass(frozen=True, slots=True)
class Violation:
    """A guarantee that does not hold, and what was seen."""

    guarantee: str
    text: str
    at_s: float

    def __str__(self) -> str:
        return f"{self.guarantee} at {self.at_s:.3f} s: {self.text}"


@final
@dataclass(slots=True)
class Holder:
    """Who holds a run, by what Redis has answered."""

    worker: str
    fence: int
    renewed_s: float
    expiry_ms: int


class Rhythm(NamedTuple):
    """When the slots of a task are: so many seconds apart, and so many after the beginning of such a period."""

    period_s: int
    offset_s: int = 0


class Mortal(Protocol):
    """A process, as far as it is judged."""

    dead: bool


class Judged(Protocol):
    """A world, as far as it is judged."""

    @property
    def effects(self) -> EffectLog: ...
    @property
    def processes(self) -> Sequence[Mortal]: ...
    @property
    def nursery(self) -> trio.Nursery: ...
    @property
    def redis_ahead_s(self) -> float:
        """How far the clock of Redis stands before that of the processes."""

    def note(self, line: str) -> None:
        """Something happened."""

    def look(self, command: tuple[Any, ...]) -> Any:
        """What Redis would answer."""


@final
@dataclass(slots=True)
class Span:
    """A task was due from its first slot on, until its due instant was forgotten."""

    first_ms: int
    end_ms: int | None = None


@final
class Oracle:
    """Hears everything, and keeps the first violation."""

    def __init__(self, world: Judged, *, lease_s: float, slots: Mapping[str, Rhythm]) -> None:
        self.world, self.lease_s, self.slots = world, lease_s, slots
        self.found: Violation | None = None
        self.redis_steady_since_s = 0.0
        """Since when Redis answers, and its clock has not stepped by more than can be told from a slow reply."""
        self._keys = Keys("troupe")
        self._names = SHAS | ALIASES
        self._published: set[str] = set()
        self._queued: dict[str, str] = {}
        self._claims: dict[str, int] = {}
        self._holders: dict[str, Holder] = {}
        self._former: dict[tuple[str, int], Holder] = {}
        self._told: set[tuple[str, str]] = set()
        self.max_deliveries = 3
        self._losses_of: Counter[str] = Counter()
        """How often a run was lost with its worker."""
        self._ended: Counter[str] = Counter()
        self._returned: set[tuple[str, int]] = set()
        self._leader = ""
        self._epoch = 0
        self._paused: set[str] = set()
        self._forced: set[str] = set()
        self._removed: set[str] = set()
        self._spans: dict[str, list[Span]] = {}
        self._passed_ms = 0
        """The latest slot that any task was moved past."""
        self.losses = 0
        """How often Redis forgot."""
        self.forgotten_runs: set[str] = set()
        self.forgotten_slots: defaultdict[str, set[int]] = defaultdict(set)
        self.elected_s = -math.inf
        """When somebody began to lead, last."""
        self.changed_s: dict[tuple[str, str], float] = {}
        """When a task became paused or dynamic, or ceased to be, last."""
        self._told_floor = True
        self._old_fences: dict[str, int] = {}
        """Of claims that Redis forgot."""

    def violate(self, guarantee: str, text: str) -> None:
        """Keep the first, and end the run."""
        if self.found is None:
            self.found = Violation(guarantee, text, trio.current_time())
            self.world.note(f"VIOLATION {self.found}")
            self.world.nursery.cancel_scope.cancel()

    # -- what Redis executes ------------------------------------------------------------------------------------------

    def executed(self, who: str, args: Sequence[Any], reply: Any, error: Exception | None) -> None:
        """A command was executed, and this was its reply."""
        name = self._name_of(args)
        if error is not None:
            self._refused(who, name, args, str(error))
            return
        if name is None:
            return
        count = int(args[2])
        keys, argv = args[3 : 3 + count], [str(arg) for arg in args[3 + count :]]
        if isinstance(reply, list) and any(isinstance(item, list) and item[:1] == ["broken"] for item in reply):
            self.violate("G0", f"{who}: {name} {argv}: {reply}")
        if name in LEADERS_ONLY and not self._is_by_leader(who, name, argv[1], reply):
            return
        getattr(self, f"_on_{name}")(who, keys, argv, reply)

    def _name_of(self, args: Sequence[Any]) -> str | None:
        if args[0] == "EVALSHA":
            return self._names.get(args[1])
        if args[0] == "EVAL":
            return self._names.get(sha1(args[1].encode(), usedforsecurity=False).hexdigest())
        return None

    def _refused(self, who: str, name: str | None, args: Sequence[Any], why: str) -> None:
        if "OOM" in why:
            if name in FREEING:
                self.violate("G4", f"{who}: {name} was refused since memory is full, and must always get through")
        elif not why.startswith(("NOSCRIPT", "NOGROUP", "BUSYGROUP", "No matching script")) and "RECOVERING" not in why:
            self.violate("G0", f"{who}: {args[0]} {args[1:3]} was refused: {why}")

    def _is_by_leader(self, who: str, name: str, value: str, reply: Any) -> bool:
        if reply == "deposed":
            return False
        if value != self._leader:
            self.violate("G5", f"{who}: {name} of {value} was accepted while {self._leader} leads")
        return True

    def _on_enter(self, _who: str, _keys: Any, _argv: list[str], reply: Any) -> None:
        if reply[1] in ("begun", "reopened"):
            self._leader = ""

    def _on_adopt(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        worker = argv[1]
        for item, reply in zip(_items(argv[4:], 15), replies, strict=True):
            run_id, fence, _, task, ending = item[0], int(item[1]), item[2], item[3], item[10]
            if reply != "told":
                continue
            if run_id not in self.forgotten_runs:
                if task in self._removed:
                    continue  # an end that went with its task, which was made anew since
                self.violate("G9", f"{who}: {run_id}#{fence} was told again, and Redis had forgotten nothing of it")
            held = self._holders.pop(run_id, None)
            if held is not None and held.fence > fence:
                self.violate("G9", f"{who}: {run_id}#{fence} was told, and {held} holds it")
            self._queued[run_id] = task
            self._claims[run_id] = max(fence, self._claims.get(run_id, 0))
            if ending == "":
                holder = Holder(worker, fence, trio.current_time(), self._redis_ms() + int(argv[2]))
                self._holders[run_id] = self._former[run_id, fence] = holder
            elif ending != "waiting":
                self._end(who, run_id)
                if ending == "ran":
                    self._returned.add((run_id, fence))

    def _on_restore(self, who: str, _keys: Any, argv: list[str], reply: Any) -> None:
        if not isinstance(reply, int) or reply == 0:
            return
        if not self.losses:
            self.violate("G9", f"{who}: {argv[2:]} were brought back, and Redis had forgotten nothing")
        self._paused = set(self._redis("HKEYS", self._keys.paused))
        for kind, member, _, due_ms in _items(argv[3:], 4):
            if kind == "3" and self._redis("ZSCORE", self._keys.due, member) == due_ms:
                self._due_again(member.removeprefix("t/"), int(due_ms))
                self._first_again(member.removeprefix("t/"), int(due_ms))

    def _on_told(self, who: str, _keys: Any, argv: list[str], reply: Any) -> None:
        if reply[1] and not self.losses and not self._removed:
            self.violate("G9", f"{who}: something is lost since {reply[1]}, and Redis had forgotten nothing")
        self._told_floor |= reply[0] != "other" and int(argv[2]) > 0

    def _on_elect(self, who: str, _keys: Any, argv: list[str], reply: Any) -> None:
        if reply[0] != "led" or reply[1] == self._leader:
            return
        epoch = int(reply[1].split(":")[-2])
        if epoch <= self._epoch and self._told_floor:
            self.violate("G5", f"{who}: epoch {epoch} comes after {self._epoch}")
        self._leader, self._epoch, self.elected_s = reply[1], epoch, trio.current_time()

    def _on_resign(self, _who: str, _keys: Any, _argv: list[str], _reply: Any) -> None:
        """Nothing can be wrong with it but a refusal."""

    def _on_enroll(self, _who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (task, first, run_id, _, _), reply in zip(_items(argv[3:], 5), replies, strict=True):
            if reply in ("enrolled", "started"):
                self._due_again(task, int(first))
            if reply == "started":
                self._queued[run_id] = task

    def _on_publish(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (task, expected, _, run_id, _, _), reply in zip(_items(argv[3:], 6), replies, strict=True):
            if reply == "published" or reply[0] == "skipped":
                self._passed_ms = max(self._passed_ms, int(expected))
            if reply != "published":
                continue
            if run_id in self._published:
                self.violate("G1", f"{who}: {run_id} was published twice")
            self._published.add(run_id)
            self._queued[run_id] = task
            if task in self._paused:
                self.violate("G6", f"{who}: {run_id} was published while its task is paused")

    def _on_move(self, _who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (task, _, next_ms, count, last_ms, *_), reply in zip(_items(argv[2:], 7), replies, strict=True):
            if reply == "done" and int(count) > 0:
                self._passed_ms = max(self._passed_ms, int(last_ms))
            if reply == "done" and next_ms:
                self._first_again(task, int(next_ms))

    def _first_again(self, task: str, due_ms: int) -> None:
        """It is due before its first slot: none was passed yet, and the clock of Redis stepped back."""
        if task in self._spans and due_ms > self._passed_ms:
            self._spans[task][-1].first_ms = min(self._spans[task][-1].first_ms, due_ms)

    def _on_dismiss(self, _who: str, _keys: Any, _argv: list[str], _replies: Any) -> None:
        """Of no declared task in two minutes."""

    def _on_requeue(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (run_id, _), reply in zip(_items(argv[2:], 2), replies, strict=True):
            if reply == "queued" and run_id in self._holders:
                self.violate("G4", f"{who}: {run_id} was queued while {self._holders[run_id]} holds it")
            if (
                reply == "queued"
                and self._task(run_id) in self._paused
                and run_id not in self._forced
                and run_id not in self._claims
            ):
                self.violate("G6", f"{who}: {run_id} was queued while its task is paused")

    def _on_claim(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        worker, lease_ms = argv[1], int(argv[3])
        for (run_id, _, _), reply in zip(_items(argv[4:], 3), replies, strict=True):
            if not (isinstance(reply, list) and reply[0] == "claimed"):
                continue
            fence, before = int(reply[1]), self._holders.get(run_id)
            if before is not None and (before.worker, before.fence) == (worker, fence):
                before.renewed_s, before.expiry_ms = trio.current_time(), self._redis_ms() + lease_ms
                continue  # asked again: nothing was counted
            if before is not None:
                self.violate("G3", f"{who}: {run_id} was claimed while {before} holds it")
            last = max(self._claims.get(run_id, 0), self._old_fences.get(run_id, 0) if self._told_floor else 0)
            if fence <= last:
                self.violate("G1", f"{who}: {run_id} got fence {fence} after {last}")
            if run_id not in self._claims and reply[2] in self._paused and run_id not in self._forced:
                self.violate("G6", f"{who}: {run_id} was claimed while its task is paused")
            if self._ended[run_id]:
                self.violate("G1", f"{who}: {run_id} was claimed after its verdict")
            self._claims[run_id] = fence
            holder = Holder(worker, fence, trio.current_time(), self._redis_ms() + lease_ms)
            self._holders[run_id] = self._former[run_id, fence] = holder

    def _on_beat(self, _who: str, _keys: Any, argv: list[str], reply: Any) -> None:
        lost = set(reply[2])
        for member in argv[4:] if reply[4] == argv[3] else ():
            run_id, _, fence = member.rpartition("#")
            holder = self._holders.get(run_id)
            if member not in lost and holder is not None and (holder.worker, holder.fence) == (argv[0], int(fence)):
                holder.renewed_s, holder.expiry_ms = trio.current_time(), self._redis_ms() + int(argv[2])

    def _on_reclaim(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (run_id, fence, _, _), reply in zip(_items(argv[3:], 4), replies, strict=True):
            if reply != "ended" and not isinstance(reply, list):
                continue
            holder = self._holders.pop(run_id, None)
            if holder is None or holder.fence != int(fence):
                self.violate("G4", f"{who}: {run_id}#{fence} was reclaimed from {holder}")
                return
            undisturbed_s = trio.current_time() - max(holder.renewed_s, self.redis_steady_since_s)
            left_ms = holder.expiry_ms - self._redis_ms()
            if left_ms > LATE_MS or undisturbed_s < self.lease_s / 2 - LATE_MS / 1000:
                self.violate(
                    "G3",
                    f"{who}: {run_id}#{fence} was reclaimed, {left_ms} ms before its lease ends by the clock of Redis, "
                    f"{undisturbed_s:.3f} s after it was renewed or Redis was disturbed",
                )
            self._losses_of[run_id] += 1
            if reply == "ended" or reply[0] == "dead":
                self._end(who, run_id)
                if reply[0] == "dead" and self._losses_of[run_id] < self.max_deliveries and not self.losses:
                    self.violate("G8", f"{who}: {run_id} is dead after {self._losses_of[run_id]} lost worker(s)")
            else:
                self._check_fence_changed(who, "reclaim", run_id, holder.fence)

    def _on_complete(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (run_id, fence, verdict, _, _), reply in zip(_items(argv[2:], 5), replies[:-1], strict=True):
            if reply == "ok":
                self._let_go(who, "complete", run_id, argv[1], int(fence))
                self._end(who, run_id)
                if verdict == "ran":
                    self._returned.add((run_id, int(fence)))

    def _on_fail(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (run_id, fence, token, _, _), reply in zip(_items(argv[2:], 5), replies, strict=True):
            accepted = isinstance(reply, list) or (reply == "gone" and self._holds(run_id, argv[1], int(fence)))
            if not accepted or (run_id, token) in self._told:
                continue
            self._told.add((run_id, token))
            self._let_go(who, "fail", run_id, argv[1], int(fence))
            if reply == "gone":
                self._end(who, run_id)

    def _on_hand_back(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (run_id, fence, token), reply in zip(_items(argv[2:], 3), replies, strict=True):
            if reply != "ok" or (run_id, token) in self._told:
                continue
            self._told.add((run_id, token))
            self._let_go(who, "hand_back", run_id, argv[1], int(fence))
            self._check_fence_changed(who, "hand_back", run_id, int(fence))

    def _on_pause(self, _who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        # A repeat answers from what was kept, and changes nothing: what Redis has now is what was changed.
        now = set(self._redis("HKEYS", self._keys.paused))
        for task, reply in zip(argv[3:], replies, strict=True):
            self.changed_s["paused", task] = trio.current_time()
            if reply == 1 and (task in now) == (argv[1] != ""):
                (self._paused.discard if argv[1] == "" else self._paused.add)(task)

    def _on_trigger(self, who: str, _keys: Any, argv: list[str], replies: Any) -> None:
        for (run_id, task, _, _, force, _), reply in zip(_items(argv[3:], 6), replies, strict=True):
            if reply != "queued" or run_id in self._queued:
                continue
            self._queued[run_id] = task
            if force:
                self._forced.add(run_id)
            elif task in self._paused:
                self.violate("G6", f"{who}: {run_id} was triggered while its task is paused")

    def _on_forget(self, _who: str, _keys: Any, argv: list[str], _reply: Any) -> None:
        self._removed.add(argv[1])
        self.changed_s["dynamic", argv[1]] = self.changed_s["paused", argv[1]] = trio.current_time()
        self._paused.discard(argv[1])

    def _on_define(self, _who: str, _keys: Any, argv: list[str], reply: Any) -> None:
        if reply[0] == "defined":
            self.changed_s["dynamic", argv[0]] = self.changed_s["paused", argv[0]] = trio.current_time()
            self._paused.discard(argv[0])

    # -- what Redis forgets -------------------------------------------------------------------------------------------

    def image(self) -> Image:
        """What Redis holds now."""
        return Image.of(self.world.look, self._keys, self.slots)

    def redis_forgot(self, before: Image, left: Image) -> None:
        """It holds what is left now. From here on this is what counts."""
        self.losses += 1
        self.redis_steady_since_s = trio.current_time()
        runs, slots = forgotten(before, left)
        self.world.note(f"forgotten: {sorted(runs)}")
        self.forgotten_runs |= runs
        for task, some in slots.items():
            self.forgotten_slots[task] |= some
        self._told_floor = False
        self._leader = left.leader
        self._paused = set(left.paused)
        self._published -= runs
        self._told = {(run_id, token) for run_id, token in self._told if run_id not in runs}
        self._forget_runs(runs, left)
        self._holders = {}
        for run_id, record in left.runs.items():
            if int(record.fence):
                self._claims[run_id] = int(record.fence)
            if record.state == "running":
                holder = Holder(record.worker, int(record.fence), trio.current_time(), left.expiry_ms(run_id, record))
                self._holders[run_id] = self._former[run_id, holder.fence] = holder
        for task, spans in self._spans.items():
            if f"t/{task}" in left.due:
                spans[-1].end_ms = None
            elif f"t/{task}" in before.due:
                spans[-1].end_ms = int(before.due[f"t/{task}"])

    def _forget_runs(self, runs: set[str], left: Image) -> None:
        for run_id in runs:
            if run_id in self._claims:
                self._old_fences[run_id] = max(self._claims.pop(run_id), self._old_fences.get(run_id, 0))
            if run_id not in left.runs and run_id not in left.verdicts:
                self._queued.pop(run_id, None)
            self._ended[run_id] = int(run_id in left.verdicts)

    def _due_again(self, task: str, first_ms: int) -> None:
        spans = self._spans.setdefault(task, [])
        if spans and (spans[-1].end_ms is None or first_ms <= spans[-1].end_ms):
            spans[-1].end_ms = None
        else:
            spans.append(Span(first_ms))

    # -- who holds what -----------------------------------------------------------------------------------------------

    def _holds(self, run_id: str, worker: str, fence: int) -> bool:
        holder = self._holders.get(run_id)
        return holder is not None and (holder.worker, holder.fence) == (worker, fence)

    def _let_go(self, who: str, name: str, run_id: str, worker: str, fence: int) -> None:
        if not self._holds(run_id, worker, fence):
            self.violate(
                "G4", f"{who}: {name} of {run_id}#{fence} was accepted, and {self._holders.get(run_id)} holds it"
            )
        self._holders.pop(run_id, None)

    def _check_fence_changed(self, who: str, name: str, run_id: str, fence: int) -> None:
        now = self._redis("HGET", self._keys.run(run_id), "fence")
        if now is not None and int(now) <= fence:
            self.violate("G4", f"{who}: {name} left {run_id} with the fence {fence} of its former holder")

    def _end(self, who: str, run_id: str) -> None:
        self._ended[run_id] += 1
        if self._ended[run_id] > 1:
            self.violate("G2", f"{who}: {run_id} ended twice")

    # -- what bodies do -----------------------------------------------------------------------------------------------

    def body_starts(self, start: Start) -> None:
        """Called before the start is in the log."""
        for earlier in self.world.effects.of_run.get(start.run_id, ()):
            if earlier.fence == start.fence:
                self.violate("G1", f"{start.run_id} started twice under fence {start.fence}")
            process = self.world.processes[earlier.process - 1]
            if earlier.ended_s is not None or process.dead:
                continue
            holder = self._former.get((start.run_id, earlier.fence))
            if holder is not None and trio.current_time() - holder.renewed_s < self.lease_s / 2:
                self.violate("G3", f"{start.run_id} started while {earlier} goes on")

    def stopped(self, worker: str) -> None:
        """A worker has stopped in order, and nothing disturbed it."""
        for run_id, holder in self._holders.items():
            if holder.worker == worker:
                self.violate("G6", f"{worker} stopped in order and left the lease of {run_id}#{holder.fence}")

    # -- when all is quiet --------------------------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        """What is in Redis only while something goes on."""
        keys, left = self._keys, []
        left += [f"lease {member}" for member in self._redis("ZRANGE", keys.leases, 0, -1)]
        left += [f"stop {member}" for member in self._redis("SMEMBERS", keys.cancel)]
        left += [f"due {m}" for m in self._redis("ZRANGE", keys.due, 0, -1) if m.startswith("r/")]
        for stream in (keys.stream_high, keys.stream_low):
            left += [f"entry {entry}" for entry in self._redis("XRANGE", stream, "-", "+")]
            if self._redis("EXISTS", stream):
                pending = self._redis("XPENDING", stream, "workers")
                left += [f"{pending[0]} pending entries"] * (pending[0] > 0)
        for key in sorted(self._redis("KEYS", keys.tag + "*")):
            kind = key.removeprefix(keys.tag).partition(":")[0]
            if kind in ("live", "run"):
                left.append(f"{kind} {key}")
        return left

    def judge(self, left: list[str]) -> None:
        """All is quiet, or should be."""
        if left:
            self.violate("G6", f"left behind: {left[:6]}")
        paused = set(self._redis("HKEYS", self._keys.paused))
        if missing := self._paused - paused:
            self.violate("G6", f"resumed by nobody: {sorted(missing)}")
        self._dead = {dict(_pairs(fields))["run"] for _, fields in self._redis("XRANGE", self._keys.dead, "-", "+")}
        due = dict(_pairs(self._redis("ZRANGE", self._keys.due, 0, -1, "WITHSCORES")))
        for task_id, rhythm in self.slots.items():
            if task_id not in self._spans:
                self.violate("G2", f"{task_id} was never scheduled")
            elif f"t/{task_id}" not in due:
                self.violate("G2", f"{task_id} is not due any more")
            else:
                self._judge_task(task_id, rhythm, int(float(due[f"t/{task_id}"])))

    def _judge_task(self, task_id: str, rhythm: Rhythm, due_ms: int) -> None:
        period_ms, offset_ms = rhythm.period_s * 1000, rhythm.offset_s * 1000
        entries = [dict(_pairs(fields)) for _, fields in self._redis("XRANGE", self._keys.ledger(task_id), "-", "+")]
        runs = [entry for entry in entries if "run" in entry]
        slots = Counter(int(entry["slot"]) for entry in runs if entry["slot"])
        for entry in entries:
            if "run" not in entry:
                slots.update(self._passed_over(task_id, entry, period_ms))
        expected: Counter[int] = Counter()
        for span in self._spans[task_id]:
            end_ms = due_ms if span.end_ms is None else span.end_ms
            if any((at_ms - offset_ms) % period_ms for at_ms in (span.first_ms, end_ms)):
                self.violate("G2", f"{task_id} was due from {span.first_ms} to {end_ms}, which are no slots of it")
            expected.update(range(span.first_ms, end_ms, period_ms))
        for slot_ms in self.forgotten_slots[task_id]:
            del slots[slot_ms], expected[slot_ms]
        if slots != expected:
            without, twice = expected - slots, slots - expected
            self.violate("G2", f"{task_id}: slots without a verdict {_rel(without)}, with too many {_rel(twice)}")
        if due_ms + 2_000 < self._redis_ms():
            self.violate("G2", f"{task_id} is due since {self._redis_ms() - due_ms} ms")
        runs = [entry for entry in runs if entry["run"] not in self.forgotten_runs]
        ours = {run_id for run_id, task in self._queued.items() if task == task_id}
        queued = Counter(ours - self.forgotten_runs)
        judged = Counter(entry["run"] for entry in runs)
        if judged != queued:
            self.violate("G2", f"{task_id}: runs without verdict {queued - judged}, with too many {judged - queued}")
        for entry in runs:
            self._judge_run(entry["run"], entry["verdict"])

    def _passed_over(self, task_id: str, entry: dict[str, str], period_ms: int) -> range:
        """The slots of one entry; none of them has a run that started."""
        slots = range(int(entry["from"]), int(entry["to"]) + 1, period_ms)
        if len(slots) != int(entry["count"]):
            self.violate("G2", f"{task_id}: {entry} counts {len(slots)} slots")
        for slot_ms in slots:
            if f"{task_id}@{slot_ms}" in self.world.effects.of_run and slot_ms not in self.forgotten_slots[task_id]:
                self.violate("G2", f"{task_id}@{slot_ms} started, and its verdict says {entry['verdict']}")
        return slots

    def _judge_run(self, run_id: str, verdict: str) -> None:
        starts = self.world.effects.of_run.get(run_id, [])
        if verdict == "dead" and run_id not in self._dead:
            self.violate("G8", f"{run_id} is dead, and nobody can revive it")
        if verdict == "skipped" and starts:
            self.violate("G2", f"{run_id} started, and its verdict says skipped")
        returned = {(run_id, start.fence) for start in starts if start.outcome == "returned"}
        if verdict == "ran" and not returned.intersection(self._returned):
            self.violate("G2", f"{run_id} has not returned under the fence of its verdict")

    # -- looking ------------------------------------------------------------------------------------------------------

    def _redis(self, *command: Any) -> Any:
        return self.world.look(command)

    def _redis_ms(self) -> int:
        return EPOCH_MS + round((trio.current_time() + self.world.redis_ahead_s) * 1000)

    @staticmethod
    def _task(run_id: str) -> str:
        return run_id.rpartition("@")[0]


def _items(argv: Sequence[str], size: int) -> list[Sequence[str]]:
    return [argv[at : at + size] for at in range(0, len(argv), size)]


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _rel(slots: Counter[int]) -> list[float]:
    return [(slot - EPOCH_MS) / 1000 for slot in sorted(slots.elements())]
