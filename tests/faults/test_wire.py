"""Messages are cut out of the stream whole, whatever pieces it comes in, and held at the step that was asked for."""

from __future__ import annotations

import hiredis
import pytest
import trio
import trio.testing

from tests.faults.resp import Splitter, parse
from tests.faults.wire import Exchange, Tap, Trap

REPLIES = [
    b"+OK\r\n",
    b"-ERR no such thing\r\n",
    b":42\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*3\r\n*2\r\n:1\r\n$1\r\nx\r\n*-1\r\n+y\r\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_come_out_whole_in_pieces_of_any_size(size: int) -> None:
    """Nothing is lost, and nothing is cut in two."""
    stream, splitter, found = b"".join(REPLIES), Splitter(), list[bytes]()
    for start in range(0, len(stream), size):
        found += splitter.feed(stream[start : start + size])
    assert found == REPLIES
    assert splitter.rest() == b""


def test_a_message_says_what_it_says() -> None:
    """Texts, numbers, lists, nothing, and refusals."""
    assert parse(b"*3\r\n*2\r\n:1\r\n$1\r\nx\r\n*-1\r\n+y\r\n") == [[1, "x"], None, "y"]
    assert isinstance(parse(b"-ERR no\r\n"), hiredis.ReplyError)


class Wire:
    """A connection through a tap; what arrived on each side."""

    def __init__(self) -> None:
        self.record: list[Exchange] = []
        self.tap = Tap("somebody", self.record)
        self.ear = self.tap.connect()
        self.at_server: list[bytes] = []
        self.at_client: list[bytes] = []

    async def ask(self, *words: str) -> None:
        async def arrive(data: bytes) -> None:
            self.at_server.append(data)

        packed = hiredis.pack_command(words)  # type: ignore[arg-type]
        await self.ear.request(packed, arrive)

    async def answer(self, message: bytes) -> None:
        async def arrive(data: bytes) -> None:
            self.at_client.append(data)

        await self.ear.reply(message, arrive)


async def test_replies_belong_to_their_requests_in_order() -> None:
    """Also when several were sent before the first was answered."""
    wire = Wire()
    await wire.ask("GET", "a")
    await wire.ask("SET", "b", "1")
    await wire.answer(b"$1\r\nx\r\n+O")
    await wire.answer(b"K\r\n")
    assert [(one.name, one.argv, one.reply) for one in wire.record] == [("GET", ("a",), "x"), ("SET", ("b", "1"), "OK")]


async def test_a_script_is_known_by_its_sha_and_by_its_text() -> None:
    """EVAL comes after a NOSCRIPT."""
    from engine.store.script import Script

    claim, wire = Script.load("claim"), Wire()
    await wire.ask("EVALSHA", claim.sha, "1", "key", "1000", "worker")
    await wire.ask("EVAL", claim.text, "1", "key", "1000", "worker")
    assert [(one.name, one.argv) for one in wire.record] == [("claim", ("1000", "worker"))] * 2


@pytest.mark.parametrize("at", ["request", "reply"])
@pytest.mark.parametrize("drops", [False, True])
async def test_a_trap_holds_what_matches_at_its_step(nursery: trio.Nursery, at: str, *, drops: bool) -> None:
    """Before Redis has it, or before the client hears of it; then it goes on, or is lost."""
    wire = Wire()
    trap = wire.tap.set(Trap("GET", at, lambda one: one.argv == ("b",)))
    await wire.ask("GET", "a")
    await wire.answer(b":1\r\n")
    assert not trap.sprung.is_set()

    async def second() -> None:
        await wire.ask("GET", "b")
        await wire.answer(b":2\r\n")

    if drops and at == "request":
        nursery.start_soon(wire.ask, "GET", "b")
    else:
        nursery.start_soon(second)
    await trap.sprung.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert len(wire.at_server) == (1 if at == "request" else 2)
    assert len(wire.at_client) == 1
    (trap.drop if drops else trap.release)()
    await trio.testing.wait_all_tasks_blocked()
    assert len(wire.at_server) == (1 if drops and at == "request" else 2)
    assert len(wire.at_client) == (1 if drops else 2)
    if at == "reply":
        assert (wire.record[-1].left_s is None) is drops


async def test_a_refusal_springs_no_trap_for_replies() -> None:
    """NOSCRIPT is no execution."""
    wire = Wire()
    trap = wire.tap.set(Trap("GET", "reply"))
    await wire.ask("GET", "a")
    await wire.answer(b"-NOSCRIPT\r\n")
    assert not trap.sprung.is_set()
    assert not wire.record[0].answered


async def test_a_connection_that_is_no_client_passes_through() -> None:
    """A replica's, after PSYNC: what follows is a stream without requests."""
    wire = Wire()
    await wire.ask("PSYNC", "?", "-1")
    await wire.answer(b"+FULLRESYNC x 0\r\n$3\r\nRDB")
    await wire.answer(b"*1\r\n$4\r\nPING\r\n\x00\xff")
    assert b"".join(wire.at_client) == b"+FULLRESYNC x 0\r\n$3\r\nRDB*1\r\n$4\r\nPING\r\n\x00\xff"
    assert wire.record == []
