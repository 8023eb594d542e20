from __future__ import annotations

import pytest

from kdcache.nearest import did_you_mean, nearest_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet8X4", "resnet8x4"), ("wrn_16_2", "wrn-16-2"), ("kdtopk", "kd-topk"), ("kd-tpok", "kd-topk")],
)
def test_case_separators_and_slips_are_forgiven(name: str, expected: str) -> None:
    assert nearest_names(name, ["resnet8x4", "resnet32x4", "wrn-16-2", "kd-topk", "ce"])[0] == expected


def test_nothing_similar_lists_what_there_is() -> None:
    assert did_you_mean("zzzz", ["b", "a"]) == "known names: a, b"
    assert did_you_mean("zzzz", [f"name{i}" for i in range(20)], listing="see the docs") == "see the docs"
    assert did_you_mean("lr", ["lr_rate", "seed"], listing="") == "did you mean 'lr_rate'?"
