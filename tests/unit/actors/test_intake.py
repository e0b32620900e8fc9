"""Which stream is read next, and how many entries are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from actors.intake import Intake
from engine.store.runs import Completion, Hold
from tests.unit.actors.stage import Cable, Publisher

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage


@pytest.fixture
async def publisher(stage: Stage) -> Publisher:
    await stage.store.runs.make_groups()
    return await Publisher.elected(stage)


def intake(stage: Stage, *, block_ms: int = 1_000) -> Intake:
    return Intake(store=stage.new_store(Cable(stage.server)), worker="w", block_ms=block_ms, capacity=16)


async def test_high_entries_come_before_low_ones(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """As many as there is room."""
    await publisher.queue("g/low", 3)
    await publisher.queue("g/high", 3, priority="high")
    entries = await intake(stage).read(5)
    assert [entry.priority for entry in entries] == ["high"] * 3 + ["low"] * 2


@pytest.mark.parametrize("room", [1, 3, 5, 8])
async def test_every_eighth_slot_is_offered_to_low_first(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, room: int
) -> None:
    """However many slots are free at once."""
    await publisher.queue("g/high", 200, priority="high")
    await publisher.queue("g/low", 50)
    reader, read = intake(stage), list[str]()
    while len(read) < 120:
        read += [entry.priority for entry in await reader.read(room)]
    assert read.count("low") == len(read) // 8


async def test_the_high_stream_is_not_asked_of_which_redis_has_just_said_that_nothing_is_there(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """One request less for each batch, where only the low stream has something; for a moment, and once."""
    cable = Cable(stage.server)
    reader = Intake(store=stage.new_store(cable), worker="w", block_ms=1_000, capacity=8)
    await publisher.queue("g/low", 16)

    async def requests() -> int:
        before = cable.reads_of_runs
        assert len(await reader.read(4)) == 4
        return cable.reads_of_runs - before

    assert await requests() == 2
    reader.note_high(0, asked_s=trio.current_time())
    assert await requests() == 1
    assert await requests() == 2
    reader.note_high(0, asked_s=trio.current_time())
    await trio.sleep(0.01)
    assert await requests() == 2


async def test_a_high_entry_that_was_seen_comes_first(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Redis tells of it with the end of a run."""
    reader, runs = intake(stage), stage.store.runs
    await publisher.queue("g/low", 6)
    await publisher.queue("g/high", 1, priority="high")
    assert [entry.priority for entry in await reader.read(1)] == ["high"]
    _, unread = await runs.complete_and_look("w", [Completion(Hold("g/none@1", 1, "t"), "ran", "", "{}")])
    reader.note_high(unread, asked_s=trio.current_time())
    assert unread == 0
    await publisher.queue("g/high", 2, priority="high")
    _, unread = await runs.complete_and_look("w", [Completion(Hold("g/none@1", 1, "t"), "ran", "", "{}")])
    reader.note_high(unread, asked_s=trio.current_time())
    assert unread == 2
    assert [entry.priority for entry in await reader.read(3)] == ["high", "high", "low"]


async def test_half_of_what_a_worker_can_take_is_read_at_once(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """So that bodies of one half run while Redis works for the other."""
    await publisher.queue("g/t", 20)
    assert len(await intake(stage).read(16)) == 8


async def test_what_is_read_ahead_is_not_waited_for(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Half of what the worker can take at most; and who reads none of it has not seen that nothing is there."""
    reader = intake(stage)
    await publisher.queue("g/t", 9)
    assert (await reader.read_ahead(0), reader.quiet) == ([], False)
    assert len(await reader.read_ahead(16)) == 8
    assert len(await reader.read_ahead(16)) == 1
    assert (await reader.read_ahead(16), reader.quiet) == ([], True)
    assert trio.current_time() == 0


async def test_no_room_reads_nothing(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """What is read must be started."""
    await publisher.queue("g/t")
    assert await intake(stage).read(0) == []


async def test_a_wait_ends_when_something_comes(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """From either stream, at that instant."""
    reader = intake(stage, block_ms=60_000)

    async def queue_later() -> None:
        await trio.sleep(7)
        await publisher.queue("g/t")

    stage.nursery.start_soon(queue_later)
    assert len(await reader.read(4)) == 1
    assert trio.current_time() == 7


async def test_a_wait_brings_hardly_more_than_there_is_room_for(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """COUNT is for each stream."""
    for room in (1, 2, 5):
        reader = intake(stage)
        assert await reader.read(room) == []
        await publisher.queue("g/a", 5, priority="high")
        await publisher.queue("g/b", 5)
        assert len(await reader.read(room)) <= room + 1
        while await reader.read(8):
            pass


async def test_reading_can_be_stopped_without_losing_what_came(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The wait ends, and the reader has its reply; a read is never cancelled."""
    reader, done_s = intake(stage, block_ms=60_000), list[float]()

    async def read() -> None:
        while not reader.closed:
            assert await reader.read(4) == []
        done_s.append(trio.current_time())
        reader.finished.set()

    stage.nursery.start_soon(read)
    await stage.until(3)
    reader.close()
    await reader.stop_reading()
    assert done_s == [3]


async def test_stopping_without_redis_does_not_wait(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """There is no read in progress then."""
    cable = Cable(stage.server)
    reader = Intake(store=stage.new_store(cable), worker="w", block_ms=1_000, capacity=16)
    cable.cut()
    reader.close()
    await reader.stop_reading()
    assert trio.current_time() == 0
