"""`kdcache methods`: the table of distillation methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import json_option, subcommand
from kdcache.cli.output import facts, table, write_json, write_result

if TYPE_CHECKING:
    from kdcache.targets.method import Method
    from kdcache.targets.options import Option


@subcommand("methods")
@click.argument("name", required=False)
@json_option
def command(*, name: str | None, as_json: bool) -> None:
    """List the distillation methods, or show one with its options.

    The status says how sure we are of a formula: code, algebra, standard, recalled or ours (docs/methods.md).
    """
    from kdcache.targets.methods import find_method, methods

    if name is None:
        rows = [
            [item.name, _needs(item), item.status.split(";")[0], item.summary, item.source] for item in methods.values()
        ]
        text = table(rows, header=["method", "needs", "status", "what it is", "source"])
        write_json([_document(item) for item in methods.values()]) if as_json else write_result(text)
        return
    method = find_method(name)
    pairs = [
        ("method", method.name),
        ("what it is", method.summary),
        ("equation", method.equation),
        ("source", method.source),
        ("status", method.status),
        ("needs", _needs(method) + (f" ({', '.join(method.needs)})" if method.needs else "")),
        ("below k = K", "exact" if method.exact_below_full_k else "approximate, to what the tail keeps"),
        ("mixed views", str(method.on_mixed)),
        ("--temperature", "none" if method.default_temperature is None else f"default {method.default_temperature:g}"),
        ("--alpha", "none" if method.default_alpha is None else f"default {method.default_alpha:g}"),
        *[(f"--set {item.name}=", _option_help(item)) for item in method.options],
    ]
    write_json(_document(method)) if as_json else write_result(facts(pairs))


def _needs(method: Method) -> str:
    """What a store must hold for the method, in words."""
    words = ["top k"] if "topk_index" in method.needs else []
    words += ["two views"] if "view 2" in method.needs else []
    words += ["samples"] if "sample_index" in method.needs else []
    options = {item.name for item in method.options}
    if "similarity" in options and "tail" not in options:  # kd reads R for tail=prior only
        words.append("class weights or one pass")
    return ", ".join(words) or "-"


def _option_help(option: Option) -> str:
    default = "" if option.default is None else f" (default {option.default})"
    return f"{option.help}; {option.check.expected}{default}"


def _document(method: Method) -> dict[str, Any]:
    plain = ("name", "summary", "equation", "source", "status", "needs", "default_temperature", "default_alpha")
    exact = {"exact_below_full_k": method.exact_below_full_k, "default_topk": method.default_topk}
    options = [
        {"name": item.name, "default": item.default, "expected": item.check.expected, "help": item.help}
        for item in method.options
    ]
    shown = {name: getattr(method, name) for name in plain}
    return {
        **shown,
        **exact,
        "on_mixed": str(method.on_mixed),
        "refused_on_mixed": method.on_mixed.refused,
        "options": options,
    }
