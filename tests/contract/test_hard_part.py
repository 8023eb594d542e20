"""Label smoothing of the hard part means the same in every method: torch's own, on the hard part alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from kdcache.targets.methods import find_method, methods
from tests.contract.method_cases import CLASSES, batch, columns

ALONE = {"ce", "ls"}  # nothing but a hard part; ls is the smoothing itself
EPS = 0.3


def test_every_method_with_a_teacher_takes_it() -> None:
    assert {name for name in methods if "hard_smoothing" not in {o.name for o in methods[name].options}} == ALONE


@pytest.mark.parametrize("name", sorted(set(methods) - ALONE))
def test_it_changes_the_hard_part_as_torch_does_and_nothing_else(name: str) -> None:
    method, data = find_method(name), batch()
    context = method.prepare(columns(data))
    second = (data.student.flip(0), data.targets().select(torch.arange(len(data.label)).flip(0)))
    more = {"second": second} if "view 2" in method.needs else {}

    def loss(eps: float) -> torch.Tensor:
        options = {"hard_smoothing": eps}
        return method(data.student, data.targets(CLASSES), data.label, options=options, context=context, **more)  # type: ignore[arg-type]

    def hard(eps: float) -> torch.Tensor:
        found = functional.cross_entropy(data.student, data.label, reduction="none", label_smoothing=eps)
        if more:  # the mean over the views given
            other = functional.cross_entropy(second[0], data.label, reduction="none", label_smoothing=eps)
            found = (found + other) / 2
        return found if method.per_row else found.mean()

    weight = method.checked_options({}).get("hard_weight", 1 - method.checked_alpha(None))
    assert isinstance(weight, float)
    torch.testing.assert_close(loss(EPS) - loss(0.0), weight * (hard(EPS) - hard(0.0)), atol=1e-10, rtol=1e-8)
    assert not torch.equal(loss(EPS), loss(0.0))
