"""Spot-adaptive training from the store equals training from the live teacher; its parts keep their laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.datasets.cards import load_card, open_dataset
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import ConfigError
from kdcache.loader import InputReader
from kdcache.loader.order import epoch_batches
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.models.registry import build_model
from kdcache.models.weights import save_weights
from pipelines.spot_adaptive.routing import Policy, controlled_routes, policy_loss, sampled_routes
from pipelines.spot_adaptive.sakd import EXACT, SakdStep, SplitModel, StepFigures

SPLIT, ROWS, STEPS = "train[0:256]", 256, 3
Batch = tuple[Tensor, Tensor, Tensor]


def _model(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    data = load_card("digit-pairs").preprocessing
    return build_model(name, num_classes=100, input_shape=(1, 8, 16), data=data).module


@dataclass(frozen=True)
class World:
    """A live teacher, its stores in float32 and float16, and batches of the student's inputs."""

    teacher: SplitModel
    single: TargetStore
    half: TargetStore
    batches: list[Batch]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder: Path = tmp_path_factory.mktemp("sakd")
    teacher = _model("resnet8x4", 1).eval()
    save_weights(teacher, folder / "teacher.safetensors", {})
    stores = {}
    for dtype in ("float32", "float16"):
        out = str(folder / f"{dtype}.zarr")
        dump_teacher(
            DumpConfig(
                split=SPLIT,
                teacher="resnet8x4",
                weights=str(folder / "teacher.safetensors"),
                allow_weak_teacher=True,
                features="penultimate",
                feature_dtype=dtype,  # type: ignore[arg-type]
                batch_size=32,
                out=out,
            )
        )
        stores[dtype] = open_store(out)
    source = open_dataset("digit-pairs", split=SPLIT)
    data = load_card("digit-pairs").preprocessing
    reader = InputReader(
        source, build_model("resnet8", num_classes=100, input_shape=(1, 8, 16), data=data).preprocessing
    )
    order = epoch_batches(ROWS, 32, seed=0, epoch=0)[:STEPS]
    batches = [
        (inputs, torch.from_numpy(source.labels[rows]), torch.from_numpy(rows))
        for inputs, rows in reader.batches(iter(order), view=0)
    ]
    return World(SplitModel(teacher, batches[0][0][:2]), stores["float32"], stores["float16"], batches)


def _trained(
    world: World, distiller: str, features: Callable[[Batch], Tensor], **changes: object
) -> tuple[dict[str, Tensor], list[StepFigures]]:
    student = _model("resnet8", 2).train()
    weight, bias = world.single.class_weight, torch.from_numpy(world.single._reader.static("class_bias").copy())
    assert weight is not None
    split = SplitModel(student, world.batches[0][0][:2])
    settings = {"lr": 0.01, "num_rows": ROWS, "negatives": 64, **changes}
    step = SakdStep(split, (weight, bias), distiller, **settings)  # type: ignore[arg-type]
    figures = [step.step(batch[0], batch[1], batch[2], features(batch)) for batch in world.batches]
    return {**student.state_dict(), **step.policy.state_dict(), **step.to_teacher.state_dict()}, figures


def _live(world: World) -> Callable[[Batch], Tensor]:
    def features(batch: Batch) -> Tensor:
        with torch.no_grad():
            return world.teacher(batch[0])[0]

    return features


@pytest.mark.parametrize("distiller", EXACT)
def test_cached_training_equals_live_bit_for_bit_in_float32_and_within_rounding_in_float16(
    world: World, distiller: str
) -> None:
    live, figures = _trained(world, distiller, _live(world))
    cached, same = _trained(world, distiller, lambda batch: world.single.features("penultimate", batch[2]))
    assert figures == same
    assert all(torch.equal(live[name], cached[name]) for name in live)
    _, rounded = _trained(world, distiller, lambda batch: world.half.features("penultimate", batch[2]))
    assert rounded != same
    for ours, theirs in zip(rounded, figures, strict=True):
        assert ours.student_loss == pytest.approx(theirs.student_loss, rel=0.02)


def test_controls_decide_what_is_distilled_and_the_policy_learns_in_all_of_them(world: World) -> None:
    cached = _live(world)
    _, always = _trained(world, "pkt", cached, control="always")
    assert {(step.spot_share, step.output_share) for step in always} == {(1.0, 1.0)}
    _, adaptive = _trained(world, "pkt", cached)
    _, inverted = _trained(world, "pkt", cached, control="inverted")
    assert adaptive[0].spot_share == pytest.approx(1 - inverted[0].spot_share)
    assert 0.2 < adaptive[0].output_share < 0.8
    _, equal = _trained(world, "pkt", cached, same_architecture=True)
    assert equal[0].spot_share > adaptive[0].spot_share
    _, coin = _trained(world, "pkt", cached, control="random")
    assert 0.3 < sum(step.spot_share for step in coin) / STEPS < 0.7
    with pytest.raises(ConfigError, match="not exact"):
        _trained(world, "at", cached)


def test_routes_are_zero_or_one_fair_without_preference_and_carry_the_soft_gradient() -> None:
    logits = torch.zeros(4000, 2, 2, requires_grad=True)
    routes = sampled_routes(logits, torch.Generator().manual_seed(0))
    assert torch.equal(routes.detach().round(), (routes.detach() > 0.5).float())
    torch.testing.assert_close(routes.detach().round(), routes.detach(), atol=1e-6, rtol=0)
    assert float(routes.detach().mean()) == pytest.approx(0.5, abs=0.03)
    routes.sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad[..., 0] > 0).all())
    torch.testing.assert_close(logits.grad[..., 0], -logits.grad[..., 1])
    strong = torch.tensor([2.0, 0.0]).expand(20_000, 1, 2)  # P(0 wins) is the softmax, whatever tau is
    share = float(sampled_routes(strong, torch.Generator().manual_seed(1)).mean())
    assert share == pytest.approx(float(torch.tensor(2.0).sigmoid()), abs=0.01)
    fair = torch.Generator().manual_seed(2)
    assert torch.equal(controlled_routes(routes.detach(), "inverted", fair), 1 - routes.detach())


def test_policy_loss_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    own, routes = functional.cross_entropy(logits, labels), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    worse = policy_loss(logits, labels, own / 2, routes, gamma=2)
    better = policy_loss(logits, labels, own * 2, routes, gamma=2)
    assert float(worse) == pytest.approx(2 * float(own) + 1)
    assert float(better) == pytest.approx(float(own) / 2 + 1)
    assert float(policy_loss(logits, labels, own * 2, routes + 1, gamma=1)) == pytest.approx(float(own))


def test_equal_architectures_start_by_distilling_everywhere() -> None:
    policy = Policy(3, 3, 2, same_architecture=True)
    logits = policy(torch.zeros(1, 3), torch.zeros(1, 3))
    assert bool((logits[..., 0] - logits[..., 1] > 8).all())
