"""Dataclasses from what JSON says of them, checked against their own annotations.

Guarantees: what comes out has the types that it declares, all the way down; what does not fit is a ValueError that says
what is wrong and where, as a path: ``rows[3].entries[0].peer``. null where a float is wanted is NaN.
Knows: dataclasses, ``tuple``, ``list``, ``dict`` with text as keys, ``X | None``, str, int, float, bool, Any.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

PLAIN: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def decode(wanted: Any, data: Any, where: str) -> Any:
    """Return ``data`` as a ``wanted``; ``where`` is its path, empty for the whole."""
    if wanted is Any:
        return data
    if dataclasses.is_dataclass(wanted):
        return _record(wanted, data, where)
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (kind for kind in inner if kind is not types.NoneType)
        return None if data is None else decode(kind, data, where)
    if origin is dict:
        _need(isinstance(data, dict), where, "an object", data)
        return {key: decode(inner[1], value, f"{where}[{key!r}]") for key, value in data.items()}
    if origin in (list, tuple):
        _need(isinstance(data, (list, tuple)), where, "a list", data)
        kinds = [inner[0]] * len(data) if origin is list or inner[-1] is Ellipsis else list(inner)
        _need(len(kinds) == len(data), where, f"a list of {len(kinds)}", data)
        return origin(
            decode(kind, value, f"{where}[{k}]") for k, (kind, value) in enumerate(zip(kinds, data, strict=True))
        )
    return _plain(wanted, data, where)


def _plain(wanted: type, data: Any, where: str) -> Any:
    if wanted is float:
        if data is None:
            return math.nan
        _need(isinstance(data, (int, float)) and not isinstance(data, bool), where, PLAIN[float], data)
        try:
            return float(data)
        except OverflowError:
            raise ValueError(f"{where} is too large a number") from None
    _need(isinstance(data, wanted) and (wanted is bool or not isinstance(data, bool)), where, PLAIN[wanted], data)
    return data


def _record(wanted: Any, data: Any, where: str) -> Any:
    _need(isinstance(data, dict), where, "an object", data)
    kinds = typing.get_type_hints(wanted)
    fields = {field.name: field for field in dataclasses.fields(wanted)}
    inside = f"{where}." if where else ""
    for name in data:
        if name not in fields:
            raise ValueError(f"{inside}{name} is nothing that is known here")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in data and not optional:
            raise ValueError(f"{inside}{name} is missing")
    return wanted(**{name: decode(kinds[name], value, f"{inside}{name}") for name, value in data.items()})


def _need(held: bool, where: str, what: str, data: Any) -> None:
    if not held:
        said = "null" if data is None else type(data).__name__
        raise ValueError(f"{where or 'the whole'} must be {what}, not {said}")
