"""`kdcache datasets`: the data cards, and what one of them says."""

from __future__ import annotations

import click

from kdcache.cli.options import json_option, subcommand
from kdcache.cli.output import facts, table, write_json, write_result


@subcommand("datasets")
@click.argument("name", required=False, metavar="[NAME|CARD]")
@json_option
def command(*, name: str | None, as_json: bool) -> None:
    """List the data cards that come with kdcache, or show one: how to obtain the data, and the card's defaults."""
    from kdcache.datasets.cards import card_names, load_card

    if name is None:
        cards = [load_card(known) for known in card_names()]
        text = table(
            [[card.name, str(card.num_classes or "?"), ", ".join(card.splits), card.title] for card in cards],
            header=["card", "K", "splits", "what it is"],
            right=[1],
        )
        write_json(cards) if as_json else write_result(text)
        return
    card = load_card(name)
    pairs = [
        ("card", card.name),
        ("what it is", card.title),
        ("classes", str(card.num_classes) if card.num_classes else "as many as the data has"),
        ("example", " x ".join(map(str, card.image_shape)) or "any size"),
        ("splits", ", ".join(card.splits)),
        ("obtain", card.obtain),
        ("licence", card.licence),
        ("citation", card.citation),
        *[(f"default {key}", str(value)) for key, value in card.defaults.items() if key != "methods"],
        ("file", str(card.file)),
    ]
    write_json(card) if as_json else write_result(facts([pair for pair in pairs if pair[1]]))
