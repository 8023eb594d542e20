"""Canonical JSON, digests, and a strict reader of JSON into frozen dataclasses.

Stores are data from strangers: `from_json` refuses unknown keys, missing keys and wrong types with the path of the
offender, and never builds anything but the dataclasses it was asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from kdcache.errors import CorruptStoreError

T = TypeVar("T")
Json = Any  # None, bool, int, float, str, list or dict of the same


def canonical_json(value: Json) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN, UTF-8 characters kept.

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(value: Json) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return sha256_text(canonical_json(value))


def to_json(value: Any) -> Json:
    """Turn dataclasses, tuples and mappings into plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Json, *, where: str = "manifest") -> T:
    """Build a frozen dataclass from JSON, checking every key and type.

    Args:
        kind: the dataclass; its fields may be str, int, float, bool, None-unions of these, `tuple[X, ...]`,
            `Mapping[str, Any]` (any JSON) and other dataclasses.
        value: the parsed JSON object.
        where: how messages name the value.

    Raises:
        CorruptStoreError: a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(value, dict):
        raise CorruptStoreError(f"{where}: expected an object, found {type(value).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise CorruptStoreError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(sorted(fields))}")
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _parse(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CorruptStoreError(f"{where}: key {name!r} is missing")
    return kind(**arguments)


def _parse(hint: Any, value: Json, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where=where)
    if origin is tuple:
        if not isinstance(value, list):
            raise CorruptStoreError(f"{where}: expected a list, found {type(value).__name__}")
        item_hint = typing.get_args(hint)[0]
        return tuple(_parse(item_hint, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise CorruptStoreError(f"{where}: expected one of {typing.get_args(hint)}, found {value!r}")
        return value
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise CorruptStoreError(f"{where}: expected an object, found {type(value).__name__}")
        return value
    return _parse_scalar(hint, value, where)


def _parse_union(hint: Any, value: Json, where: str) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(hint)):
        return None
    return _parse(options[0], value, where)


def _parse_scalar(hint: Any, value: Json, where: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise CorruptStoreError(f"{where}: expected a finite number, found {value!r}")
        return float(value)
    if hint is Any:
        return value
    if (hint is int and isinstance(value, bool)) or not isinstance(value, hint):
        raise CorruptStoreError(f"{where}: expected {hint.__name__}, found {type(value).__name__} {value!r:.60}")
    return value
