"""From a Config to Redis: where it is, what keeps it reachable, and a store over it for those who only look."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import trio

from engine.address import Address
from engine.config import address_of
from engine.errors import RedisUnreachable
from engine.store.keys import Keys
from engine.store.link import Link, LinkSettings
from engine.store.patience import Backoff
from engine.store.replicas import ReplicaWait
from engine.store.schema import SchemaCheck
from engine.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from engine.config import Config
    from engine.store.dial import Exchange

__all__ = ["Place", "first_of", "link_to", "open_store", "place_of"]


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where Redis is, and what must run to keep it there: nothing, or the watch over an embedded server."""

    address: Address
    services: tuple[Callable[..., Awaitable[None]], ...] = ()

    @property
    def label(self) -> str:
        """For people: without a password, and with a word about what is not meant for production."""
        return f"{self.address.label} (embedded, for development)" if self.services else self.address.label


@asynccontextmanager
async def place_of(config: Config) -> AsyncIterator[Place]:
    """The Redis that the Config names, or the embedded one, started if nobody has.

    Raises:
        EmbeddedRedisError: it was asked for and cannot be had.
    """
    if config.embedded:
        from engine.store.embedded import embedded_redis  # it needs POSIX, which an ordinary Redis does not

        async with embedded_redis() as embedded:
            yield Place(Address(path=str(embedded.socket)), (embedded.keep_alive,))
    else:
        yield Place(address_of(config))


def link_to(
    address: Address,
    config: Config,
    *,
    name: str,
    greetings: Sequence[Callable[[Exchange], Awaitable[None]]],
    replicas: int = 0,
) -> Link:
    """The connections of one process, the first of them greeted so each time before it is used.

    A lost one is tried again at least four times in the shortest lease.

    ``replicas``: how many must acknowledge what is replicated, for which they have a quarter of that lease.
    """

    async def greet(exchange: Exchange) -> None:
        for greeting in greetings:
            await greeting(exchange)

    lease_s, keys = min(config.leader_lease_s, config.run_lease_s), Keys(config.redis_key_prefix)
    wait = ReplicaWait(count=replicas, timeout_s=lease_s / 4, mark=keys.mark) if replicas else None
    return Link(
        address,
        name=name,
        settings=LinkSettings(backoff=Backoff(ceiling_s=lease_s / 4)),
        greet=greet,
        key=keys.tag,
        wait=wait,
    )


async def first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Return when one of them has; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[object]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)


@asynccontextmanager
async def open_store(config: Config) -> AsyncIterator[Store]:
    """A store for somebody who looks from outside, and declares and executes nothing.

    Raises:
        ConfigError: a file that the address names cannot be read.
        EmbeddedRedisError: as ``place_of``.
        OtherSchema: what is there was written by another version.
        RedisUnreachable: no connection within ``startup_timeout``.
    """
    async with place_of(config) as place:
        check = SchemaCheck(config.redis_key_prefix, writes=False)
        link = link_to(place.address, config, name="troupe-look", greetings=(check,))
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            with trio.move_on_after(config.startup_timeout):
                await first_of(link.wait_up, check.refused.wait)
            if reached := link.is_up():
                yield Store.over(link, prefix=config.redis_key_prefix, ledger_length=config.ledger_length)
            nursery.cancel_scope.cancel()
    if check.refusal is not None and not reached:
        raise check.refusal
    if not reached:
        raise RedisUnreachable(place.address.label, config.startup_timeout, link.statistics().last_error)
