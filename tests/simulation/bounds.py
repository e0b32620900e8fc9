"""How large everything in Redis may become: a bound for each key of docs/architecture.md, checked over all keys."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.store.keys import CONSUMER_GROUP, Keys

if TYPE_CHECKING:
    from collections.abc import Callable

NODE: Final = 100
"""By so many entries Redis may trim a stream too late (``stream-node-max-entries``)."""

FACTS_OF_A_HISTORY: Final = 13
"""Fields of ``generation`` beside one for each worker that is waited for."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What there is for Redis to hold."""

    tasks: int
    """That exist: declared, dynamic, and those of sets that are not retired yet."""

    names: int
    """Ids under which code has ever declared a task, and of dynamic tasks that exist: their ledgers stay."""

    dynamic: int
    workers: int
    """That live, or ended so lately that they are not buried yet."""

    slots: int
    """Runs that all of these execute at once."""

    sets: int
    """Declared by these, or not retired yet."""

    paused: int
    operations: int
    """In the last ten minutes."""

    queue_cap: int
    ledger_length: int

    @property
    def runs(self) -> int:
        """Queued, in progress, waiting or parked: after each in progress or queued one may wait for its retry."""
        return 2 * (2 * self.queue_cap + self.slots) + self.tasks


BOUNDS: Final[dict[str, tuple[Callable[[Scope], int], Callable[[Scope], int]]]] = {
    # key: (how many of its kind, how large each)
    "meta": (lambda _: 1, lambda _: 1),
    "generation": (lambda _: 1, lambda s: FACTS_OF_A_HISTORY + s.workers),
    "retold": (lambda _: 1, lambda s: s.runs),
    "version": (lambda _: 1, lambda _: 1),
    "leader": (lambda _: 1, lambda _: 1),
    "epoch": (lambda _: 1, lambda _: 1),
    "due": (lambda _: 1, lambda s: s.tasks + s.runs),
    "passed": (lambda _: 1, lambda _: 1),
    "wake": (lambda _: 1, lambda _: 100 + NODE),
    "declarations": (lambda _: 1, lambda s: s.sets),
    "unused": (lambda _: 1, lambda s: s.sets),
    "declared": (lambda s: s.sets, lambda s: 1 + s.tasks // 500),
    "dynamic": (lambda _: 1, lambda s: s.dynamic),
    "paused": (lambda _: 1, lambda s: s.paused),
    "stream:high": (lambda _: 1, lambda s: s.queue_cap + s.slots),
    "stream:low": (lambda _: 1, lambda s: s.queue_cap + s.slots),
    "run": (lambda s: s.runs, lambda _: 30),
    "live": (lambda s: s.tasks, lambda s: s.runs),
    "leases": (lambda _: 1, lambda s: s.slots),
    "cancel": (lambda _: 1, lambda s: s.slots),
    "ledger": (lambda s: s.names, lambda s: s.ledger_length + NODE),
    "cleared": (lambda _: 1, lambda s: s.names),
    "dead": (lambda _: 1, lambda _: 10_000 + NODE),
    "workers": (lambda _: 1, lambda s: s.workers),
    "workers:seen": (lambda _: 1, lambda s: s.workers),
    "once": (lambda s: s.operations, lambda _: 1),
    "events": (lambda _: 1, lambda _: 1_000 + NODE),
    "aside": (lambda _: 1, lambda _: 1_000 + NODE),
    "mark": (lambda _: 1, lambda _: 1),
}

WHOLE: Final = frozenset({"stream:high", "stream:low", "workers:seen"})
"""Names that have a colon in them; of the others it parts the kind from what it is about."""

_SIZES: Final = {"hash": "HLEN", "set": "SCARD", "zset": "ZCARD", "stream": "XLEN"}


def kind_of(key: str, keys: Keys) -> str:
    """Which row of the table a key belongs to."""
    name = key.removeprefix(keys.tag)
    return name if name in WHOLE else name.partition(":")[0]


def broken(look: Callable[[tuple[Any, ...]], Any], scope: Scope, keys: Keys) -> list[str]:
    """What exceeds its bound, and what has none."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key in look(("KEYS", "*")):
        kind = kind_of(key, keys) if key.startswith(keys.tag) else key
        command = _SIZES.get(look(("TYPE", key)))
        found[kind].append((key, look((command, key)) if command else 1))
    said = [f"{kind}: it is in no table" for kind in found if kind not in BOUNDS]
    for kind, sizes in found.items():
        if kind in BOUNDS:
            most, largest = (bound(scope) for bound in BOUNDS[kind])
            if len(sizes) > most:
                said.append(f"{len(sizes)} keys {kind}, and at most {most} should be there")
            said += [
                f"{key} has {size}, and at most {largest} should be there" for key, size in sizes if size > largest
            ]
    return said + _strangers(look, scope, keys)


def _strangers(look: Callable[[tuple[Any, ...]], Any], scope: Scope, keys: Keys) -> list[str]:
    """Readers of the streams of whom nobody knows any more."""
    present = set(look(("HKEYS", keys.workers)))
    said = [] if present == set(look(("ZRANGE", keys.workers_seen, 0, -1))) else ["workers and workers:seen differ"]
    for stream in (keys.stream_high, keys.stream_low):
        if look(("EXISTS", stream)):
            readers = {facts[facts.index("name") + 1] for facts in look(("XINFO", "CONSUMERS", stream, CONSUMER_GROUP))}
            said += [f"{reader} reads {stream}, and has no presence" for reader in sorted(readers - present)]
            if len(readers) > scope.workers:
                said.append(f"{stream} has {len(readers)} readers, and at most {scope.workers} should be there")
    return said
