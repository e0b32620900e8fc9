"""Lua scripts: loaded from files when imported, sent by their SHA, sent whole when the server has forgotten them."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar, final

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.store.client import Client

__all__ = ["MAX_ITEMS", "Script", "WrongReply", "chunks", "script_of"]

MAX_ITEMS = 500
"""Items in one call of a script that takes many: 10,000 bare publications in one call hold Redis for about 41 ms."""

_INCLUDE = "--#include lib\n"

T = TypeVar("T")


class WrongReply(AssertionError):
    """A script answered something that its wrapper does not know: a bug in one of the two."""


_loaded: dict[str, str] = {}
"""The names of all scripts, by their SHA and by their text."""


@final
@dataclass(frozen=True, slots=True)
class Script:
    """One operation on Redis: atomic, one round trip, safe to repeat. The header of its file is the contract."""

    name: str
    text: str = field(repr=False)
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read ``lua/<name>.lua``. A file that begins with ``--#include lib`` gets ``lua/lib.lua`` in that place."""
        folder = files("engine.store") / "lua"
        text = (folder / f"{name}.lua").read_text(encoding="utf-8")
        if text.startswith(_INCLUDE):
            text = (folder / "lib.lua").read_text(encoding="utf-8") + text.removeprefix(_INCLUDE)
        digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        script = cls(name=name, text=text, sha=digest)
        _loaded[digest] = _loaded[text] = name
        return script

    async def __call__(self, client: Client, keys: Iterable[str], args: Iterable[str | int]) -> Any:
        """Run it and return the reply as it came.

        Raises:
            RedisUnavailable: no answer; it may or may not have run. Repeat it with the same arguments. Or Redis refused
                it before its first write, for now (its memory is full, it is a replica).
            redis.exceptions.ResponseError: Redis refused it before its first write, for good (a wrong type).
        """
        names = tuple(keys)
        try:
            return await client.execute_command("EVALSHA", self.sha, len(names), *names, *args)
        except NoScriptError:
            return await client.execute_command("EVAL", self.text, len(names), *names, *args)


def script_of(command: Sequence[Any]) -> str | None:
    """The name of the script that this command runs; None if it runs none of ours."""
    return _loaded.get(command[1]) if command[0] in {"EVALSHA", "EVAL"} else None


def chunks(items: Sequence[T]) -> list[Sequence[T]]:
    """The items in order, as many at a time as one call takes; no items, no chunk."""
    return [items[start : start + MAX_ITEMS] for start in range(0, len(items), MAX_ITEMS)]
