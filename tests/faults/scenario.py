"""A scenario as data, how it is played, and the row of the table that it gives."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import trio

from tests.faults.ground import LEASE_S, LOAD, Ground, ground_on, one_redis
from tests.faults.oracle import Judgement, explain, judge, stories

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

Inject: TypeAlias = "Callable[[Ground, int], Awaitable[None]]"
Check: TypeAlias = "Callable[[Ground], Awaitable[list[str]]]"
Place: TypeAlias = "Callable[[Path, Scenario], AbstractAsyncContextManager[Ground]]"

DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")
"""With these Redis itself forgets nothing that it has acknowledged."""

RESUMES_WITHIN_LEASES: Final = 2
"""From when Redis has forgotten, or is back after that, to the first slot that is published."""

LED_WITHIN_LEASES: Final = 1
"""From when a worker has noticed it to the next election."""

ROUND_TRIPS_S: Final = 0.3
"""From the end of that lease on, for a candidate that asks again every fifth of a second."""


class Unable(Exception):
    """This machine cannot play the scenario; the text says why."""


async def _no_more(_ground: Ground) -> list[str]:
    return []


def alone(*options: str) -> Place:
    """One Redis with these options."""

    @asynccontextmanager
    async def place(directory: Path, scenario: Scenario) -> AsyncIterator[Ground]:
        async with (
            one_redis(directory, *options) as server,
            ground_on(server, directory, tasks=scenario.tasks, config=scenario.config) as found,
        ):
            yield found

    return place


ALONE: Final[Place] = alone()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fault, and where and how often it is injected."""

    name: str
    inject: Inject
    """Do it once, and return when all is well again; the number counts from 0."""

    times: int = 3
    place: Place = ALONE
    workers: int = 3
    tasks: Sequence[dict[str, Any]] = LOAD
    first_tasks: Sequence[dict[str, Any]] | None = None
    """What the first workers declare, where that is not all."""

    config: dict[str, Any] = field(default_factory=dict)
    forgets: bool = False
    """Redis loses what it has acknowledged: what is doubled or lost must be among what is forgotten."""

    check: Check = _no_more
    """What else must hold, asked before the workers stop; each text is a violation."""

    takes_s: float = 60.0
    """About how long, on a quiet machine of two cores."""

    @property
    def limit_s(self) -> float:
        """For a machine that is not quiet."""
        return 120.0 + 5 * self.takes_s


@final
@dataclass(slots=True, kw_only=True)
class Row:
    """What came of a scenario."""

    fault: str
    forgets: bool = False
    injected: int = 0
    slots: int = 0
    verdicts: int = 0
    ran: int = 0
    doubled: int = 0
    lost: int = 0
    forgotten: int = 0
    retold: int = 0
    resumed_s: list[float] = field(default_factory=list)
    """After each time that Redis forgot, how long it took to the first slot that was published."""

    led_s: list[float] = field(default_factory=list)
    """After each time that a worker noticed it, how long it took until somebody led again."""

    violations: list[str] = field(default_factory=list)
    """Why this row is wrong; empty when it is as it must be."""

    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    took_s: float = 0.0


async def play(scenario: Scenario, directory: Path, numbers: Sequence[int] = ()) -> Row:
    """Start workers, inject the fault, wait until all is quiet, judge.

    The numbers choose injections, where these differ; by default as many as the scenario says, from 0 on.
    """
    row = Row(fault=scenario.name, forgets=scenario.forgets)
    begun_s = time.monotonic()
    try:
        with trio.fail_after(scenario.limit_s):
            async with scenario.place(directory, scenario) as ground:
                await _play(scenario, ground, numbers or range(scenario.times), row)
    except Exception as error:  # noqa: BLE001  # whatever went wrong, the row says so and the others are played
        unable = [one for one in _leaves(error) if isinstance(one, Unable)]
        row.skipped = "; ".join(map(str, unable))
        if not unable:
            text = "; ".join(f"{type(one).__name__}: {one}" for one in _leaves(error))
            row.violations.append(f"it could not be played to its end: {text}")
    row.took_s = time.monotonic() - begun_s
    return row


async def _play(scenario: Scenario, ground: Ground, numbers: Sequence[int], row: Row) -> None:
    await ground.workers(scenario.workers, tasks=scenario.first_tasks)
    await ground.flowing()
    for number in numbers:
        await scenario.inject(ground, number)
        row.injected = ground.injected = ground.injected + 1
    until_ms = await ground.settle()
    row.violations += await scenario.check(ground)
    await ground.stop_workers()
    evidence = await ground.evidence(until_ms)
    judgement = judge(evidence)
    row.slots, row.verdicts, row.ran = judgement.slots, judgement.verdicts, judgement.ran
    row.doubled, row.lost, row.forgotten = map(len, (judgement.doubled, judgement.lost, judgement.forgotten))
    row.retold, row.resumed_s, row.led_s = len(judgement.retold), resumed(ground), led_again(ground)
    row.violations += violations(scenario, judgement, row.resumed_s, row.led_s)
    if (judgement.forgotten or judgement.retold) and not await is_told(ground):
        row.violations.append("history_lost is not among the events")
    if row.violations:
        row.notes += explain(judgement)
        suspects = [*judgement.doubled, *judgement.lost, *judgement.refused][:3]
        row.notes += stories(evidence, suspects)


def violations(
    scenario: Scenario, judgement: Judgement, resumed_s: Sequence[float], led_s: Sequence[float] = ()
) -> list[str]:
    """What the row's rule says of the judgement."""
    wrong = judgement.doubled.keys() | judgement.lost.keys()
    found = []
    if judgement.refused:
        found.append(f"{len(judgement.refused)} writes were accepted that should have been refused")
    if judgement.slots == 0:
        found.append("no slot was expected: nothing was tried")
    if judgement.idle:
        found.append(f"never scheduled: {', '.join(judgement.idle)}")
    if not scenario.forgets:
        if wrong:
            found.append(f"{len(wrong)} slots were doubled or lost, and Redis forgot nothing")
        if judgement.forgotten:
            found.append(f"{len(judgement.forgotten)} slots were forgotten by a Redis that keeps what it acknowledged")
        return found
    if unexplained := wrong - judgement.forgotten.keys():
        found.append(f"{len(unexplained)} slots were doubled or lost that Redis did not forget")
    if any(seconds > RESUMES_WITHIN_LEASES * LEASE_S for seconds in resumed_s):
        found.append(f"slots were published again only after {max(resumed_s):.1f} s, and a lease is {LEASE_S:g} s")
    if any(seconds > LED_WITHIN_LEASES * LEASE_S + ROUND_TRIPS_S for seconds in led_s):
        found.append(f"nobody led for {max(led_s):.1f} s after the loss was noticed, and a lease is {LEASE_S:g} s")
    return found


def resumed(ground: Ground) -> list[float]:
    """From each time that Redis forgot to the next slot that was published; infinite if none was."""
    found = []
    for forgot_s in ground.forgot_s:
        published_s = (fact.replied_s for fact in ground.facts_since(forgot_s) if fact.kind == "published")
        found.append(min(published_s, default=float("inf")) - forgot_s)
    return found


def led_again(ground: Ground) -> list[float]:
    """From each time that a worker was the first to notice a loss to the next election; infinite if there was none."""
    found = []
    for forgot_s in ground.forgot_s:
        since = ground.facts_since(forgot_s)
        noticed_s = min((fact.replied_s for fact in since if fact.kind == "noticed"), default=None)
        if noticed_s is not None:
            led_s = (fact.replied_s for fact in since if fact.kind == "led" and fact.replied_s > noticed_s)
            found.append(min(led_s, default=float("inf")) - noticed_s)
    return found


async def is_told(ground: Ground) -> bool:
    """Does an event say that Redis has forgotten something?"""
    events = await ground.view.query("XRANGE", ground.view.store.keys.events, "-", "+")
    return any(fields["event"] == "history_lost" for _, fields in events)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
