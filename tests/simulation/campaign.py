"""Play many seeds, in several processes: ``python -m tests.simulation --seeds 1000``.

Prints progress, and the shortest story of each seed that violates a guarantee. Exit code 1 if one does. With
``--resume FILE`` the seeds that passed are kept there, and a repeat of the command plays only the others.
``--mutants`` plays each known bug until a seed catches it, at most ``--seeds`` of them.
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
from pathlib import Path
from typing import TYPE_CHECKING, final

from tests.simulation.mutants import MUTANTS, mutated
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


def catch(name: str, seeds: int) -> str | None:
    """The first seed that catches a mutant, and how; None if none does."""
    logging.disable(logging.CRITICAL)
    [mutant] = [one for one in MUTANTS if one.name == name]
    for seed in range(seeds):
        with mutated(mutant):
            violation = play(story_of(seed)).violation
        if violation is not None:
            return f"seed {seed}: {violation}"
    return None


def catch_named(name: str, *, seeds: int) -> tuple[str, str | None]:
    """As ``catch``, with the name."""
    return name, catch(name, seeds)


def passed(resume: Path | None) -> set[int]:
    """The seeds of which the file says that they passed."""
    if resume is None or not resume.exists():
        return set()
    pairs = (line.split() for line in resume.read_text(encoding="utf-8").splitlines())
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


def catch_all(seeds: int, *, processes: int) -> int:
    """Find a seed for each mutant; how many have none."""
    missed = 0
    names = [mutant.name for mutant in MUTANTS]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, caught in pool.imap_unordered(partial(catch_named, seeds=seeds), names):
            print(f"{name:36s} {caught or f'NOT CAUGHT within {seeds} seeds'}", flush=True)  # noqa: T201
            missed += caught is None
    return missed


def main() -> int:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--resume", type=Path, help="a file that keeps which seeds passed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--for-s", type=float, default=float("inf"), help="begin no more seeds after so many seconds")
    parser.add_argument("--mutants", action="store_true", help="play the known bugs until a seed catches each")
    given = parser.parse_args()
    if given.mutants:
        return 1 if catch_all(given.seeds, processes=given.processes) else 0
    failed = simulate(given.first, given.seeds, resume=given.resume, processes=given.processes, for_s=given.for_s)
    return 1 if failed else 0
