"""What a worker says of itself with each beat, and what others can read of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Account"]

VERSION = 1

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A worker's own words. Another version may have written them, so each field has a value that says nothing."""

    worker_id: str = ""
    """Its name for people."""

    host: str = ""
    pid: int = 0
    started_ms: int = 0
    """By its own clock."""

    digest: str = ""
    """What it declares."""

    draining: bool = False
    executes: bool = False
    can_lead: bool = False
    concurrent_tasks: int = 0
    running: int | None = None
    """How many runs it holds; None if it does not say."""

    runs: tuple[str, ...] = ()
    """Some of them."""

    counts: Mapping[str, int]
    """How its runs ended, since it started."""

    tree: Mapping[str, Any] | None = None
    """Its supervision tree, which ``Node.from_dict`` reads."""

    def to_json(self) -> str:
        """What ``from_json`` reads."""
        return json.dumps({"v": VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As much as this version understands. What is missing or of another type says nothing, and nothing raises."""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        said: dict[str, Any] = found if isinstance(found, dict) else {}

        def read(name: str, kind: type[T], silent: T) -> T:
            value = said.get(name)
            return value if type(value) is kind else silent

        return cls(
            worker_id=read("worker_id", str, ""),
            host=read("host", str, ""),
            pid=read("pid", int, 0),
            started_ms=read("started_ms", int, 0),
            digest=read("digest", str, ""),
            draining=read("draining", bool, False),
            executes=read("executes", bool, False),
            can_lead=read("can_lead", bool, False),
            concurrent_tasks=read("concurrent_tasks", int, 0),
            running=read("running", int, -1) if "running" in said else None,
            runs=tuple(map(str, read("runs", list, []))),
            counts=read("counts", dict, {}),
            tree=said["tree"] if isinstance(said.get("tree"), dict) else None,
        )
