"""However it is cut and searched, `encode_topk` gives the bits of the plain formulas: shapes, types, ties, ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.targets import encode
from kdcache.targets.encode import encode_topk
from kdcache.targets.soft import LabelMix
from kdcache.targets.topk_search import LEAST_CLASSES, is_worth_searching
from tests.unit.targets.plain_encode import plain_columns

WIDE = LEAST_CLASSES + 37


def _random(rows: int, classes: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def _labels(rows: int, classes: int) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _check(logits: Tensor, *, topk: int, numbers: int = 4, mix: LabelMix | None = None) -> None:
    label = _labels(*logits.shape)
    wanted = plain_columns(logits, label, topk=topk, tail_numbers=numbers, mix=mix)
    batch = encode_topk(logits, label, topk=topk, tail_numbers=numbers, mix=mix, check=False)
    found = {**batch.columns(), "finite": batch.finite}
    assert found.keys() == wanted.keys()
    different = [
        name
        for name, column in found.items()
        if column.dtype != wanted[name].dtype or _bits(column) != _bits(wanted[name])
    ]
    assert not different


def _rounded(logits: Tensor) -> Tensor:
    """Many equal numbers in every row, also at the end of the head."""
    return (4 * logits).round() / 4


def _one_value(logits: Tensor) -> Tensor:
    return torch.full_like(logits, 2.5)


def _few_values(logits: Tensor) -> Tensor:
    return logits.sign()


def _sorted(logits: Tensor) -> Tensor:
    return logits.sort(dim=1, descending=True).values


def _crowded_blocks(logits: Tensor) -> Tensor:
    """The largest numbers all in a few columns of the same distance."""
    logits[:, :: LEAST_CLASSES // 64] += 100
    return logits


def _masked_vocabulary(logits: Tensor) -> Tensor:
    """Classes that a model forbids with a large negative number: clamped, and equal."""
    logits[:, 5::3] = -1e9
    return logits


def _mostly_forbidden(logits: Tensor) -> Tensor:
    logits[::2, 7:] = torch.finfo(logits.dtype).min
    return logits


def _ends_of_float32(logits: Tensor) -> Tensor:
    logits[1, 3], logits[1, 4] = 3e38, -3e38
    return logits


def _sure(logits: Tensor) -> Tensor:
    logits[:, 11] += 500
    return logits


def _around_zero(logits: Tensor) -> Tensor:
    """One class has all the probability: its log p is 0, or -0, or a little above."""
    logits[:, 3] += torch.linspace(10, 40, len(logits))
    return logits


def _not_numbers(logits: Tensor) -> Tensor:
    logits[0, 2], logits[1, 2], logits[2, 2] = torch.nan, torch.inf, -torch.inf
    logits[4] = -torch.inf
    return logits


SHAPED = [
    _rounded, _one_value, _few_values, _sorted, _crowded_blocks, _masked_vocabulary, _mostly_forbidden,
    _ends_of_float32, _sure, _around_zero, _not_numbers,
]  # fmt: skip


@pytest.fixture(params=["one part", "parts of two rows"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it is, once cut as finely as it is ever cut."""
    if request.param == "parts of two rows":
        monkeypatch.setattr(encode, "PART_BYTES", 1)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("shape", SHAPED)
@pytest.mark.parametrize("classes", [100, WIDE])
def test_rows_of_every_kind_keep_their_bits(shape: Callable[[Tensor], Tensor], classes: int) -> None:
    for topk in (1, 10, 64):
        _check(shape(_random(7, classes)), topk=topk)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [17, WIDE])
def test_every_type_of_logits_keeps_its_bits(kind: torch.dtype, classes: int) -> None:
    for numbers in (3, 4):
        _check(_random(5, classes).to(kind), topk=9, numbers=numbers)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    classes=st.one_of(st.integers(1, 300), st.integers(LEAST_CLASSES - 2, LEAST_CLASSES + 600)),
    share=st.floats(0, 1),
    step=st.sampled_from([0.0, 0.01, 0.5]),
    seed=st.integers(0, 1000),
    part_bytes=st.sampled_from([1, 50_000, 5 << 19]),
)
def test_every_shape_keeps_its_bits(
    rows: int, classes: int, share: float, step: float, seed: int, part_bytes: int
) -> None:
    logits = _random(rows, classes, seed)
    if step:
        logits = (logits / step).round() * step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PART_BYTES", part_bytes)
        _check(logits, topk=max(1, round(share * min(classes, 300))))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("classes", [30, WIDE])
def test_mixed_rows_keep_their_bits(classes: int) -> None:
    mix = LabelMix(partner_label=_labels(8, classes).flip(0), weight=torch.linspace(0, 1, 8))
    _check(_random(8, classes), topk=5, mix=mix)


@pytest.mark.usefixtures("parts")
def test_columns_that_are_no_run_of_memory_keep_their_bits() -> None:
    _check(_random(WIDE, 6).t(), topk=10)
    _check(_random(6, 2 * WIDE)[:, ::2], topk=10)


@pytest.mark.usefixtures("parts")
def test_threads_keep_the_bits() -> None:
    logits, label = _random(9, WIDE), _labels(9, WIDE)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append(
                {name: _bits(column) for name, column in encode_topk(logits, label, topk=10).columns().items()}
            )
    finally:
        torch.set_num_threads(threads)
    assert all(columns == found[0] for columns in found)


def test_rows_are_cut_evenly_and_never_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PART_BYTES", 1)
    for rows in range(1, 12):
        parts = encode._row_parts(_random(rows, 40))
        assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
        assert all(part.stop - part.start >= min(rows, 2) for part in parts)


def test_the_search_is_for_wide_rows_of_float32_and_few_threads() -> None:
    threads = torch.get_num_threads()
    wide = torch.empty(1, 10_000)
    try:
        torch.set_num_threads(1)
        assert is_worth_searching(wide, 64)
        assert not is_worth_searching(wide.double(), 64)
        assert not is_worth_searching(wide[:, :1000], 10)
        assert not is_worth_searching(wide, 5000)
        torch.set_num_threads(16)
        assert not is_worth_searching(wide, 64)
    finally:
        torch.set_num_threads(threads)


def test_logits_stay_as_they_were() -> None:
    logits = _random(4, WIDE)
    before = logits.clone()
    encode_topk(logits, _labels(4, WIDE), topk=10)
    assert torch.equal(logits, before)
