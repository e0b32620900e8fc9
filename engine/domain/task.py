"""A task: what runs, when and how. The definition travels between processes, the function stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, final

from engine.domain.canonical import canonical_json, json_problem, read_json
from engine.domain.functions import is_async
from engine.domain.names import task_id, validate_name
from engine.domain.schedule import Schedule
from engine.errors import (
    InvalidName,
    InvalidSchedule,
    MalformedDefinition,
    TaskDeclarationError,
    TaskTypeError,
)

_LONGEST_S: Final = 31 * 86_400.0
"""The largest duration a task may give, in seconds: a month."""
_MOST_RETRIES: Final = 1_000_000


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """Everything about a task but its function, which is given by its registered name.

    Raises:
        TaskDeclarationError: a field is out of bounds; a cron or name error is its cause.
        TaskTypeError: a field has the wrong type.
    """

    group: str
    name: str
    function: str
    """The name under which the group's functions are registered."""
    expression: str
    timezone: str = "UTC"
    kwargs_json: str = "{}"
    """Canonical JSON of the keyword arguments. ``kwargs`` decodes it."""
    tags: tuple[str, ...] = ()
    description: str | None = None
    high_priority: bool = False
    retry_backoff: float | None = None
    """Seconds before the first retry; None inherits the Config's."""
    retry_backoff_max: float | None = None
    """Seconds; the longest delay before a retry, the first one included, also where it is below an inherited
    retry_backoff. None inherits the Config's."""
    allow_parallel: bool | None = None
    """None inherits the Config's. A group's value is already in it."""
    max_retries: int | None = None
    """None inherits the Config's. A group's value is already in it."""
    timeout: float | None = None
    """Seconds from the start of an attempt; None is no limit."""
    run_on_first_start: bool = False
    """Run once when the task is first seen, rather than wait for its first slot."""
    dynamic: bool = False
    """Made at run time, not declared by code."""
    schedule: Schedule = field(init=False, repr=False, compare=False)
    id: str = field(init=False, repr=False, compare=False)
    """``group/name``, each percent-encoded."""

    def __post_init__(self) -> None:
        try:
            for kind, value in (("group", self.group), ("name", self.name), ("function", self.function)):
                validate_name(kind, value)
        except InvalidName as error:
            raise TaskDeclarationError(self._label, error.kind, str(error)) from error
        for setting in _WANTED:
            check_setting(self._label, setting, getattr(self, setting))
        tags: object = self.tags
        if not isinstance(tags, tuple) or not all(isinstance(tag, str) and tag for tag in tags):
            raise TaskTypeError(self._label, "tags", f"{self.tags!r}; give a list of non-empty strings")
        for text in ("description", "tags"):
            value = getattr(self, text)
            if (problem := json_problem(list(value) if text == "tags" else value, text)) is not None:
                raise TaskTypeError(self._label, text, problem)
        backoff, longest = self.retry_backoff, self.retry_backoff_max
        if backoff is not None and longest is not None and backoff > longest:
            reason = f"{backoff:,.10g} s is above retry_backoff_max, {longest:,.10g} s; lower it or raise that"
            raise TaskDeclarationError(self._label, "retry_backoff", reason)
        try:
            object.__setattr__(self, "schedule", Schedule.parse(self.expression, self.timezone))
        except InvalidSchedule as error:
            if error.field == "timezone":
                raise TaskDeclarationError(self._label, "timezone", f"{error.reason}; {error.instead}") from error
            raise TaskDeclarationError(self._label, "expression", str(error)) from error
        object.__setattr__(self, "expression", self.schedule.expression)
        object.__setattr__(self, "id", task_id(self.group, self.name))

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments, decoded anew at each call, so a run that changes them changes its own."""
        decoded: dict[str, Any] = json.loads(self.kwargs_json) if self.kwargs_json != "{}" else {}
        return decoded

    def to_json(self) -> str:
        """Canonical JSON; the same definition gives the same text in every process."""
        return canonical_json(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        """The fields as JSON values, ``tags`` as a list and ``kwargs`` decoded."""
        mapping = {name: getattr(self, name) for name in _STORED if name != "kwargs_json"}
        return mapping | {"tags": list(self.tags), "kwargs": self.kwargs}

    @staticmethod
    def from_json(text: str | bytes) -> Definition:
        """The definition that ``to_json`` wrote, in this version or in one with other optional fields.

        Raises:
            MalformedDefinition: it is not one, or one that this version refuses.
        """
        try:
            mapping = read_json(text)
        except ValueError as error:
            raise MalformedDefinition(f"not JSON ({error})") from error
        return Definition.from_mapping(mapping)

    @staticmethod
    def from_mapping(mapping: object) -> Definition:
        """As ``from_json``, from decoded JSON."""
        if not isinstance(mapping, Mapping):
            raise MalformedDefinition(f"a JSON object was expected, not {type(mapping).__name__}")
        missing = [name for name in _REQUIRED if name not in mapping]
        if missing:
            raise MalformedDefinition(f"{', '.join(missing)} missing")
        known = {name: mapping[name] for name in _STORED if name in mapping}
        try:
            known["kwargs_json"] = encode_kwargs(str(mapping["name"]), mapping.get("kwargs", {}))
            if isinstance(known.get("tags"), list):
                known["tags"] = tuple(known["tags"])
            return Definition(**known)
        except TaskDeclarationError as error:
            raise MalformedDefinition(str(error)) from error

    @property
    def _label(self) -> str:
        return f"{self.group}/{self.name}"


_WANTED: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "expression": ((str,), "a string"),
    "timezone": ((str,), "the name of a time zone"),
    "description": ((str, type(None)), "a string"),
    "high_priority": ((bool,), "True or False"),
    "allow_parallel": ((bool, type(None)), "True, False or None"),
    "run_on_first_start": ((bool,), "True or False"),
    "dynamic": ((bool,), "True or False"),
    "max_retries": ((int, type(None)), "a whole number or None"),
    "retry_backoff": ((int, float, type(None)), "a number of seconds or None"),
    "retry_backoff_max": ((int, float, type(None)), "a number of seconds or None"),
    "timeout": ((int, float, type(None)), "a number of seconds or None"),
}
_LEAST_S: Final[Mapping[str, float]] = {"retry_backoff": 0, "retry_backoff_max": 0, "timeout": 0.001}


def check_setting(task: str, name: str, value: Any) -> None:
    """Refuse a setting's value by itself; ``task`` is for the error.

    Raises:
        TaskTypeError: it has the wrong type.
        TaskDeclarationError: it is out of bounds.
    """
    types, what = _WANTED[name]
    kind = type(value)
    if not issubclass(kind, types) or (kind is bool and bool not in types):
        raise TaskTypeError(task, name, f"{value!r} is of type {kind.__name__}; give {what}")
    if value is None:
        return
    if name in _LEAST_S and not _LEAST_S[name] <= value <= _LONGEST_S:
        reason = f"{value!r} s; give {_LEAST_S[name]:g} to {_LONGEST_S:,.0f} seconds"
        raise TaskDeclarationError(task, name, reason)
    if name == "max_retries" and not 0 <= value <= _MOST_RETRIES:
        raise TaskDeclarationError(task, name, f"{value}; give 0 (never retry) to {_MOST_RETRIES:,}")


def check_inherited(definition: Definition, *, retry_backoff_max: float) -> None:
    """Refuse what only contradicts a setting that the task inherits from its engine's Config.

    A ``retry_backoff_max`` below the Config's ``retry_backoff`` is no contradiction: the smaller one wins.

    Raises:
        TaskDeclarationError: its retry_backoff is above the retry_backoff_max that it inherits.
    """
    backoff = definition.retry_backoff
    if backoff is None or definition.retry_backoff_max is not None or backoff <= retry_backoff_max:
        return
    reason = (
        f"{backoff:,.10g} s is above Config.retry_backoff_max, {retry_backoff_max:,.10g} s, which the task inherits; "
        f"give the task a retry_backoff_max of its own, or raise that of the Config"
    )
    raise TaskDeclarationError(f"{definition.group}/{definition.name}", "retry_backoff", reason)


_STORED: Final = tuple(spec.name for spec in fields(Definition) if spec.init)
_REQUIRED: Final = ("group", "name", "function", "expression")


def encode_kwargs(task: str, kwargs: object) -> str:
    """Keyword arguments as canonical JSON; ``task`` is for the error.

    Raises:
        TaskTypeError: not a dict, or something in it would not come back from JSON as it is.
    """
    if not isinstance(kwargs, dict):
        raise TaskTypeError(task, "kwargs", f"{kwargs!r} is of type {type(kwargs).__name__}; give a dict")
    if (problem := json_problem(kwargs, "kwargs")) is not None:
        raise TaskTypeError(task, "kwargs", problem)
    return canonical_json(kwargs)


@final
@dataclass(frozen=True, slots=True)
class Task:
    """A definition with the function it runs, in the process that has it."""

    definition: Definition
    function: Callable[..., Any]
    is_async: bool = field(init=False, repr=False, compare=False)
    """Whether a call gives a coroutine."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_async", is_async(self.function))

    @property
    def id(self) -> str:
        """``group/name``, each percent-encoded."""
        return self.definition.id

    @property
    def name(self) -> str:
        """The name within the group."""
        return self.definition.name

    @property
    def function_name(self) -> str:
        """The name under which the function is registered."""
        return self.definition.function

    @property
    def expression(self) -> str:
        """The cron expression."""
        return self.definition.expression

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments, decoded anew at each call."""
        return self.definition.kwargs

    @property
    def tags(self) -> list[str]:
        """The group's tags followed by its own."""
        return list(self.definition.tags)

    @property
    def description(self) -> str | None:
        """What the task does, for people."""
        return self.definition.description

    @property
    def dynamic(self) -> bool:
        """Made at run time, not declared by code."""
        return self.definition.dynamic

    @property
    def high_priority(self) -> bool:
        """Whether its runs go before those of other tasks."""
        return self.definition.high_priority

    @property
    def retry_backoff(self) -> float | None:
        """Seconds before the first retry; None inherits the Config's."""
        return self.definition.retry_backoff

    @property
    def retry_backoff_max(self) -> float | None:
        """Seconds; the longest delay between retries. None inherits the Config's."""
        return self.definition.retry_backoff_max

    @property
    def allow_parallel(self) -> bool | None:
        """Its own, else its group's; None inherits the Config's."""
        return self.definition.allow_parallel
