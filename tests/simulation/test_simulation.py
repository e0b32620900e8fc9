"""Seeds as part of the tests; that a seed reproduces a run exactly; and that the oracle finds what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, mutated
from tests.simulation.play import play
from tests.simulation.shrink import shortest, told
from tests.simulation.story import ACTORS, WEIGHTS, Step, Story, story_of

TRACES = """
import json, logging, sys
from tests.simulation.play import play
from tests.simulation.story import story_of
logging.disable(logging.CRITICAL)
print(json.dumps([play(story_of(seed)).trace for seed in range(int(sys.argv[1]), int(sys.argv[2]))]))
"""


def traces(first: int, last: int, *, hash_seed: str) -> subprocess.Popen[str]:
    """Play these seeds in a process of its own."""
    command = [sys.executable, "-c", TRACES, str(first), str(last)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("first", range(0, 30, 6))
def test_no_seed_violates_a_guarantee(first: int) -> None:
    """A few of the many that ``make simulate`` plays; a failing one tells its shortest story."""
    for seed in range(first, first + 6):
        outcome = play(story_of(seed))
        assert outcome.violation is None, told(shortest(outcome, play, within_s=20))
        assert outcome.starts > 0
        assert outcome.lasted_s <= 120


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_seed_reproduces_a_run_exactly() -> None:
    """Every command, reply, start and end at the same instant: in this process, and in others that hash otherwise."""
    others = [traces(0, 20, hash_seed="1"), traces(0, 20, hash_seed="2")]
    here = [play(story_of(seed)).trace for seed in range(20)]
    assert len(set(here)) == 20
    for other in others:
        said, _ = other.communicate()
        assert json.loads(said) == here


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_seed_catches_the_mutant(mutant: Mutant) -> None:
    """With the bug a story violates the guarantee that the bug breaks; without it, none.

    The recorded seed, or another one when a change of the product has given that story another course.
    """
    for seed in (mutant.seed, *range(150)):
        story = story_of(seed)
        with mutated(mutant):
            violation = play(story).violation
        if violation is not None and violation.guarantee == mutant.guarantee:
            break
    else:
        raise AssertionError("no seed catches it: find one by make simulate-mutants, and record it")
    assert play(story).violation is None


def test_a_failing_story_is_told_without_the_steps_that_do_not_matter() -> None:
    """It still fails, and no half of it does."""
    [mutant] = [one for one in MUTANTS if one.name == "pause check removed at claim"]
    with mutated(mutant):
        failing = play(story_of(mutant.seed))
        short = shortest(failing, play, within_s=20)
        assert short.violation is not None
        assert len(short.story.steps) < len(failing.story.steps)
        text = told(short)
    assert f"seed {mutant.seed}: {mutant.guarantee}" in text
    assert text.count("\n") == len(short.story.steps) > 0


def test_every_kind_of_step_is_drawn_and_can_be_done_to_nobody() -> None:
    """A story may have killed everybody before a step comes: nothing happens then, and the quiet brings new workers."""
    drawn = {step.kind for seed in range(100) for step in story_of(seed).steps}
    assert drawn == set(WEIGHTS)
    assert all(len(story_of(seed).steps) <= 200 for seed in range(100))
    kills = [Step(2.0 + n / 10, "kill", 0, 0, 0.0) for n in range(3)]
    rest = [Step(3.0 + n / 10, kind, n, n, 0.3) for n, kind in enumerate(sorted(set(WEIGHTS) - {"join"}))]
    outcome = play(Story(7, (*kills, *rest), 8.0))
    assert outcome.violation is None


@pytest.mark.parametrize("name", ACTORS)
def test_a_crash_of_any_actor_changes_what_happens_and_violates_nothing(name: str) -> None:
    """An actor that is made to crash at an instant crashes, and nothing is lost by it."""
    story = Story(3, (Step(4.0, "crash", 0, ACTORS.index(name), 0.0),), 8.0)
    outcome = play(story)
    assert outcome.violation is None
    assert outcome.trace != play(replace(story, steps=())).trace


def heard_of_first(*steps: Step) -> list[float]:
    """When Redis executed a command of the first process, or a body of it started. Ends of reads are Redis's own."""
    outcome = play(Story(3, steps, 12.0), keep_lines=True)
    assert outcome.violation is None
    ours = [line for line in outcome.lines if " p1 ('" in line or line.endswith(" p1")]
    return [float(line.split()[0]) for line in ours if "'XREAD" not in line]


def test_a_process_that_stands_still_does_nothing_and_then_goes_on() -> None:
    """For 2.45 s nothing is heard of it but what was on its way; then its beats, long due, come at once."""
    instants = heard_of_first(Step(3.9, "stall", 0, 0, 0.5))
    assert not [at_s for at_s in instants if 3.9 < at_s < 6.35]
    assert [at_s for at_s in instants if 6.35 <= at_s < 6.4]
    assert len([at_s for at_s in heard_of_first() if 3.9 < at_s < 6.35]) > 5


def test_a_process_that_was_killed_is_never_heard_of_again() -> None:
    """Not at the end either, when every process is let go."""
    assert max(heard_of_first(Step(4.0, "kill", 0, 0, 0.0))) <= 4.0


def test_what_was_on_its_way_is_executed_after_the_death_of_its_sender() -> None:
    """A slow link that stays half open for a while after the kill."""
    slow, late = Step(3.0, "slow", 0, 2, 0.9), []
    for killed_s in (3.4, 3.7, 4.0, 4.3, 4.6):
        last_s = max(heard_of_first(slow, Step(killed_s, "kill", 0, 1, 0.9)))
        late += [last_s - killed_s] if last_s > killed_s else []
    assert late
    assert max(late) < 1.5
