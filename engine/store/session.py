"""What all store operations share: the transport, the keys, and how scripts that take many items are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from engine.errors import TroupeError
from engine.store.script import Script, chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.keys import Keys
    from engine.store.transport import Transport

__all__ = ["Broken", "Deposed", "Done", "Item", "Session"]

Item = tuple[str, tuple[str | int, ...]]
"""A run id, which names the three keys of the item, and the item's arguments."""


class Deposed(TroupeError):
    """A write that only the leader may do was refused: this candidacy does not lead (any longer)."""

    def __init__(self, value: str) -> None:
        self.value = value
        super().__init__(value)

    def __str__(self) -> str:
        return f"{self.value!r} does not lead any longer"


@final
@dataclass(frozen=True, slots=True)
class Broken:
    """An item whose keys hold something that Troupe did not write. Nothing was written; the others went on."""

    why: str


@final
@dataclass(frozen=True, slots=True)
class Done:
    """It was written now, or by an earlier try."""


@final
@dataclass(frozen=True, slots=True)
class Session:
    """One application on one Redis."""

    transport: Transport
    keys: Keys
    ledger_length: int = 1_000

    async def query(self, *command: str | int, **options: Any) -> Any:
        """One command that only reads; the reply as redis-py shapes it. Raises RedisUnavailable."""
        return await self.transport.commands.execute_command(*command, **options)

    async def call(self, script: Script, keys: Sequence[str], *args: str | int) -> Any:
        """Run a script over the command connection. Raises RedisUnavailable; then repeat it as it was."""
        return await script(self.transport.commands, keys, args)

    async def on_runs(
        self, script: Script, head: tuple[str | int, ...], items: Sequence[Item], tail: tuple[str, ...] = ()
    ) -> list[Any]:
        """Run a script of ``lib.lua`` on many runs, at most 500 in a call; a raw reply for each, in order.

        Each call is atomic, the calls together are not: after RedisUnavailable all of them can be repeated.

        Raises:
            Deposed: ``head`` begins with a leader's value, and it leads no longer. Later calls were not made.
        """
        replies: list[Any] = []
        for chunk in chunks(items):
            keys = [*self.keys.run_scripts]
            args: list[str | int] = [self.ledger_length, *head]
            for run_id, arguments in chunk:
                keys += self.keys.of_run(run_id)
                args += arguments
            reply = await self.call(script, [*keys, *tail], *args)
            if reply == "deposed":
                raise Deposed(str(head[0]))
            replies += reply
        return replies
