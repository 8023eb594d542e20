"""Spot-adaptive training from the store equals training from the live teacher; its parts keep their laws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.datasets.cards import load_card, open_dataset
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader import InputReader
from kdcache.loader.order import epoch_batches
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.models.registry import build_model
from kdcache.models.weights import save_weights
from pipelines.spot_adaptive.network import SplitNetwork, adapter
from pipelines.spot_adaptive.routing import (
    Policy,
    controlled_routes,
    known_control,
    policy_loss,
    prefix_routes,
    sampled_routes,
)
from pipelines.spot_adaptive.sakd import EXACT, LIVE, SakdStep, StepFigures, check_variant
from pipelines.spot_adaptive.teachers import LiveTeacher, StoredTeacher, Teacher

SPLIT, ROWS, STEPS = "train[0:256]", 256, 3
SPOTS = (1, 2, 3, 4)
Batch = tuple[Tensor, Tensor, Tensor]


def _model(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    data = load_card("digit-pairs").preprocessing
    return build_model(name, num_classes=100, input_shape=(1, 8, 16), data=data).module


@dataclass(frozen=True)
class World:
    """A live teacher, its stores in float32 and float16, and batches of the student's inputs."""

    live: SplitNetwork
    single: TargetStore
    half: TargetStore
    batches: list[Batch]

    def teacher(self, kind: str, spots: tuple[int, ...] = (4,), *, runs_on: bool = True) -> Teacher:
        if kind == "live":
            return LiveTeacher(self.live, self.batches[0][0][:2], spots)
        return StoredTeacher(self.single if kind == "float32" else self.half, spots, runs_on=runs_on)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder: Path = tmp_path_factory.mktemp("sakd")
    teacher = _model("resnet8", 1).eval()
    save_weights(teacher, folder / "teacher.safetensors", {})
    stores = {}
    for dtype in ("float32", "float16"):
        out = str(folder / f"{dtype}.zarr")
        dump_teacher(
            DumpConfig(
                split=SPLIT,
                teacher="resnet8",
                weights=str(folder / "teacher.safetensors"),
                allow_weak_teacher=True,
                features="layer1,layer2,layer3,penultimate",
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
    return World(SplitNetwork(teacher, batches[0][0][:2]), stores["float32"], stores["float16"], batches)


def _trained(
    world: World, method: str, teacher: Teacher, *, student: str = "resnet8x0.5", **changes: object
) -> tuple[dict[str, Tensor], list[StepFigures]]:
    """Everything a few steps leave behind: weights, policy, adapters, momenta; and the steps' figures."""
    module = _model(student, 2).train()
    split = SplitNetwork(module, world.batches[0][0][:2])
    settings = {"num_rows": ROWS, "negatives": 64, **changes}
    step = SakdStep(split, teacher, method, example=world.batches[0][0][:2], **settings)  # type: ignore[arg-type]
    figures = [
        step.step(inputs, labels, rows, 0, number=number, lr=0.01)
        for number, (inputs, labels, rows) in enumerate(world.batches)
    ]
    return {**module.state_dict(), **step.tensors()}, figures


def _spots(method: str) -> tuple[int, ...]:
    return {"sp": (3,), "ft": (3,), "fitnet": (2,)}.get(method, (4,) if method in EXACT else (1, 2, 3))


@pytest.mark.parametrize("method", EXACT)
def test_cached_training_equals_live_bit_for_bit_in_float32_and_within_rounding_in_float16(
    world: World, method: str
) -> None:
    live, figures = _trained(world, method, world.teacher("live", _spots(method)))
    cached, same = _trained(world, method, world.teacher("float32", _spots(method)))
    assert figures == same
    assert cached.keys() == live.keys()
    assert all(torch.equal(live[name], cached[name]) for name in live)
    _, rounded = _trained(world, method, world.teacher("float16", _spots(method)))
    assert rounded != same
    for ours, theirs in zip(rounded, figures, strict=True):
        assert ours.student_loss == pytest.approx(theirs.student_loss, rel=0.02)


@pytest.mark.parametrize("method", LIVE)
def test_prefix_training_is_the_same_from_the_store_and_live_and_is_not_the_published_one(
    world: World, method: str
) -> None:
    live, figures = _trained(world, method, world.teacher("live", _spots(method)), variant="sakd-prefix")
    stored = world.teacher("float32", _spots(method), runs_on=False)
    cached, same = _trained(world, method, stored, variant="sakd-prefix")
    assert figures == same
    assert all(torch.equal(live[name], cached[name]) for name in live)
    published, other = _trained(world, method, world.teacher("live", _spots(method)), variant="sakd-live")
    assert any("to_teacher" in name for name in published)
    assert not any("to_teacher" in name for name in live)
    assert other != figures
    for step in figures:  # a row that left the teacher is distilled nowhere after
        assert list(step.shares) == sorted(step.shares, reverse=True)


@pytest.mark.parametrize("method", LIVE)
def test_routes_that_need_the_live_teacher_are_refused_without_it(world: World, method: str) -> None:
    with pytest.raises(ConfigError, match="no store holds") as refused:
        check_variant(method, "sakd")
    assert "--live-teacher" in refused.value.hint
    stored = world.teacher("float32", _spots(method), runs_on=False)
    with pytest.raises(ConfigError, match="no store holds"):
        _trained(world, method, stored, variant="sakd-live")
    with pytest.raises(ConfigError, match="unknown"):
        check_variant("attention", "sakd")
    with pytest.raises(ConfigError, match="exact from a store"):
        check_variant("rkd", "sakd-live")


def test_routes_from_a_last_map_that_is_not_simply_pooled_are_refused(tmp_path: Path) -> None:
    dump_teacher(
        DumpConfig(
            split="train[0:64]",
            teacher="wrn-16-1",  # batch norm and ReLU lie between its last map and the pooling
            init_seed=0,
            allow_weak_teacher=True,
            features="layer3,penultimate",
            out=str(tmp_path / "wrn.zarr"),
        )
    )
    store = open_store(tmp_path / "wrn.zarr")
    with pytest.raises(IncompatibleError, match="not the mean of layer3"):
        StoredTeacher(store, (3,))
    StoredTeacher(store, (4,))
    with pytest.raises(IncompatibleError, match="no feature 'layer1'"):
        StoredTeacher(store, (1,))


def test_controls_decide_what_is_distilled_and_only_two_of_them_train_a_policy(world: World) -> None:
    cached = world.teacher("float32")
    left, always = _trained(world, "pkt", cached, control="always")
    assert {step.shares for step in always} == {(1.0, 1.0)}
    assert not any("policy" in name for name in left)
    _, adaptive = _trained(world, "pkt", cached)
    _, inverted = _trained(world, "pkt", cached, control="inverted")
    assert adaptive[0].shares[0] == pytest.approx(1 - inverted[0].shares[0])
    assert 0.2 < adaptive[0].shares[1] < 0.8
    _, equal = _trained(world, "pkt", cached, same_architecture=True)
    assert equal[0].shares[0] > adaptive[0].shares[0]
    _, wide = _trained(world, "pkt", cached, student="resnet8")  # the teacher's widths: the authors' "homo"
    assert wide[0].shares[0] > 0.9
    _, coin = _trained(world, "pkt", cached, control="random")
    assert 0.3 < sum(step.shares[0] for step in coin) / STEPS < 0.7
    assert known_control("random") == "random"
    with pytest.raises(ConfigError, match="unknown"):
        known_control("sometimes")


def test_kd_is_always_without_a_spot_and_ce_reads_no_teacher(world: World) -> None:
    cached = world.teacher("float32")
    _, plain = _trained(world, "kd", cached)
    _, spot = _trained(world, "pkt", cached, control="always")
    assert plain[0].shares == (1.0,)
    assert 0 < plain[0].student_loss < spot[0].student_loss
    _, labels = _trained(world, "ce", cached)
    assert labels[0].shares == ()
    assert labels[0].student_loss < plain[0].student_loss


def test_a_step_depends_on_the_state_before_it_and_its_number_alone(world: World) -> None:
    cached, split = world.teacher("float32"), []
    for _ in range(2):
        module = _model("resnet8x0.5", 2).train()
        network = SplitNetwork(module, world.batches[0][0][:2])
        split.append(SakdStep(network, cached, "crd", example=world.batches[0][0][:2], num_rows=ROWS, negatives=64))
    straight, resumed = split
    for number, (inputs, labels, rows) in enumerate(world.batches[:2]):
        straight.step(inputs, labels, rows, 0, number=number, lr=0.01)
    resumed.load({name: value.clone() for name, value in straight.tensors().items()})
    resumed.student.module.load_state_dict(straight.student.module.state_dict())
    inputs, labels, rows = world.batches[2]
    figures = [step.step(inputs, labels, rows, 0, number=2, lr=0.01) for step in (straight, resumed)]
    assert figures[0] == figures[1]
    assert all(torch.equal(value, resumed.tensors()[name]) for name, value in straight.tensors().items())


def test_only_the_student_learns_from_its_loss_and_only_policy_and_adapters_from_theirs(world: World) -> None:
    teacher = world.teacher("live", (1, 2, 3))
    before = {name: value.clone() for name, value in world.live.module.state_dict().items()}
    _trained(world, "at", teacher, variant="sakd-live")
    assert all(torch.equal(value, before[name]) for name, value in world.live.module.state_dict().items())
    student = _model("resnet8x0.5", 2).train()
    step = SakdStep(
        SplitNetwork(student, world.batches[0][0][:2]),
        teacher,
        "at",
        example=world.batches[0][0][:2],
        num_rows=ROWS,
        variant="sakd-live",
    )
    inputs, labels, rows = world.batches[0]
    start = {name: value.clone() for name, value in step.parts.state_dict().items()}
    step.step(inputs, labels, rows, 0, number=0, lr=0.1)
    moved = {
        name.split(".")[0] for name, value in step.parts.state_dict().items() if not torch.equal(value, start[name])
    }
    assert moved == {"policy", *(f"to_{side}{spot}" for side in ("student", "teacher") for spot in (1, 2, 3))}


def test_prefix_routes_never_return_and_carry_the_products_gradient() -> None:
    routes = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], requires_grad=True)
    prefix = prefix_routes(routes)
    assert prefix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    prefix[:, -1].sum().backward()
    assert routes.grad is not None
    assert routes.grad[1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("source", "target"), [((4,), (6,)), ((3, 8, 8), (5, 8, 8)), ((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8))]
)
def test_adapters_map_values_to_the_other_networks_size(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    assert adapter(source, target)(torch.randn(2, *source)).shape == (2, *target)
    with pytest.raises(ConfigError, match="no adapter"):
        adapter((3, 9, 9), (5, 4, 4))


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
