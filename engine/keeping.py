"""A running engine as its task groups see it: where dynamic tasks go that are made while it runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeVar, final

from engine.domain.dynamic import Made, Redeclared, Removed
from engine.errors import NameTaken, RedisKeyBroken, StaticTask
from engine.store.operations import Taken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.declared import Outbox, Posted
    from engine.domain.dynamic import Change
    from engine.domain.task import Definition, Task
    from engine.management import Management

__all__ = ["GroupKeeper", "carry_out"]

log = logging.getLogger("fastapi.task-manager.group")

T = TypeVar("T")


class _Perform(Protocol):
    """How an operation gets to the trio run of the engine."""

    async def __call__(self, operation: Callable[[Management], Awaitable[T]]) -> T:
        """Do it there. Raises what it raises, and EngineStateError."""


@final
class GroupKeeper:
    """The ``Keeper`` that an engine shows its groups while it runs."""

    def __init__(
        self, outbox: Outbox, perform: _Perform, *, check: Callable[[Task], None], who: Callable[[], str]
    ) -> None:
        self._outbox, self._perform, self._check, self._who = outbox, perform, check, who

    def check(self, task: Task) -> None:
        """See ``Keeper``."""
        self._check(task)

    def post(self, change: Change) -> None:
        """See ``Keeper``."""
        self._outbox.post(change)

    async def create(self, task: Task) -> None:
        """See ``Keeper``."""
        await self._perform(lambda management: management.create(task, who=self._who()))

    async def remove(self, group: str, name: str) -> Definition:
        """See ``Keeper``."""
        return await self._perform(lambda management: management.remove(group, name, who=self._who()))


async def carry_out(posted: Posted, management: Management, *, who: str) -> None:
    """Do what a group asked for without waiting. What cannot be done is told to the log: nobody waits for the answer.

    Raises:
        RedisUnavailable: repeat it.
    """
    match posted.change:
        case Made(task):
            await _make(task, posted.operation_id, management, who)
        case Removed(definition):
            try:
                await management.forget(definition, posted.operation_id, who=who)
            except (StaticTask, NameTaken, RedisKeyBroken) as error:
                log.error(  # noqa: TRY400  # the traceback says nothing
                    "Dynamic task '%s' could not be removed from group '%s': %s",
                    *(definition.name, definition.group, error),
                )
        case Redeclared():
            pass  # it is declared, and kept nowhere


async def _make(task: Task, operation_id: str, management: Management, who: str) -> None:
    group = management.group(task.definition.group)
    try:
        made = await management.define(task, operation_id, who=who)
    except RedisKeyBroken as error:
        why = str(error)
    else:
        if not isinstance(made, Taken):
            group.note_made(task, made.revision)
            return
        why = "the name is taken by another task"
    log.error("Dynamic task '%s' could not be created in group '%s': %s", task.name, group.name, why)
    group.note_refused(task)
