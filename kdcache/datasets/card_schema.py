"""The keys a data card may have and the types of their values: strict, with the nearest name for a misspelt key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcache.errors import ConfigError
from kdcache.nearest import did_you_mean

REQUIRED = ("name", "title", "source", "splits", "licence", "obtain")
_TEXT = ("name", "title", "source", "licence", "obtain", "interpolation", "path", "citation", "homepage", "layout")
_COUNTS = ("num_classes", "resize", "crop")
_NUMBERS = ("mean", "std")
_TEXT_TABLES = ("splits", "digests", "md5", "archives")

_DEFAULT_TEXT = ("teacher", "weights", "student", "eval_split", "augment", "optimizer", "schedule", "amp")
_DEFAULT_COUNTS = ("epochs", "batch_size", "accumulate", "eval_every", "segment", "context")
_DEFAULT_NUMBERS = ("lr", "momentum", "weight_decay", "warmup_epochs", "clip_grad", "ema", "temperature", "alpha")
_METHOD_KEYS = {*_DEFAULT_TEXT[3:], *_DEFAULT_COUNTS, *_DEFAULT_NUMBERS, "options"}


def checked_table(content: Mapping[str, Any], known: set[str], *, subject: str) -> dict[str, Any]:
    """A card's top level with lists turned into tuples.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type.
    """
    _check_keys(content, known, subject)
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise ConfigError(f"{subject}: key {missing[0]!r} is missing")
    for key, value in content.items():
        where = f"{subject}: {key}"
        if key in _TEXT:
            _check(isinstance(value, str), where, "text", value)
        elif key in _COUNTS:
            _check(_is_count(value), where, "a whole number of at least 0", value)
        elif key in _NUMBERS:
            _check(isinstance(value, list) and all(map(_is_number, value)), where, "a list of numbers", value)
        elif key == "image_shape":
            _check(isinstance(value, list) and all(map(_is_count, value)), where, "a list of whole numbers", value)
        elif key in _TEXT_TABLES:
            good = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
            _check(good, where, "a table of texts", value)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def check_defaults(content: Any, *, subject: str) -> dict[str, Any]:
    """A card's `[defaults]`, checked, `methods` included.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    _check(isinstance(content, dict), subject, "a table", content)
    _check_keys(content, {*_DEFAULT_TEXT, *_DEFAULT_COUNTS, *_DEFAULT_NUMBERS, "methods"}, subject)
    _check_settings({key: value for key, value in content.items() if key != "methods"}, subject)
    methods = content.get("methods", {})
    _check(isinstance(methods, dict), f"{subject}: methods", "a table of methods", methods)
    for method, settings in methods.items():
        where = f"{subject}: methods.{method}"
        _check(isinstance(settings, dict), where, "a table", settings)
        _check_keys(settings, _METHOD_KEYS, where)
        _check_settings({key: value for key, value in settings.items() if key != "options"}, where)
        _check(isinstance(settings.get("options", {}), dict), f"{where}.options", "a table", settings.get("options"))
    return dict(content)


def _check_settings(settings: Mapping[str, Any], subject: str) -> None:
    for key, value in settings.items():
        where = f"{subject}: {key}"
        if key in _DEFAULT_TEXT:
            _check(isinstance(value, str), where, "text", value)
        elif key in _DEFAULT_COUNTS:
            _check(_is_count(value) and value > 0, where, "a whole number of at least 1", value)
        else:
            _check(_is_number(value) and value >= 0, where, "a number of at least 0", value)


def _check_keys(content: Mapping[str, Any], known: set[str], subject: str) -> None:
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ConfigError(f"{subject}: unknown key {unknown[0]!r}", hint=did_you_mean(unknown[0], known))


def _check(good: bool, where: str, expected: str, found: Any) -> None:
    if not good:
        raise ConfigError(f"{where}: expected {expected}, found {found!r:.60}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
