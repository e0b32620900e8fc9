"""Every Redis key that Troupe touches: the data model on one page.

One hash tag per application keeps all keys in one Cluster slot, so that one script may name several. The prefix and all
names are percent-encoded, so no two names can share a key. Task ids are ``group/task`` and run ids are
``group/task@suffix``, both already encoded by ``engine.domain.names``: they are appended as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final
from urllib.parse import quote

__all__ = ["CONSUMER_GROUP", "PRIORITIES", "SCHEMA", "Keys"]

CONSUMER_GROUP = "workers"
"""The consumer group of both streams. The scripts name it too (``lib.lua``)."""


SCHEMA = 2
"""The version of all this. Grows with every change after which other versions would misread each other's keys."""


PRIORITIES = ("high", "low")
"""The streams, by what their names end with."""


_KINDS = {
    name: kind
    for kind, names in {
        "string": ("version", "leader", "epoch", "passed", "mark", "once:"),
        "hash": (
            *("meta", "generation", "retold", "declarations", "unused", "dynamic", "paused", "cleared", "workers"),
            "declared:",
            "run:",
            "live:",
        ),
        "zset": ("due", "leases", "workers:seen"),
        "set": ("cancel",),
        "stream": ("wake", "stream:high", "stream:low", "dead", "events", "aside", "ledger:"),
    }.items()
    for name in names
}
"""What each key is, by its name or what that begins with."""


@final
@dataclass(frozen=True)
class Keys:
    """The keys of one application, named by its ``redis_key_prefix``."""

    prefix: str

    @cached_property
    def tag(self) -> str:
        """``{prefix}:``, what every key begins with."""
        return f"{{{quote(self.prefix, safe='')}}}:"

    @cached_property
    def meta(self) -> str:
        """HASH ``schema`` -> version of the schema, written by the first worker. Stays."""
        return self.tag + "meta"

    @cached_property
    def generation(self) -> str:
        """HASH: one history of this Redis (``id``), who serves it (``server``), and its recovery. Stays."""
        return self.tag + "generation"

    @cached_property
    def retold(self) -> str:
        """HASH run id -> its slot, ms: runs of which workers told, and Redis knew neither run nor verdict.

        ``due`` may stand at their slots still. Ends when a leader has moved it past them, or after an hour.
        """
        return self.tag + "retold"

    @cached_property
    def version(self) -> str:
        """STRING counter, bumped by every change of catalog or pause. Stays."""
        return self.tag + "version"

    @cached_property
    def leader(self) -> str:
        """STRING ``worker:epoch:nonce``. Expires with the leader's lease.

        ``:0:<history>`` while workers tell Redis what it forgot: then nobody leads, for one lease at most.
        """
        return self.tag + "leader"

    @cached_property
    def epoch(self) -> str:
        """STRING the last epoch, only ever growing. Stays."""
        return self.tag + "epoch"

    @cached_property
    def due(self) -> str:
        """ZSET ``t/<task>`` and ``r/<run>`` -> due, ms. The truth about when. Each goes with its task or run."""
        return self.tag + "due"

    @cached_property
    def passed(self) -> str:
        """STRING the latest slot that any task was moved past, ms, only ever growing. Stays."""
        return self.tag + "passed"

    @cached_property
    def wake(self) -> str:
        """STREAM: what became due within the coordinator's next ten seconds, and when. Trimmed to about 100."""
        return self.tag + "wake"

    @cached_property
    def declarations(self) -> str:
        """HASH digest of a declared set -> ms when first seen. Ends ``retire_after`` after its last worker."""
        return self.tag + "declarations"

    @cached_property
    def unused(self) -> str:
        """HASH digest of a declared set -> ms since when no worker has it. Ends when one has, or with the set."""
        return self.tag + "unused"

    def declared(self, digest: str) -> str:
        """HASH page number -> opaque JSON: one declared set. Ends with its entry in ``declarations``."""
        return f"{self.tag}declared:{digest}"

    @cached_property
    def dynamic(self) -> str:
        """HASH task id -> ``revision|definition``, the definition opaque JSON. Ends when the task is removed.

        ``revision|`` while it is being removed; ``revision|-`` when it was, and processes declare it all the same: then
        nobody sees it, until one of them makes it anew or none declares it. ``revision|>-`` leads there.
        """
        return self.tag + "dynamic"

    @cached_property
    def paused(self) -> str:
        """HASH task id -> ``until_ms|details``, until 0 for no end, details opaque JSON. Ends then or when resumed."""
        return self.tag + "paused"

    @cached_property
    def stream_high(self) -> str:
        """STREAM of queued runs that go first. An entry ends with its run or when another entry replaces it."""
        return self.tag + "stream:high"

    @cached_property
    def stream_low(self) -> str:
        """STREAM of queued runs. An entry ends with its run or when another entry replaces it."""
        return self.tag + "stream:low"

    def stream(self, priority: str) -> str:
        """The stream of one priority, ``high`` or ``low``."""
        return self.stream_high if priority == "high" else self.stream_low

    @cached_property
    def runs(self) -> str:
        """What every run's key begins with, for scripts that read run ids from a ``live`` index."""
        return self.tag + "run:"

    def run(self, run_id: str) -> str:
        """HASH, the record of one run (fields: docs/architecture.md). Deleted by whatever ends the run."""
        return self.runs + run_id

    def live(self, task_id: str) -> str:
        """HASH run id -> queued, running, parked or waiting. Ends with its last field."""
        return f"{self.tag}live:{task_id}"

    @cached_property
    def leases(self) -> str:
        """ZSET ``run#fence`` -> expiry, ms. A member ends with its run, a hand-back or a reclaim."""
        return self.tag + "leases"

    @cached_property
    def cancel(self) -> str:
        """SET ``run#fence`` of runs that should stop. A member ends with its lease."""
        return self.tag + "cancel"

    def ledger(self, task_id: str) -> str:
        """STREAM of verdicts, trimmed to about ``ledger_length``. Ends with a dynamic task."""
        return f"{self.tag}ledger:{task_id}"

    @cached_property
    def cleared(self) -> str:
        """HASH task id -> ``entry id|ms``: up to there its statistics are hidden. Ends with a dynamic task."""
        return self.tag + "cleared"

    @cached_property
    def dead(self) -> str:
        """STREAM of runs given up on, whole. Trimmed to about 10,000."""
        return self.tag + "dead"

    @cached_property
    def workers(self) -> str:
        """HASH worker -> ``flag|presence``, the flag ``D`` when it drains, the presence JSON. Ends when buried."""
        return self.tag + "workers"

    @cached_property
    def workers_seen(self) -> str:
        """ZSET worker -> ms of its last beat. Ends when buried."""
        return self.tag + "workers:seen"

    def once(self, operation_id: str) -> str:
        """STRING, the answer to an operation, for its repeat. Expires after 600 s."""
        return f"{self.tag}once:{quote(operation_id, safe='')}"

    def once_of(self, operation_id: str, number: int) -> str:
        """The same for the call of that number, from 0, of an operation that takes several."""
        return self.once(f"{operation_id}:{number}" if number else operation_id)

    @cached_property
    def events(self) -> str:
        """STREAM of changes and operator actions, with who. Trimmed to about 1,000."""
        return self.tag + "events"

    @cached_property
    def mark(self) -> str:
        """STRING, empty: what is written only for replicas to acknowledge. Expires after 600 s."""
        return self.tag + "mark"

    @cached_property
    def aside(self) -> str:
        """STREAM of what was found in these keys and is not Troupe's, taken out of its way. Trimmed to about 1,000."""
        return self.tag + "aside"

    def kind(self, key: str) -> str | None:
        """The type that one of these keys has in Redis, as TYPE says it; None for any other."""
        if not key.startswith(self.tag):
            return None
        name = key.removeprefix(self.tag)
        return _KINDS.get(name) or _KINDS.get(name.partition(":")[0] + ":")

    def is_shared(self, key: str) -> bool:
        """Is it one of the keys that an application has once?"""
        return key.startswith(self.tag) and key.removeprefix(self.tag) in _KINDS

    @cached_property
    def run_scripts(self) -> tuple[str, ...]:
        """KEYS[1..12] of every script that changes runs, in the order that ``lib.lua`` names them."""
        return (
            self.leader,
            self.due,
            self.wake,
            self.leases,
            self.cancel,
            self.paused,
            self.stream_high,
            self.stream_low,
            self.dead,
            self.events,
            self.runs,
            self.generation,
        )

    def of_run(self, run_id: str) -> tuple[str, str, str]:
        """The three keys of one item of such a script: record, live index, ledger."""
        task_id = run_id.rpartition("@")[0]
        tag = self.tag
        return f"{tag}run:{run_id}", f"{tag}live:{task_id}", f"{tag}ledger:{task_id}"
