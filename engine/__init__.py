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
    from engine.errors import (
        ApiRefused,
        ApiUnavailable,
        CannotCrash,
        ConfigError,
        ConfigWarning,
        DuplicateGroup,
        DuplicateTask,
        EmbeddedRedisError,
        EngineStateError,
        FunctionAlreadyRegistered,
        FunctionNotRegistered,
        GroupInUse,
        InvalidSchedule,
        KeyMalformed,
        NameTaken,
        NoCurrentRun,
        NoSuchGroup,
        NoSuchTask,
        NothingTriggered,
        OtherSchema,
        PayloadTooLarge,
        RedisKeyBroken,
        RedisUnavailable,
        RedisUnreachable,
        RestartLimitExceeded,
        ServiceNotFound,
        StaticTask,
        TaskDeclarationError,
        TaskTypeError,
        TreeFormatError,
        TroupeError,
        UnknownActor,
        UnknownTask,
    )
    from engine.management import Management, Match
    from engine.runtime.tree import Node
    from engine.store.transport import LinkStatistics

__all__ = [
    "ApiRefused",
    "ApiUnavailable",
    "CannotCrash",
    "Config",
    "ConfigError",
    "ConfigWarning",
    "DuplicateGroup",
    "DuplicateTask",
    "EmbeddedRedisError",
    "Engine",
    "EngineStateError",
    "FunctionAlreadyRegistered",
    "FunctionNotRegistered",
    "GroupInUse",
    "InvalidSchedule",
    "KeyMalformed",
    "LinkStatistics",
    "Management",
    "Match",
    "NameTaken",
    "NoCurrentRun",
    "NoSuchGroup",
    "NoSuchTask",
    "Node",
    "NothingTriggered",
    "OtherSchema",
    "PayloadTooLarge",
    "RedisKeyBroken",
    "RedisUnavailable",
    "RedisUnreachable",
    "RestartLimitExceeded",
    "RunContext",
    "ServiceNotFound",
    "StaticTask",
    "Task",
    "TaskDeclarationError",
    "TaskGroup",
    "TaskTypeError",
    "TreeFormatError",
    "TroupeError",
    "UnknownActor",
    "UnknownTask",
]

_HOMES = {
    "ApiRefused": "engine.errors",
    "ApiUnavailable": "engine.errors",
    "CannotCrash": "engine.errors",
    "Config": "engine.config",
    "ConfigError": "engine.errors",
    "ConfigWarning": "engine.errors",
    "DuplicateGroup": "engine.errors",
    "DuplicateTask": "engine.errors",
    "EmbeddedRedisError": "engine.errors",
    "Engine": "engine.app",
    "EngineStateError": "engine.errors",
    "FunctionAlreadyRegistered": "engine.errors",
    "FunctionNotRegistered": "engine.errors",
    "GroupInUse": "engine.errors",
    "InvalidSchedule": "engine.errors",
    "KeyMalformed": "engine.errors",
    "LinkStatistics": "engine.store.transport",
    "Management": "engine.management",
    "Match": "engine.management",
    "NameTaken": "engine.errors",
    "NoCurrentRun": "engine.errors",
    "NoSuchGroup": "engine.errors",
    "NoSuchTask": "engine.errors",
    "Node": "engine.runtime.tree",
    "NothingTriggered": "engine.errors",
    "OtherSchema": "engine.errors",
    "PayloadTooLarge": "engine.errors",
    "RedisKeyBroken": "engine.errors",
    "RedisUnavailable": "engine.errors",
    "RedisUnreachable": "engine.errors",
    "RestartLimitExceeded": "engine.errors",
    "RunContext": "engine.domain.run",
    "ServiceNotFound": "engine.errors",
    "StaticTask": "engine.errors",
    "Task": "engine.domain.task",
    "TaskDeclarationError": "engine.errors",
    "TaskGroup": "engine.domain.group",
    "TaskTypeError": "engine.errors",
    "TreeFormatError": "engine.errors",
    "TroupeError": "engine.errors",
    "UnknownActor": "engine.errors",
    "UnknownTask": "engine.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
