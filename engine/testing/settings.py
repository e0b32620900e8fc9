"""What a test gives for an engine, as groups and a Config that asks nobody for Redis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from engine.app import Engine
from engine.config import Config
from engine.domain.group import TaskGroup
from engine.errors import DuplicateGroup, InvalidExpectation, TaskTypeError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Mapping

    from trio.testing import MockClock

    from engine.testing.cluster import Loop

__all__ = ["BodiesOn", "config_from", "loop_of", "parts_of", "usual_loop"]

BodiesOn: TypeAlias = "Literal['trio', 'asyncio'] | AbstractEventLoop"
"""Where ``async def`` functions run."""

_NOT_TAKEN: Final = ("redis_", "embedded", "enabled", "startup_timeout", "api_token")
"""Where Redis is, and what only a process of its own can do."""


def parts_of(given: object) -> tuple[tuple[TaskGroup, ...], Config | None]:
    """The groups, and the Config if there is one, of an Engine, a TaskManager, a group, or any number of groups.

    Raises:
        DuplicateGroup: two have the same name.
        TaskTypeError: it is none of these.
    """
    engine = getattr(given, "engine", given)  # of a TaskManager
    if isinstance(engine, Engine):
        return tuple(engine.groups), engine.config
    groups = (given,) if isinstance(given, TaskGroup) else given
    if not isinstance(groups, Iterable) or isinstance(groups, str):
        raise TaskTypeError("troupe_engine", "groups", _WANTED.format(given))
    found: dict[str, TaskGroup] = {}
    for group in groups:
        if not isinstance(group, TaskGroup):
            raise TaskTypeError("troupe_engine", "groups", _WANTED.format(group))
        if group.name in found:
            raise DuplicateGroup(group.name)
        found[group.name] = group
    return tuple(found.values()), None


_WANTED: Final = "{!r}; give TaskGroups, an Engine or a TaskManager, as what the fixture troupe_groups returns"


def config_from(base: Config | None, settings: Mapping[str, Any]) -> Config:
    """The settings of ``base`` and then those given, whatever the environment says; Redis is in this process.

    Raises:
        ConfigError: a setting is unknown or out of bounds.
    """
    values = {name: field.default for name, field in Config.model_fields.items()}
    if base is not None:
        values = {name: getattr(base, name) for name in values}
    kept = {name: value for name, value in values.items() if not name.startswith(_NOT_TAKEN)}
    return Config(**{**kept, "redis_host": "in-process", "enabled": True, **settings})


def usual_loop(given: object) -> BodiesOn:
    """Where they run in production: on the loop of the application around a TaskManager, else beside the actors."""
    return "trio" if isinstance(given, Engine) or not isinstance(getattr(given, "engine", None), Engine) else "asyncio"


def loop_of(bodies_on: BodiesOn, clock: MockClock) -> Loop | None:
    """The loop for the functions; None where they run beside the actors. In the trio run of these.

    Raises:
        InvalidExpectation: it is none of those that there are.
    """
    if bodies_on == "trio":
        return None
    from integrations.asyncio_loop import AsyncioLoop, VirtualLoop

    if bodies_on == "asyncio":
        return VirtualLoop(clock.current_time)
    if not hasattr(bodies_on, "call_soon_threadsafe"):
        raise InvalidExpectation("bodies_on", f"{bodies_on!r}; give 'trio', 'asyncio' or a loop of asyncio that runs")
    return AsyncioLoop(bodies_on)
