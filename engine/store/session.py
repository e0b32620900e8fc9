"""What all store operations share: the transport, the keys, and how scripts that take many items are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from redis.exceptions import ResponseError

from engine.errors import KeyMalformed, TroupeError
from engine.store.oddities import Oddities, is_number, shown
from engine.store.script import Script, chunks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.store.keys import Keys
    from engine.store.transport import Transport

__all__ = ["Broken", "Deposed", "Done", "Item", "Session"]

_SET_ASIDE = Script.load("set_aside")

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
    oddities: Oddities = field(default_factory=Oddities, compare=False)

    async def query(self, *command: str | int, **options: Any) -> Any:
        """One command that only reads; the reply as redis-py shapes it. Raises RedisUnavailable."""
        redis = self.transport.commands
        return await self.guarded(lambda: redis.execute_command(*command, **options), *command[1:])

    async def call(self, script: Script, keys: Sequence[str], *args: str | int, replicated: bool = False) -> Any:
        """Run a script. Raises RedisUnavailable; then repeat it as it was.

        ``replicated``: what it writes counts only when as many replicas have it as are waited for, if any are.
        """
        client = self.transport.replicated if replicated else self.transport.commands
        return await self.guarded(lambda: script(client, keys, args), *keys)

    async def guarded(self, send: Callable[[], Awaitable[Any]], *named: object) -> Any:
        """Send a command that names these keys. One of another type is a state of Redis, as all that is unavailable.

        Raises:
            KeyMalformed: which of them.
            RedisUnavailable: no answer.
        """
        try:
            return await send()
        except ResponseError as error:
            ask = self.transport.commands.execute_command
            malformed = await self.oddities.refused(error, named, self.keys, ask)
            if malformed is None:
                raise
            raise malformed from error

    async def number(self, key: str) -> int:
        """A number that only grows; 0 where there is none.

        Raises:
            KeyMalformed: it is none.
            RedisUnavailable: no answer.
        """
        text = await self.query("GET", key) or "0"
        if is_number(text):
            return int(text)
        raise self.oddities.malformed(KeyMalformed(key, f"holds {shown(text)}, which is no number"), self.keys)

    async def set_aside(self, priority: str, entry_id: str, what: str) -> None:
        """Take an entry out of a stream of runs that names none, and keep it among what was set aside."""
        stream = self.keys.stream(priority)
        await self.call(_SET_ASIDE, [stream, self.keys.aside], entry_id)
        self.oddities.tell(stream, f"{entry_id} {what}", f"which is now in {self.keys.aside}")

    async def on_runs(
        self,
        script: Script,
        head: tuple[str | int, ...],
        items: Sequence[Item],
        tail: tuple[str, ...] = (),
        *,
        replicated: bool = False,
    ) -> list[Any]:
        """Run a script of ``lib.lua`` on many runs, at most 500 in a call; a raw reply for each, in order.

        Each call is atomic, the calls together are not: after RedisUnavailable all of them can be repeated.
        ``replicated`` is that of `call`.

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
            reply = await self.call(script, [*keys, *tail], *args, replicated=replicated)
            if reply == "deposed":
                raise Deposed(str(head[0]))
            replies += reply
        return replies
