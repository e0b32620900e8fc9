"""Instants as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from engine.domain.zones import nearest_zone, zone_names
from engine.errors import InvalidInstant

if TYPE_CHECKING:
    from datetime import tzinfo

__all__ = ["ms_of", "shown", "shown_span", "zone_of"]


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its IANA name.

    Raises:
        InvalidInstant: there is none of that name.
    """
    if name not in zone_names():
        nearest = nearest_zone(name)
        raise InvalidInstant(name, f"is no time zone; write {nearest or 'Europe/Rome'!r}")
    return ZoneInfo(name)


def ms_of(given: str | datetime, zone: tzinfo) -> int:
    """Milliseconds since the epoch, UTC. What names no zone or offset is meant in ``zone``.

    A time that the zone has twice means the first, unless it has an offset or ``fold=1``.

    Raises:
        InvalidInstant: it is no date and time, or one that the zone skips.
    """
    moment = given
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError as error:
            raise InvalidInstant(given, "is no date and time; write '2026-03-29 03:00'") from error
    if not isinstance(moment, datetime):
        raise InvalidInstant(given, "is neither a text nor a datetime; write '2026-03-29 03:00'")
    if moment.tzinfo is not None:
        return round(moment.timestamp() * 1000)
    local = moment.replace(tzinfo=zone)
    ms = round(local.timestamp() * 1000)
    if datetime.fromtimestamp(ms / 1000, zone).replace(tzinfo=None, fold=0) != moment.replace(fold=0):
        reason = f"does not exist in {zone}, whose clocks skip it; write a time after that, or one with an offset"
        raise InvalidInstant(given, reason)
    return ms


def shown(ms: int, zone: tzinfo) -> str:
    """``Sun 2026-03-29 03:00 CEST``, with seconds where there are any."""
    moment = datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone)
    clock = f"{moment:%H:%M}"
    if ms % 60_000:
        clock = f"{moment:%H:%M:%S}" + (f".{ms % 1000:03d}" if ms % 1000 else "")
    return f"{moment:%a %Y-%m-%d} {clock} {moment:%Z}"


def shown_span(ms: float) -> str:
    """``in 1 day, 2:30:00``."""
    return f"in {timedelta(seconds=round(ms / 1000))}"
