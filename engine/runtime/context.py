"""What an actor gets from the runtime, and nothing of the world that a test could not replace."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, final

import trio

from engine.runtime.clock import Clock
from engine.runtime.mailbox import Mailbox

M = TypeVar("M")


@final
@dataclass(frozen=True, slots=True)
class Environment:
    """The sources of time, chance and identity of one tree."""

    clock: Clock
    random: random.Random
    new_id: Callable[[], str]
    """Makes an id that no other process makes."""


def default_environment() -> Environment:
    """The real sources: the host's clock, the system's generator, ids of 64 random bits."""
    return Environment(
        clock=Clock(),
        random=random.SystemRandom(),  # forks of one process must not draw the same delays
        new_id=lambda: secrets.token_hex(8),
    )


class Life(Protocol):
    """The side of the runtime that a context speaks to."""

    def finish(self) -> None:
        """End after the message in progress."""

    def doing(self, what: str | Callable[[], str]) -> None:
        """Show this as the activity."""


@final
class Context(Generic[M]):
    """An actor's view of the runtime. A restarted actor gets a new one: new nursery, same mailbox."""

    __slots__ = ("_life", "environment", "mailbox", "nursery", "path")

    def __init__(
        self, *, path: str, mailbox: Mailbox[M], nursery: trio.Nursery, environment: Environment, life: Life
    ) -> None:
        self.path = path
        """Names from the root down, joined by dots: ``engine.scheduling.leader``."""
        self.mailbox = mailbox
        self.nursery = nursery
        """For the actor's own tasks. They die with it, and the crash of one is the actor's crash."""
        self.environment = environment
        self._life = life

    @property
    def clock(self) -> Clock:
        """Monotonic, wall and Redis time."""
        return self.environment.clock

    @property
    def random(self) -> random.Random:
        """The only source of chance."""
        return self.environment.random

    def new_id(self) -> str:
        """An id that no other process makes."""
        return self.environment.new_id()

    def doing(self, what: str | Callable[[], str]) -> None:
        """Show this in the tree until the next call; an empty text shows the message in progress instead.

        A function is called whenever somebody looks.
        """
        self._life.doing(what)

    def finish(self) -> None:
        """End normally after the message in progress, as if asked to stop. Returns at once.

        Whether the actor is started again is its child spec's decision: a permanent one is.
        """
        self._life.finish()
