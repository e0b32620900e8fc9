"""What a failing assertion says: what was expected, and everything that happened instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from engine import TaskGroup
from engine.errors import InvalidExpectation, InvalidInstant

if TYPE_CHECKING:
    from engine.testing import TroupeEngine


@pytest.fixture
def troupe_groups() -> TaskGroup:
    """A task that fails every other night, and one that is paused."""
    shop, failures = TaskGroup("shop"), iter([None, OSError("no paper"), None, OSError("no ink")])

    @shop.add_task("30 2 * * *", timezone="Europe/Rome", max_retries=0)
    def report() -> None:
        failure = next(failures)
        if failure is not None:
            raise failure

    @shop.add_task("0 12 * * *")
    def sync() -> None:
        pass

    return shop


@pytest.fixture
def nights(troupe_engine: TroupeEngine) -> TroupeEngine:
    """Three nights, in one of which the clocks change."""
    troupe_engine.start(start="2026-03-27 12:00", timezone="Europe/Rome")
    troupe_engine.pause("shop/sync")
    troupe_engine.advance(days=3)
    return troupe_engine


REPORT = """

shop/report  30 2 * * *  Europe/Rome   now: Mon 2026-03-30 13:00 CEST
  Sat 2026-03-28 02:30 CET   ran
  Sun 2026-03-29 03:00 CEST  failed (raised): OSError: no paper (FILE)
  Mon 2026-03-30 02:30 CEST  ran
  next: Tue 2026-03-31 02:30 CEST, in 13:30:00"""


def test_each_wrong_expectation_of_runs_is_said(nights: TroupeEngine) -> None:
    """In words, with the slots in the zone of the task."""
    expected: list[tuple[dict[str, Any], str]] = [
        ({"times": 3}, "shop/report got the verdict 'ran' twice, not 3 times"),
        ({"times": 0}, "shop/report got the verdict 'ran' twice"),
        ({"verdict": "skipped"}, "shop/report never got the verdict 'skipped'"),
        (
            {"verdict": "failed", "reason": "timed out"},
            "shop/report never got the verdict 'failed (timed out)'",
        ),
        (
            {"at": "2026-03-29 03:00"},
            "shop/report did not get the verdict 'ran' for Sun 2026-03-29 03:00 CEST",
        ),
        (
            {"at": ["2026-03-28 02:30", "2026-03-30 00:30+00:00"], "times": 0},
            "shop/report got the verdict 'ran' for Sat 2026-03-28 02:30 CET, Mon 2026-03-30 02:30 CEST",
        ),
        (
            {"at": ["2026-03-28 02:30"], "times": 2},
            "shop/report got the verdict 'ran' once, not twice, for Sat 2026-03-28 02:30 CET",
        ),
    ]
    for given, said in expected:
        with pytest.raises(AssertionError) as caught:
            nights.assert_ran("shop/report", **given)
        text = str(caught.value)
        where = text[text.index("(/") + 1 : text.index(")\n  Mon")]
        assert text == said + REPORT.replace("FILE", where)
        assert where.startswith(f"{__file__}:")
    nights.assert_ran("shop/report", times=2)
    nights.assert_ran("shop/report", at="2026-03-29 03:00", verdict="failed", reason="raised")
    nights.assert_ran("shop/report", times=0, verdict="missed")


def test_each_wrong_expectation_of_the_schedule_is_said(nights: TroupeEngine) -> None:
    """With the coming slots."""
    expected: list[tuple[str, dict[str, Any], str]] = [
        (
            "shop/report",
            {"next": "2026-03-31 03:00"},
            "shop/report is due Tue 2026-03-31 02:30 CEST, and was to be due Tue 2026-03-31 03:00 CEST",
        ),
        (
            "shop/report",
            {"count": 3, "until": "2026-04-01 02:30"},
            """shop/report is due twice until Wed 2026-04-01 02:30 CEST, and was to be 3 times
  Tue 2026-03-31 02:30 CEST
  Wed 2026-04-01 02:30 CEST""",
        ),
        ("shop/sync", {}, "shop/sync is paused by test"),
    ]
    for task, given, said in expected:
        with pytest.raises(AssertionError) as caught:
            nights.assert_scheduled(task, **given)
        assert str(caught.value) == f"{said}\n\n{nights.report(task)}"
    nights.assert_scheduled("shop/report", next="2026-03-31 02:30", count=2, until="2026-04-01 02:30")
    nights.resume("shop/sync")
    nights.assert_scheduled("shop/sync")


def test_what_can_never_be_is_no_failing_assertion(nights: TroupeEngine) -> None:
    """But an error of the test, which says what there is."""
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InvalidExpectation, "verdict: there is no 'succeeded'; give one of ran, failed,", {"verdict": "succeeded"}),
        (InvalidExpectation, "reason: 'ran' never has the reason 'raised'; those it has: none", {"reason": "raised"}),
        (InvalidInstant, "'2026-03-29 02:30' does not exist in Europe/Rome", {"at": "2026-03-29 02:30"}),
        (InvalidInstant, "3 is neither a text nor a datetime", {"at": [3]}),
    ]
    for kind, text, given in refused:
        with pytest.raises(kind, match=text):
            nights.assert_ran("shop/report", **given)
    with pytest.raises(InvalidExpectation, match="count: give count and until together"):
        nights.assert_scheduled("shop/report", count=1)


def test_a_long_history_is_cut_and_slots_that_share_a_verdict_share_a_line(troupe_engine: TroupeEngine) -> None:
    """Twenty lines are read, two hundred are not."""
    shop = TaskGroup("shop")

    @shop.add_task("*/10 * * * *", allow_parallel=False)
    async def sync() -> None:
        await trio.sleep(700)

    troupe_engine.start(shop, start="2026-03-27 12:00")
    troupe_engine.advance(hours=5)
    text = troupe_engine.report("shop/sync")
    assert text.splitlines()[1] == "  … 10 older ones"
    assert len(text.splitlines()) == 23
    assert "Fri 2026-03-27 16:40 UTC  skipped (overlap)" in text
    troupe_engine.kill_worker()
    troupe_engine.advance(hours=2)
    troupe_engine.start_worker()
    troupe_engine.advance(minutes=5)
    assert "Fri 2026-03-27 17:10 UTC to Fri 2026-03-27 18:50 UTC (11 slots)  missed (catch-up)" in troupe_engine.report(
        "shop/sync"
    )
    troupe_engine.assert_ran("shop/sync", times=11, verdict="missed")
    troupe_engine.assert_ran("shop/sync", at="2026-03-27 18:30", verdict="missed")
