"""Check settings that come from YAML against the dataclass that declares them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from cctuning.errors import UserError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "null",
}


def from_mapping(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from a mapping of field names to values.

    Args:
        where: what to call the mapping in an error.

    Raises:
        UserError: an unknown or missing key, or a bad value as in `check_values`.
    """
    names = [option.name for option in fields(cls)]
    for key in options:
        if key not in names:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(names)}.{nearest(str(key), names)}")
    for option in fields(cls):
        if option.name not in options and option.default is MISSING and option.default_factory is MISSING:
            raise UserError(f"{where}: {option.name}: missing. {option.metadata.get('help', '')}")
    check_values(cls, options, where)
    return cls(**options)


def check_values(cls: type[DataclassInstance], values: Mapping[str, Any], where: str) -> None:
    """Check values against the types of a dataclass, and `choices` and `least` (smallest number) in its metadata.

    Raises:
        UserError: a value of another type, or out of range.
    """
    hints = typing.get_type_hints(cls)
    for option in fields(cls):
        if option.name not in values:
            continue
        value, hint = values[option.name], hints[option.name]
        allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        expected = [typing.get_origin(one) or one for one in allowed]
        if not _is_one_of(value, expected):
            # YAML reads a bare `no`, the code of Norwegian, as false.
            advice = "; put it in quotes" if str in expected and isinstance(value, (bool, int, float)) else ""
            raise UserError(f"{where}: {option.name}: expected {_said(expected)}, got {value!r}{advice}.")
        if list[str] in allowed and not all(isinstance(item, str) for item in value or ()):
            raise UserError(f"{where}: {option.name}: expected a list of text, got {value!r}; put each in quotes.")
        choices, least = option.metadata.get("choices"), option.metadata.get("least")
        if choices and value not in choices:
            raise UserError(
                f"{where}: {option.name}: expected {' or '.join(map(str, choices))}, got {value!r}."
                f"{nearest(str(value), [str(choice) for choice in choices])}"
            )
        if least is not None and value is not None and not value >= least:
            raise UserError(f"{where}: {option.name}: expected at least {least}, got {value!r}.")


def _is_one_of(value: Any, expected: list[type]) -> bool:
    if isinstance(value, bool):
        return bool in expected
    if isinstance(value, Mapping):
        return dict in expected
    return isinstance(value, tuple(expected)) or (isinstance(value, int) and float in expected)


def _said(expected: list[type]) -> str:
    return " or ".join(KINDS.get(kind, kind.__name__) for kind in expected)
