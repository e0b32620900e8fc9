"""What this process declares, and what it asks for without waiting: its groups, as the actors see them."""

from __future__ import annotations

import secrets
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import trio

from engine.domain.catalog import Declaration, digest
from engine.domain.names import task_id

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from actors.messages import CatalogRead
    from engine.domain.dynamic import Change
    from engine.domain.group import TaskGroup
    from engine.domain.task import Definition


@final
class Declared:
    """Two sets: what code declares, which stays, and dynamic tasks that are declared and not kept in Redis.

    They are apart so that dynamic tasks, which come and go, do not make the code's set look younger than it is.
    """

    def __init__(self, groups: Sequence[TaskGroup]) -> None:
        self._groups = groups
        self.code = Declaration(
            definitions=tuple(task.definition for group in groups for task in group.declared if not task.dynamic),
            functions=tuple(task_id(group.name, name) for group in groups for name in group.function_registry),
        )
        self.code_digest = digest(self.code.definitions, self.code.functions)
        self.extras_digest = ""
        """Of the dynamic ones that Redis is known to have; empty when there are none."""

    @property
    def own(self) -> dict[str, Declaration]:
        """Digest -> what code declares here: what nobody in this process needs to read."""
        return {self.code_digest: self.code}

    def extras(self) -> Declaration:
        """The dynamic ones, as they are now."""
        found = tuple(task.definition for group in self._groups for task in group.declared if task.dynamic)
        return Declaration(definitions=found, functions=())

    def undeclare(self, withdrawn: Container[str]) -> None:
        """Declare dynamic tasks no longer that were removed."""
        for group in self._groups:
            group.undeclare([task.name for task in group.declared if task.dynamic and task.id in withdrawn])

    def hear(self, news: CatalogRead) -> None:
        """Tell the groups which dynamic tasks the cluster has."""
        dynamic: defaultdict[str, list[Definition]] = defaultdict(list)
        for definition in news.tasks.values():
            if definition.dynamic:
                dynamic[definition.group].append(definition)
        withdrawn = frozenset(news.withdrawn)
        for group in self._groups:
            group.hear(
                news.version, dynamic[group.name], [task.name for task in group.declared if task.id in withdrawn]
            )

    def at_odds(self, news: CatalogRead) -> Iterable[Definition]:
        """Dynamic tasks that this process declares and that are otherwise in the cluster."""
        for definition in self.extras().definitions:
            if news.tasks.get(definition.id, definition) != definition:
                yield definition


@final
@dataclass(frozen=True, slots=True)
class Posted:
    """A change that waits to be carried out; its repeat shows the same operation id."""

    change: Change
    operation_id: str = field(default_factory=lambda: secrets.token_hex(8))


@final
class Outbox:
    """Changes of dynamic tasks that somebody asked for without waiting, in order. Outlives the actor that sends."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._waiting: deque[Posted] = deque()
        self._filled = trio.Event()

    def post(self, change: Change) -> None:
        """From any thread. Returns at once."""
        self._waiting.append(Posted(change))
        with suppress(trio.RunFinishedError):  # whoever asks for it loses the race with the end of the engine
            self._token.run_sync_soon(self._wake, idempotent=True)

    async def filled(self) -> None:
        """Wait until there is something. It stays until ``done``."""
        while not self._waiting:
            self._filled = trio.Event()
            await self._filled.wait()

    def waiting(self) -> list[Posted]:
        """All that wait, in order."""
        return list(self._waiting)

    def done(self, posted: Posted) -> None:
        """It was carried out."""
        self._waiting.remove(posted)

    def left(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def _wake(self) -> None:
        self._filled.set()
