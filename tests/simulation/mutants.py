"""Bugs that the oracle must find: each is patched in at run time, and never stands in the source."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final, final
from unittest.mock import patch

from actors.watch import Watch
from engine.store import leases, runs, timetable
from engine.store.script import Script
from engine.store.session import Done
from tests.simulation.oracle import ALIASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@final
@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug, the guarantee that it breaks, and a seed whose story brings it to light."""

    name: str
    guarantee: str
    seed: int
    apply: Callable[[ExitStack], None]


def _script(module: Any, variable: str, replacements: tuple[tuple[str, str], ...]) -> Callable[[ExitStack], None]:
    """The script of that variable with other text in some places, each of which must be there once."""

    def apply(stack: ExitStack) -> None:
        script: Script = getattr(module, variable)
        text = script.text
        for old, new in replacements:
            assert text.count(old) == 1, f"{script.name} has {text.count(old)} times {old!r}"
            text = text.replace(old, new)
        digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        stack.enter_context(patch.dict(ALIASES, {digest: script.name}))
        stack.enter_context(patch.object(module, variable, Script(script.name, text, digest)))

    return apply


def _no_observation(stack: ExitStack) -> None:
    def look(_watch: Watch, found: Any, *, redis_ms: int, **_: Any) -> list[Any]:
        return [lease for lease in found if lease.expiry_ms <= redis_ms]

    stack.enter_context(patch.object(Watch, "look", look))


def _no_hand_back(stack: ExitStack) -> None:
    async def hand_back(_runs: Any, _worker: str, holds: Any) -> list[Done]:
        return [Done() for _ in holds]

    stack.enter_context(patch.object(runs.RunStore, "hand_back", hand_back))


MUTANTS: Final = (
    Mutant(
        "fence check removed in complete",
        "G4",
        88,
        _script(
            runs,
            "_COMPLETE",
            ((" or run.worker ~= worker or run.fence ~= fence then return 'fenced'", " then return 'fenced'"),),
        ),
    ),
    Mutant(
        "fence not changed at reclaim",
        "G4",
        6,
        _script(leases, "_RECLAIM", (("'fence', int(math.max(fence + 1, NOW)), ", ""),)),
    ),
    Mutant(
        "due comparison removed in publish",
        "G6",
        104,
        _script(
            timetable,
            "_PUBLISH",
            (("  if not score or tonumber(score) ~= expected then return {'moved', score or ''} end\n", ""),),
        ),
    ),
    Mutant("observation rule removed", "G3", 18, _no_observation),
    Mutant("hand-back forgotten", "G6", 2, _no_hand_back),
    Mutant(
        "pause check removed at claim",
        "G6",
        116,
        _script(
            runs,
            "_CLAIM",
            (("  if fresh and not run.force and paused(run.task) then return refuse('skipped', 'paused') end\n", ""),),
        ),
    ),
    Mutant(
        "leader's value not compared in publish",
        "G5",
        32,
        _script(timetable, "_PUBLISH", (("if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end\n", ""),)),
    ),
    Mutant(
        "lease member without its fence at claim",
        "G6",
        0,
        _script(
            runs,
            "_CLAIM",
            (
                (
                    "redis.call('ZADD', LEASES, int(expiry), id .. '#' .. fence)",
                    "redis.call('ZADD', LEASES, int(expiry), id)",
                ),
            ),
        ),
    ),
)


@contextmanager
def mutated(mutant: Mutant | None) -> Iterator[None]:
    """With that bug, during the block."""
    with ExitStack() as stack:
        if mutant is not None:
            mutant.apply(stack)
        yield
