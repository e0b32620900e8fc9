"""Every script, brought to the point where it acts: the table over which the rules for all scripts are tested."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, final

from redis.exceptions import ResponseError

from engine.domain.names import trigger_run_id
from engine.errors import RedisUnavailable
from engine.store.election import Elected, Renewed
from engine.store.history import ENTER
from engine.store.keys import SCHEMA, Keys
from engine.store.leases import Beat, Reclaimed
from engine.store.ledger import Cleared
from engine.store.operations import Accepted, Defined, Refused, Trigger
from engine.store.retelling import Adoption, Retried, Tables, Told
from engine.store.runs import Claimed, Completion, Failure, Gone, Hold, Parked, Stale, Waiting
from engine.store.schema import AGREE
from engine.store.session import Broken, Done
from engine.store.survey import Survey
from engine.store.timetable import Ended, Enrolment, Move, Moved, Published, Queued, Skipped
from tests.store.scenario import END, LEASE_MS, TASK, Stage, completion, hold

WHO = "an operator"

Call: TypeAlias = Callable[[], Awaitable[Any]]
"""Makes one call; each time with the same arguments. A list of replies if it takes many items."""

SAME = object()
"""A repeat that gets the first reply again."""


@final
@dataclass(frozen=True)
class Transition:
    """A script, and a situation in which it acts."""

    name: str
    arrange: Callable[[Stage, Sequence[str]], Awaitable[Call]]
    """Bring a run of each of these tasks to where the script acts; the call that acts on all of them."""

    reply: Any
    """For each item: a value, or a type."""

    again: Any
    """The reply to a repeat: a value, a type, or SAME."""

    when_full: Literal["refused", "done"]
    """What becomes of it when Redis has no memory left."""

    leads: bool = False
    """It shows the leader's value."""

    of_run: tuple[Literal["record", "live", "ledger"], ...] = ("record", "live", "ledger")
    """Which keys of an item it looks at. Empty for a script that takes no items."""

    keys: Callable[[Keys], Sequence[str]] = lambda keys: [key for key in keys.run_scripts if key != keys.runs]
    """The other keys that it looks at."""

    does_without: Callable[[Keys], Sequence[str]] = lambda _: ()
    """Others that it looks at, and does without if they are broken."""


def with_passed(keys: Keys) -> list[str]:
    """The keys of scripts that move tasks past slots."""
    return [*(key for key in keys.run_scripts if key != keys.runs), keys.passed]


def with_version(keys: Keys) -> list[str]:
    """The keys of scripts that act on one version of the catalog."""
    return [*(key for key in keys.run_scripts if key != keys.runs), keys.version]


def with_retold(keys: Keys) -> list[str]:
    """The keys of the script that tells of runs."""
    return [*(key for key in keys.run_scripts if key != keys.runs), keys.retold, keys.passed, keys.dynamic]


def of_catalog(keys: Keys) -> tuple[str, ...]:
    """The keys of what is declared, and of what was made at run time."""
    return keys.declarations, keys.version, keys.events, keys.unused, keys.dynamic


def matches(reply: Any, wanted: Any) -> bool:
    """Is this reply what is wanted: this value, or of this type?"""
    return isinstance(reply, wanted) if isinstance(wanted, type) else bool(reply == wanted)


def replies_to(raw: Any) -> list[Any]:
    """The reply for each item; of a script that takes no items, the one."""
    return raw if isinstance(raw, list) else [raw]


# -- moving what is due -----------------------------------------------------------------------------------------------


async def publish(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.due(task)
    return lambda: stage.store.timetable.publish(stage.leader, [stage.slot(task) for task in tasks], queue_cap=100)


async def publish_over_a_retry(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.waiting(task, overlap="skip", delay_ms=600_000)
        await stage.redis.zadd(stage.store.keys.due, {f"t/{task}": stage.now_ms - 1_000})
    slots = [stage.slot(task, overlap="skip") for task in tasks]
    return lambda: stage.store.timetable.publish(stage.leader, slots, queue_cap=100)


async def skip(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.store.catalog.pause([task], f"pause {task}", until_ms=None, details="{}", who="me")
    return await publish(stage, tasks)


async def pass_over(stage: Stage, tasks: Sequence[str]) -> Call:
    last_ms = stage.now_ms - 500
    moves = [Move(task, await stage.due(task), stage.now_ms + 3_600_000, count=3, last_ms=last_ms) for task in tasks]
    return lambda: stage.store.timetable.move(stage.leader, moves)


async def reschedule(stage: Stage, tasks: Sequence[str]) -> Call:
    moves = [Move(task, await stage.due(task, in_ms=60_000), stage.now_ms + 3_600_000) for task in tasks]
    return lambda: stage.store.timetable.move(stage.leader, moves)


async def enroll(stage: Stage, tasks: Sequence[str]) -> Call:
    enrolments = [Enrolment(task, stage.now_ms + 60_000) for task in tasks]
    version = await stage.store.catalog.version()
    return lambda: stage.store.timetable.enroll(stage.leader, enrolments, version=version)


async def first_start(stage: Stage, tasks: Sequence[str]) -> Call:
    enrolments = [Enrolment(task, stage.now_ms + 60_000, first_run_id=f"{task}@first") for task in tasks]
    version = await stage.store.catalog.version()
    return lambda: stage.store.timetable.enroll(stage.leader, enrolments, version=version)


async def requeue(stage: Stage, tasks: Sequence[str]) -> Call:
    runs = [await stage.waiting(task) for task in tasks]
    return lambda: stage.store.timetable.requeue(stage.leader, runs)


async def refuse_retry(stage: Stage, tasks: Sequence[str]) -> Call:
    call = await requeue(stage, tasks)
    for task in tasks:
        await stage.store.catalog.pause([task], f"pause {task}", until_ms=None, details="{}", who="me")
    return call


# -- runs -------------------------------------------------------------------------------------------------------------


async def claim(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.queued(task)
    entries = await stage.read()
    return lambda: stage.store.runs.claim("A", "claim", entries, lease_ms=LEASE_MS)


async def refuse_claim(stage: Stage, tasks: Sequence[str]) -> Call:
    call = await claim(stage, tasks)
    for task in tasks:
        await stage.store.catalog.pause([task], f"pause {task}", until_ms=None, details="{}", who="me")
    return call


async def complete(stage: Stage, tasks: Sequence[str]) -> Call:
    ends = [completion(await stage.running(task)) for task in tasks]
    return lambda: stage.store.runs.complete("A", ends)


async def die(stage: Stage, tasks: Sequence[str]) -> Call:
    ends = [completion(await stage.running(task), "dead", "max_retries") for task in tasks]
    return lambda: stage.store.runs.complete("A", ends)


async def fail(stage: Stage, tasks: Sequence[str]) -> Call:
    failures = [Failure(await stage.running(task), 0, "{}") for task in tasks]
    return lambda: stage.store.runs.fail("A", failures)


async def hand_back(stage: Stage, tasks: Sequence[str]) -> Call:
    holds = [await stage.running(task) for task in tasks]
    return lambda: stage.store.runs.hand_back("A", holds)


async def abandon(stage: Stage, tasks: Sequence[str]) -> Call:
    holds = [await stage.running(task) for task in tasks]

    async def call() -> list[Any]:
        return [await stage.store.runs.abandon("A", held, reason="timed out", story="{}") for held in holds]

    return call


async def begin(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.redis.hset(stage.store.keys.run(await stage.queued(task)), "deliveries", 1)
    holds = [hold(one) for one in await stage.claim(await stage.read())]

    async def call() -> list[Any]:
        return [await stage.store.runs.begin("A", held) for held in holds]

    return call


async def defer(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.queued(task)
    entries = await stage.read()
    return lambda: stage.store.runs.defer("A", entries, most=100, first_ms=0)


async def release(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.queued(task)
    entries = await stage.read()
    return lambda: stage.store.runs.release(entries)


# -- leases -----------------------------------------------------------------------------------------------------------


async def reclaim(stage: Stage, tasks: Sequence[str], max_deliveries: int = 3) -> Call:
    leases = [await stage.lease(await stage.running(task)) for task in tasks]
    return lambda: stage.store.leases.reclaim(stage.leader, leases, max_deliveries=max_deliveries, story="{}")


async def reclaim_the_last_time(stage: Stage, tasks: Sequence[str]) -> Call:
    return await reclaim(stage, tasks, max_deliveries=1)


async def beat(stage: Stage, tasks: Sequence[str]) -> Call:
    held = [await stage.running(task) for task in tasks]
    return lambda: stage.store.leases.beat(
        "A", [(one.run_id, one.fence) for one in held], lease_ms=LEASE_MS, details="{}", draining=False
    )


async def bury(stage: Stage, _: Sequence[str]) -> Call:
    seen_ms = (await stage.store.leases.beat("A", [], lease_ms=1, details="{}", draining=False)).redis_ms
    assert await stage.read() == []
    return lambda: stage.store.leases.bury("A", seen_ms=seen_ms)


# -- leading, and the catalog ---------------------------------------------------------------------------------------


async def elect(stage: Stage, _: Sequence[str]) -> Call:
    await stage.store.election.resign(stage.leader)
    return lambda: stage.store.election.elect("leader", "another nonce", lease_ms=LEASE_MS)


async def renew(stage: Stage, _: Sequence[str]) -> Call:
    return lambda: stage.store.election.renew(stage.leader, lease_ms=LEASE_MS)


async def resign(stage: Stage, _: Sequence[str]) -> Call:
    return lambda: stage.store.election.resign(stage.leader)


async def declare(stage: Stage, _: Sequence[str]) -> Call:
    return lambda: stage.store.catalog.declare("digest", ["page 0", "page 1"])


async def declare_in_place(stage: Stage, _: Sequence[str]) -> Call:
    await stage.store.catalog.declare("old", ["page"])
    return lambda: stage.store.catalog.declare("digest", ["page 0", "page 1"], replaces="old", worker="A")


async def withdraw(stage: Stage, task: str) -> None:
    """Remove a task that a process declares and Redis does not keep."""
    assert await stage.store.operations.forget(task, f"withdraw {task}", who=WHO, declared=True) == 0


async def readmit(stage: Stage, tasks: Sequence[str]) -> Call:
    await withdraw(stage, tasks[0])
    as_of = await stage.store.catalog.version()
    return lambda: stage.store.catalog.declare("digest", ["page"], readmit=tasks[:1], as_of=as_of)


async def readmit_into_a_known_set(stage: Stage, tasks: Sequence[str]) -> Call:
    await stage.store.catalog.declare("digest", ["page"])
    await withdraw(stage, tasks[0])
    as_of = await stage.store.catalog.version()
    return lambda: stage.store.catalog.declare("digest", ["page"], readmit=tasks[:1], as_of=as_of)


async def drop_withdrawn(stage: Stage, tasks: Sequence[str]) -> Call:
    await withdraw(stage, tasks[0])
    version = await stage.store.catalog.version()
    return lambda: stage.store.catalog.drop_withdrawn(stage.leader, version, tasks[:1])


async def strike(stage: Stage, _: Sequence[str]) -> Call:
    await stage.redis.hset(stage.store.keys.retold, f"{TASK}@1000", 1000)
    await stage.redis.zadd(stage.store.keys.due, {f"t/{TASK}": 2000})
    return lambda: stage.store.timetable.strike(stage.leader, {f"{TASK}@1000": 1000})


async def retire(stage: Stage, _: Sequence[str]) -> Call:
    await stage.store.catalog.declare("digest", ["page"])
    await stage.redis.hset(stage.store.keys.unused, "digest", 1)
    return lambda: stage.store.catalog.retire(stage.leader, ["digest"], after_ms=60_000)


async def note_unused(stage: Stage, _: Sequence[str]) -> Call:
    await stage.store.catalog.declare("digest", ["page"])
    return lambda: stage.store.catalog.retire(stage.leader, ["digest"], after_ms=60_000)


async def dismiss(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.queued(task)
    return lambda: stage.store.catalog.dismiss(stage.leader, 0, tasks)


async def pause(stage: Stage, tasks: Sequence[str]) -> Call:
    return lambda: stage.store.catalog.pause([tasks[0]], "pause", until_ms=None, details="{}", who="me")


async def resume(stage: Stage, tasks: Sequence[str]) -> Call:
    await (await pause(stage, tasks))()
    return lambda: stage.store.catalog.resume([tasks[0]], "resume", who="me")


async def unpause(stage: Stage, tasks: Sequence[str]) -> Call:
    await stage.store.catalog.pause([tasks[0]], "pause", until_ms=stage.now_ms - 1_000, details="{}", who="me")
    return stage.store.catalog.drop_ended_pauses


# -- when Redis forgets -----------------------------------------------------------------------------------------------


def adoption(stage: Stage, task: str, end: Completion | Retried | None = None) -> Adoption:
    """Worker A's memory of a run that Redis never heard of, or has forgotten."""
    run_id = f"{task}@{stage.now_ms - 1_000}"
    return Adoption(
        hold=Hold(run_id, stage.now_ms, END),
        task_id=task,
        slot_ms=stage.now_ms - 1_000,
        attempt=1,
        deliveries=0,
        priority="low",
        overlap="allow",
        kwargs="",
        end=end,
    )


def adopt(adoptions: Callable[[Stage, str], Adoption]) -> Callable[[Stage, Sequence[str]], Awaitable[Call]]:
    """Tell about one forgotten run of each task."""

    async def arrange(stage: Stage, tasks: Sequence[str]) -> Call:
        told = [adoptions(stage, task) for task in tasks]
        return lambda: stage.store.retelling.adopt("A", told, lease_ms=LEASE_MS, tables=Tables(0))

    return arrange


def forgotten(stage: Stage, task: str) -> Adoption:
    return adoption(stage, task)


def forgotten_end(stage: Stage, task: str) -> Adoption:
    hold = adoption(stage, task).hold
    return adoption(stage, task, Completion(hold, "ran", "", "{}"))


def forgotten_death(stage: Stage, task: str) -> Adoption:
    hold = adoption(stage, task).hold
    return adoption(stage, task, Completion(hold, "dead", "max_retries", "{}"))


def forgotten_retry(stage: Stage, task: str) -> Adoption:
    return adoption(stage, task, Retried(stage.now_ms + 600_000, "{}"))


async def adopt_what_is_queued(stage: Stage, tasks: Sequence[str]) -> Call:
    """Redis has forgotten the claim."""
    told = []
    for task in tasks:
        run_id = await stage.queued(task)
        told.append(replace(forgotten(stage, task), hold=Hold(run_id, stage.now_ms, END)))
    return lambda: stage.store.retelling.adopt("A", told, lease_ms=LEASE_MS, tables=Tables(0))


async def begun(stage: Stage, *beaten: str, kept: int | None = None) -> list[Beat]:
    """Worker A was in the history "old", and Redis has been restarted since.

    Those workers have beaten before; of their beats, whose answers are returned, Redis has kept so many, or all.
    """
    retelling, history = stage.store.retelling, stage.store.history
    ids = iter(("old", "new"))
    history._new_id = lambda: next(ids)
    history.server, history.told = "one server", ""
    history.told = await retelling.enter()
    leases, generation = stage.store.leases, stage.store.keys.generation
    beats = []
    for number, worker in enumerate(beaten):
        if number == kept:
            saved = await stage.redis.hgetall(generation)
        beats.append(await leases.beat(worker, [], lease_ms=LEASE_MS, details="{}", draining=False, history="old"))
    if kept is not None and kept < len(beaten):
        await stage.redis.delete(generation)
        await stage.redis.hset(generation, mapping=saved)
    history.server = "another server"
    assert await retelling.enter() == "new"
    return beats


async def enter(stage: Stage, _: Sequence[str]) -> Call:
    history = stage.store.history
    await ENTER(stage.redis, history.names, ["one server", "old", "", LEASE_MS])
    arguments: list[str | int] = ["another server", "new", "old", LEASE_MS]

    async def call() -> tuple[str, ...]:
        return tuple(await ENTER(stage.redis, history.names, arguments))

    return call


async def enter_with_nothing_left(stage: Stage, _: Sequence[str]) -> Call:
    history = stage.store.history

    async def call() -> tuple[str, ...]:
        return tuple(await ENTER(stage.redis, history.names, ["one server", "new", "old", LEASE_MS]))

    return call


async def reopen(stage: Stage, _: Sequence[str]) -> Call:
    """A worker that remembered nothing was the first in a Redis that had lost all."""
    history = stage.store.history
    await ENTER(stage.redis, history.names, ["one server", "new", "", LEASE_MS])
    return await enter_with_nothing_left(stage, _)


async def restore(stage: Stage, tasks: Sequence[str]) -> Call:
    await begun(stage)
    await stage.redis.hset(stage.store.keys.paused, "g/resumed", "0|{}")
    changes = [(1, tasks[0], "", "3|{}"), (2, tasks[0], "", "0|{}"), (2, "g/resumed", "0|{}", "")]
    changes.append((3, f"t/{tasks[0]}", "", str(stage.now_ms)))
    return lambda: stage.store.retelling._restore("new", 7, changes, passed_ms=1_000)


async def tell(stage: Stage, _: Sequence[str]) -> Call:
    await begun(stage)
    return lambda: stage.store.retelling.told("new", "A", floor_ms=stage.now_ms, beats=1, count=1, others=[])


async def tell_before_others(stage: Stage, _: Sequence[str]) -> Call:
    await begun(stage)
    return lambda: stage.store.retelling.told("new", "A", floor_ms=stage.now_ms, beats=0, count=0, others=["B"])


ON_RUNS = (
    Transition("adopt", adopt(forgotten), "told", "kept", "done", keys=with_retold),
    Transition("adopt, over a forgotten claim", adopt_what_is_queued, "told", "kept", "done", keys=with_retold),
    Transition("adopt, ended", adopt(forgotten_end), "told", "ended", "done", keys=with_retold),
    Transition("adopt, dead", adopt(forgotten_death), "told", "ended", "done", keys=with_retold),
    Transition("adopt, tried again", adopt(forgotten_retry), "told", "kept", "done", keys=with_retold),
    Transition(
        *("publish", publish, Published(), Moved, "refused"),
        leads=True,
        keys=with_passed,
    ),
    Transition(
        *("publish, superseding", publish_over_a_retry, Published(), Moved, "refused"),
        leads=True,
        keys=with_passed,
    ),
    Transition(
        *("publish, skipping", skip, Skipped("paused"), Moved, "refused"),
        leads=True,
        keys=with_passed,
    ),
    Transition(
        *("move, passing over", pass_over, Done(), Moved, "refused"),
        leads=True,
        of_run=("ledger",),
        keys=with_passed,
    ),
    Transition(
        *("move, rescheduling", reschedule, Done(), Moved, "refused"),
        leads=True,
        of_run=("ledger",),
        keys=with_passed,
    ),
    Transition(
        *("enroll", enroll, "enrolled", "known", "refused"),
        leads=True,
        keys=with_version,
    ),
    Transition(
        *("enroll, starting", first_start, "started", "known", "refused"),
        leads=True,
        keys=with_version,
    ),
    Transition("requeue", requeue, Queued(), Moved(None), "refused", leads=True),
    Transition("requeue, refusing", refuse_retry, Ended("failed", "paused"), Moved(None), "done", leads=True),
    Transition("claim", claim, Claimed, SAME, "refused"),
    Transition("claim, refusing", refuse_claim, Ended("skipped", "paused"), Stale(), "done"),
    Transition("complete", complete, Done(), Gone(), "done"),
    Transition("complete, dead", die, Done(), Gone(), "done"),
    Transition("fail", fail, Waiting, SAME, "done"),
    Transition("hand_back", hand_back, Done(), SAME, "done"),
    Transition("abandon", abandon, Done(), SAME, "done"),
    Transition("begin", begin, Done(), SAME, "done"),
    Transition("defer", defer, Parked, Stale(), "refused"),
    Transition("release", release, "requeued", "dropped", "refused"),
    Transition("dismiss", dismiss, 1, 0, "done", leads=True),
    Transition("reclaim", reclaim, Reclaimed("queued", "A"), None, "refused", leads=True),
    Transition("reclaim, dead", reclaim_the_last_time, Reclaimed("dead", "A"), None, "refused", leads=True),
)
"""Scripts that take many runs, each with its own reply."""


async def agree(stage: Stage, _: Sequence[str]) -> Call:
    await stage.redis.delete(stage.store.keys.meta)
    return lambda: AGREE(stage.redis, [stage.store.keys.meta], [SCHEMA])


def of_history(keys: Keys) -> tuple[str, ...]:
    """The keys of a history, without the leader's, which goes when another one begins, whatever it is."""
    return keys.generation, keys.version, keys.events


async def set_aside(stage: Stage, tasks: Sequence[str]) -> Call:
    entry_id = await stage.redis.xadd(stage.store.keys.stream_low, {"no": "run"})
    return lambda: stage.store.runs.session.set_aside("low", entry_id, "no run")


async def tidy(stage: Stage, tasks: Sequence[str]) -> Call:
    await stage.redis.zadd(stage.store.keys.due, {"garbage": 5})
    return stage.store.timetable.tidy


async def mend(stage: Stage, tasks: Sequence[str]) -> Call:
    await stage.redis.hset(stage.store.keys.run(f"{TASK}@1"), "state", "waiting")
    await stage.redis.execute_command("ZADD", stage.store.keys.due, "-inf", f"r/{TASK}@1")
    return stage.store.timetable.tidy


OTHERS = (
    Transition(
        *("enter", enter, ("new", "begun"), ("new", "kept"), "done"),
        of_run=(),
        keys=lambda _: (),
        does_without=of_history,
    ),
    Transition(
        *("enter, with nothing left", enter_with_nothing_left, ("new", "begun"), ("new", "kept"), "done"),
        of_run=(),
        keys=lambda _: (),
        does_without=of_history,
    ),
    Transition(
        *("enter, after one that knew nothing", reopen, ("new", "reopened"), ("new", "kept"), "done"),
        of_run=(),
        keys=lambda _: (),
        does_without=lambda keys: (keys.version, keys.events),
    ),
    Transition(
        *("restore", restore, 4, 0, "done"),
        of_run=(),
        keys=lambda keys: (*of_history(keys), keys.leader, keys.dynamic, keys.paused, keys.due),
    ),
    Transition(
        *("told", tell, Told(0), SAME, "done"),
        of_run=(),
        keys=lambda keys: (keys.generation, keys.leader, keys.events),
    ),
    Transition(
        *("told, before others", tell_before_others, Told(None), SAME, "done"),
        of_run=(),
        keys=lambda keys: (keys.generation, keys.leader, keys.events),
    ),
    Transition(
        *("agree", agree, str(SCHEMA), SAME, "refused"),
        of_run=(),
        keys=lambda keys: (keys.meta,),
    ),
    Transition(
        *("elect", elect, Elected, Elected, "refused"),
        of_run=(),
        keys=lambda keys: (
            *(keys.leader, keys.epoch, keys.meta, keys.generation),
            keys.once("leader:another nonce"),
        ),
    ),
    Transition(
        *("renew", renew, Renewed, Renewed, "done"),
        of_run=(),
        keys=lambda keys: (keys.leader, keys.due),
        does_without=lambda keys: (keys.version,),
    ),
    Transition(
        *("resign", resign, True, False, "done"),
        of_run=(),
        keys=lambda keys: (keys.leader, keys.events, keys.once("leader:nonce")),
    ),
    Transition(
        *("beat", beat, Beat, Beat, "done"),
        of_run=(),
        keys=lambda keys: (keys.leases,),
        does_without=lambda keys: (keys.cancel, keys.workers, keys.workers_seen, keys.version, keys.generation),
    ),
    Transition(
        *("bury", bury, "buried", "buried", "done"),
        of_run=(),
        keys=lambda keys: (
            *(keys.stream_high, keys.stream_low, keys.workers, keys.workers_seen, keys.leases),
            keys.generation,
        ),
    ),
    Transition(
        *("declare", declare, True, False, "refused"),
        of_run=(),
        keys=lambda keys: (keys.declared("digest"), keys.declarations, keys.version, keys.events, keys.unused),
    ),
    Transition(
        *("declare, in place of another", declare_in_place, True, False, "refused"),
        of_run=(),
        keys=lambda keys: (keys.declared("digest"), keys.declarations, keys.version, keys.events, keys.unused),
    ),
    Transition(
        *("declare, readmitting", readmit, True, False, "refused"),
        of_run=(),
        keys=lambda keys: (keys.declared("digest"), *of_catalog(keys)),
    ),
    Transition(
        *("declare, readmitting into a known set", readmit_into_a_known_set, True, False, "done"),
        of_run=(),
        keys=lambda keys: (keys.declared("digest"), *of_catalog(keys)),
    ),
    Transition(
        *("drop_withdrawn", drop_withdrawn, "dropped", "gone", "done"),
        leads=True,
        of_run=(),
        keys=lambda keys: (keys.leader, keys.version, keys.dynamic),
    ),
    Transition(
        *("strike", strike, 1, 0, "done"),
        leads=True,
        of_run=(),
        keys=lambda keys: (keys.leader, keys.due, keys.retold),
    ),
    Transition(
        *("retire", retire, "retired", "gone", "done"),
        of_run=(),
        keys=lambda keys: (keys.leader, keys.declarations, keys.version, keys.events, keys.unused, keys.workers),
    ),
    Transition(
        *("retire, noting", note_unused, "unused", "unused", "refused"),
        of_run=(),
        keys=lambda keys: (keys.leader, keys.declarations, keys.version, keys.events, keys.unused, keys.workers),
    ),
    Transition(
        *("pause", pause, True, SAME, "refused"),
        of_run=(),
        keys=lambda keys: (keys.paused, keys.version, keys.events, keys.once("pause")),
    ),
    Transition(
        *("resume", resume, True, SAME, "refused"),
        of_run=(),
        keys=lambda keys: (keys.paused, keys.version, keys.events, keys.once("resume")),
    ),
    Transition(
        *("unpause", unpause, 1, 0, "done"),
        of_run=(),
        keys=lambda keys: (keys.paused,),
    ),
    Transition(
        *("set_aside", set_aside, None, None, "done"),
        of_run=(),
        keys=lambda keys: (keys.stream_low, keys.aside),
    ),
    Transition(
        *("tidy", tidy, frozenset(["garbage"]), frozenset(), "done"),
        of_run=(),
        keys=lambda keys: (keys.due, keys.aside),
    ),
    Transition(
        *("tidy, mending", mend, frozenset([f"r/{TASK}@1"]), frozenset(), "done"),
        of_run=(),
        keys=lambda keys: (keys.due, keys.aside),
    ),
)
"""Scripts that take no items."""

# -- operators --------------------------------------------------------------------------------------------------------


def of_task(keys: Keys) -> tuple[str, str]:
    """The keys that belong to the task."""
    return keys.live(TASK), keys.ledger(TASK)


async def trigger(stage: Stage, tasks: Sequence[str], overlap: str = "allow") -> Call:
    triggers = [Trigger(trigger_run_id(task, "one"), "low", overlap) for task in tasks]
    return lambda: stage.store.operations.trigger(triggers, who=WHO, queue_cap=100)


async def trigger_over_a_retry(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.waiting(task, overlap="skip", delay_ms=600_000)
    return await trigger(stage, tasks, "skip")


async def refuse_trigger(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.store.catalog.pause([task], f"pause {task}", until_ms=None, details="{}", who="me")
    return await trigger(stage, tasks)


async def cancel(stage: Stage, tasks: Sequence[str]) -> Call:
    runs = [await stage.queued(task) for task in tasks]
    return lambda: stage.store.operations.cancel(runs, "cancel", who=WHO)


async def ask_to_stop(stage: Stage, tasks: Sequence[str]) -> Call:
    runs = [(await stage.running(task)).run_id for task in tasks]
    return lambda: stage.store.operations.cancel(runs, "cancel", who=WHO)


async def cancel_nothing(stage: Stage, tasks: Sequence[str]) -> Call:
    runs = [f"{task}@{stage.now_ms - 500}" for task in tasks]
    return lambda: stage.store.operations.cancel(runs, "cancel", who=WHO)


async def reset_retry(stage: Stage, tasks: Sequence[str]) -> Call:
    for task in tasks:
        await stage.waiting(task, delay_ms=600_000)
    return lambda: stage.store.operations.reset_retry(tasks, "reset", who=WHO)


async def clear(stage: Stage, tasks: Sequence[str]) -> Call:
    await stage.store.runs.complete("A", [completion(await stage.running(tasks[0]))])
    return lambda: stage.store.ledger.clear(tasks[:1], "clear", who=WHO)


async def revive(stage: Stage, tasks: Sequence[str]) -> Call:
    await (await die(stage, tasks[:1]))()
    [dead] = await stage.store.operations.dead(count=10)
    run_id = trigger_run_id(dead.task_id, "one")
    return lambda: stage.store.operations.revive(dead.entry_id, run_id, "revive", who=WHO, queue_cap=100)


async def discard(stage: Stage, tasks: Sequence[str]) -> Call:
    await (await die(stage, tasks))()
    entries = [dead.entry_id for dead in await stage.store.operations.dead(count=10)]
    return lambda: stage.store.operations.discard(entries, "discard", who=WHO)


async def define(stage: Stage, tasks: Sequence[str]) -> Call:
    return lambda: stage.store.operations.define(tasks[0], '{"a|b": []}', "define", who=WHO)


async def forget(stage: Stage, tasks: Sequence[str]) -> Call:
    await (await define(stage, tasks))()
    await stage.due(tasks[0], in_ms=600_000)
    await stage.running(tasks[0])
    await stage.queued(tasks[0], ago_ms=2)
    return lambda: stage.store.operations.forget(tasks[0], "forget", who=WHO)


async def forget_declared(stage: Stage, tasks: Sequence[str]) -> Call:
    await stage.due(tasks[0], in_ms=600_000)
    await stage.running(tasks[0])
    await stage.queued(tasks[0], ago_ms=2)
    return lambda: stage.store.operations.forget(tasks[0], "forget", who=WHO, declared=True)


def by_operators(
    name: str, arrange: Callable[[Stage, Sequence[str]], Awaitable[Call]], reply: Any, when_full: Any, keys: Any
) -> Transition:
    """Every one of them looks at the events, and keeps its answer."""
    return Transition(name, arrange, reply, SAME, when_full, of_run=(), keys=lambda names: (names.events, *keys(names)))


OPERATORS = (
    by_operators(
        *("trigger", trigger, Accepted(), "refused"),
        lambda keys: (keys.due, keys.wake, keys.stream_low, keys.paused, keys.once(f"{TASK}@t-one"), *of_task(keys)),
    ),
    by_operators(
        *("trigger, superseding", trigger_over_a_retry, Accepted(), "refused"),
        lambda keys: (keys.due, keys.leases, keys.cancel, keys.stream_low, keys.paused, *of_task(keys)),
    ),
    by_operators(
        *("trigger, refusing", refuse_trigger, Refused("paused"), "refused"),
        lambda keys: (keys.due, keys.stream_low, keys.paused, keys.once(f"{TASK}@t-one"), *of_task(keys)),
    ),
    by_operators(
        *("cancel", cancel, "ended", "done"),
        lambda keys: (keys.due, keys.leases, keys.cancel, keys.stream_low, keys.once("cancel"), *of_task(keys)),
    ),
    by_operators(
        *("cancel, asking", ask_to_stop, "asked", "done"),
        lambda keys: (keys.cancel, keys.once("cancel"), *of_task(keys)),
    ),
    by_operators(*("cancel, finding nothing", cancel_nothing, "gone", "done"), lambda keys: (keys.once("cancel"),)),
    by_operators(
        *("reset_retry", reset_retry, 1, "done"),
        lambda keys: (keys.due, keys.wake, keys.live(TASK), keys.once("reset")),
    ),
    by_operators(
        *("clear", clear, Cleared, "refused"),
        lambda keys: (keys.ledger(TASK), keys.cleared, keys.once("clear")),
    ),
    by_operators(
        *("revive", revive, Accepted(), "refused"),
        lambda keys: (keys.due, keys.dead, keys.stream_low, keys.paused, keys.once("revive"), *of_task(keys)),
    ),
    by_operators(*("discard", discard, "discarded", "done"), lambda keys: (keys.dead, keys.once("discard"))),
    by_operators(
        *("define", define, Defined, "refused"),
        lambda keys: (keys.dynamic, keys.version, keys.once("define")),
    ),
    by_operators(
        *("forget", forget, 1, "done"),
        lambda keys: (
            *(keys.dynamic, keys.cleared, keys.version, keys.once("forget")),
            *(keys.due, keys.paused, keys.leases, keys.cancel, keys.stream_low, *of_task(keys)),
        ),
    ),
    by_operators(
        *("forget, withdrawing", forget_declared, 1, "done"),
        lambda keys: (
            *(keys.dynamic, keys.cleared, keys.version, keys.once("forget")),
            *(keys.due, keys.paused, keys.leases, keys.cancel, keys.stream_low, *of_task(keys)),
        ),
    ),
)
"""What is asked for by hand: repeats get the first answer, whatever has happened since."""

ALL = ON_RUNS + OTHERS + OPERATORS


# -- what only reads --------------------------------------------------------------------------------------------------


async def survey(stage: Stage, tasks: Sequence[str]) -> Call:
    await stage.store.runs.complete("A", [completion(await stage.running(tasks[0], ago_ms=9))])
    await stage.waiting(tasks[0], delay_ms=600_000)
    return lambda: stage.store.runs.survey(tasks[:1])


READERS = (
    Transition(
        *("survey", survey, Survey, SAME, "done"),
        of_run=("record", "live", "ledger"),
        keys=lambda keys: (keys.due,),
    ),
)
"""Scripts that change nothing."""


async def outcome(call: Call) -> tuple[list[Any], Exception | None]:
    """The replies of a call, or the error with which Redis refused it."""
    try:
        return replies_to(await call()), None
    except (ResponseError, RedisUnavailable) as error:
        return [], error


def is_broken(reply: Any) -> bool:
    """Does this reply say that a key of the item is broken?"""
    return isinstance(reply, Broken)
