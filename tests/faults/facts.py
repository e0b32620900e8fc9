"""What Redis has said, one fact for each thing that a script did: read from the exchanges on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.faults.wire import Exchange


@final
@dataclass(frozen=True, slots=True)
class Fact:
    """Something that Redis did to a run or a task, between two monotonic instants."""

    kind: str
    """Of a run published, passed, queued, claimed, renewed, closed, ended or retold; of a task enrolled, due, missed or
    dismissed; of a history noticed, by whoever found first that Redis has forgotten; of a candidacy led."""

    id: str
    """Of the run, the task, the history; the leader's value."""

    sent_s: float
    replied_s: float
    left_s: float = 0.0
    """When the answer left for whoever had asked; infinite if it was lost."""

    fence: int = 0
    """Which claim of the run it belongs to, if it belongs to one."""

    what: str = ""
    """Of ``ended`` and ``passed`` the verdict, of ``closed`` how the claim ended."""

    at_ms: int = 0
    """Of ``enrolled`` and ``due`` when the task is due from now on, 0 for never; of ``missed`` the first slot that was
    passed over."""

    to_ms: int = 0
    """Of ``missed`` the last of these slots."""

    def surely_before(self, other: Fact) -> bool:
        """Was this done when the other had not even been asked for?"""
        return self.replied_s < other.sent_s


def facts(exchanges: Iterable[Exchange]) -> list[Fact]:
    """All that was answered, in the order of the answers. What has no answer may or may not have been done."""
    found: list[Fact] = []
    for exchange in exchanges:
        if exchange.answered and (read := _READ.get(exchange.name)) is not None:
            found.extend(read(_Call(exchange)))
    return sorted(found, key=lambda fact: fact.replied_s)


@final
class _Call:
    def __init__(self, exchange: Exchange) -> None:
        self.argv, self.reply = exchange.argv, exchange.reply
        assert exchange.replied_s is not None
        self.sent_s, self.replied_s = exchange.sent_s, exchange.replied_s
        self.left_s = float("inf") if exchange.left_s is None else exchange.left_s

    def fact(self, kind: str, of: str, **more: Any) -> Fact:
        return Fact(kind, of, self.sent_s, self.replied_s, self.left_s, **more)

    def items(self, start: int, size: int) -> Iterator[tuple[Sequence[str], Any]]:
        """The arguments of each item, with its reply; none when the whole call was refused."""
        if isinstance(self.reply, list):
            rest = self.argv[start:]
            items = [rest[i : i + size] for i in range(0, len(rest), size)]
            yield from zip(items, self.reply[: len(items)], strict=True)  # behind them complete says something else


def _enroll(call: _Call) -> Iterator[Fact]:
    for (task, first_ms, run_id, *_), reply in call.items(3, 5):
        if reply in ("enrolled", "started"):
            yield call.fact("enrolled", task, at_ms=int(first_ms))
        if reply == "started":
            yield call.fact("queued", run_id)


def _publish(call: _Call) -> Iterator[Fact]:
    for (task, _, next_ms, run_id, *_), reply in call.items(3, 6):
        if reply == "published":
            yield call.fact("published", run_id)
        elif _word(reply) == "skipped":
            yield call.fact("passed", run_id, what="skipped")
        else:
            continue
        yield call.fact("due", task, at_ms=int(next_ms or 0))


def _move(call: _Call) -> Iterator[Fact]:
    for (task, expected, next_ms, count, last_ms, *_), reply in call.items(2, 7):
        if reply == "done":
            yield call.fact("due", task, at_ms=int(next_ms or 0))
        if reply == "done" and int(count) > 0:
            yield call.fact("missed", task, at_ms=int(expected), to_ms=int(last_ms))


def _requeue(call: _Call) -> Iterator[Fact]:
    for (run_id, _), reply in call.items(2, 2):
        if _word(reply) == "ended":
            yield call.fact("ended", run_id, what=reply[1])


def _claim(call: _Call) -> Iterator[Fact]:
    for (run_id, *_), reply in call.items(4, 3):
        if _word(reply) == "claimed":
            yield call.fact("claimed", run_id, fence=int(reply[1]))
        elif _word(reply) == "ended":
            yield call.fact("ended", run_id, what=reply[1])


def _complete(call: _Call) -> Iterator[Fact]:
    for (run_id, fence, verdict, *_), reply in call.items(2, 5):
        if reply == "ok":
            yield call.fact("ended", run_id, fence=int(fence), what=verdict)


def _closing(name: str, *, start: int, size: int) -> Callable[[_Call], Iterator[Fact]]:
    def read(call: _Call) -> Iterator[Fact]:
        for (run_id, fence, *_), reply in call.items(start, size):
            if reply == "ok" or _word(reply) in ("waiting", "queued", "dead"):
                yield call.fact("closed", run_id, fence=int(fence), what=name)
            if _word(reply) == "dead":
                yield call.fact("ended", run_id, fence=int(fence), what="dead")

    return read


def _defer(call: _Call) -> Iterator[Fact]:
    for (run_id, *_), reply in call.items(6, 3):
        if _word(reply) == "ended":
            yield call.fact("ended", run_id, what=reply[1])


def _beat(call: _Call) -> Iterator[Fact]:
    if call.reply[4] != call.argv[3]:
        return  # another history: nothing was written
    for member in call.argv[4:]:
        if member not in call.reply[2]:
            run_id, _, fence = member.rpartition("#")
            yield call.fact("renewed", run_id, fence=int(fence))


def _adopt(call: _Call) -> Iterator[Fact]:
    for (run_id, fence, *rest), reply in call.items(4, 15):
        ending = rest[8]
        if reply != "told":
            continue
        yield call.fact("retold", run_id, fence=int(fence))
        if ending == "":
            yield call.fact("renewed", run_id, fence=int(fence))
        elif ending == "waiting":
            yield call.fact("closed", run_id, fence=int(fence), what="fail")
        else:
            yield call.fact("ended", run_id, fence=int(fence), what=ending)


def _trigger(call: _Call) -> Iterator[Fact]:
    for (run_id, *_), reply in call.items(3, 6):
        if reply == "queued":
            yield call.fact("queued", run_id)


def _dismiss(call: _Call) -> Iterator[Fact]:
    for (task,), reply in call.items(4, 1):
        if _word(reply) == "dismissed":
            yield call.fact("dismissed", task)


def _enter(call: _Call) -> Iterator[Fact]:
    if call.reply[1] in ("begun", "reopened"):
        yield call.fact("noticed", call.reply[0])


def _elect(call: _Call) -> Iterator[Fact]:
    if _word(call.reply) == "led":
        yield call.fact("led", call.reply[1])


def _word(reply: Any) -> Any:
    return reply[0] if isinstance(reply, list) and reply else None


_READ: Final[dict[str, Callable[[_Call], Iterator[Fact]]]] = {
    "enroll": _enroll,
    "publish": _publish,
    "move": _move,
    "requeue": _requeue,
    "claim": _claim,
    "complete": _complete,
    "fail": _closing("fail", start=2, size=5),
    "hand_back": _closing("hand_back", start=2, size=3),
    "reclaim": _closing("reclaim", start=3, size=4),
    "defer": _defer,
    "beat": _beat,
    "adopt": _adopt,
    "trigger": _trigger,
    "dismiss": _dismiss,
    "enter": _enter,
    "elect": _elect,
}
