"""`kdcache datasets`: the data cards, which data is there, how to get the rest, and whether it is the published one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.options import json_option, option, subcommand
from kdcache.cli.output import facts, table, write_json, write_result

if TYPE_CHECKING:
    from kdcache.datasets.availability import Availability, SplitCheck
    from kdcache.datasets.cards import Card

_STATES = {"ships": "comes along", "found": "FOUND", "incomplete": "INCOMPLETE", "missing": "MISSING", "yours": "yours"}


@subcommand("datasets")
@click.argument("name", required=False, metavar="[NAME|CARD]")
@option("--data-root", kind=click.Path(path_type=Path), metavar="DIR", help="Where data is looked for.")
@option("--verify", is_flag=True, default=False, help="Read all of one data set and compare it with its card.")
@json_option
def command(*, name: str | None, data_root: Path | None, verify: bool, as_json: bool) -> int:
    """List the data cards, which data is there and how to get the rest; or show one of them.

    The list looks at names only. --verify reads every byte of the data set named: exit code 1 when it is not the
    published one.
    """
    from kdcache.datasets.availability import check_data, look_for
    from kdcache.datasets.cards import card_names, load_card

    if name is None:
        if verify:
            raise click.UsageError("--verify reads one data set: name it")
        looks = [(card, look_for(card, data_root)) for card in map(load_card, card_names())]
        if as_json:
            write_json([_document(card, look) for card, look in looks])
        else:
            write_result(_list(looks, data_root))
        return 0
    card = load_card(name)
    look = look_for(card, data_root)
    checks = check_data(card, data_root) if verify else None
    if as_json:
        checked = {} if checks is None else {"checks": checks}
        write_json({**_document(card, look), **checked})
    else:
        write_result(_show(card, look) + ("" if checks is None else f"\n\n{_verdict(checks)}"))
    return int(any(check.problem for check in checks or ()))


def _document(card: Card, look: Availability) -> dict[str, Any]:
    from kdcache.canonical import to_json

    return {**to_json(card), "data": to_json(look)}


def _list(looks: list[tuple[Card, Availability]], root: Path | None) -> str:
    from kdcache.datasets.cards import data_place

    shown = table(
        [
            [card.name, _STATES[look.state], str(card.num_classes or "?"), ", ".join(card.splits), card.title]
            for card, look in looks
        ],
        header=["card", "data", "K", "splits", "what it is"],
        right=[2],
    )
    wanted = [
        f"{card.name}: {'; '.join(look.problems) or 'not there'}\n  get it: {look.obtain}"
        for card, look in looks
        if look.state in ("missing", "incomplete")
    ]
    return "\n\n".join([shown, f"data root: {data_place(root).resolve()} (--data-root, KDCACHE_DATA_ROOT)", *wanted])


def _show(card: Card, look: Availability) -> str:
    pinned = f"content digest of {', '.join(card.digests)}" if card.digests else "md5 of its files" if card.md5 else ""
    state = _STATES[look.state] + (f": {'; '.join(look.problems)}" if look.problems else "")
    pairs = [
        ("card", card.name),
        ("what it is", card.title),
        ("data", state),
        ("place", str(look.place.resolve()) if look.place else ""),
        ("classes", str(card.num_classes) if card.num_classes else "as many as the data has"),
        ("example", " x ".join(map(str, card.image_shape)) or "any size"),
        ("splits", ", ".join(card.splits)),
        ("layout", card.layout),
        ("homepage", card.homepage),
        ("obtain", look.obtain),
        ("pinned", pinned or "nothing"),
        *[("archive", f"{name}, md5 {md5}") for name, md5 in card.archives.items()],
        ("licence", card.licence),
        ("citation", card.citation),
        *[(f"default {key}", str(value)) for key, value in card.defaults.items() if key != "methods"],
        ("file", str(card.file)),
    ]
    return facts([pair for pair in pairs if pair[1]])


def _verdict(checks: list[SplitCheck]) -> str:
    lines = []
    for check in checks:
        said = "as published" if check.pinned else "read; the card pins nothing to compare it with"
        lines.append((check.split, check.problem or f"{check.rows:,} rows, {said}; content digest {check.digest}"))
    return facts(lines)
