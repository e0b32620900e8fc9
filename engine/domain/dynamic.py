"""Tasks made or removed while an engine runs: what one process asks for, and what it hears of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Protocol, TypeAlias, final

from engine.domain.task import Definition, Task


@final
@dataclass(frozen=True, slots=True)
class Made:
    """A task to be kept in Redis, for every process."""

    task: Task


@final
@dataclass(frozen=True, slots=True)
class Removed:
    """A task to be removed, wherever it is."""

    task: Task


@final
@dataclass(frozen=True, slots=True)
class Redeclared:
    """This process declares other dynamic tasks than before, ``task`` among them, removed by whomever it was."""

    task: Task


Change: TypeAlias = Made | Removed | Redeclared


class Keeper(Protocol):
    """A running engine, as the groups see it that it has."""

    def post(self, change: Change) -> None:
        """Have it done as soon as Redis is there, after all that was posted before. From any thread."""

    async def create(self, task: Task) -> None:
        """Have it kept in Redis now. Raises what ``Management.create`` raises, and EngineStateError."""

    async def remove(self, group: str, name: str) -> Definition:
        """Have it removed now. Raises what ``Management.remove`` raises, and EngineStateError."""


@final
class DynamicTasks:
    """Tasks of one group that are kept in Redis, by name, as far as this process knows. From any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: Mapping[str, Task] = {}
        self._asked: Mapping[str, Task] = {}
        """Those that this process asked for, and has not heard of yet."""

        self._leaving: frozenset[str] = frozenset()
        """Those whose removal this process asked for."""

        self._withdrawn: frozenset[str] = frozenset()

    @property
    def tasks(self) -> dict[str, Task]:
        """By name."""
        with self._lock:
            known = {**self._kept, **self._asked}
            return {name: task for name, task in known.items() if name not in self._leaving}

    def beside(self, declared: Mapping[str, Task]) -> dict[str, Task]:
        """All tasks of the group: of the same name, code wins over what Redis has, and that over other declarations."""
        kept = self.tasks
        with self._lock:
            away = self._withdrawn | self._leaving
        found = {
            name: kept.get(name, task) if task.dynamic else task
            for name, task in declared.items()
            if not task.dynamic or name in kept or name not in away
        }
        return found | {name: task for name, task in kept.items() if name not in found}

    def hear(self, kept: Mapping[str, Task], withdrawn: frozenset[str]) -> None:
        """What Redis has now."""
        with self._lock:
            self._kept, self._withdrawn = kept, withdrawn
            self._asked = {name: task for name, task in self._asked.items() if name not in kept}

    def ask(self, task: Task) -> None:
        """It counts from now on, until it is heard of or refused."""
        with self._lock:
            self._asked = {**self._asked, task.name: task}
            self._leaving -= {task.name}

    def adopt(self, task: Task) -> None:
        """Redis has it now."""
        with self._lock:
            self._kept = {**self._kept, task.name: task}
            self._asked = _without(self._asked, task.name)

    def refuse(self, task: Task) -> None:
        """It was asked for in vain."""
        with self._lock:
            self._asked = _without(self._asked, task.name)

    def leave(self, name: str) -> None:
        """It counts no longer, although its removal has only been asked for."""
        with self._lock:
            self._leaving |= {name}

    def drop(self, name: str) -> None:
        """Redis has it no longer."""
        with self._lock:
            self._kept, self._asked = _without(self._kept, name), _without(self._asked, name)
            self._leaving -= {name}


def _without(tasks: Mapping[str, Task], name: str) -> dict[str, Task]:
    return {other: task for other, task in tasks.items() if other != name}
