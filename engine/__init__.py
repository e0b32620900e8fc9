"""Troupe: scheduled work across processes and hosts, on trio and Redis Streams.

    from engine import Config, Engine, TaskGroup

Names are resolved when first used, so that importing a part of the engine does not import all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.app import Engine
    from engine.config import Config
    from engine.domain.group import TaskGroup
    from engine.domain.run import RunContext
    from engine.domain.task import Task
    from engine.errors import ConfigError, RedisUnavailable, RedisUnreachable, TroupeError

__all__ = [
    "Config",
    "ConfigError",
    "Engine",
    "RedisUnavailable",
    "RedisUnreachable",
    "RunContext",
    "Task",
    "TaskGroup",
    "TroupeError",
]

_HOMES = {
    "Config": "engine.config",
    "ConfigError": "engine.errors",
    "Engine": "engine.app",
    "RedisUnavailable": "engine.errors",
    "RedisUnreachable": "engine.errors",
    "RunContext": "engine.domain.run",
    "Task": "engine.domain.task",
    "TaskGroup": "engine.domain.group",
    "TroupeError": "engine.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
