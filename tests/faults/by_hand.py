"""A log written by hand, for the tests of the oracle: what two workers did, and what Redis answered."""

from __future__ import annotations

from typing import Any

from engine.store.ledger import LedgerEntry
from tests.faults.oracle import Evidence, Outage, judge
from tests.faults.wire import Exchange
from tests.system.cluster import Effect

LEASE_S = 2.0
TASK = "work/tick"
FIRST_MS = 1_000_000
ALICE, BOB = 101, 102


def run_id(slot: int) -> str:
    return f"{TASK}@{FIRST_MS + slot * 1000}"


class Story:
    """Two workers and an every-second task, as a log. The hand of the clock is moved by each line."""

    def __init__(self) -> None:
        self.at_s = 100.0
        self.effects: list[Effect] = []
        self.exchanges: list[Exchange] = []
        self.ledger: list[LedgerEntry] = []
        self.outages: list[Outage] = []
        self.died_s: dict[int, float] = {}
        self.unfinished: set[str] = set()
        self.say("enroll", ("1000", "leader", "1", TASK, str(FIRST_MS), "", "low", "allow"), ["enrolled"])

    def say(self, name: str, argv: tuple[str, ...], reply: Any, *, took_s: float = 0.001) -> Exchange:
        said = Exchange("worker", name, argv, self.at_s, reply, self.at_s + took_s, self.at_s + took_s)
        self.exchanges.append(said)
        self.at_s += took_s + 0.01
        return said

    def publish(self, slot: int, reply: Any = "published") -> None:
        due_ms = FIRST_MS + slot * 1000
        item = (TASK, str(due_ms), str(due_ms + 1000), run_id(slot), "low", "allow")
        self.say("publish", ("1000", "leader", "1000", *item), [reply])

    def claim(self, slot: int, fence: int) -> None:
        reply = ["claimed", fence, TASK, "", "1", "0", ""]
        self.say("claim", ("1000", "worker", "token", "2000", run_id(slot), "1-0", "low"), [reply])

    def renew(self, slot: int, fence: int) -> None:
        self.say(
            "beat", ("worker", "{}", "2000", "history", f"{run_id(slot)}#{fence}"), [0, "1", [], [], "history", "1"]
        )

    def retell(self, slot: int, fence: int, end: str = "") -> None:
        rest = ("token", TASK, "", "1", "0", "low", "allow", "", end, "", "{}", "", "")
        self.say("adopt", ("1000", "worker", "2000", "1", run_id(slot), str(fence), *rest), ["told"])

    def reclaim(self, slot: int, fence: int) -> None:
        self.say("reclaim", ("1000", "leader", "3", run_id(slot), str(fence), "0", "{}"), [["queued", "worker"]])

    def hand_back(self, slot: int, fence: int) -> None:
        self.say("hand_back", ("1000", "worker", run_id(slot), str(fence), "token"), ["ok"])

    def complete(self, slot: int, fence: int, reply: str = "ok") -> None:
        self.say("complete", ("1000", "worker", run_id(slot), str(fence), "ran", "", "{}"), [reply, 0])

    def body(self, event: str, slot: int, fence: int, pid: int = ALICE) -> None:
        self.effects.append(Effect(event, run_id(slot), None, fence, 1, pid, self.at_s, 0.0))
        self.at_s += 0.01

    def verdict(self, slot: int, verdict: str = "ran") -> None:
        slot_ms = FIRST_MS + slot * 1000
        self.ledger.append(LedgerEntry("0-0", verdict, "", run_id(slot), slot_ms, slot_ms, 1, 1, ()))

    def passed_over(self, first: int, last: int, verdict: str = "missed") -> None:
        first_ms, last_ms = FIRST_MS + first * 1000, FIRST_MS + last * 1000
        self.ledger.append(LedgerEntry("0-0", verdict, "", None, first_ms, last_ms, last - first + 1, 0, ()))

    def runs(self, slot: int, *, fence: int = 1, pid: int = ALICE) -> None:
        """From its publication to its verdict, as it should be."""
        self.publish(slot)
        self.claim(slot, fence)
        self.body("start", slot, fence, pid)
        self.body("end", slot, fence, pid)
        self.complete(slot, fence)
        self.verdict(slot)

    def wait(self, seconds: float) -> None:
        self.at_s += seconds

    def evidence(self, slots: int) -> Evidence:
        return Evidence(
            lease_s=LEASE_S,
            crons={TASK: "* * * * * *"},
            until_ms=FIRST_MS + slots * 1000,
            effects=self.effects,
            exchanges=self.exchanges,
            ledgers={TASK: self.ledger},
            unfinished=frozenset(self.unfinished),
            outages=self.outages,
            died_s=self.died_s,
        )

    def counts(self, slots: int) -> tuple[int, int, int, int]:
        found = judge(self.evidence(slots))
        return len(found.doubled), len(found.lost), len(found.forgotten), len(found.refused)
