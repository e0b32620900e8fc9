"""What Redis forgets when it loses acknowledged writes: what it held before against what is left."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.store.keys import Keys
    from tests.simulation.oracle import Rhythm


class Record(NamedTuple):
    """What a run's record says of it."""

    state: str
    attempt: str
    worker: str
    fence: str
    ended: str


@final
@dataclass(frozen=True, slots=True)
class Image:
    """All that Redis holds of runs and slots at one instant."""

    runs: Mapping[str, Record]
    verdicts: Mapping[str, str]
    """Of the runs that have one."""

    slots: Mapping[str, frozenset[int]]
    """Those that the ledger of a task covers, ms."""

    due: Mapping[str, float]
    leases: Mapping[str, float]
    paused: Mapping[str, str]
    dynamic: Mapping[str, str]
    leader: str

    @classmethod
    def of(cls, look: Callable[[tuple[Any, ...]], Any], keys: Keys, rhythms: Mapping[str, Rhythm]) -> Image:
        """Look at everything."""
        runs = {}
        for key in look(("KEYS", keys.runs + "*")):
            values = look(("HMGET", key, *Record._fields))
            runs[key.removeprefix(keys.runs)] = Record(*(value or "" for value in values))
        verdicts: dict[str, str] = {}
        slots: defaultdict[str, set[int]] = defaultdict(set)
        for key in look(("KEYS", keys.ledger("*"))):
            task = key.removeprefix(keys.ledger(""))
            for _, flat in look(("XRANGE", key, "-", "+")):
                entry = _mapping(flat)
                if "run" in entry:
                    verdicts[entry["run"]] = entry["verdict"]
                    slots[task] |= {int(entry["slot"])} if entry["slot"] else set()
                elif task in rhythms:
                    slots[task].update(range(int(entry["from"]), int(entry["to"]) + 1, rhythms[task].period_s * 1000))
        return cls(
            runs=runs,
            verdicts=verdicts,
            slots={task: frozenset(some) for task, some in slots.items()},
            due=_scores(look(("ZRANGE", keys.due, 0, -1, "WITHSCORES"))),
            leases=_scores(look(("ZRANGE", keys.leases, 0, -1, "WITHSCORES"))),
            paused=_mapping(look(("HGETALL", keys.paused))),
            dynamic=_mapping(look(("HGETALL", keys.dynamic))),
            leader=look(("GET", keys.leader)) or "",
        )

    def expiry_ms(self, run_id: str, record: Record) -> int:
        """When the lease of a run ends; 0 if it has none."""
        return int(self.leases.get(f"{run_id}#{record.fence}", 0))


def forgotten(before: Image, left: Image) -> tuple[set[str], dict[str, set[int]]]:
    """Runs of which an acknowledged write is missing, and by task the slots of which one is."""
    known = {*before.runs, *before.verdicts, *left.runs}
    runs = {
        run_id
        for run_id in known
        if (before.runs.get(run_id), before.verdicts.get(run_id)) != (left.runs.get(run_id), left.verdicts.get(run_id))
    }
    slots: defaultdict[str, set[int]] = defaultdict(set)
    for task, some in before.slots.items():
        slots[task] |= some - left.slots.get(task, frozenset())
    for run_id in runs:
        task, _, slot_ms = run_id.rpartition("@")
        if slot_ms.isdigit():
            slots[task].add(int(slot_ms))
    return runs, slots


def _mapping(flat: Any) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _scores(flat: Any) -> dict[str, float]:
    return {name: float(score) for name, score in _mapping(flat).items()}
