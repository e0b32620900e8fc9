"""What the management API says a function takes."""

from __future__ import annotations

import datetime as dt
import enum
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from integrations.fastapi.functions import arguments_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal


class Color(enum.Enum):
    """Two."""

    RED = "red"
    BLUE = "blue"


@dataclass
class Place:
    """Somewhere."""

    city: str
    color: Color = Color.RED


class Basket(BaseModel):
    """With others in it."""

    places: list[Place]
    inner: list[Basket] = []


class Unknown:
    """Nothing that JSON could be."""


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """Its schema without titles, which are for people."""

    def plain(value: Any) -> Any:
        match value:
            case dict():
                return {key: plain(item) for key, item in value.items() if key != "title" or isinstance(item, dict)}
            case list():
                return [plain(item) for item in value]
            case _:
                return value

    schema: dict[str, Any] = plain(arguments_schema(function))
    return schema


def test_annotations_and_defaults_are_described() -> None:
    """What must be given is required; nothing else than what it names can be given."""

    def function(
        text: str,
        count: Annotated[int, Field(ge=1)] = 1,
        *,
        when: dt.datetime | None = None,
        how: Literal["slow", "fast"] = "slow",
    ) -> None: ...

    assert arguments_schema(function)["title"] == "function"
    assert described(function) == {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer", "minimum": 1, "default": 1},
            "when": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}], "default": None},
            "how": {"type": "string", "enum": ["slow", "fast"], "default": "slow"},
        },
        "required": ["text"],
        "additionalProperties": False,
    }


def test_structures_are_described_once() -> None:
    """Models, dataclasses and enums, also those that hold themselves."""

    def function(basket: Basket, place: Place, color: Color) -> None: ...

    schema = described(function)
    assert schema["$defs"].keys() == {"Basket", "Place", "Color"}
    assert schema["properties"]["basket"] == {"$ref": "#/$defs/Basket"}
    assert schema["$defs"]["Basket"]["properties"]["inner"]["items"] == {"$ref": "#/$defs/Basket"}


def any_of(*names: str) -> dict[str, Any]:
    return {name: {} for name in names}


def test_what_cannot_be_described_can_be_anything() -> None:
    """No annotation, one that cannot be resolved, or that pydantic does not know: never an error."""

    def function(  # type: ignore[no-untyped-def]
        bare,  # noqa: ANN001
        *,
        unknown: Unknown,
        only_for_checkers: Decimal,
        nonsense: Nowhere,  # type: ignore[name-defined]  # noqa: F821
        call: Callable[[int], int],
        example: Annotated[int, Field(json_schema_extra={"example": math.inf})],
    ) -> None: ...

    names = ("bare", "unknown", "only_for_checkers", "nonsense", "call", "example")
    assert described(function)["properties"] == any_of(*names)
    assert described(function)["required"] == list(names)


def test_a_default_that_json_cannot_say_is_left_out() -> None:
    """The argument need not be given all the same. One that does not fit its annotation is shown as it is."""

    def function(color: Color = Color.RED, at: dt.date = dt.date(2025, 1, 1), n: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    schema = described(function)
    assert "required" not in schema
    assert schema["properties"]["color"] == {"$ref": "#/$defs/Color"}
    assert schema["properties"]["at"] == {"type": "string", "format": "date"}
    assert schema["properties"]["n"] == {"type": "integer", "default": None}


def test_names_that_pydantic_would_refuse_are_names_like_others() -> None:
    """Python takes them."""

    def function(_private: int, self: int, model_config: int, schema: int, class_: int, json: int) -> None: ...

    names = ["_private", "self", "model_config", "schema", "class_", "json"]
    assert list(described(function)["properties"]) == names
    assert described(function)["required"] == names


class Caller:
    """Called like a function."""

    def __call__(self, place: Place) -> None: ...


class Made:
    """Called to be made."""

    def __init__(self, place: Place) -> None: ...


def base(first: int, place: Place) -> None: ...


@functools.wraps(base)
def wrapped(*args: Any, **kwargs: Any) -> None:
    base(*args, **kwargs)


@pytest.mark.parametrize("function", [Caller(), Made, functools.partial(base, 1)], ids=["object", "class", "partial"])
def test_whatever_can_be_called_is_described(function: Callable[..., Any]) -> None:
    """With annotations as text, as all of them are here."""
    assert described(function)["properties"]["place"] == {"$ref": "#/$defs/Place"}


def test_only_what_can_be_given_by_name_is_described() -> None:
    """Not what is given by position alone. With ``**kwargs``, anything can be given beside it."""

    def function(position: int, /, named: int, *more: int, **others: int) -> None: ...

    assert described(function) == {
        "type": "object",
        "properties": {"named": {"type": "integer"}},
        "required": ["named"],
        "additionalProperties": True,
    }
    assert described(wrapped) == {"type": "object", "properties": {}, "additionalProperties": True}
    assert described(max) == {"type": "object", "additionalProperties": True}
