"""Tasks made or removed while an engine runs: what one process asks for, and what it hears of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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

    definition: Definition


@final
@dataclass(frozen=True, slots=True)
class Redeclared:
    """This process declares other dynamic tasks than before, ``task`` among them, removed by whomever it was."""

    task: Task


Change: TypeAlias = Made | Removed | Redeclared


def task_of_change(change: Change) -> str:
    """The id of the task that it is about."""
    return change.definition.id if isinstance(change, Removed) else change.task.id


class Keeper(Protocol):
    """A running engine, as the groups see it that it has."""

    def check(self, task: Task) -> None:
        """Refuse what this engine cannot take. Raises TaskDeclarationError, PayloadTooLarge."""

    def post(self, change: Change) -> None:
        """Have it done as soon as Redis is there, after all that was posted before. From any thread."""

    async def create(self, task: Task) -> None:
        """Have it kept in Redis now. Raises what ``Management.create`` raises, and EngineStateError."""

    async def remove(self, group: str, name: str) -> Definition:
        """Have it removed now. Raises what ``Management.remove`` raises, and EngineStateError."""


@final
@dataclass(frozen=True, slots=True)
class _Own:
    """What this process did to a name, until it hears of it."""

    task: Task | None
    """None: removed."""

    version: int | None
    """Of the catalog that has it so. None: it was asked for, and is not done."""


@final
class DynamicTasks:
    """Tasks of one group that are kept in Redis, by name, as far as this process knows. For one thread at a time."""

    def __init__(self) -> None:
        self._kept: Mapping[str, Task] = {}
        self._withdrawn: frozenset[str] = frozenset()
        self._own: dict[str, _Own] = {}

    def hear(self, version: int, kept: Mapping[str, Task], withdrawn: frozenset[str]) -> None:
        """What Redis has at that version of the catalog."""
        self._kept, self._withdrawn = kept, withdrawn
        self._own = {name: own for name, own in self._own.items() if own.version is None or own.version > version}

    def ask(self, task: Task) -> None:
        """It counts from now on, until it is heard of or refused."""
        self._own[task.name] = _Own(task, None)

    def leave(self, name: str) -> None:
        """It counts no longer, although its removal has only been asked for."""
        self._own[name] = _Own(None, None)

    def made(self, task: Task, version: int) -> None:
        """Redis has it since that version. If something else is asked of its name by now, that is still to be done."""
        own = self._own.get(task.name)
        if own is None or own.version is not None or own.task == task:
            self._own[task.name] = _Own(task, version)

    def removed(self, name: str, version: int) -> None:
        """Redis has it no longer, since that version. As ``made``."""
        own = self._own.get(name)
        if own is None or own.version is not None or own.task is None:
            self._own[name] = _Own(None, version)

    def refused(self, task: Task) -> None:
        """It was asked for in vain."""
        if self._own.get(task.name) == _Own(task, None):
            del self._own[task.name]

    def merged_with(self, declared: Mapping[str, Task]) -> dict[str, Task]:
        """All tasks of the group: of the same name, code wins over what Redis has, and that over other declarations."""
        own = {name: own.task for name, own in self._own.items()}
        kept = {name: task for name, task in {**self._kept, **own}.items() if task is not None}
        away = self._withdrawn.union(own)
        found = {
            name: kept.get(name, task) if task.dynamic else task
            for name, task in declared.items()
            if not task.dynamic or name in kept or name not in away
        }
        return found | {name: task for name, task in kept.items() if name not in found}
