"""The loop: what a step computes, what a resumed run equals, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError, NumericError
from kdcache.loader import InputReader
from kdcache.metrics import Evaluation
from kdcache.models.preprocess import Preprocessing
from kdcache.models.weights import load_weights
from kdcache.specs import PreprocessingSpec
from kdcache.targets.methods import methods
from kdcache.training.batch import TrainingFeed
from kdcache.training.config import TrainingConfig
from kdcache.training.loop import TrainingResult, train
from kdcache.training.objective import Objective
from kdcache.training.processes import Processes
from kdcache.training.runs import RunFolder
from kdcache.training.setup import evaluation_on
from kdcache.views.policy import ViewPolicy
from tests.small_store import small_source

CPU = Processes(device=torch.device("cpu"))
SOURCE, TEST = small_source(90), small_source(60, split="test")
PLAIN = Preprocessing(PreprocessingSpec())


class Net(nn.Module):
    """Small, with running statistics and dropout, the two things a resume forgets most easily."""

    poison = torch.nan

    def __init__(self, poison_after: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 7)
        )
        self.calls, self.poison_after = 0, poison_after

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        if self.training:
            self.calls += 1
            if self.poison_after is not None and self.calls > self.poison_after:
                logits = logits * torch.where(torch.arange(len(logits)) == 1, self.poison, 1.0)[:, None]
        return logits


def _net(poison_after: int | None = None) -> Net:
    torch.manual_seed(0)
    return Net(poison_after)


def _train(
    path: Path, config: TrainingConfig, model: nn.Module, *, resume: bool = False, folder: RunFolder | None = None
) -> TrainingResult:
    folder = folder or RunFolder(path)
    folder.start({"any": 1}, resume=resume)
    feed = TrainingFeed(
        InputReader(SOURCE, PLAIN, ViewPolicy.from_preset("cifar", seed=1)),
        torch.tensor(SOURCE.labels),
        batch_size=config.batch_size,
        seed=config.seed,
        view_of_epoch=lambda epoch: epoch,
    )
    evaluate = evaluation_on(TEST, PLAIN, CPU)
    return train(model, feed, Objective(method=methods["ce"]), evaluate, config, folder, CPU, resume=resume)


def _same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def _config(**changes: object) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 4, "batch_size": 32, "lr": 0.05, **changes})  # type: ignore[arg-type]


class KilledError(Exception):
    """Stands for the end of the process."""


RESUMED: dict[str, dict[str, object]] = {
    "plain": {},
    "adamw, average, clipping": {"optimizer": "adamw", "lr": 0.01, "ema": 0.9, "clip_grad": 1.0},
    "pieces and warm-up": {"accumulate": 3, "warmup_epochs": 2.5, "ema": 0.99},
    "fp16 with its scale": {"amp": "fp16", "clip_grad": 0.5},
    "early stop, rare evaluation": {"epochs": 40, "early_stop": 3, "eval_every": 2, "lr": 0.2},
    "channels last, steps": {"channels_last": True, "schedule": "step"},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("where", ["steps", "weights"])
def test_a_resumed_run_ends_with_the_bits_of_a_straight_one(
    tmp_path: Path, changes: dict[str, object], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(**changes)
    straight = _net()
    expected = _train(tmp_path / "straight", config, straight)

    broken, name = _net(), "train_epoch" if where == "steps" else "finish_epoch"
    with monkeypatch.context() as patch:
        original = getattr(__import__("kdcache.training.loop", fromlist=["_Run"])._Run, name)

        def killed(run: object, epoch: int, *rest: object) -> object:
            result = original(run, epoch, *rest) if epoch < 2 or where == "steps" else None
            if epoch == 2:
                raise KilledError
            return result

        patch.setattr(f"kdcache.training.loop._Run.{name}", killed)
        with pytest.raises(KilledError):
            _train(tmp_path / "run", config, broken)
    torch.rand(17)  # whatever else the new process drew before it resumed
    resumed = Net()
    found = _train(tmp_path / "run", config, resumed, resume=True)
    assert _same(straight, resumed)
    assert (found.last, found.best, found.best_epoch) == (expected.last, expected.best, expected.best_epoch)
    assert found.epochs == expected.epochs < 40
    for file in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    logged = [{**line, "seconds": 0} for line in _metrics(tmp_path / "run")]
    assert logged == [{**line, "seconds": 0} for line in _metrics(tmp_path / "straight")]
    assert [line["epoch"] for line in logged] == list(range(1, expected.epochs + 1))


def _metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_what_it_promises(tmp_path: Path) -> None:
    result = _train(tmp_path / "run", _config(), _net())
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "last.safetensors", "last.json", "best.safetensors", "state"} <= names
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    last = _metrics(tmp_path / "run")[-1]
    assert last["test_top1"] == result.last.top1
    assert {"train_loss", "train_accuracy", "test_nll", "test_ece", "lr", "seconds"} <= set(last)
    assert result.best.top1 >= result.last.top1
    assert result.steps == 4 * 3


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    model = _net()
    before = torch.random.get_rng_state()
    _train(tmp_path / "run", _config(epochs=1), model)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_nan_loss_names_its_rows_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    config = _config(epochs=5)
    with pytest.raises(NumericError, match=r"epoch 3: the loss is NaN .* 1 of 3. rows") as caught:
        _train(tmp_path / "run", config, _net(poison_after=6))
    named = int(caught.value.message.split("rows ")[-1].split(";")[0])
    assert 0 <= named < 90
    assert sorted(path.stem for path in (tmp_path / "run" / "state").glob("*.json")) == ["epoch-00001", "epoch-00002"]
    straight = _net()
    _train(tmp_path / "straight", config, straight)
    resumed = Net()
    _train(tmp_path / "run", config, resumed, resume=True)
    assert _same(straight, resumed)


def test_an_infinite_loss_in_the_first_epoch_stops_too_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    model = _net(poison_after=1)
    model.poison = torch.inf
    with pytest.raises(NumericError, match=r"epoch 1: .* No epoch was finished before"):
        _train(tmp_path / "run", _config(), model)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_weights_that_became_nan_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match=r"NaN or infinite"):
        _train(tmp_path / "run", _config(epochs=2, lr=1e38, batch_size=90), _net())
    assert not list((tmp_path / "run").glob("state/*.json"))


def test_accumulated_pieces_take_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    def net() -> nn.Module:  # without batch statistics, which pieces change by nature
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 7))

    whole, pieces = net(), net()
    _train(tmp_path / "whole", _config(), whole)
    _train(tmp_path / "pieces", _config(accumulate=3), pieces)
    for one, two in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_a_step_is_the_step_of_plain_pytorch(tmp_path: Path) -> None:
    config = _config(epochs=1, batch_size=90, momentum=0.0, weight_decay=0.0, schedule="constant")
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Flatten(), nn.Linear(36, 7))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 7))
    reader = InputReader(SOURCE, PLAIN, ViewPolicy.from_preset("cifar", seed=1))
    feed = TrainingFeed(reader, torch.tensor(SOURCE.labels), batch_size=90, seed=0)
    (batch,) = feed.epoch(0)
    nn.functional.cross_entropy(plain(batch.inputs), batch.labels).backward()
    torch.optim.SGD(plain.parameters(), lr=0.05).step()
    _train(tmp_path / "run", config, ours)
    for one, two in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_channels_last_changes_the_layout_and_not_the_outcome(tmp_path: Path) -> None:
    plain, last = _net(), _net()
    _train(tmp_path / "plain", _config(epochs=2), plain)
    _train(tmp_path / "last", _config(epochs=2, channels_last=True), last)
    assert next(last.parameters()).is_contiguous(memory_format=torch.channels_last)
    for one, two in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_takes_the_steps_of_an_eager_one(tmp_path: Path) -> None:
    def net() -> nn.Module:  # without dropout, whose draws a compiled graph may order differently
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 7))

    eager, compiled = net(), net()
    _train(tmp_path / "eager", _config(epochs=2), eager)
    _train(tmp_path / "compiled", _config(epochs=2, compile=True), compiled)
    for one, two in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_early_stop_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    config = _config(epochs=50, lr=1e-9, early_stop=3)
    result = _train(tmp_path / "run", config, _net())
    assert result.epochs == result.best_epoch + 3 < 50
    assert result.steps == result.epochs * 3
    assert result.figures()["epochs_run"] == result.epochs
    again = _train(tmp_path / "run", config, Net(), resume=True)  # a finished run has nothing left to train
    assert (again.epochs, again.last) == (result.epochs, result.last)
    assert _train(tmp_path / "off", _config(epochs=6, lr=1e-9), _net()).epochs == 6


def test_weights_of_every_nth_epoch_are_kept_and_the_others_are_not(tmp_path: Path) -> None:
    model = _net()
    folder = RunFolder(tmp_path / "run", keep_every=2)
    _train(tmp_path / "run", _config(epochs=5, ema=0.5), model, folder=folder)
    assert sorted(path.name for path in (tmp_path / "run" / "epochs").iterdir()) == [
        f"epoch-{epoch:05d}.{kind}" for epoch in (2, 4) for kind in ("json", "safetensors")
    ]
    kept, info = Net(), tmp_path / "run" / "epochs" / "epoch-00004.safetensors"
    assert load_weights(kept, info).training["epoch"] == 4
    logged = _metrics(tmp_path / "run")[3]
    assert evaluation_on(TEST, PLAIN, CPU)(kept).nll == pytest.approx(logged["test_nll"])  # the averaged weights
    with pytest.raises(ConfigError, match="keep_every"):
        RunFolder(tmp_path / "other", keep_every=-1)


def test_a_run_from_before_a_setting_can_be_resumed_while_the_setting_is_off() -> None:
    assert "early_stop" not in _config().decides()
    assert _config(early_stop=2).decides()["early_stop"] == 2


@pytest.mark.parametrize("changes", [{"amp": "bf16"}, {"amp": "fp16"}, {"eval_every": 3}, {"schedule": "step"}])
def test_options_train_and_the_last_epoch_is_always_evaluated(tmp_path: Path, changes: dict[str, object]) -> None:
    result = _train(tmp_path / "run", _config(**changes), _net())
    assert isinstance(result.last, Evaluation)
    assert result.last.rows == 60
    assert result.last.top1 > 1 / 7
