"""Connections of one worker that execute what they are told to, and lose or delay the replies to one script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from engine.errors import RedisUnavailable
from engine.store.script import Script
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.actors.stage import Cable


class _Wire:
    """In the place of one process's connection: does something to the first reply to that script."""

    def __init__(self, cable: Cable, name: str) -> None:
        lanes, script = cable._inner._lanes, Script.load(name)
        self._lane, self._names = lanes[Lane.COMMANDS], {script.sha, script.text}
        lanes[Lane.COMMANDS] = self  # type: ignore[assignment]
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    async def request(self, args: tuple[Any, ...], block_s: float) -> Any:
        reply = await self._lane.request(args, block_s)
        if not self.lost and args[0] in {"EVAL", "EVALSHA"} and args[1] in self._names:
            self.lost += 1
            await self._disturb()
        return reply

    async def _disturb(self) -> None:
        raise NotImplementedError


class Full:
    """In the place of one process's connection: a Redis that has no memory left for these scripts."""

    def __init__(self, cable: Cable, *names: str) -> None:
        self._lane, scripts = cable._inner._lanes[Lane.COMMANDS], [Script.load(name) for name in names]
        self._refused = {word for script in scripts for word in (script.sha, script.text)}
        self._lanes = cable._inner._lanes
        self._lanes[Lane.COMMANDS] = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    async def request(self, args: tuple[Any, ...], block_s: float) -> Any:
        if args[0] in {"EVAL", "EVALSHA"} and args[1] in self._refused:
            raise RedisUnavailable("OOM command not allowed when used memory > 'maxmemory'.")
        return await self._lane.request(args, block_s)

    def is_full_no_longer(self) -> None:
        """It takes everything from now on."""
        self._lanes[Lane.COMMANDS] = self._lane


class LosesReplies(_Wire):
    """It never comes; ``then`` is called in its place."""

    def __init__(self, cable: Cable, name: str, then: Callable[[], None]) -> None:
        super().__init__(cable, name)
        self._then = then

    async def _disturb(self) -> None:
        self._then()
        raise RedisUnavailable("the reply was lost")


class DelaysReplies(_Wire):
    """It comes late."""

    def __init__(self, cable: Cable, name: str, late_s: float) -> None:
        super().__init__(cable, name)
        self._late_s = late_s

    async def _disturb(self) -> None:
        await trio.sleep(self._late_s)
