"""Check settings from YAML against the fields of the dataclass that they are for."""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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


def option(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A field of a dataclass of options.

    Args:
        default: a list or a mapping is copied for each instance.
        help: documents the field, in `--help` and in the reference.
        metadata: `choices`, or `least` (smallest number).
    """
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


def from_mapping(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from a mapping of field names to values.

    Args:
        where: what to call the mapping in an error.
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
    """Check the values of the fields of `cls` that are given, as in `check_value`.

    A class whose fields are also arguments of argparse, which rejects other metadata, has `RANGES`: name of a field ->
    smallest and largest number.
    """
    hints, ranges = get_type_hints(cls), getattr(cls, "RANGES", {})
    for option in fields(cls):
        if option.name in values:
            value = values[option.name]
            check_value(option, hints[option.name], value, where)
            least, most = ranges.get(option.name, (-math.inf, math.inf))
            if value is not None and option.name in ranges and not least <= value <= most:
                upper = f" and at most {most}" if most < math.inf else ""
                raise UserError(f"{_named(option, where)}: expected at least {least}{upper}, got {value!r}.")


def check_value(option: Field[Any], hint: Any, value: Any, where: str, numbers_as_text: bool = False) -> None:
    """Check a value against its type, and against `choices` and `least` (smallest number) in the field's metadata.

    Args:
        hint: the type of the field. where: what the option is in; may be empty.
        numbers_as_text: accept text for numbers and truth values, which the parser of the command line converts.
    """
    parts, name = alternatives(hint), _named(option, where)
    if not any(_fits(value, part, numbers_as_text) for part in parts):
        # YAML reads a bare `no`, the code of Norwegian, as false.
        text = any(kind is str or _is_text(kind) for kind in parts)
        advice = "; put it in quotes" if text and isinstance(value, (bool, int, float)) else ""
        raise UserError(f"{name}: expected {_expected(parts)}, got {value!r}{advice}.")
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: expected a number, got {value}.")
    choices, least = option.metadata.get("choices"), option.metadata.get("least")
    if choices and value not in choices:
        names = [str(choice) for choice in choices]
        hint = nearest(str(value), names) + getattr(choices, "hint", "")
        raise UserError(f"{name}: {value!r} is not one of {', '.join(names)}.{hint}")
    if least is not None and value < least:
        raise UserError(f"{name}: expected at least {least}, got {value!r}.")


def _named(option: Field[Any], where: str) -> str:
    return f"{where}: {option.name}" if where else option.name


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_text(hint: Any) -> bool:
    return get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum))


def _fits(value: Any, hint: Any, numbers_as_text: bool) -> bool:
    kind = str if _is_text(hint) else get_origin(hint) or hint
    if kind not in KINDS:
        return True
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, str) and kind in (int, float, bool):
        return numbers_as_text
    if kind is list:
        items = alternatives(get_args(hint)[0]) if get_args(hint) else (Any,)
        return isinstance(value, list) and all(any(_fits(v, one, numbers_as_text) for one in items) for v in value)
    if kind is dict:
        return isinstance(value, Mapping)
    return isinstance(value, (int, float) if kind is float else kind)


def _expected(parts: tuple[Any, ...]) -> str:
    lists = {list[str]: "a list of text", list[int]: "a list of whole numbers"}
    named = [lists.get(one) or KINDS.get(get_origin(one) or one, "text") for one in parts]
    return " or ".join(dict.fromkeys(named))
