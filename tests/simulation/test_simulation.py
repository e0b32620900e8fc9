"""Seeds as part of the tests; that a seed reproduces a run exactly; and that the oracle finds what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

import pytest

from engine.store.inprocess import InProcessServer, _Lane
from engine.store.transport import Lane
from tests.simulation import campaign
from tests.simulation.mutants import MUTANTS, Mutant, mutated, recorded
from tests.simulation.play import play
from tests.simulation.shrink import shortest, told
from tests.simulation.story import ACTORS, WEIGHTS, Step, Story, story_of

if TYPE_CHECKING:
    from pathlib import Path

TRACES = """
import json, logging, sys
from tests.simulation.play import play
from tests.simulation.story import story_of
logging.disable(logging.CRITICAL)
print(json.dumps([play(story_of(seed)).trace for seed in json.loads(sys.argv[1])]))
"""


def traces(seeds: list[int], *, hash_seed: str) -> subprocess.Popen[str]:
    """Play these seeds in a process of its own."""
    command = [sys.executable, "-c", TRACES, json.dumps(seeds)]
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
    """Every command, reply, start and end at the same instant: in this process, and in others that hash otherwise.

    One of them plays the seeds in another order: nothing of a seed is left to the next one.
    """
    seeds = list(range(20))
    onward, back = traces(seeds, hash_seed="1"), traces(seeds[::-1], hash_seed="2")
    here = [play(story_of(seed)).trace for seed in seeds]
    assert len(set(here)) == 20
    assert json.loads(onward.communicate()[0]) == here
    assert json.loads(back.communicate()[0]) == here[::-1]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_campaign_goes_on_where_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What passed is not played again, unless the sources are others now; a line that was cut off says nothing."""
    monkeypatch.setattr(campaign, "CHUNK", 1)
    resume = tmp_path / "passed.txt"
    go_on = partial(campaign.simulate, 0, 4, resume=resume, processes=1)
    assert go_on(for_s=0) == 0  # ended as soon as one has passed
    assert campaign.passed(resume) == {0}
    with resume.open("a", encoding="utf-8") as file:
        file.write("1 1")
    assert go_on(for_s=float("inf")) == 0
    assert campaign.passed(resume) == {0, 1, 2, 3}
    assert "4 seeds from 0, of which 1 passed before" in capsys.readouterr().out
    monkeypatch.setattr(campaign, "sources", lambda: "others")
    assert campaign.passed(resume) == set()


def test_the_swift_server_answers_as_the_one_that_it_stands_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trace over the server that users get: the same replies at the same instants.

    In stories whose memory is never full, which that server does not know.
    """
    stories = [story for story in map(story_of, range(12)) if all(step.kind != "memory full" for step in story.steps)][
        :3
    ]
    assert len(stories) == 3
    swift = [play(story).trace for story in stories]
    monkeypatch.setattr("tests.simulation.world.swift_server", lambda wall: InProcessServer(wall=wall))
    for module in ("wire", "world"):
        monkeypatch.setattr(f"tests.simulation.{module}.swift_lanes", plain_lanes)
    assert [play(story).trace for story in stories] == swift


def plain_lanes(server: InProcessServer) -> dict[Lane, _Lane]:
    return {lane: _Lane(server) for lane in Lane}


@cache
def seed_for(name: str) -> tuple[int, str]:
    """The seed that is recorded for a mutant, or the first of 500 that catches it, and the guarantee."""
    if name in recorded():
        return recorded()[name]
    caught = campaign.catch(name, 500)
    assert caught is not None, f"no seed of 500 catches the mutant: {name}"
    return caught.seed, caught.guarantee


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_recorded_seed_catches_the_mutant(mutant: Mutant) -> None:
    """With the bug its story violates a guarantee, and without it none."""
    seed, guarantee = seed_for(mutant.name)
    with mutated(mutant):
        violation = play(story_of(seed)).violation
    if violation is None or violation.guarantee != guarantee:
        now = campaign.catch(mutant.name, 500)
        pytest.fail(
            f"The story of seed {seed} has another course now, which shows nothing ({violation}). "
            f"Of the first 500 seeds the first that catches the mutant is now: {now}. "
            "Record it: make simulate-mutants RECORD=1"
        )
    assert play(story_of(seed)).violation is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failing_story_is_told_without_the_steps_that_do_not_matter() -> None:
    """It still fails, and no half of it does."""
    [mutant] = [one for one in MUTANTS if one.name == "pause check removed at claim"]
    seed, guarantee = seed_for(mutant.name)
    with mutated(mutant):
        failing = play(story_of(seed))
        short = shortest(failing, play, within_s=20)
        assert short.violation is not None
        assert len(short.story.steps) < len(failing.story.steps)
        text = told(short)
    assert f"seed {seed}: {guarantee}" in text
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
