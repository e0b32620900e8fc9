"""Which version of the schema Redis holds: nobody acts on keys that another version means otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio
from redis.exceptions import OutOfMemoryError

from engine.errors import OtherSchema, RedisUnavailable
from engine.store.dial import DialFailed
from engine.store.keys import SCHEMA, Keys
from engine.store.script import Script

if TYPE_CHECKING:
    from engine.store.dial import Exchange

__all__ = ["AGREE", "SchemaCheck"]

AGREE = Script.load("agree")


@final
class SchemaCheck:
    """Asked on each new connection, before any command: Redis may have another history than on the last one.

    Args:
        prefix: the application's ``redis_key_prefix``.
        writes: whether to write the version where there is none; who only looks does not.
    """

    def __init__(self, prefix: str, *, writes: bool) -> None:
        self._keys, self._writes = Keys(prefix), writes
        self.refused = trio.Event()
        """Set once another version was found."""

        self.refusal: OtherSchema | None = None

    async def __call__(self, exchange: Exchange) -> None:
        """Compare.

        Raises:
            DialFailed: another version is there, which is noted in `refusal`; or Redis did not answer.
        """
        agree = ("EVAL", AGREE.text, 1, self._keys.meta, SCHEMA)
        (reply,) = await exchange.ask(agree if self._writes else ("HGET", self._keys.meta, "schema"))
        if isinstance(reply, RedisUnavailable) and isinstance(reply.__cause__, OutOfMemoryError):
            return  # so there is none, and whoever is elected first writes it
        if isinstance(reply, Exception):
            said = reply.reason if isinstance(reply, RedisUnavailable) else str(reply)
            raise DialFailed(f"{self._keys.meta}: {said}") from reply
        if reply in (None, str(SCHEMA)):
            return
        self.refusal = OtherSchema(self._keys.prefix, found=str(reply), ours=SCHEMA)
        self.refused.set()
        raise DialFailed(str(self.refusal)) from self.refusal
