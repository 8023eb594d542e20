"""docs/scale.md says what the cost model says."""

from __future__ import annotations

from benchmarks.scale import DOCUMENT, EXAMPLE_PRICES, document, figures_of, plans


def test_the_tables_are_those_the_command_makes() -> None:
    text = DOCUMENT.read_text()
    assert document(text, EXAMPLE_PRICES) == text, "python -m benchmarks.scale --write"


def test_a_thousand_stores_are_as_many_bytes_as_one_within_a_hundredth() -> None:
    one, many = (figures_of(plan, EXAMPLE_PRICES) for plan in plans()[-2:])
    assert 0.99 < many["bytes"] / one["bytes"] < 1.01
    assert many["ledger_bytes"] < one["ledger_bytes"] / 900


def test_image_stores_fit_a_small_machine_and_billions_of_tokens_do_not() -> None:
    found = {plan.name: figures_of(plan, EXAMPLE_PRICES) for plan in plans()}
    assert found["ImageNet-1k x 300, k=10"]["view_bytes"] < 1e8
    assert found["10^9 tokens, k=64"]["view_bytes"] > 1e11
