"""What a function takes, as JSON schema, for people and forms. The engine itself checks arguments by name only."""

from __future__ import annotations

import inspect
import sys
import typing
from typing import TYPE_CHECKING, Any, Final

from pydantic import ConfigDict, Field, TypeAdapter, create_model

from engine.domain.canonical import json_problem
from engine.domain.functions import function_name, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["arguments_schema"]

_BY_NAME: Final = frozenset({inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY})


def arguments_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """An object with a property for each argument that can be given by name.

    What has no annotation, or one that cannot be resolved or described, can be anything. Never raises.
    """
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except Exception:  # noqa: BLE001  # built in C, or annotations that fail where they are looked at
        return {"title": function_name(function), "type": "object", "additionalProperties": True}
    # Names of our own for the fields, since pydantic refuses some that Python takes.
    fields: dict[str, Any] = {
        f"argument_{position}": (_annotation(function, parameter), _field(parameter))
        for position, parameter in enumerate(parameters)
        if parameter.kind in _BY_NAME
    }
    model = create_model(
        function_name(function), __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
    )
    schema: dict[str, Any] = model.model_json_schema()
    properties = schema.setdefault("properties", {})
    for parameter in parameters:
        if parameter.name in properties and _can_be_said(parameter.default):
            properties[parameter.name]["default"] = parameter.default
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        schema["additionalProperties"] = True
    return schema


def _field(parameter: inspect.Parameter) -> Any:
    """Defaults are added later: one that does not fit its annotation would have pydantic warn."""
    if parameter.default is inspect.Parameter.empty:
        return Field(alias=parameter.name)
    return Field(alias=parameter.name, default_factory=lambda: None)


def _can_be_said(value: Any) -> bool:
    return json_problem(value, "") is None


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """What pydantic can describe, or Any."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    try:
        annotation = _resolve(function, parameter.annotation)
        described = _can_be_said(TypeAdapter(annotation).json_schema())
    except Exception:  # noqa: BLE001  # whatever the code of an annotation does
        return Any
    return annotation if described else Any


def _resolve(function: Callable[..., Any], annotation: Any) -> Any:
    """The annotation, evaluated where the function was defined if it is text."""

    def holder() -> None: ...

    inner = unwrap(function)
    names = getattr(inner, "__globals__", None) or vars(sys.modules[inner.__module__])
    holder.__annotations__ = {"argument": annotation}
    return typing.get_type_hints(holder, globalns=names, include_extras=True)["argument"]
