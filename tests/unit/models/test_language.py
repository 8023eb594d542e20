"""Built-in LSTM language models by name, users' causal modules, and the perplexity of real weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.models.head import find_head
from kdcache.models.language import LstmLanguageModel, carries_state, example_segment, read_segments
from kdcache.models.registry import build_model


def built(name: str, classes: int = 50) -> nn.Module:
    """A built-in model for token rows."""
    return build_model(name, num_classes=classes, input_shape=()).module


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lstm-20", 50 * 20 + 4 * 20 * (20 + 20 + 2) + 50 * 20 + 50),
        ("lstm-20x2", 50 * 20 + 2 * 4 * 20 * (20 + 20 + 2) + 50 * 20 + 50),
        ("lstm-20x2-tied", 2 * 4 * 20 * (20 + 20 + 2) + 50 * 20 + 50),
        ("lstm-20-drop20", 50 * 20 + 4 * 20 * (20 + 20 + 2) + 50 * 20 + 50),
    ],
)
def test_the_name_says_width_layers_tying_and_dropout(name: str, parameters: int) -> None:
    module = built(name)
    assert count(module) == parameters
    assert isinstance(module, LstmLanguageModel)
    assert module.drop.p == (0.2 if "drop" in name else 0)
    assert carries_state(module)
    assert (module.head.weight is module.embedding.weight) == ("tied" in name)


def test_the_head_is_found_tied_or_not() -> None:
    for name in ("lstm-20", "lstm-20x2-tied"):
        module = built(name)
        head = find_head(module, example_segment([3, 4, 5]))
        assert head is not None
        assert head.name == "head"
        assert head.weight.shape == (50, 20)


@pytest.mark.parametrize("name", ["lstm-0", "lstm-20x0", "lstm-20-drop0", "lstm", "lstm-20-drop100", "lstm-a"])
def test_names_of_another_form_are_unknown(name: str) -> None:
    with pytest.raises(ConfigError, match="is unknown"):
        built(name)


def test_language_models_and_other_models_do_not_take_each_others_data() -> None:
    for name, shape in (("lstm-20", (3, 8, 8)), ("mlp-16", ()), ("resnet8", ())):
        with pytest.raises(ConfigError, match="language models read token rows"):
            build_model(name, num_classes=5, input_shape=shape)


def test_a_segment_that_carries_on_from_nothing_is_refused() -> None:
    module = built("lstm-8")
    segment = example_segment([1, 2])
    with pytest.raises(ConfigError, match="carries on from one that this model has not read"):
        module(replace(segment, carry=torch.tensor([True])))


def test_the_remembered_state_passes_no_gradient_and_is_not_saved() -> None:
    module = built("lstm-8")
    first = replace(example_segment([1, 2]), carry=torch.tensor([False]))
    second = replace(example_segment([3]), carry=torch.tensor([True]))
    before = set(module.state_dict())
    module(first)
    module.zero_grad()
    module(second).sum().backward()
    gradient = module.embedding.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, torch.Tensor)
    assert gradient[3].abs().sum() > 0
    assert gradient[1].abs().sum() == 0  # truncated: nothing flows back into the segment before
    assert set(module.state_dict()) == before


class Causal(nn.Module):
    """A user's module: (B, L) -> (B, L, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of every token."""
        return self.table(tokens)


def test_a_users_module_is_asked_for_all_tokens_and_answers_for_the_kept_ones() -> None:
    module = Causal()
    names = set(module.state_dict())
    reading = read_segments(module)
    segment = example_segment([4, 5, 6])
    segment = replace(segment, keep=torch.tensor([[False, True, True]]))
    torch.testing.assert_close(reading(segment), module.table.weight[[5, 6]])
    assert reading(segment.tokens).shape == (1, 3, 50)  # and is still the user's own module
    assert set(reading.state_dict()) == names


def test_a_users_module_of_another_shape_is_told_what_is_expected() -> None:
    module = read_segments(nn.Sequential(nn.Embedding(50, 4), nn.Flatten()))
    with pytest.raises(ConfigError, match=r"expected \(B, L, K\) logits"):
        module(example_segment([1, 2]))


def test_dropout_is_off_in_evaluation() -> None:
    module = built("lstm-20x2-drop50").eval()
    segment = example_segment(np.arange(10).tolist())
    assert torch.equal(module(segment), module(segment))
    module.train()
    assert not torch.equal(module(segment), module(segment))
