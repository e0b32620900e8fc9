"""Which tasks exist: what this process declares, and what it hears of the others."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.catalog import Catalog, Scheduling
from actors.declared import Declared, Outbox, Posted
from actors.identity import Identity
from actors.messages import (
    CatalogAsked,
    CatalogRead,
    LeadershipEnded,
    LeadershipTaken,
    Refresh,
    SeatVacated,
    Term,
    TermAsked,
    Woken,
)
from actors.reading import Reading
from engine.domain.catalog import digest, pages
from engine.runtime import Child, Mailbox
from engine.store.election import Elected
from tests.unit.actors.stage import Cable, config, group, mail, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.domain.group import TaskGroup
    from engine.runtime import SupervisorEvent
    from tests.unit.actors.stage import Stage

TERM = Term("us:1:n", 9.0)


class Librarian:
    """A Catalog, with the test for everybody else."""

    def __init__(self, stage: Stage, *groups: TaskGroup, leads: bool = True) -> None:
        self.stage, self.groups = stage, groups
        self.cable = Cable(stage.server)
        self.mailbox, self.consumer = Mailbox[Any]("catalog"), Mailbox[Any]("consumer")
        self.heartbeat = Mailbox[Any]("heartbeat")
        self.scheduling = Scheduling(*(Mailbox[Any](name) for name in "lcr")) if leads else None
        self.events: list[SupervisorEvent] = []

    async def start(self) -> Librarian:
        make = partial(
            Catalog,
            config=config(),
            store=self.stage.new_store(self.cable),
            identity=Identity("test", "here", 1, "0"),
            declared=Declared(self.groups),
            outbox=Outbox(),
            carry_out=self.carry_out,
            started_ms=0,
            consumer=self.consumer,
            heartbeat=self.heartbeat,
            scheduling=self.scheduling,
        )
        await self.stage.actor(Child("catalog", make, self.mailbox), events=self.events)
        await self.stage.settle()
        return self

    async def carry_out(self, posted: Posted) -> None:
        """Nothing is posted here."""
        raise AssertionError(posted)

    def news(self) -> list[CatalogRead]:
        """What the Consumer was told since the last call."""
        return mail(self.consumer)

    @property
    def others(self) -> Scheduling:
        assert self.scheduling is not None
        return self.scheduling


def tasks_named(*names: str, group_name: str = "g", expression: str = "* * * * *") -> TaskGroup:
    tasks = group(group_name)
    for name in names:
        noting(tasks, expression, name=name)
    return tasks


async def declare(stage: Stage, *groups: TaskGroup) -> str:
    """Another process declares its tasks; the digest of them."""
    declared = Declared(groups).code
    name = digest(declared.definitions, declared.functions)
    await stage.store.catalog.declare(name, pages(declared.definitions, declared.functions))
    return name


async def test_it_declares_what_its_process_has(autojump_clock: MockClock, stage: Stage) -> None:
    """And tells everybody what exists now."""
    librarian = await Librarian(stage, tasks_named("a", "b")).start()
    news = librarian.news()[-1]
    assert set(news.tasks) == {"g/a", "g/b"}
    assert list(news.sets.values()) == [{"g/a", "g/b"}]
    assert mail(librarian.others.coordinator)[-1] == news
    assert mail(librarian.others.reconciler)[-1] == news


async def test_a_process_that_never_leads_tells_its_consumer_alone(autojump_clock: MockClock, stage: Stage) -> None:
    """It has nobody else."""
    librarian = await Librarian(stage, tasks_named("a"), leads=False).start()
    assert set(librarian.news()[-1].tasks) == {"g/a"}


async def test_it_hears_what_another_process_declares(autojump_clock: MockClock, stage: Stage) -> None:
    """At once, by the event."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    librarian.news()
    await stage.until(0.2)
    await declare(stage, tasks_named("b"))
    await stage.settle()
    assert set(librarian.news()[-1].tasks) == {"g/a", "g/b"}


async def test_of_two_definitions_the_set_first_seen_later_wins(autojump_clock: MockClock, stage: Stage) -> None:
    """A deployment; the restart of an old process changes nothing."""
    old, new = tasks_named("a"), tasks_named("a", expression="0 * * * *")
    librarian = await Librarian(stage, old).start()
    await stage.until(1)
    await declare(stage, new)
    await stage.until(2)
    assert librarian.news()[-1].tasks["g/a"].expression == "0 * * * *"
    await declare(stage, old)
    librarian.mailbox.tell(Refresh(None))
    await stage.settle()
    assert librarian.news()[-1].tasks["g/a"].expression == "0 * * * *"


async def test_a_known_version_is_not_read_again(autojump_clock: MockClock, stage: Stage) -> None:
    """Every beat tells the version; only another one is news."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    version = librarian.news()[-1].version
    librarian.mailbox.tell(Refresh(version))
    await stage.settle()
    assert librarian.news() == []
    await stage.redis.incr(stage.store.keys.version)
    for _ in range(5):
        librarian.mailbox.tell(Refresh(version + 1))
    await stage.settle()
    assert [news.version for news in librarian.news()] == [version + 1]


async def test_who_asks_is_told_again_without_asking_redis(autojump_clock: MockClock, stage: Stage) -> None:
    """A restarted actor knows no task."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    former = librarian.news()[-1]
    before = len(librarian.cable.sent)
    librarian.mailbox.tell(CatalogAsked())
    await stage.settle()
    assert librarian.news() == [former]
    assert len(librarian.cable.sent) == before


async def test_what_this_version_cannot_read_is_left_out_alone(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that knows its time zone runs it; it exists all the same, and one warning says so, at whatever reads."""
    declared = Declared([tasks_named("here"), tasks_named("there", group_name="h")]).code
    [page] = pages(declared.definitions, declared.functions)
    texts = [re.sub(r'("name":"there".*?)"timezone":"UTC"', r'\1"timezone":"Europe/Newtown"', page)]
    await stage.store.catalog.declare("f" * 64, texts)
    with caplog.at_level(logging.WARNING):
        librarian = await Librarian(stage, tasks_named("a")).start()
        for number in range(3):
            await stage.store.catalog.pause(["g/a"], f"op{number}", until_ms=number + 1, details="{}", who="me")
            await stage.settle()
    news = librarian.news()[-1]
    assert set(news.tasks) == {"g/a", "g/here"}
    assert news.sets["f" * 64] == {"g/here", "h/there"}
    assert news.others == {"h/there"}
    assert news.complete
    assert caplog.text.count("The declaration ffffffff is not understood by this version") == 1


async def test_a_set_that_does_not_name_its_tasks_is_known_as_such(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """What exists is not known then: nothing may be taken for gone."""
    await stage.store.catalog.declare("f" * 64, ['{"definitions": [{"from": "the future"}], "functions": []}'])
    with caplog.at_level(logging.WARNING):
        librarian = await Librarian(stage, tasks_named("a")).start()
    news = librarian.news()[-1]
    assert set(news.tasks) == {"g/a"}
    assert not news.complete
    assert "f" * 64 in news.sets
    assert "The declaration ffffffff is not understood by this version" in caplog.text


async def test_a_change_that_leaves_the_tasks_as_they_are_parses_nothing(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """A pause: the very same mapping is told again, so that nobody compares it either."""
    librarian = await Librarian(stage, tasks_named("a", "b")).start()
    before = librarian.news()[-1]
    await stage.store.catalog.pause(["g/a"], "op", until_ms=None, details="{}", who="me")
    await stage.settle()
    after = librarian.news()[-1]
    assert after.version == before.version + 1
    assert after.tasks is before.tasks


async def test_others_have_their_turn_while_a_large_set_is_parsed(autojump_clock: MockClock, stage: Stage) -> None:
    """The beats, say: after each page."""
    declared = Declared([tasks_named(*(f"t{number}" for number in range(2_000)))]).code
    await stage.store.catalog.declare("f" * 64, pages(declared.definitions, declared.functions))
    contents = await stage.store.catalog.contents()
    turns = 0
    async with trio.open_nursery() as nursery:

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(take_turns)
        assert len((await Reading().read(contents)).tasks) == 2_000
        nursery.cancel_scope.cancel()
    assert turns >= 4


async def test_wake_ups_are_heard_while_leading(autojump_clock: MockClock, stage: Stage) -> None:
    """With what became due; a follower has no use for them."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    redis, keys = stage.redis, stage.store.keys

    async def wake(at_ms: int) -> list[Woken]:
        mail(librarian.others.coordinator)
        await redis.xadd(keys.wake, {"due": "r/g/a@1", "at": at_ms})
        await stage.settle()
        return [news for news in mail(librarian.others.coordinator) if isinstance(news, Woken)]

    assert await wake(5) == []
    librarian.mailbox.tell(LeadershipTaken(TERM, 0))
    await stage.settle()
    [woken] = await wake(7)
    assert [(due.id, due.at_ms, due.is_run) for due in woken.due] == [("g/a@1", 7, True)]
    librarian.mailbox.tell(LeadershipEnded())
    await stage.until(2)
    assert await wake(9) == []


async def test_a_new_leader_is_woken_once_for_what_came_before(autojump_clock: MockClock, stage: Stage) -> None:
    """The reader begins behind it."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    mail(librarian.others.coordinator)
    librarian.mailbox.tell(LeadershipTaken(TERM, 0))
    await stage.settle()
    assert [news for news in mail(librarian.others.coordinator) if isinstance(news, Woken)] == [Woken(())]


async def test_more_wake_ups_than_are_kept_have_redis_asked(autojump_clock: MockClock, stage: Stage) -> None:
    """Some may have been trimmed before they were heard."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    librarian.mailbox.tell(LeadershipTaken(TERM, 0))
    await stage.settle()
    mail(librarian.others.coordinator)
    script = "for i = 1, 150 do redis.call('XADD', KEYS[1], '*', 'due', 'r/g/a@' .. i, 'at', i) end"
    await stage.redis.eval(script, 1, stage.store.keys.wake)
    await stage.settle()
    assert [news for news in mail(librarian.others.coordinator) if isinstance(news, Woken)] == [Woken(())]


async def test_a_follower_hears_a_resignation(autojump_clock: MockClock, stage: Stage) -> None:
    """And its Leader stands at once."""
    won = await stage.store.election.elect("other", "n", lease_ms=9_000)
    assert isinstance(won, Elected)
    librarian = await Librarian(stage, tasks_named("a")).start()
    mail(librarian.others.leader)
    await stage.store.election.resign(won.value)
    await stage.settle()
    assert mail(librarian.others.leader) == [SeatVacated()]


async def test_a_restarted_catalog_asks_whether_it_leads(autojump_clock: MockClock, stage: Stage) -> None:
    """It would not listen to wake-ups otherwise."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    mail(librarian.others.leader)
    librarian.mailbox.tell(object())
    await stage.until(0.5)
    assert TermAsked() in mail(librarian.others.leader)
    librarian.events.clear()


async def test_what_changed_during_an_outage_is_read_after_it(autojump_clock: MockClock, stage: Stage) -> None:
    """Its events may be gone."""
    librarian = await Librarian(stage, tasks_named("a")).start()
    await stage.until(1)
    librarian.cable.cut()
    await declare(stage, tasks_named("b"))
    await stage.until(100)
    librarian.news()
    librarian.cable.join()
    await stage.until(101)
    assert set(librarian.news()[-1].tasks) == {"g/a", "g/b"}


async def test_strangers_on_one_prefix_are_named_once(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Two live workers with no task in common: probably two applications. The later one says so, once."""
    with caplog.at_level(logging.WARNING):
        await stage.worker(tasks_named("a", group_name="one"))
        await stage.until(5)
        await stage.worker(tasks_named("b", group_name="two"))
        await stage.until(60)
        await declare(stage, tasks_named("c"))
        await stage.until(61)
    [warning] = [record.message for record in caplog.records if "no task in common" in record.message]
    assert warning.startswith("Workers test-host2-2-0000 and test-host1-1-0000")


async def test_workers_with_a_task_in_common_are_no_strangers(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """A deployment in progress."""
    with caplog.at_level(logging.WARNING):
        await stage.worker(tasks_named("a", "b"))
        await stage.until(5)
        await stage.worker(tasks_named("b", "c"))
        await stage.until(60)
    assert "no task in common" not in caplog.text
