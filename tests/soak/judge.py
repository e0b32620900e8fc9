"""What a soak must show: plain values, and what follows from them. Fed as it goes, it keeps only what is still open."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from statistics import mean
from typing import Final, final

SECOND_MS: Final = 1_000

NEVER_STARTED: Final = frozenset({"skipped", "missed"})
"""Verdicts of slots that nobody had to start."""

MOST_TOLD: Final = 20
"""Violations that are told in words; of all others the number."""


@final
@dataclass(slots=True)
class _Slot:
    """One slot of one task, until all that is wanted of it has been seen."""

    starts: list[tuple[float, int]] = field(default_factory=list)
    """When its run was started, and by which process."""

    ended: set[int] = field(default_factory=set)
    """Those in which its body came to its end."""

    verdicts: list[str] = field(default_factory=list)


@final
class Judge:
    """Holds effect logs against ledgers: each slot one verdict, each published run started, none started beside itself.

    Slots are told by task number and instant (ms), every second one for each task, from the first that is told on.
    """

    def __init__(self) -> None:
        self._open: dict[int, dict[int, _Slot]] = defaultdict(lambda: defaultdict(_Slot))
        self._from_ms: dict[int, int] = {}
        self._settled_ms: dict[int, int] = {}
        self._killed: set[int] = set()
        self.violations = 0
        self.told: list[str] = []
        self.starts = self.ran = self.other_verdicts = self.again = self.settled = 0

    def started(self, task: int, slot_ms: int, pid: int, at_s: float) -> None:
        """A body began there, then: by a clock that all processes share."""
        self.starts += 1
        if self._is_open(task, slot_ms):
            slot = self._open[task][slot_ms]
            self.again += bool(slot.starts)
            slot.starts.append((at_s, pid))

    def ended(self, task: int, slot_ms: int, pid: int) -> None:
        """A body came to its end there."""
        if self._is_open(task, slot_ms):
            self._open[task][slot_ms].ended.add(pid)

    def killed(self, pid: int) -> None:
        """This process was killed: what it had begun is begun again."""
        self._killed.add(pid)

    def verdict(self, task: int, from_ms: int, to_ms: int, verdict: str) -> None:
        """A ledger says so of these slots."""
        self._from_ms.setdefault(task, from_ms)
        for slot_ms in range(from_ms, to_ms + 1, SECOND_MS):
            if self._is_open(task, slot_ms):
                self._open[task][slot_ms].verdicts.append(verdict)
            else:
                self._complain(f"task {task}, slot {slot_ms}: {verdict}, long after it had its verdict")

    def settle(self, before_ms: int) -> None:
        """Judge every slot before this instant, and forget it: whatever was to happen to it has happened."""
        for task in self._from_ms.keys() | self._open.keys():
            first_ms = self._settled_ms.get(task, self._from_ms.get(task, before_ms))
            slots = self._open[task]
            for slot_ms in range(first_ms, before_ms, SECOND_MS):
                self._judge(task, slot_ms, slots.pop(slot_ms, _Slot()))
                self._settled_ms[task] = slot_ms + SECOND_MS
            for slot_ms in [slot_ms for slot_ms in slots if slot_ms < before_ms]:
                self._judge(task, slot_ms, slots.pop(slot_ms))  # earlier than any slot with a verdict

    def open_slots(self) -> int:
        """How many slots are kept."""
        return sum(map(len, self._open.values()))

    def _is_open(self, task: int, slot_ms: int) -> bool:
        return slot_ms >= self._settled_ms.get(task, 0)

    def _judge(self, task: int, slot_ms: int, slot: _Slot) -> None:
        self.settled += 1
        where = f"task {task}, slot {slot_ms}"
        if len(slot.verdicts) != 1:
            said = ", ".join(slot.verdicts) if slot.verdicts else "none"
            pids = [pid for _, pid in sorted(slot.starts)]
            self._complain(f"{where}: one verdict expected, there is {said}; started by {pids or 'nobody'}")
            return
        [verdict] = slot.verdicts
        if verdict == "ran":
            self.ran += 1
        else:
            self.other_verdicts += 1
        if not slot.starts and verdict not in NEVER_STARTED:
            self._complain(f"{where}: {verdict}, and nobody started it")
        if verdict == "ran" and slot.starts and not slot.ended:
            self._complain(f"{where}: ran, and no body of it came to its end")
        pids = [pid for _, pid in sorted(slot.starts)]
        for number, pid in enumerate(pids[:-1]):
            if pid not in self._killed:
                text = f"{where}: started again by {pids[number + 1]}, although {pid}, which started it, was not killed"
                self._complain(text)

    def _complain(self, text: str) -> None:
        self.violations += 1
        if len(self.told) < MOST_TOLD:
            self.told.append(text)


@final
@dataclass(frozen=True, slots=True)
class Growth:
    """How something grew, between two stretches of a soak."""

    what: str
    before: float
    after: float

    @property
    def percent(self) -> float:
        """Negative if it shrank."""
        return 100 * (self.after / self.before - 1)

    def __str__(self) -> str:
        return f"{self.what}: {self.before / 2**20:.2f} MB, then {self.after / 2**20:.2f} MB ({self.percent:+.2f} %)"


@final
@dataclass(frozen=True, slots=True)
class Limit:
    """From when on, in minutes, memory may grow by how much; None: a soak so short says nothing of it."""

    from_minute: float
    percent: float

    @classmethod
    def of(cls, minutes: float) -> Limit | None:
        """2 % from minute 10 on in soaks of 20 minutes and more, 10 % from minute 4 on in those of 6 and more.

        Ledgers fill first, which takes some minutes.
        """
        if minutes >= 20:
            return cls(10, 2)
        return cls(4, 10) if minutes >= 6 else None


@final
class Memory:
    """Samples of what several things took, over time."""

    STRETCH_MINUTES: Final = 1.0

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=10_000))

    def note(self, what: str, minute: float, size_bytes: float) -> None:
        """So much, then."""
        self._samples[what].append((minute, size_bytes))

    def newest(self) -> dict[str, float]:
        """The last sample of each."""
        return {what: samples[-1][1] for what, samples in self._samples.items()}

    def growth(self, from_minute: float) -> list[Growth]:
        """Of each that was there then: the mean of the minute from there on, and that of the last minute."""
        found = []
        for what, samples in self._samples.items():
            last = samples[-1][0]
            first = [size for at, size in samples if from_minute <= at < from_minute + self.STRETCH_MINUTES]
            end = [size for at, size in samples if at > last - self.STRETCH_MINUTES]
            if first and samples[0][0] <= from_minute and last >= from_minute + self.STRETCH_MINUTES:
                found.append(Growth(what, mean(first), mean(end)))
        return found
