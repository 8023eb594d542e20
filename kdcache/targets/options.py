"""A method's options: names, defaults and checks, so that a wrong value is refused before the first step."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdcache.errors import ConfigError

_SETTINGS = ("temperature", "alpha", "topk")  # what every method is given beside its options


@dataclass(frozen=True, kw_only=True)
class Check:
    """What an option accepts: `parse` returns the value to use or raises ValueError; `expected` says it in words."""

    expected: str
    parse: Callable[[object], object]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a method, set with `--set NAME=VALUE` or `options={NAME: VALUE}`.

    Attributes:
        name: as typed.
        default: used when not given; None means that the method decides, as its help says.
        check: what is accepted; text such as "0.5" is accepted where a number is.
        help: one line with units.
    """

    name: str
    default: object
    check: Check
    help: str


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A finite number between two bounds, as float."""

    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        parsed = float(value)
        inside = (low < parsed if open_low else low <= parsed) and (parsed < high if open_high else parsed <= high)
        if not (math.isfinite(parsed) and inside):
            raise ValueError
        return parsed

    bound = f"{'above' if open_low else 'at least'} {low:g}"
    if math.isfinite(high):
        bound += f" and {'below' if open_high else 'at most'} {high:g}"
    return Check(expected=f"a number {bound}", parse=parse)


def choice(*names: str) -> Check:
    """One of some words."""

    def parse(value: object) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Check(expected=f"one of {', '.join(names)}", parse=parse)


def numbers(low: float) -> Check:
    """One or more numbers above a bound, given as a sequence or as text separated by commas; a tuple of float."""
    one = number(low, open_low=True)

    def parse(value: object) -> tuple[float, ...]:
        parts: Iterable[object] = value.split(",") if isinstance(value, str) else _sequence(value)
        parsed = tuple(float(str(one.parse(part))) for part in parts)
        if not parsed:
            raise ValueError
        return parsed

    return Check(expected=f"numbers above {low:g}, separated by commas", parse=parse)


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, Sequence):
        raise ValueError
    return value


def checked(subject: str, options: Sequence[Option], given: Mapping[str, object]) -> dict[str, object]:
    """Every option with its given or default value.

    Raises:
        ConfigError: an unknown name (with the nearest ones) or a value outside its range.
    """
    known = {option.name: option for option in options}
    values = {option.name: option.default for option in options}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"{subject} has no option {name!r}; {_suggest(name, list(known))}", hint=_own_setting(name)
            )
        if value is None and known[name].default is None:
            continue
        try:
            values[name] = known[name].check.parse(value)
        except ValueError:
            raise ConfigError(
                f"{subject}, option {name}: expected {known[name].check.expected}, found {value!r}",
                hint=known[name].help,
            ) from None
    return values


def _own_setting(name: str) -> str:
    near = difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=0.7)
    return f"{near[0]} is a setting of its own: --{near[0]} VALUE, or the argument {near[0]}" if near else ""


def _suggest(name: str, known: Sequence[str]) -> str:
    if not known:
        return "it has none"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"


def checked_temperature(subject: str, value: object) -> float:
    """T as float.

    Raises:
        ConfigError: not a positive finite number.
    """
    return _checked_number(subject, "temperature", number(0, open_low=True), value)


def checked_alpha(subject: str, value: object) -> float:
    """Alpha as float.

    Raises:
        ConfigError: not in [0, 1].
    """
    return _checked_number(subject, "alpha", number(0, 1), value)


def _checked_number(subject: str, name: str, check: Check, value: object) -> float:
    try:
        return float(str(check.parse(value)))
    except ValueError:
        raise ConfigError(f"{subject}: {name}: expected {check.expected}, found {value!r}") from None
