"""The oracle finds what it is there for, in logs written by hand, and nothing in the log of a good day."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.by_hand import ALICE, BOB, FIRST_MS, LEASE_S, TASK, Story, run_id
from tests.faults.oracle import Outage, judge
from tests.faults.scenario import Scenario, violations


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_good_day_is_blameless(story: Story) -> None:
    """Every slot ran once: they are all expected, and all have their verdict."""
    for slot in range(5):
        story.runs(slot)
    found = judge(story.evidence(5))
    assert (found.slots, found.verdicts, found.ran) == (5, 5, 5)
    assert story.counts(5) == (0, 0, 0, 0)


def test_slots_that_were_passed_over_together_have_their_verdict(story: Story) -> None:
    """One entry about several slots is a verdict of each."""
    story.runs(0)
    item = (TASK, str(FIRST_MS + 1000), str(FIRST_MS + 4000), "3", str(FIRST_MS + 3000), "missed", "catch-up")
    story.say("move", ("1000", "leader", *item), ["done"])
    story.passed_over(1, 3)
    story.runs(4)
    found = judge(story.evidence(5))
    assert (found.slots, found.verdicts, found.ran) == (5, 5, 2)
    assert story.counts(5) == (0, 0, 0, 0)


def test_a_slot_without_verdict_is_lost(story: Story) -> None:
    """Whether it was published or nobody ever thought of it."""
    story.runs(0)
    story.runs(2)
    assert story.counts(3) == (0, 1, 0, 0)
    story.publish(3)
    doubled, lost, forgotten, refused = story.counts(4)
    assert (doubled, lost, refused) == (0, 2, 0)
    assert forgotten == 1, "what was published was acknowledged"


def test_a_task_of_which_redis_was_never_told_is_found(story: Story) -> None:
    """Its cron says that it has slots, whatever anybody else thinks."""
    for slot in range(3):
        story.runs(slot)
    evidence = story.evidence(3)
    assert judge(evidence).idle == []
    evidence.crons = {**evidence.crons, "work/other": "*/2 * * * * *", "work/yearly": "0 0 1 1 *"}
    assert judge(evidence).idle == ["work/other"]


def test_a_run_that_no_slot_asked_for_needs_a_verdict_too(story: Story) -> None:
    """It was queued by a trigger, and the caller was told so."""
    triggered = f"{TASK}@t-1"
    story.say("trigger", ("1000", "who", "10", triggered, TASK, "low", "allow", "", ""), ["queued"])
    assert story.counts(0) == (0, 1, 1, 0)
    story.unfinished.add(triggered)
    assert story.counts(0) == (0, 0, 0, 0)


def test_a_verdict_that_says_ran_needs_a_body_that_returned(story: Story) -> None:
    """A run that is told to have run, and did not, is lost."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.complete(0, 1)
    story.verdict(0)
    assert story.counts(1) == (0, 1, 0, 0)


def test_a_slot_that_is_published_twice_is_doubled(story: Story) -> None:
    """And Redis has contradicted itself."""
    story.runs(0)
    story.publish(0)
    assert story.counts(1) == (1, 0, 1, 0)


def test_a_publication_that_is_repeated_without_effect_is_none(story: Story) -> None:
    """The script answers that the task has moved on."""
    story.publish(0)
    story.publish(0, ["moved", str(FIRST_MS + 1000)])
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.body("end", 0, 1)
    story.complete(0, 1)
    story.complete(0, 1, "gone")
    story.verdict(0)
    assert story.counts(1) == (0, 0, 0, 0)


def test_a_slot_with_two_verdicts_is_doubled(story: Story) -> None:
    """Of whatever kind."""
    story.runs(0)
    story.verdict(0, "failed")
    assert story.counts(1)[0] == 1


def test_a_skipped_slot_that_started_is_found(story: Story) -> None:
    """Its verdict says that it did not."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.verdict(0, "skipped")
    assert story.counts(1)[3] == 1


def test_a_run_of_a_dead_worker_is_started_again_and_not_doubled(story: Story) -> None:
    """Its lease ended, it was taken and given a greater fence."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.died_s[ALICE] = story.at_s
    story.wait(LEASE_S)
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1) == (0, 0, 0, 0)


@pytest.mark.parametrize("fault", ["none", "stopped", "another stopped", "long over"])
def test_a_second_start_beside_the_first_is_doubled_if_its_worker_was_well(story: Story, fault: str) -> None:
    """A worker that was stopped, or cut off, may be overtaken; one to which nothing had happened may not."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    from_s = story.at_s
    story.wait(LEASE_S + 1)
    match fault:
        case "stopped":
            story.outages.append(Outage(ALICE, from_s, story.at_s))
        case "another stopped":
            story.outages.append(Outage(BOB, from_s, story.at_s))
        case "long over":
            story.outages.append(Outage(ALICE, from_s - 10, story.at_s - 2 * LEASE_S))
        case _:
            pass
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("cancelled", 0, 1)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1) == (0 if fault == "stopped" else 1, 0, 0, 0)


def test_a_run_that_is_taken_within_a_lease_of_its_renewal_is_doubled(story: Story) -> None:
    """Whatever was wrong with its worker: one exchange with Redis for each lease is enough."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.outages.append(Outage(None, story.at_s, story.at_s + 10))
    story.wait(5)
    story.renew(0, 1)
    story.wait(LEASE_S * 0.7)
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 1)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1) == (1, 0, 0, 0)


@pytest.mark.parametrize("leases", [0.1, 0.6])
def test_a_run_that_is_taken_as_soon_as_redis_is_back_is_doubled(story: Story, leases: float) -> None:
    """Its worker is well, and could not renew before; half a lease is left to it, also to tell of the body's end."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    from_s = story.at_s
    story.wait(1)
    story.body("end", 0, 1)
    story.wait(2 * LEASE_S)
    story.outages.append(Outage(None, from_s, story.at_s))
    story.wait(leases * LEASE_S)
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 3, BOB)
    story.complete(0, 1, "fenced")
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1)[0] == (1 if leases < 0.4 else 0)


def test_a_run_that_is_handed_back_before_its_body_has_ended_is_doubled(story: Story) -> None:
    """At a shutdown, for instance: a thread cannot be cancelled, and keeps its lease."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.outages.append(Outage(ALICE, 0, 1_000))
    story.hand_back(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1)[0] == 1


@pytest.mark.parametrize("fence", [1, 3])
def test_a_body_that_begins_under_a_fence_that_is_over_is_doubled(story: Story, fence: int) -> None:
    """Its claim was answered long ago, and the run is another's by now; or it has begun already."""
    story.publish(0)
    story.claim(0, 1)
    story.wait(LEASE_S)
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("start", 0, fence, ALICE)
    story.body("cancelled", 0, fence, ALICE)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1)[0] == 1


@pytest.mark.parametrize("answered", ["before it was stopped", "while it was stopped"])
def test_a_process_that_was_stopped_on_its_way_to_the_body_cannot_know(story: Story, answered: str) -> None:
    """Unless the answer to its claim came while it was stopped: then it can tell how old that is."""
    story.publish(0)
    story.claim(0, 1)
    if answered == "while it was stopped":
        story.exchanges[-1].left_s = story.at_s + 1
    story.outages.append(Outage(ALICE, story.at_s, story.at_s + LEASE_S + 1))
    story.wait(LEASE_S)
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.wait(1)
    story.body("start", 0, 1, ALICE)
    story.body("cancelled", 0, 1, ALICE)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1)[0] == (0 if answered == "before it was stopped" else 1)


def test_a_body_that_begins_after_the_verdict_is_doubled(story: Story) -> None:
    """Nothing was wrong with Redis, and it was told that the run had ended."""
    story.runs(0)
    story.body("start", 0, 9, BOB)
    assert story.counts(1)[0] == 1


def test_an_end_of_a_former_holder_that_is_accepted_is_found(story: Story) -> None:
    """The run was another's by then, and everybody who asked Redis knew."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.outages.append(Outage(ALICE, story.at_s, story.at_s + 2 * LEASE_S))
    story.wait(2 * LEASE_S)
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 1)
    story.complete(0, 1)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3, "gone")
    story.verdict(0)
    assert story.counts(1) == (0, 0, 0, 1)


def test_an_end_that_crossed_the_claim_of_another_on_the_wire_is_no_proof(story: Story) -> None:
    """Which of the two was first nobody outside of Redis can know."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.body("end", 0, 1)
    sent_s = story.at_s
    story.complete(0, 1)
    story.exchanges[-1].replied_s = sent_s + 5
    story.say("claim", ("1000", "worker", "token", "2000", run_id(0), "1-0", "low"), ["stale"])
    story.verdict(0)
    assert story.counts(1) == (0, 0, 0, 0)


def test_a_hand_back_that_is_repeated_gets_its_first_reply_and_is_no_violation(story: Story) -> None:
    """The first reply was lost, and meanwhile the run is another's."""
    story.publish(0)
    story.claim(0, 1)
    story.hand_back(0, 1)
    story.claim(0, 3)
    story.hand_back(0, 1)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1) == (0, 0, 0, 0)


def test_a_fence_that_shrinks_is_found(story: Story) -> None:
    """Also when Redis has forgotten the one before."""
    story.publish(0)
    story.claim(0, 9)
    story.reclaim(0, 9)
    story.claim(0, 5)
    story.body("start", 0, 5, BOB)
    story.body("end", 0, 5, BOB)
    story.complete(0, 5)
    story.verdict(0)
    assert story.counts(1)[3] == 1


def test_a_verdict_that_is_gone_was_forgotten_and_not_lost(story: Story) -> None:
    """It ran, and somebody was told so."""
    for slot in range(4):
        story.runs(slot)
    del story.ledger[1]
    assert story.counts(4) == (0, 0, 1, 0)


def test_a_claim_that_is_forgotten_explains_the_second_start(story: Story) -> None:
    """The run was queued again by a Redis that went back to before the claim."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1) == (1, 0, 1, 0)


def test_slots_between_a_forgotten_due_instant_and_the_next_one_are_forgotten(story: Story) -> None:
    """Redis had said when the task is due, and had to be told anew."""
    story.runs(0)
    story.say("enroll", ("1000", "leader", "1", TASK, str(FIRST_MS + 4000), "", "low", "allow"), ["enrolled"])
    for slot in (4, 5):
        story.runs(slot)
    found = judge(story.evidence(6))
    assert set(found.lost) == set(found.forgotten) == {run_id(slot) for slot in (1, 2, 3)}


@pytest.mark.parametrize("end", ["", "ran"])
def test_what_a_worker_has_told_again_is_not_forgotten(story: Story, end: str) -> None:
    """Its run is in Redis as if nothing had been, whether it was in progress or had ended."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    if end:
        story.body("end", 0, 1)
        story.complete(0, 1)
        story.retell(0, 1, end)
    else:
        story.retell(0, 1)
        story.body("end", 0, 1)
        story.complete(0, 1)
    story.verdict(0)
    assert story.counts(1) == (0, 0, 0, 0)
    assert judge(story.evidence(1)).retold == {run_id(0)}


def test_a_beat_in_another_history_renews_nothing(story: Story) -> None:
    """Redis wrote nothing, and said so."""
    story.publish(0)
    story.claim(0, 1)
    story.body("start", 0, 1)
    story.outages.append(Outage(ALICE, story.at_s, story.at_s + 2 * LEASE_S))
    story.wait(LEASE_S)
    story.renew(0, 1)
    story.exchanges[-1].reply[4] = "another"
    story.wait(LEASE_S / 2)
    story.reclaim(0, 1)
    story.claim(0, 3)
    story.body("start", 0, 3, BOB)
    story.body("end", 0, 3, BOB)
    story.complete(0, 3)
    story.verdict(0)
    assert story.counts(1) == (0, 0, 0, 0)


def test_what_redis_forgot_excuses_no_more_than_that(story: Story) -> None:
    """A row of a Redis that forgets may have doubled or lost slots, but only those that were forgotten."""
    keeps = Scenario(name="keeps", inject=_nothing)
    forgets = replace(keeps, forgets=True)
    story.runs(0)
    story.publish(0)
    assert violations(keeps, judge(story.evidence(1)), [])
    assert not violations(forgets, judge(story.evidence(1)), [])
    assert violations(forgets, judge(story.evidence(2)), [])  # slot 1 is lost, and nobody had said anything about it
    assert violations(forgets, judge(story.evidence(1)), [float("inf")])  # nothing was ever scheduled again


async def _nothing(_ground: object, _number: int) -> None:
    """No fault."""
