"""Whatever others write into Redis: no actor crashes, no other task waits, and the log hears of each thing once."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.management import Match
from engine.store.keys import Keys
from tests.unit.actors.stage import EPOCH_MS, Stage, group, noting

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS: Final = Keys("troupe")
TASK, RUN = "victim/t", f"victim/t@{EPOCH_MS + 6_000}"

EXAMPLES: Final = int(os.environ.get("GARBAGE_EXAMPLES", "20"))
"""Of each test. A worker that lives for half a minute of virtual time takes about a second."""

Command: TypeAlias = tuple[Any, ...]

DEEP: Final = "[" * 5_000 + "]" * 5_000
TEXTS: Final = st.sampled_from(
    [
        *("", "|", "-", "0|", "-|", "1|", "x", "-1", "1.5", "inf", "nan", "1e3", "9" * 30, "9" * 5_000, "\n\t\n"),
        *("{", "[]", '"', "null", "NaN", '{"a": 1}', "1|{}", "1|-", "1|>-", f"1|{DEEP}", DEEP, f"D|{DEEP}"),
        *("D", "D|{}", "-|[1]", '-|{"runs": [1], "tree": {"path": 5}, "counts": {"a": []}, "digest": "x"}'),
        *('1|{"group": "victim", "name": "n", "function": "f", "expression": "* * * * *", "timeout": 1e999}',),
        *(
            '1|{"group": "victim", "name": "n", "function": "f", "expression": "* * * * *", "max_retries": '
            + "9" * 400
            + "}",
        ),
        *(
            '{"definitions": [{"group": "victim", "name": 5}], "functions": [{}]}',
            '{"definitions": 1, "functions": {}}',
        ),
        *(
            '{"outcome": 5, "started_ms": "x"}',
            '{"outcome": "ran", "started_ms": 1e300}',
            "queued",
            "running",
            "parked",
        ),
        *(
            TASK,
            f"t/{TASK}",
            RUN,
            f"r/{RUN}",
            f"{RUN}#5",
            f"r/{RUN}#5",
            "t/a/b",
            "t/a",
            "r/a/b@1",
            "a/b@t-1#7",
            "t/",
            "r/",
        ),
    ]
)
ANY: Final = TEXTS | st.text(max_size=20) | st.binary(max_size=20)
SCORES: Final = st.sampled_from(
    ["-inf", "inf", "0", "-1", "1.5", "1e300", str(2**53 + 2), str(EPOCH_MS), f"{EPOCH_MS}.5", str(EPOCH_MS + 20_000)]
)
FIELDS: Final = st.sampled_from(
    [
        *("state", "task", "slot", "attempt", "deliveries", "fence", "entry", "priority", "overlap", "story", "kwargs"),
        *("id", "server", "former", "floor", "roster", "restored", "lost_from", "cause", "gone", "told/w", "opened"),
        *("run", "due", "at", "event", "what", "verdict", "reason", "from", "to", "count", "next", "0", "1", "schema"),
    ]
)
"""Names that mean something in one of the hashes and streams."""

HASHES: Final = (
    *(
        KEYS.generation,
        KEYS.retold,
        KEYS.meta,
        KEYS.declarations,
        KEYS.unused,
        KEYS.dynamic,
        KEYS.paused,
        KEYS.cleared,
        KEYS.workers,
    ),
    *(KEYS.declared("digest"), KEYS.run(RUN), KEYS.live(TASK)),
)
STREAMS: Final = (
    *(KEYS.wake, KEYS.stream_high, KEYS.stream_low, KEYS.dead, KEYS.events, KEYS.aside, KEYS.ledger(TASK)),
)
ZSETS: Final = (KEYS.due, KEYS.leases, KEYS.workers_seen)
STRINGS: Final = (KEYS.version, KEYS.leader, KEYS.epoch, KEYS.passed)
EVERY: Final = (*HASHES, *STREAMS, *ZSETS, *STRINGS, KEYS.cancel)


@st.composite
def items(draw: st.DrawFn) -> Command:
    """Something in a key of the right type."""
    key = draw(st.sampled_from([*HASHES, *STREAMS, *ZSETS, KEYS.cancel]))
    if key in ZSETS:
        return ("ZADD", key, draw(SCORES), draw(ANY))
    if key == KEYS.cancel:
        return ("SADD", key, draw(ANY))
    fields = draw(st.lists(st.tuples(FIELDS | ANY, ANY), min_size=1, max_size=4))
    words = [word for pair in fields for word in pair]
    return ("XADD", key, "*", *words) if key in STREAMS else ("HSET", key, *words)


@st.composite
def whole_keys(draw: st.DrawFn) -> tuple[Command, Command]:
    """A key that holds something else altogether."""
    key = draw(st.sampled_from(EVERY))
    ways: list[Command] = [
        *(("RPUSH", key, "x"), ("SET", key, draw(ANY)), ("SADD", key, "x"), ("HSET", key, "x", "x")),
        *(("ZADD", key, "5", "x"), ("XADD", key, "*", "x", "x")),
    ]
    return ("DEL", key), draw(st.sampled_from(ways))


AT_ONCE: Final = """
local at = 1
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
"""
"""Commands, each behind the number of its words: between two of them no worker makes anew what the first deleted."""


class Log(logging.Handler):
    """What the store and the actors said, beginning with warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[record.getMessage()] += 1


def play(writes: list[Command], judge: Callable[[Stage, list[float], Log], Any], *, for_s: float = 15.0) -> None:
    """A worker with a task of its own and a bystander; after some seconds, somebody else writes to Redis."""
    clock = MockClock(autojump_threshold=0)

    async def main() -> None:
        victim, other = group("victim"), group("bystander")
        noting(victim, "* * * * * *", allow_parallel=False)
        ran_s = noting(other, "* * * * * *", allow_parallel=False)
        async with trio.open_nursery() as nursery:
            stage = Stage(clock, nursery)
            worker = await stage.worker(
                *(victim, other), leader_heartbeat_interval=1, running_heartbeat_interval=1, reconciliation_interval=2
            )
            await stage.until(5.5)
            assert len(ran_s) >= 4
            flat = [word for write in writes for word in (len(write), *write)]
            await stage.redis.execute_command("EVAL", AT_ONCE, 0, *flat)
            await stage.until(5.5 + for_s)
            await judge(stage, ran_s, log)
            assert [str(crash) for crash in worker.crashes] == []
            nursery.cancel_scope.cancel()

    log, logger = Log(), logging.getLogger("fastapi.task-manager")
    logger.addHandler(log)
    try:
        trio.run(main, clock=clock)
    finally:
        logger.removeHandler(log)


async def look_at_all(stage: Stage) -> None:
    """As an operator does: what cannot be shown costs nothing else, and is no error of the program."""
    management = stage.workers[0].management
    for view in await management.tasks(Match()):
        view.to_dict()
    for worker in await management.workers():
        worker.to_dict()
    await management.statistics("victim", "t")
    await stage.store.operations.dead(count=10)
    await stage.store.catalog.recent_events(count=100)


async def goes_on(stage: Stage, ran_s: list[float], log: Log) -> None:
    """The bystander runs each second, and no line was said twice."""
    await look_at_all(stage)
    assert [second for second in ran_s if second > trio.current_time() - 3.6], ran_s[-3:]
    odd = {line: times for line, times in log.lines.items() if "did not write" in line and times > 1}
    assert not odd, odd


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@example([("ZADD", KEYS.due, "-inf", f"t/{TASK}"), ("ZADD", KEYS.due, "inf", "t/a/b")])
@example(
    [("XADD", KEYS.stream_low, "*", "no", "run"), ("HSET", KEYS.workers, "w", ""), ("HSET", KEYS.paused, TASK, "x")]
)
@given(st.lists(items(), min_size=1, max_size=6))
def test_what_others_write_beside_ours_stops_nobody(writes: list[Command]) -> None:
    """Entries, members and fields of every kind in every key, while a worker schedules and executes."""
    play(writes, goes_on)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(whole_keys())
def test_a_key_that_holds_something_else_is_waited_for(writes: tuple[Command, Command]) -> None:
    """Nobody crashes meanwhile; it is told once; and when it is gone, all goes on."""
    key = writes[0][1]

    async def judge(stage: Stage, ran_s: list[float], log: Log) -> None:
        told = [line for line in log.lines if "What needs it waits" in line and line.startswith(key)]
        stood_still = [second for second in ran_s if second > trio.current_time() - 5] == []
        assert len(told) <= 1, told
        assert told or not stood_still, log.lines
        await stage.redis.delete(key)
        await stage.until(trio.current_time() + 20)
        await goes_on(stage, ran_s, log)

    play(list(writes), judge, for_s=15)


ONE_OF_EACH: Final[dict[str, Command]] = {
    "'garbage 5'": ("ZADD", KEYS.due, "5", "garbage"),
    "'t/a/b -inf'": ("ZADD", KEYS.due, "-inf", "t/a/b"),
    "'x/a/b inf'": ("ZADD", KEYS.due, "inf", "x/a/b"),
    "no lease": ("ZADD", KEYS.leases, "7", "no lease"),
    "no run": ("XADD", KEYS.stream_low, "*", "no run", "x"),
    "'victim/u soon'": ("HSET", KEYS.paused, "victim/u", "soon"),
    "dynamic task a/b": ("HSET", KEYS.dynamic, "a/b", "no revision"),
    "'digest first'": ("HSET", KEYS.declarations, "digest", "first"),
    "no number": ("HSET", KEYS.declared("digest"), "no number", "x"),
    "The declaration digest": ("HSET", KEYS.declared("digest"), "0", "no page"),
    "no-such-time": ("XADD", KEYS.wake, "*", "due", "t/a/b", "at", "no-such-time"),
    "nameless": ("XADD", KEYS.events, "*", "nameless", "x"),
}
"""What the log says of each."""


def test_each_thing_is_told_once_and_what_must_go_is_set_aside() -> None:
    """A warning names it; afterwards the keys that are read all the time hold nothing but Troupe's own."""

    async def judge(stage: Stage, ran_s: list[float], log: Log) -> None:
        for words in ONE_OF_EACH:
            assert sum(times for line, times in log.lines.items() if words in line) == 1, (words, log.lines)
        assert len(ran_s) > 15
        names = {fields["name"] for _, fields in await stage.redis.xrange(KEYS.aside)}
        assert {"garbage", "t/a/b", "x/a/b", "no lease"} < names
        assert await stage.redis.zrange(KEYS.due, 0, -1) == ["t/bystander/t", f"t/{TASK}"]
        assert await stage.redis.zrange(KEYS.leases, 0, -1) == []
        assert await stage.redis.xlen(KEYS.stream_low) == 0
        await goes_on(stage, ran_s, log)

    news = ("INCR", KEYS.version), ("XADD", KEYS.events, "*", "event", "declared", "what", "x")
    play([*ONE_OF_EACH.values(), *news], judge)


@pytest.mark.parametrize("score", ["-inf", "inf", "1.5", "-3", "1e300"])
def test_a_task_that_is_due_at_no_instant_is_scheduled_anew(score: str) -> None:
    """It goes on with its next slot, as if it had just been declared; nothing spins meanwhile."""

    async def judge(stage: Stage, ran_s: list[float], log: Log) -> None:
        due = await stage.store.timetable.tasks()
        assert due[TASK] == due["bystander/t"]
        slots = [entry.from_ms for entry in await stage.ledger(TASK)]
        assert len(set(slots)) == len(slots) >= 15
        assert len(stage.workers[0].cable.sent) < 1_000
        await goes_on(stage, ran_s, log)

    play([("ZADD", KEYS.due, score, f"t/{TASK}")], judge, for_s=25)


@pytest.mark.parametrize("value", ["somebody", "a:b:c:d", "w:12x:n"])
def test_a_seat_that_nobody_took_in_an_election_is_free_after_a_lease(value: str) -> None:
    """Somebody wrote there, and nobody would ever renew it."""

    async def judge(stage: Stage, ran_s: list[float], log: Log) -> None:
        assert stage.workers[0].leads
        assert len(stage.workers[0].cable.sent) < 1_000
        await goes_on(stage, ran_s, log)

    play([("SET", KEYS.leader, value)], judge)
    play([("SET", KEYS.leader, value, "PX", "1000000000")], judge)


async def test_a_set_whose_pages_were_deleted_is_declared_again(autojump_clock: MockClock, stage: Stage) -> None:
    """Its digest alone says nothing: whoever starts later could not know the tasks."""
    tasks = group("g")
    noting(tasks, "* * * * * *")
    first = await stage.worker(tasks)
    await stage.until(3)
    [found] = (await stage.store.catalog.contents()).sets
    await stage.redis.delete(KEYS.declared(found.digest))
    first.kill()
    before = len(stage.workers)
    second = await stage.worker(tasks)
    await stage.until(30)
    [again] = (await stage.store.catalog.contents()).sets
    assert again.pages == found.pages
    assert len(stage.workers) == before + 1
    assert len(second.cable.sent) < 1_000
