"""The supervision tree as data: a snapshot that can be drawn, or stored as JSON and drawn elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeVar, final

from engine.errors import TreeFormatError
from engine.runtime.mailbox import MailboxStatistics
from engine.runtime.spec import Strategy

E = TypeVar("E", bound=Enum)
N = TypeVar("N", int, float, str)


@final
class Kind(Enum):
    """What a node of the tree is."""

    SUPERVISOR = "supervisor"
    ACTOR = "actor"


@final
class State(Enum):
    """The life of a node, as people see it."""

    STARTING = "starting"
    """Its ``started`` has not returned, or it waits for those before it."""
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    """Down after a failure; it starts again when the delay is over."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """Down after a failure, for good."""


@final
@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a node."""

    error: str
    traceback: str
    age_s: float


@final
@dataclass(frozen=True, slots=True)
class Node:
    """One supervisor or actor at one instant, with everything below it."""

    name: str
    path: str
    kind: Kind
    strategy: Strategy | None
    """None for an actor."""
    state: State
    uptime_s: float
    """Since ``started`` returned; 0.0 unless it is up."""
    restarts: int
    last_failure: Failure | None
    mailbox: MailboxStatistics | None
    """None for a supervisor."""
    doing: str
    children: tuple[Node, ...] = ()

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it, in start order."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` reads them back."""
        return {
            "name": self.name,
            "path": self.path,
            "kind": self.kind.value,
            "strategy": None if self.strategy is None else self.strategy.value,
            "state": self.state.value,
            "uptime_s": self.uptime_s,
            "restarts": self.restarts,
            "last_failure": None if self.last_failure is None else _flat(self.last_failure),
            "mailbox": None if self.mailbox is None else _flat(self.mailbox),
            "doing": self.doing,
            "children": [child.to_dict() for child in self.children],
        }

    @classmethod
    def from_dict(cls, data: object) -> Node:
        """Read a snapshot that another process stored. Fields that this version does not know are ignored.

        Raises:
            TreeFormatError: a field is missing or has the wrong type; names which, and of which node.
        """
        fields = _Fields(data, "root")
        fields.where = fields.get("path", str)
        return cls(
            name=fields.get("name", str),
            path=fields.where,
            kind=fields.member("kind", Kind),
            strategy=None if fields.is_none("strategy") else fields.member("strategy", Strategy),
            state=fields.member("state", State),
            uptime_s=fields.get("uptime_s", float),
            restarts=fields.get("restarts", int),
            last_failure=None if fields.is_none("last_failure") else _failure(fields.inner("last_failure")),
            mailbox=None if fields.is_none("mailbox") else _mailbox(fields.inner("mailbox")),
            doing=fields.get("doing", str),
            children=tuple(cls.from_dict(child) for child in fields.items("children")),
        )


def _flat(record: Failure | MailboxStatistics) -> dict[str, Any]:
    """As ``asdict``, which looks into each value for more, and takes three times as long: every beat has a tree."""
    return {one.name: getattr(record, one.name) for one in fields(record)}


def _failure(fields: _Fields) -> Failure:
    return Failure(
        error=fields.get("error", str),
        traceback=fields.get("traceback", str),
        age_s=fields.get("age_s", float),
    )


def _mailbox(fields: _Fields) -> MailboxStatistics:
    return MailboxStatistics(
        depth=fields.get("depth", int),
        capacity=fields.get("capacity", int),
        high_water=fields.get("high_water", int),
        oldest_age_s=fields.get("oldest_age_s", float),
        received=fields.get("received", int),
    )


@final
class _Fields:
    """Typed access to a mapping from outside; every complaint says where."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise TreeFormatError(where, f"expected an object, not {type(data).__name__}")
        self._data: Mapping[str, Any] = data
        self.where = where

    def get(self, name: str, kind: type[N]) -> N:
        value = self._require(name)
        if kind is float and type(value) is int:
            value = float(value)  # JSON writers may drop the fraction
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TreeFormatError(self.where, f"{name} is not of type {kind.__name__}: {value!r}")
        return value

    def member(self, name: str, kind: type[E]) -> E:
        value = self._require(name)
        try:
            return kind(value)
        except ValueError as exc:
            raise TreeFormatError(self.where, f"{name} has an unknown value: {value!r}") from exc

    def is_none(self, name: str) -> bool:
        return self._require(name) is None

    def inner(self, name: str) -> _Fields:
        return _Fields(self._require(name), f"{self.where}, {name}")

    def items(self, name: str) -> list[object]:
        value = self._require(name)
        if not isinstance(value, list):
            raise TreeFormatError(self.where, f"{name} is not a list: {value!r}")
        return value

    def _require(self, name: str) -> Any:
        try:
            return self._data[name]
        except KeyError as exc:
            raise TreeFormatError(self.where, f"{name} is missing") from exc
