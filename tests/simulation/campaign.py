"""Play many seeds, in several processes: ``python -m tests.simulation --seeds 1000``.

Prints progress, and the shortest story of each seed that violates a guarantee. Exit code 1 if one does. With
``--resume FILE`` the seeds that passed are kept there, and a repeat of the command plays only the others; what passed
before the sources changed does not count.
``--mutants`` plays each known bug until a seed catches it, at most ``--seeds`` of them; ``--record`` keeps which.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

from tests.simulation.mutants import MUTANTS, mutated, record
from tests.simulation.play import play
from tests.simulation.shrink import shortest, told
from tests.simulation.story import story_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK = 20
"""So many seeds are given to a process at once."""

SHRINK_S = 30.0
REPORT_S = 10.0


@final
@dataclass(frozen=True, slots=True)
class Chunk:
    """What came of some neighbouring seeds."""

    first: int
    count: int
    stories: tuple[str, ...]
    """Of those that failed."""


class Violated(NamedTuple):
    """A seed that violates a guarantee."""

    seed: int
    guarantee: str
    text: str


def play_chunk(first: int, count: int) -> Chunk:
    """Play them, and find the shortest story of each that fails."""
    logging.disable(logging.CRITICAL)
    stories = []
    for seed in range(first, first + count):
        try:
            outcome = play(story_of(seed))
        except Exception:  # noqa: BLE001 - whatever escapes is a finding, and the other seeds go on
            stories.append(f"seed {seed}: an error escaped\n{traceback.format_exc()}")
            continue
        if outcome.violation is not None:
            stories.append(told(shortest(outcome, play, within_s=SHRINK_S)))
    return Chunk(first, count, tuple(stories))


def catch(name: str, seeds: int) -> Violated | None:
    """The first seed that catches a mutant, and how; None if none does."""
    logging.disable(logging.CRITICAL)
    [mutant] = [one for one in MUTANTS if one.name == name]
    for seed in range(seeds):
        with mutated(mutant):
            violation = play(story_of(seed)).violation
        if violation is not None:
            return Violated(seed, violation.guarantee, str(violation))
    return None


def catch_named(name: str, *, seeds: int) -> tuple[str, Violated | None]:
    """As ``catch``, with the name."""
    return name, catch(name, seeds)


def sources() -> str:
    """A digest of everything that decides what a seed does."""
    digest = sha256()
    root = Path(__file__).parents[2]
    for folder in ("engine", "actors", "tests/simulation", "tests/unit/actors"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".lua"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def passed(resume: Path | None) -> set[int]:
    """The seeds of which the file says that they passed; it is begun anew if that was with other sources."""
    if resume is None:
        return set()
    now = f"# {sources()}\n"
    lines = resume.read_text(encoding="utf-8").splitlines(keepends=True) if resume.exists() else []
    if lines and lines[0] != now:
        print(f"{resume} is of other sources, and is begun anew", flush=True)  # noqa: T201
        lines = []
    lines = [now, *(line for line in lines[1:] if line.endswith("\n"))]  # the last may have been cut off
    resume.write_text("".join(lines), encoding="utf-8")
    pairs = (line.split() for line in lines[1:])
    return {seed for first, count in pairs for seed in range(int(first), int(first) + int(count))}


def chunks(seeds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and count of neighbouring seeds, at most ``CHUNK`` together."""
    start = 0
    while start < len(seeds):
        end = start + 1
        while end < len(seeds) and seeds[end] == seeds[start] + end - start and end - start < CHUNK:
            end += 1
        yield seeds[start], end - start
        start = end


def simulate(first: int, count: int, *, resume: Path | None, processes: int, for_s: float) -> int:
    """Play the seeds that did not pass yet; how many failed. After ``for_s`` no more are begun."""
    done = passed(resume)
    todo = list(chunks([seed for seed in range(first, first + count) if seed not in done]))
    print(f"{count} seeds from {first}, of which {count - sum(n for _, n in todo)} passed before", flush=True)  # noqa: T201
    began_s = reported_s = time.monotonic()
    played = failed = 0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for chunk in pool.imap_unordered(_star, todo):
            played += chunk.count
            failed += len(chunk.stories)
            for story in chunk.stories:
                print(story, flush=True)  # noqa: T201
            if resume is not None and not chunk.stories:
                with resume.open("a", encoding="utf-8") as file:
                    file.write(f"{chunk.first} {chunk.count}\n")
            now_s = time.monotonic()
            if now_s - reported_s > REPORT_S:
                reported_s = now_s
                print(f"{played} played, {failed} failed, {played / (now_s - began_s) * 60:.0f} a minute", flush=True)  # noqa: T201
            if now_s - began_s > for_s:
                pool.terminate()
                break
    minutes = (time.monotonic() - began_s) / 60
    print(f"{played} seeds in {minutes:.1f} minutes, {played / max(minutes, 0.001):.0f} a minute; {failed} failed")  # noqa: T201
    return failed


def _star(pair: tuple[int, int]) -> Chunk:
    return play_chunk(*pair)


def catch_all(seeds: int, *, processes: int, keep: bool) -> int:
    """Find a seed for each mutant, and record them if they are to be kept; how many mutants have none."""
    found: dict[str, Violated] = {}
    names = [mutant.name for mutant in MUTANTS]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, caught in pool.imap_unordered(partial(catch_named, seeds=seeds), names):
            said = f"seed {caught.seed}: {caught.text}" if caught else f"NOT CAUGHT within {seeds} seeds"
            print(f"{name:40s} {said}", flush=True)  # noqa: T201
            if caught:
                found[name] = caught
    if keep:
        record({name: (caught.seed, caught.guarantee) for name, caught in found.items()})
    return len(names) - len(found)


def main() -> int:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--resume", type=Path, help="a file that keeps which seeds passed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--for-s", type=float, default=float("inf"), help="begin no more seeds after so many seconds")
    parser.add_argument("--mutants", action="store_true", help="play the known bugs until a seed catches each")
    parser.add_argument("--record", action="store_true", help="with --mutants: have the tests replay those seeds")
    given = parser.parse_args()
    if given.mutants:
        return 1 if catch_all(given.seeds, processes=given.processes, keep=given.record) else 0
    failed = simulate(given.first, given.seeds, resume=given.resume, processes=given.processes, for_s=given.for_s)
    return 1 if failed else 0
