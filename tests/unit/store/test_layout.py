"""Sizes and names of format 1 as functions of the manifest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import ConfigError
from kdcache.store.blocks import all_blocks, block_rows_for
from kdcache.store.layout import block_arrays, class_dtype, layout_of
from tests.store_cases import manifest_of


@given(st.integers(min_value=1, max_value=10**9))
def test_block_rows_are_a_power_of_two_with_sixteen_blocks_where_possible(rows: int) -> None:
    size = block_rows_for(rows)
    assert 256 <= size <= 65_536
    assert size & (size - 1) == 0
    assert -(-rows // size) >= 16 or size == 256
    assert size == 65_536 or -(-rows // (2 * size)) < 16


@given(st.integers(min_value=1, max_value=5000), st.integers(min_value=1, max_value=4))
def test_blocks_tile_every_view_once(rows: int, views: int) -> None:
    blocks = list(all_blocks(manifest_of(rows=rows, views=views)))
    cells = [(block.view, row) for block in blocks for row in range(block.start, block.stop)]
    assert cells == [(view, row) for view in range(views) for row in range(rows)]


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, "uint8"), (255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")]
)
def test_the_fill_value_is_never_a_class(classes: int, dtype: str) -> None:
    assert class_dtype(classes).name == dtype
    array = layout_of(manifest_of(classes=classes, topk=2))["topk_index"]
    assert isinstance(array.fill_value, int)
    assert array.fill_value >= classes


def test_view_zero_covers_the_arrays_without_a_view_axis() -> None:
    layout = layout_of(manifest_of(views=2))
    assert {array.name for array in block_arrays(layout, 0)} - {array.name for array in block_arrays(layout, 1)} == {
        "label",
        "row_digest",
    }


def test_adding_views_changes_no_chunk_and_no_block_digest() -> None:
    one, many = layout_of(manifest_of(views=1)), layout_of(manifest_of(views=9))
    for name, array in one.items():
        if name != "commit":
            assert array.chunk_shape == many[name].chunk_shape
            assert array.codecs() == many[name].codecs()


@pytest.mark.parametrize("field", ["nonsense", "features/../x", "features/", "commit", "label"])
def test_unknown_fields_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match="not part of format 1"):
        layout_of(manifest_of(fields=(field,), shapes={field: [3]}))


def test_optional_fields_have_their_places() -> None:
    shapes = {"features/penult": [64], "sample_index": [7], "sequence_offsets": [11]}
    fields = ("features/penult", "mask", "partner_label_log_prob", "sample_index", "sequence_offsets")
    layout = layout_of(manifest_of(rows=1000, views=2, fields=fields, shapes=shapes))
    assert layout["features/penult"].shape == (2, 1000, 64)
    assert layout["sample_index"].shape == (2, 1000, 7)
    assert layout["mask"].shape == (1000,)
    assert layout["sequence_offsets"].dtype.name == "int64"
