"""Looking at many tasks, and at what their runs went through so far, without changing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import trio
from redis.exceptions import ResponseError

from engine.errors import KeyMalformed, RedisUnavailable
from engine.store.ledger import LedgerEntry, entry_of
from engine.store.script import Script, WrongReply, chunks
from engine.store.session import Broken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.store.session import Session

__all__ = ["LiveStory", "Survey", "WaitingRetry"]

_SURVEY = Script.load("survey")

_STORY = ("state", "attempt", "abandoned", "removed", "story")


@final
@dataclass(frozen=True, slots=True)
class WaitingRetry:
    """A run that failed and is tried again at ``due_ms``; ``attempt`` is the number of the try that it waits for."""

    run_id: str
    due_ms: int
    attempt: int


@final
@dataclass(frozen=True, slots=True)
class Survey:
    """How one task fares, at one instant."""

    live: Mapping[str, str]
    """Run id -> queued, parked, running or waiting, of the runs that have not ended."""

    waiting: tuple[WaitingRetry, ...]
    """Of those that wait, the first due first."""

    last: LedgerEntry | None
    """The newest verdict."""


@final
@dataclass(frozen=True, slots=True)
class LiveStory:
    """A run that has no verdict yet, and its attempts that have ended."""

    run_id: str
    state: str
    """``queued``, ``parked``, ``running`` or ``waiting``."""

    attempt: int
    """The number of the attempt that is in progress or comes next."""

    story: tuple[str, ...]
    """A line of JSON for each attempt that ended, the newest last."""


async def survey(session: Session, task_ids: Sequence[str]) -> list[Survey | Broken]:
    """How each of these tasks fares. Raises RedisUnavailable."""
    keys = session.keys

    def ask(chunk: Sequence[str]) -> Callable[[], Awaitable[Any]]:
        of_tasks = [key for task_id in chunk for key in (keys.live(task_id), keys.ledger(task_id))]
        return lambda: session.call(_SURVEY, [keys.due, keys.runs, *of_tasks])

    calls = [ask(chunk) for chunk in chunks(task_ids)]
    return [_survey(raw) for replies in await _at_once(calls) for raw in replies]


async def stories(session: Session, task_id: str) -> list[LiveStory]:
    """The runs of a task that have no verdict yet. Raises RedisUnavailable."""

    def ask(run_id: str) -> Callable[[], Awaitable[Any]]:
        async def read() -> Any:
            try:
                return await session.query("HMGET", session.keys.run(run_id), *_STORY)
            except KeyMalformed:  # not ours: as if it were not there
                return [None] * len(_STORY)

        return read

    run_ids = list(await session.query("HGETALL", session.keys.live(task_id)))
    found = zip(run_ids, await _at_once([ask(run_id) for run_id in run_ids]), strict=True)
    return [
        LiveStory(run_id, state, int(attempt), tuple(line for line in (story or "").split("\n") if line))
        for run_id, (state, attempt, abandoned, removed, story) in found
        if state and (attempt or "").isdecimal() and not abandoned and not removed
    ]


async def _at_once(calls: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Make all calls in one turn of the loop, so that they leave together; their replies, in order.

    Raises what one of them raised, when all have been answered.
    """
    replies: list[Any] = [None] * len(calls)
    failure: Exception | None = None

    async def make(number: int, call: Callable[[], Awaitable[Any]]) -> None:
        nonlocal failure
        try:
            replies[number] = await call()
        except (RedisUnavailable, ResponseError) as error:  # out of here it would be in a group
            failure = error

    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(make, number, call)
    if failure is not None:
        raise failure
    return replies


def _survey(raw: Any) -> Survey | Broken:
    match raw:
        case ["broken", str(why)]:
            return Broken(why)
        case [live, waiting, last]:
            try:
                retries = [WaitingRetry(run, int(float(due_ms)), int(attempt)) for run, due_ms, attempt in waiting]
            except (ValueError, OverflowError) as error:
                return Broken(f"one of its retries is not ours: {error}")
            retries.sort(key=lambda retry: retry.due_ms)
            try:
                newest = entry_of(last[0], _pairs(last[1])) if last else None
            except (KeyError, ValueError) as error:
                return Broken(f"its newest verdict is not ours: {error}")
            return Survey(live=_pairs(live), waiting=tuple(retries), last=newest)
        case _:
            raise WrongReply(raw)


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
