"""What fastapi-task-manager, which Troupe replaces, keeps in the same database. It is read, and never changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from redis.exceptions import MovedError, ResponseError

from engine.errors import RedisUnavailable, TroupeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.store.transport import Transport

__all__ = ["PredecessorStore", "PredecessorUnreadable"]


class PredecessorUnreadable(TroupeError):
    """Redis refuses to show what that system keeps: for lack of rights, or because something else has its name."""

    def __init__(self, what: str, why: str) -> None:
        self.what, self.why = what, why
        super().__init__(what, why)

    def __str__(self) -> str:
        return (
            f"{self.what} cannot be read: {self.why}; check the prefix, and that this user of Redis may read the keys "
            "of fastapi-task-manager"
        )


@final
@dataclass(frozen=True, slots=True)
class PredecessorStore:
    """One application of that system, by its ``redis_key_prefix``, whose keys have it as it is, with no hash tag.

    All operations raise RedisUnavailable and PredecessorUnreadable.
    """

    transport: Transport
    prefix: str

    async def leader(self) -> str | None:
        """The worker that schedules there, by the name that it has in Redis; None when nobody does."""
        name: str | None = await self._read("GET", f"{self.prefix}_leader_lock")
        return name

    async def definitions(self) -> Mapping[str, str]:
        """``group:task`` -> what it keeps of a task that was made at run time, opaque here."""
        found: dict[str, str] = await self._read("HGETALL", f"{self.prefix}_dynamic_tasks")
        return found

    async def disabled(self) -> frozenset[str]:
        """The flags of all tasks that are disabled, as ``flag`` gives them. Walks over the whole database.

        Where one application's prefix begins with another's and ``_``, the flags of both are found.
        """
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", self.prefix) + "_*_disabled"
        found: set[str] = set()
        cursor = 0
        while True:
            cursor, keys = await self._read("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
            found.update(keys)
            if cursor == 0:
                return frozenset(found)

    def flag(self, group: str, task: str) -> str:
        """The flag of one task. Other names may share it: ``a_b`` and ``c``, ``a`` and ``b_c``."""
        return f"{self.prefix}_{group}_{task}_disabled"

    async def _read(self, command: str, *words: str | int) -> Any:
        try:
            return await self.transport.commands.execute_command(command, *words)
        except ResponseError as error:
            refused: Exception = error
        except RedisUnavailable as error:
            if not isinstance(error.__cause__, MovedError):
                raise
            refused = error.__cause__  # its keys have no hash tag: in a Cluster, waiting brings them no nearer
        raise PredecessorUnreadable(" ".join(map(str, (command, *words))), str(refused)) from refused
