"""Link: keeps the connections to Redis up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from engine.runtime import Actor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import trio

    from engine.store.transport import Transport


@final
class LinkKeeper(Actor[Any]):
    """Runs what keeps Redis reachable: the transport, and the watch over an embedded server if there is one.

    Losing Redis is a state of the transport, not a crash of this actor. Its restart drops and reopens all connections.
    """

    def __init__(self, services: Sequence[Callable[..., Awaitable[None]]], label: str, transport: Transport) -> None:
        self._services, self._label, self._transport = services, label, transport

    async def started(self) -> None:
        """Start them; they live in this actor's nursery."""
        nursery: trio.Nursery = self.context.nursery
        for service in self._services:
            await nursery.start(service)
        self.context.doing(self._say)

    def _say(self) -> str:
        """Where Redis is, and what is wrong with it."""
        trouble = self._transport.statistics().trouble
        return f"{self._label}; {trouble}" if trouble else self._label
