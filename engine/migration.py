"""What fastapi-task-manager left in Redis, taken over: tasks made at run time, and which tasks are disabled."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, final

from actors.reading import Reading
from engine.domain.canonical import read_json
from engine.domain.names import task_id
from engine.domain.task import Definition
from engine.errors import MalformedDefinition
from engine.store.operations import Defined, Unchanged
from engine.store.predecessor import PredecessorStore
from engine.store.session import Broken
from engine.views import pause_details

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from actors.messages import CatalogRead
    from engine.store.catalog import Contents
    from engine.store.store import Store

__all__ = ["Finding", "import_predecessor", "old_name"]

WHO: Final = "troupe import"

SAME_HERE: Final = ("description", "high_priority", "retry_backoff", "retry_backoff_max", "allow_parallel")
"""Settings of an old definition that are called the same here, and may be left out of both."""

TAKEN_BY_CODE: Final = "code declares a task of this name; rename one of the two"
TAKEN: Final = "another task made at run time has this name; remove the one that is not wanted"
GOING: Final = "a task of this name is being removed; repeat this in a minute"
NO_FUNCTION: Final = "no process declares its function now: its runs wait for one that does"
NO_SUCH_TASK: Final = (
    "no task known here had this name there: it is gone from the code, or its function, kwargs or expression are "
    "written in another way; pause what is meant by hand"
)
NOT_DECLARED: Final = (
    "no task is declared under the prefix of this system, so nobody knows whose flag it is; start the application "
    "once, then repeat this"
)
OF_NO_TASK: Final = "its task was not taken"

Outcome: TypeAlias = Literal["taken", "there already", "not taken"]


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the other system kept, and what became of it."""

    kind: Literal["definition", "flag"]
    source: str
    """The field of the old hash, or the key of the flag."""

    task: str | None
    """The id of the task here, if there is one."""

    outcome: Outcome
    reason: str = ""
    """Why it was not taken, or what else there is to know."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


async def import_predecessor(store: Store, old_prefix: str, *, dry_run: bool = False) -> list[Finding]:
    """Take over the dynamic tasks and the disabled flags under ``old_prefix``; what became of each, in order.

    Nothing of the other system's is changed, and what is here already stays as it is, so this can be repeated. A flag
    becomes a pause until somebody resumes the task. Whose flag it is, is known from what processes of this system have
    declared, and from the dynamic tasks.

    Args:
        store: of the application here, in the database where the other one is too.
        old_prefix: ``redis_key_prefix`` there.
        dry_run: change nothing, and say what would become of each.

    Raises:
        RedisUnavailable: part of it may have been taken over; repeat it.
        PredecessorUnreadable: Redis refuses to show the other system's keys.
    """
    old = PredecessorStore(store.transport, old_prefix)
    contents = await store.catalog.contents()
    known = await Reading().read(contents)
    now_ms = await store.leases.redis_ms()
    tasks, findings = dict(known.tasks), []
    for source, text in sorted((await old.definitions()).items()):
        definition, finding = judge(source, text, contents, known)
        if definition is not None:
            if finding.outcome == "taken" and not dry_run:
                finding = await _define(store, definition, finding)
            if finding.outcome != "not taken":
                tasks[definition.id] = definition
        findings.append(finding)
    flags = match_flags(
        old,
        await old.disabled(),
        tasks.values(),
        paused={task for task, pause in contents.paused.items() if not pause.has_ended(now_ms)},
        lost=[finding.source for finding in findings if finding.outcome == "not taken"],
        nothing_declared=not contents.sets,
    )
    pausing = sorted({flag.task for flag in flags if flag.task is not None and flag.outcome == "taken"})
    if pausing and not dry_run:
        await _pause(store, pausing, f"disabled in fastapi-task-manager, under the prefix {old_prefix}")
    return findings + flags


# -- deciding ---------------------------------------------------------------------------------------------------------


def judge(source: str, text: str, contents: Contents, known: CatalogRead) -> tuple[Definition | None, Finding]:
    """What is to become of one old definition; ``taken`` is what is still to be done."""
    try:
        definition = read_definition(text)
    except MalformedDefinition as error:
        return None, Finding("definition", source, None, "not taken", error.reason)
    task = definition.id
    finding = Finding("definition", source, task, "taken")
    if any(task in ids for ids in known.sets.values()):
        return definition, replace(finding, outcome="not taken", reason=TAKEN_BY_CODE)
    if task in contents.forgotten:
        return definition, replace(finding, outcome="not taken", reason=GOING)
    if task in contents.dynamic:
        same = contents.dynamic[task] == definition.to_json()
        return definition, replace(
            finding, outcome="there already" if same else "not taken", reason="" if same else TAKEN
        )
    function = task_id(definition.group, definition.function)
    if not any(function in functions for functions in known.functions.values()):
        return definition, replace(finding, reason=NO_FUNCTION)
    return definition, finding


def read_definition(text: str) -> Definition:
    """The task that an old definition makes, with the name that it has there.

    Raises:
        MalformedDefinition: it is none, or one that this version refuses.
    """
    try:
        old = read_json(text)
    except ValueError as error:
        raise MalformedDefinition(f"not JSON ({error})") from error
    if not isinstance(old, Mapping):
        raise MalformedDefinition(f"a JSON object was expected, not {type(old).__name__}")
    if missing := [name for name in ("task_group_name", "function_name", "cron_expression") if name not in old]:
        raise MalformedDefinition(f"{', '.join(missing)} missing")
    kwargs, tags = old.get("kwargs") or {}, old.get("tags") or []
    mapping = {setting: old[setting] for setting in SAME_HERE if setting in old} | {
        "group": old["task_group_name"],
        "name": old.get("name"),
        "function": old["function_name"],
        "expression": old["cron_expression"],
        "kwargs": kwargs,
        "tags": list(dict.fromkeys(tags))
        if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
        else tags,
        "dynamic": True,
    }
    try:
        if not mapping["name"] and isinstance(kwargs, dict) and isinstance(mapping["expression"], str):
            mapping["name"] = old_name(mapping["function"], kwargs, mapping["expression"])
        definition = Definition.from_mapping(mapping)
        definition.to_json().encode()
    except UnicodeEncodeError as error:
        raise MalformedDefinition("it holds half a surrogate pair, which is no text") from error
    return definition


def old_name(function: str, kwargs: Mapping[str, Any], expression: str) -> str:
    """What the other system calls a task that code declares, or one that was made without a name."""
    arguments = sha256(str(sorted(kwargs.items())).encode()).hexdigest() if kwargs else ""
    return f"{function}__{arguments}__{sha256(expression.encode()).hexdigest()}__"


def names_there(task: Definition) -> set[str]:
    """What the other system may call this task."""
    name_of_old = old_name(task.function, task.kwargs, task.expression)
    if not task.dynamic:
        return {name_of_old}
    made_up = re.fullmatch(
        re.escape(task.function) + r"-[0-9a-f]{8}", task.name
    )  # as TaskGroup does for want of a name
    return {task.name, name_of_old} if made_up else {task.name}


def match_flags(
    old: PredecessorStore,
    flags: Collection[str],
    tasks: Iterable[Definition],
    *,
    paused: Collection[str],
    lost: Iterable[str] = (),
    nothing_declared: bool = False,
) -> list[Finding]:
    """Whose flags these are, and what is to become of them; those of no task come last."""
    found = []
    for task in tasks:
        for flag in sorted({old.flag(task.group, name) for name in names_there(task)}.intersection(flags)):
            outcome: Outcome = "there already" if task.id in paused else "taken"
            found.append(Finding("flag", flag, task.id, outcome))
    found.sort(key=lambda finding: finding.source)
    left = set(flags).difference(finding.source for finding in found)
    of_lost = {old.flag(group, name) for group, _, name in (source.partition(":") for source in lost)}
    why = NOT_DECLARED if nothing_declared else NO_SUCH_TASK
    found += [Finding("flag", flag, None, "not taken", OF_NO_TASK if flag in of_lost else why) for flag in sorted(left)]
    return found


# -- doing ------------------------------------------------------------------------------------------------------------


async def _define(store: Store, definition: Definition, finding: Finding) -> Finding:
    match await store.operations.define(definition.id, definition.to_json(), secrets.token_hex(8), who=WHO):
        case Broken(why):
            return replace(finding, outcome="not taken", reason=f"a key of it is broken: {why}")
        case Defined():
            return finding
        case Unchanged():  # somebody else has just done the same
            return replace(finding, outcome="there already")
        case _:
            return replace(finding, outcome="not taken", reason=TAKEN)


async def _pause(store: Store, task_ids: list[str], why: str) -> None:
    details = pause_details(WHO, why, since_ms=await store.leases.redis_ms())
    await store.catalog.pause(task_ids, secrets.token_hex(8), until_ms=None, details=details, who=WHO)
