"""Bugs that the oracle must find: each is patched in at run time, and never stands in the source."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final
from unittest.mock import patch

from actors.watch import Watch
from engine.store import history, leases, runs, timetable
from engine.store.script import Script
from engine.store.session import Done
from tests.simulation.oracle import ALIASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@final
@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug. recorded.json keeps a seed whose story brings it to light, and the guarantee that it breaks."""

    name: str
    apply: Callable[[ExitStack], None]


RECORDED: Final = Path(__file__).with_name("recorded.json")


def recorded() -> dict[str, tuple[int, str]]:
    """Of each mutant by its name: a seed, and the guarantee that is violated there. Empty before they were recorded."""
    if not RECORDED.exists():
        return {}
    return {name: (seed, guarantee) for name, (seed, guarantee) in json.loads(RECORDED.read_text()).items()}


def record(found: Mapping[str, tuple[int, str]]) -> None:
    """Have ``make test`` replay these from now on."""
    RECORDED.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n")


def _all(*parts: Callable[[ExitStack], None]) -> Callable[[ExitStack], None]:
    def apply(stack: ExitStack) -> None:
        for part in parts:
            part(stack)

    return apply


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
        _script(
            runs,
            "_COMPLETE",
            ((" or run.worker ~= worker or run.fence ~= fence then return 'fenced'", " then return 'fenced'"),),
        ),
    ),
    Mutant(
        "fence not changed at reclaim",
        _script(leases, "_RECLAIM", (("'fence', next_fence(run), ", ""),)),
    ),
    Mutant(
        "due comparison removed in publish",
        _script(
            timetable,
            "_PUBLISH",
            (("  if not score or tonumber(score) ~= expected then return {'moved', score or ''} end\n", ""),),
        ),
    ),
    Mutant("observation rule removed", _no_observation),
    Mutant("hand-back forgotten", _no_hand_back),
    Mutant(
        "pause check removed at claim",
        _script(
            runs,
            "_CLAIM",
            (("  if fresh and not run.force and paused(run.task) then return refuse('skipped', 'paused') end\n", ""),),
        ),
    ),
    Mutant(
        "leader's value not compared in publish",
        _script(timetable, "_PUBLISH", (("if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end\n", ""),)),
    ),
    Mutant(
        "lease member without its fence at claim",
        _script(
            runs,
            "_CLAIM",
            (
                (
                    "leases[#leases + 1] = id .. '#' .. fence",
                    "leases[#leases + 1] = id",
                ),
            ),
        ),
    ),
    Mutant(
        "verdict from the caller's entry id",
        # Whoever has once read and claimed the run decides: by the entry that it has, not by the record.
        _all(
            _script(
                runs,
                "_CLAIM",
                (
                    (
                        "redis.call('HSET', run.key, 'state', 'running',",
                        "redis.call('HSET', run.key, 'entry/' .. fence, entry, 'state', 'running',",
                    ),
                ),
            ),
            _script(
                runs,
                "_COMPLETE",
                (
                    (
                        "if run.state ~= 'running' or run.worker ~= worker or run.fence ~= fence then",
                        "run.entry = redis.call('HGET', run.key, 'entry/' .. fence) if not run.entry then",
                    ),
                ),
            ),
        ),
    ),
    Mutant(
        "generation check removed",
        # Another server is taken for the one that acknowledged.
        _script(history, "ENTER", (("if id and found[2] == server then", "if id then"),)),
    ),
)


@contextmanager
def mutated(mutant: Mutant | None) -> Iterator[None]:
    """With that bug, during the block."""
    with ExitStack() as stack:
        if mutant is not None:
            mutant.apply(stack)
        yield
