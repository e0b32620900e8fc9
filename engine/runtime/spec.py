"""Declarations of a supervision tree: frozen, printable, and checked when they are made."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

from engine.errors import SupervisorSpecError
from engine.runtime.actor import Actor
from engine.runtime.mailbox import Mailbox


def _check(holds: bool, where: str, reason: str) -> None:  # noqa: FBT001  # reads as an assertion
    if not holds:
        raise SupervisorSpecError(where, reason)


def _check_name(name: str, where: str) -> None:
    _check(bool(name), where, "a name must not be empty")
    _check("." not in name, where, "a name must not contain a dot, which separates the names of a path")
    _check(
        name.isprintable() and " " not in name,
        where,
        "a name must not contain white space or control characters",
    )


@final
class Strategy(Enum):
    """Which children are restarted when one of them has crashed."""

    ONE_FOR_ONE = "one_for_one"
    """That one alone."""
    ONE_FOR_ALL = "one_for_all"
    """All of them: they cannot do without each other."""
    REST_FOR_ONE = "rest_for_one"
    """That one and those declared after it, which lean on it."""


@final
class Restart(Enum):
    """When a child that ended by itself is started again."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """After a crash, not after a normal end. A group restart starts it again even after a normal end."""
    TEMPORARY = "temporary"
    """Never; its crash restarts no sibling and counts for nothing."""


@final
@dataclass(frozen=True, slots=True)
class Backoff:
    """The delay before a restart: doubles from ``first_s`` to ``max_s`` while a child fails, with jitter."""

    first_s: float = 0.1
    max_s: float = 5.0

    def __post_init__(self) -> None:
        _check(self.first_s >= 0, "backoff", f"first_s must not be negative: {self.first_s}")
        _check(
            self.max_s >= self.first_s,
            "backoff",
            f"max_s ({self.max_s}) must be at least first_s ({self.first_s})",
        )

    def delay_s(self, failures: int, chance: random.Random) -> float:
        """Seconds to wait after this many failures in a row (1 or more): half to all of the doubled bound."""
        doublings = min(failures - 1, 1000)  # floats end soon after
        bound_s = min(self.first_s * 2.0**doublings, self.max_s)
        return bound_s * chance.uniform(0.5, 1.0)


@final
@dataclass(frozen=True, slots=True)
class Child:
    """One actor of a supervisor, and how it is started, stopped and restarted."""

    name: str
    start: Callable[[], Actor[Any]]
    """Builds a fresh instance for each start. What it raises is a crash of the child."""
    mailbox: Mailbox[Any] | None = None
    """The mailbox that others write to; made by the runtime when None."""
    restart: Restart = Restart.PERMANENT
    shutdown_s: float = 5.0
    """How long it may take to stop when asked; then it is cancelled and reported."""
    backoff: Backoff | None = None
    """None: its supervisor's."""

    def __post_init__(self) -> None:
        _check_name(self.name, f"child {self.name!r}")
        _check(
            self.shutdown_s >= 0,
            f"child {self.name!r}",
            f"shutdown_s must not be negative: {self.shutdown_s}",
        )


@final
@dataclass(frozen=True, slots=True)
class Supervisor:
    """A supervisor: children in start order, and what to do when they fail."""

    name: str
    strategy: Strategy
    children: tuple[Child | Supervisor, ...]
    max_restarts: int = 5
    within_s: float = 30.0
    """More than ``max_restarts`` restarts within this many seconds, and it gives up: its parent's turn."""
    restart: Restart = Restart.PERMANENT
    """What its own supervisor does when it gives up."""
    backoff: Backoff = Backoff()

    def __post_init__(self) -> None:
        where = f"supervisor {self.name!r}"
        _check_name(self.name, where)
        _check(self.max_restarts >= 0, where, f"max_restarts must not be negative: {self.max_restarts}")
        _check(self.within_s > 0, where, f"within_s must be greater than zero: {self.within_s}")
        names = [child.name for child in self.children]
        for name in names:
            _check(names.count(name) == 1, where, f"two children are named {name!r}; give one another name")
        mailboxes = list(_mailboxes(self))
        for mailbox in mailboxes:
            _check(
                mailboxes.count(mailbox) == 1,
                where,
                f"two children read the mailbox {mailbox.name!r}; give each its own",
            )


def _mailboxes(spec: Supervisor) -> Iterator[Mailbox[Any]]:
    for child in spec.children:
        if isinstance(child, Supervisor):
            yield from _mailboxes(child)
        elif child.mailbox is not None:
            yield child.mailbox
