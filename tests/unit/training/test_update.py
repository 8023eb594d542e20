"""From loss to weights: what clipping bounds, what the average is, and that a loss scale changes nothing but range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcache.devices import autocast, gradient_scaler
from kdcache.errors import ConfigError
from kdcache.training.config import TrainingConfig
from kdcache.training.processes import Processes
from kdcache.training.update import Update

CPU = Processes(device=torch.device("cpu"))
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def _config(**changes: object) -> TrainingConfig:
    return TrainingConfig(**{**PLAIN, **changes})  # type: ignore[arg-type]


def _loss(net: nn.Module, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 5, generator=generator)
    labels = torch.randint(3, (16,), generator=generator)
    return nn.functional.cross_entropy(net(inputs) * 20, labels)


def _weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()]).clone()


def _step(clip: float, lr: float = 1.0) -> Tensor:
    """How the weights move in one plain step."""
    net = _net()
    before, update = _weights(net), Update(net, None, _config(clip_grad=clip), CPU)
    update.backward(_loss(net))
    update.apply(lr, 0)
    return _weights(net) - before


def test_clipping_bounds_the_norm_and_keeps_the_direction() -> None:
    free = _step(0.0)
    norm = float(free.norm())
    assert norm > 1
    for limit in (0.5 * norm, 0.01 * norm):
        clipped = _step(limit)
        assert float(clipped.norm()) == pytest.approx(limit, rel=1e-4)
        torch.testing.assert_close(clipped / clipped.norm(), free / norm)
    assert torch.equal(_step(2 * norm), free)


def test_average_follows_its_recurrence() -> None:
    net, decay = _net(), 0.7
    update = Update(net, None, _config(lr=0.1, ema=decay), CPU)
    assert update.average is not None
    expected = _weights(net).double()
    for step in range(12):
        update.backward(_loss(net, step))
        update.apply(0.1, step)
        share = min(decay, 1 - 1 / (step + 1))  # 0, 1/2, 2/3, then 0.7 for good
        expected = share * expected + (1 - share) * _weights(net).double()
    torch.testing.assert_close(_weights(update.average.module).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_loss_scale_changes_no_bit_of_a_float32_step(clip: float) -> None:
    found = []
    for amp in ("none", "fp16"):  # the forward pass is float32 in both: only the scale differs, a power of two
        net = _net()
        update = Update(net, None, _config(amp=amp, clip_grad=clip), CPU)
        for step in range(3):
            update.backward(_loss(net, step) / 2)
            update.backward(_loss(net, step + 10) / 2)
            update.apply(0.1, step)
        found.append(_weights(net))
    assert torch.equal(found[0], found[1])


def test_gradients_below_fp16_survive_with_the_scale() -> None:
    moved = []
    for scaled in (True, False):
        net = _net()
        before = _weights(net)
        config = _config(amp="fp16" if scaled else "none", lr=1e7)
        update = Update(net, None, config, CPU)
        with autocast("fp16", CPU.device):
            loss = net(torch.ones(4, 5)).float().sum() * 1e-9  # the gradient of an activation rounds to 0 in fp16
        update.backward(loss)
        update.apply(config.lr, 0)
        moved.append(float((_weights(net) - before).norm()))
    assert moved[1] == 0
    assert moved[0] > 1e-2


def test_a_step_that_overflows_is_left_out_and_halves_the_scale() -> None:
    net = _net()
    update = Update(net, None, _config(amp="fp16", momentum=0.9), CPU)
    before, scale = _weights(net), update.loss_scale
    assert scale is not None
    update.backward(net(torch.ones(1, 5)).sum() * 1e36)  # times the scale is more than float32 holds
    update.apply(0.1, 0)
    assert torch.equal(_weights(net), before)
    assert update.loss_scale == scale / 2
    update.backward(_loss(net))
    update.apply(0.1, 1)
    assert not torch.equal(_weights(net), before)
    assert bool(torch.isfinite(_weights(net)).all())


def test_the_scale_is_part_of_what_a_checkpoint_holds() -> None:
    net = _net()
    update = Update(net, None, _config(amp="fp16"), CPU)
    update.backward(net(torch.ones(1, 5)).sum() * 1e36)
    update.apply(0.1, 0)
    tensors, numbers = update.pack()
    again = Update(_net(), None, _config(amp="fp16"), CPU)
    assert again.loss_scale != update.loss_scale
    again.unpack(tensors, numbers)
    assert again.loss_scale == update.loss_scale


def test_devices_without_a_scaler_refuse_fp16() -> None:
    assert gradient_scaler("bf16", torch.device("meta")) is None
    with pytest.raises(ConfigError, match="fp16"):
        gradient_scaler("fp16", torch.device("meta"))
