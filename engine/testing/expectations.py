"""Whether a task did what a test expects. Decisions only: each says what is wrong, or nothing."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from engine.domain.run import REASONS, Verdict
from engine.errors import InvalidExpectation
from engine.testing.instants import ms_of, shown, zone_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo

    from engine.testing.account import Account, Run

__all__ = ["Instant", "wrong_runs", "wrong_schedule"]

Instant: TypeAlias = str | datetime

MOST_SLOTS = 5
"""How many of the coming slots a complaint names."""


def wrong_runs(
    account: Account, *, times: int | None, at: Instant | Iterable[Instant] | None, verdict: str, reason: str | None
) -> str | None:
    """What is wrong with the verdicts of a task, with all that did happen; None if they are as expected.

    Raises:
        InvalidExpectation: there is no such verdict, or it never has that reason.
        InvalidInstant: as ``ms_of``.
    """
    _check(verdict, reason)
    what = verdict if reason is None else f"{verdict} ({reason})"
    found = [run for run in account.runs if run.verdict == verdict and reason in {None, run.reason}]
    got = f"{account.name} got the verdict {what!r}"
    complaint = None
    if at is None:
        number = sum(run.count for run in found)
        if times is None and not number:
            complaint = f"{account.name} never got the verdict {what!r}"
        elif times is not None and number != times:
            complaint = f"{got} {_times(number)}, not {_times(times)}" if times else f"{got} {_times(number)}"
    else:
        zone = zone_of(account.task.timezone)
        slots = [ms_of(one, zone) for one in ([at] if isinstance(at, str | datetime) else at)]
        there = [ms for ms in slots if any(_covers(run, account, ms) for run in found)]
        missing = [ms for ms in slots if ms not in there]
        if times == 0:
            complaint = f"{got} for {_named(there, zone)}" if there else None
        elif missing:
            complaint = f"{account.name} did not get the verdict {what!r} for {_named(missing, zone)}"
        elif times is not None and len(there) != times:
            complaint = f"{got} {_times(len(there))}, not {_times(times)}, for {_named(there, zone)}"
    return None if complaint is None else f"{complaint}\n\n{account.report()}"


def wrong_schedule(
    account: Account, *, next_at: Instant | None, count: int | None, until: Instant | None
) -> str | None:
    """What is wrong with the coming slots of a task, with all that is known of it; None if they are as expected.

    Raises:
        InvalidExpectation: one of ``count`` and ``until`` is given without the other.
        InvalidInstant: as ``ms_of``.
    """
    if (count is None) != (until is None):
        raise InvalidExpectation("count" if until is None else "until", "give count and until together")
    zone, next_ms = zone_of(account.task.timezone), account.next_ms
    complaint = None
    if next_ms is None:
        complaint = "is not scheduled"
    elif account.paused is not None:
        complaint = f"is paused by {account.paused}"
    elif next_at is not None and (wanted_ms := ms_of(next_at, zone)) != next_ms:
        complaint = f"is due {shown(next_ms, zone)}, and was to be due {shown(wanted_ms, zone)}"
    elif count is not None and until is not None:
        until_ms = ms_of(until, zone)
        found = account.task.schedule.count(account.now_ms, until_ms)
        if found != count:
            slots = "".join(f"\n  {shown(ms, zone)}" for ms in _coming(account, until_ms))
            complaint = f"is due {_times(found)} until {shown(until_ms, zone)}, and was to be {_times(count)}{slots}"
    return None if complaint is None else f"{account.name} {complaint}\n\n{account.report()}"


def _check(verdict: str, reason: str | None) -> None:
    known = {one.value: one for one in Verdict}
    if verdict not in known:
        raise InvalidExpectation("verdict", f"there is no {verdict!r}; give one of {', '.join(known)}")
    reasons = sorted(one.value for one in REASONS[known[verdict]])
    if reason is not None and reason not in reasons:
        given = ", ".join(map(repr, reasons)) or "none"
        raise InvalidExpectation("reason", f"{verdict!r} never has the reason {reason!r}; those it has: {given}")


def _covers(run: Run, account: Account, ms: int) -> bool:
    """Is it the verdict of this slot?"""
    if run.slot is None or run.last_slot is None:
        return False
    first, last = (round(one.timestamp() * 1000) for one in (run.slot, run.last_slot))
    return ms == first or (first < ms <= last and account.task.schedule.is_instant(ms))


def _coming(account: Account, until_ms: int) -> list[int]:
    """The first of the coming slots."""
    slots: list[int] = []
    at_ms: int | None = account.now_ms
    while at_ms is not None and len(slots) < MOST_SLOTS:
        at_ms = account.task.schedule.next_after(at_ms)
        if at_ms is None or at_ms > until_ms:
            break
        slots.append(at_ms)
    return slots


def _named(slots: list[int], zone: tzinfo) -> str:
    return ", ".join(shown(ms, zone) for ms in slots)


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")
