"""Which server to dial: the one that was named, or the one that Sentinels or the nodes of a Cluster name now."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, final

import trio
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, MovedError

from engine.store.dial import DialFailed, Exchange, authenticate, expect, open_stream

if TYPE_CHECKING:
    import ssl

    from engine.address import Address
    from engine.errors import RedisUnavailable

logger = logging.getLogger("fastapi.task-manager.link")


def _uncounted(_requests: int, _sent_bytes: int, _received_bytes: int) -> None:
    """What others than Redis itself were asked is not in the link's counters."""


@final
class Topology:
    """Finds the server at each connect, so that a failover is followed by connecting again.

    One of the Sentinels, or of the nodes, may be cut off from the others and tell of what was. All Sentinels are asked,
    and the newest epoch is believed; nodes are asked in turn, and whoever told comes last the next time.

    Args:
        address: where Redis is.
        context: how to verify whom is asked; None without TLS.
        key: a key whose owner is wanted, in a Cluster.
        timeout_s: for one of those who are asked.
    """

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None,
        *,
        key: str,
        timeout_s: float,
    ) -> None:
        self._address, self._context, self._timeout_s = address, context, timeout_s
        self._nodes = deque(address.nodes)
        self._slot = key_slot(key.encode()) if address.is_cluster else None
        self._found: Address | None = None

    async def locate(self) -> Address:
        """The server to dial now.

        Raises:
            DialFailed: none of those who know has told.
        """
        if not self._address.nodes:
            return self._address
        return await (self._newest_told() if self._address.is_sentinel else self._first_told())

    async def _newest_told(self) -> Address:
        told: list[tuple[int, Address, str]] = []
        reasons: list[str] = []

        async def ask(host: str, port: int) -> None:
            try:
                epoch, found = await self._in_time(host, port)
            except DialFailed as error:
                reasons.append(error.reason)
            else:
                told.append((epoch, found, f"{host}:{port}"))

        async with trio.open_nursery() as nursery:
            for host, port in self._address.nodes:
                nursery.start_soon(ask, host, port)
        if not told:
            raise DialFailed(f"no Sentinel tells where Redis is: {'; '.join(reasons)}")
        _, found, teller = max(told, key=lambda one: one[0])
        self._note(found, teller)
        return found

    async def _first_told(self) -> Address:
        reasons: list[str] = []
        for host, port in list(self._nodes):
            self._nodes.rotate(-1)
            try:
                _, found = await self._in_time(host, port)
            except DialFailed as error:
                reasons.append(error.reason)
            else:
                self._note(found, f"{host}:{port}")
                return found
        raise DialFailed(f"no node of the Cluster tells where Redis is: {'; '.join(reasons)}")

    async def is_still_at(self, server: Address) -> bool:
        """Whether Sentinels still name that server: one in turn, all if it does not. True if none says anything.

        A primary that was deposed without being killed goes on as one for seconds, and what it takes is lost.
        """
        if not self._address.is_sentinel:
            return True
        self._nodes.rotate(-1)
        try:
            _, told = await self._in_time(*self._nodes[-1])
            return told == server or await self._newest_told() == server
        except DialFailed:
            return True

    async def confirm(self, exchange: Exchange) -> None:
        """See that a server that was dialled is what it was taken for.

        Raises:
            DialFailed: Sentinels named it, and it is no primary (yet, or any longer).
        """
        if not self._address.is_sentinel:
            return
        (reply,) = await exchange.ask(("ROLE",))
        expect("ROLE", reply, self._address)
        if reply[0] != "master":
            raise DialFailed(f"it is a {'replica' if reply[0] == 'slave' else reply[0]}, not the primary")

    def has_left(self, error: RedisUnavailable) -> bool:
        """Whether a refusal says that Redis is to be looked for anew."""
        match error.__cause__:
            case MovedError() as moved:
                return bool(moved.slot_id == self._slot)
            case ClusterDownError():
                return self._slot is not None  # a node that is cut off says so for as long as it is
            case _:
                return False

    async def _in_time(self, host: str, port: int) -> tuple[int, Address]:
        try:
            with trio.fail_after(self._timeout_s):
                return await self._ask(host, port)
        except trio.TooSlowError as error:
            raise DialFailed(f"{host}:{port}: no answer within {self._timeout_s:g} s") from error
        except DialFailed as error:
            raise DialFailed(f"{host}:{port}: {error.reason}") from error

    def concerns_others(self, error: RedisUnavailable) -> bool:
        """Whether a refusal, in a Cluster, is about a key that is not of this application."""
        cause = error.__cause__
        return self._slot is not None and isinstance(cause, MovedError) and cause.slot_id != self._slot

    async def _ask(self, host: str, port: int) -> tuple[int, Address]:
        """An epoch, of Sentinels, and the server."""
        address = self._address
        stream = await open_stream(address.at(host, port), self._context)
        try:
            exchange = Exchange(stream, _uncounted)
            if address.is_sentinel:
                return await self._ask_sentinel(exchange)
            return 0, await self._ask_node(exchange, host)
        finally:
            await trio.aclose_forcefully(stream)

    async def _ask_sentinel(self, exchange: Exchange) -> tuple[int, Address]:
        address = self._address
        await authenticate(exchange, address, address.sentinel_username, address.sentinel_password)
        name = address.sentinel_master
        where, state = await exchange.ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name), ("SENTINEL", "MASTER", name))
        expect("SENTINEL", where, address)
        if where is None:
            raise DialFailed(f"it knows no primary of the name {name!r}")
        expect("SENTINEL MASTER", state, address)
        facts = dict(zip(state[::2], state[1::2], strict=True))
        return int(facts["config-epoch"]), address.at(where[0], int(where[1]))

    async def _ask_node(self, exchange: Exchange, asked: str) -> Address:
        await authenticate(exchange, self._address, self._address.username, self._address.password)
        (reply,) = await exchange.ask(("CLUSTER", "SLOTS"))
        expect("CLUSTER SLOTS", reply, self._address)
        ranges: list[Any] = reply
        for node in (node for _, _, *nodes in ranges for node in nodes):
            known = (node[0] or asked, int(node[1]))
            if known not in self._nodes:
                self._nodes.append(known)
        for first, last, owner, *_ in ranges:
            if first <= self._slot <= last:
                return self._address.at(owner[0] or asked, int(owner[1]))
        raise DialFailed(f"nobody has slot {self._slot}")

    def _note(self, found: Address, teller: str) -> None:
        if found == self._found:
            return
        before, self._found = self._found, found
        if before is None:
            logger.info("%s is at %s, says %s", self._address.label, found.label, teller)
        else:
            logger.warning(
                "%s has moved from %s to %s, says %s", self._address.label, before.label, found.label, teller
            )
