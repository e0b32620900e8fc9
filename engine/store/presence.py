"""What a worker says of itself with each beat, and what others can read of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Self, final

from engine.domain.canonical import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Account"]

_VERSION: Final = 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A worker's own words. Another version may have written them: each field has a value that stands for silence."""

    worker_id: str = ""
    """Its name for people."""

    host: str = ""
    pid: int = 0
    started_ms: int = 0
    """By its own clock."""

    version: str = ""
    """Of Troupe."""

    digest: str = ""
    """What its code declares."""

    extras: str = ""
    """The set of dynamic tasks that it declares beside its code."""

    draining: bool = False
    executes: bool = False
    can_lead: bool = False
    concurrent_tasks: int = 0
    running: int | None = None
    """How many runs it holds."""

    runs: Sequence[str] = ()
    """Some of them."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """How its runs ended, since it started."""

    tree: Mapping[str, Any] = field(default_factory=dict)
    """Its supervision tree, which ``Node.from_dict`` reads."""

    def to_json(self) -> str:
        """What ``from_json`` reads."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps({"v": _VERSION, **said}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As much of it as this version understands: what is missing or of another type counts as not said."""
        try:
            said = read_json(text)
        except ValueError:
            return cls()
        if not isinstance(said, dict):
            return cls()
        known: dict[str, Any] = {name: said[name] for name, kind in _TYPES.items() if type(said.get(name)) is kind}
        if "runs" in known:
            known["runs"] = [run_id for run_id in known["runs"] if isinstance(run_id, str)]
        if "counts" in known:
            known["counts"] = {name: count for name, count in known["counts"].items() if type(count) is int}
        return cls(**known)


_TYPES: Final = {
    "worker_id": str,
    "host": str,
    "pid": int,
    "started_ms": int,
    "version": str,
    "digest": str,
    "extras": str,
    "draining": bool,
    "executes": bool,
    "can_lead": bool,
    "concurrent_tasks": int,
    "running": int,
    "runs": list,
    "counts": dict,
    "tree": dict,
}
"""What each field is in JSON."""
