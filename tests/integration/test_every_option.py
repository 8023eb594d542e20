"""Every method, and every choice a method offers, by the command line: reachable, recorded, and with an effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcache.cli.main import run
from kdcache.targets.methods import methods

ROWS = ["--split", "train[:200]", "--augment", "cifar", "--views", "2", "--view-seed", "1", "--allow-weak-teacher"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All classes, two views, draws: what any method may need."""
    path = tmp_path_factory.mktemp("every") / "store.zarr"
    assert run(["-q", "dump-teacher", *ROWS, "--topk", "all", "--samples", "8", "--out", str(path)]) == 0
    return str(path)


def trained(store: str, out: Path, method: str, *settings: str, topk: str = "5") -> dict[str, object]:
    words = ["--store", store, "--method", method, "--out", str(out), "--epochs", "1", "--warmup-epochs", "0"]
    sets = [word for setting in settings for word in ("--set", setting)]
    assert run(["-q", "distill", *words, "--topk", topk, *sets]) == 0
    result: dict[str, object] = json.loads((out / "result.json").read_text())
    return result


@pytest.mark.parametrize("name", methods)
def test_every_method_trains_from_one_store(store: str, tmp_path: Path, name: str) -> None:
    result = trained(store, tmp_path / "run", name)
    assert result["method"] == name
    assert float(str(result["train_loss"])) > 0


CHOICES = {
    "kd": [
        ("tail=full", "100"),
        ("tail=ghost", "5"),
        ("tail=uniform", "5"),
        ("tail=prior", "5"),
        ("tail=decoupled", "5"),
        ("tail=decoupled head_weight=3", "5"),
        ("tail=renormalised", "5"),
    ],
    "kd-sim": [
        ("similarity=weights", "5"),
        ("similarity=mean", "5"),
        ("similarity=weights power=2", "5"),
        ("similarity=weights beta=0.4", "5"),
        ("similarity=weights confidence=0.5", "5"),
    ],
    "kd-pt+sim": [
        ("mix=linear", "5"),
        ("mix=linear mu=0.2", "5"),
        ("mix=split", "5"),
        ("mix=split similarity=mean", "5"),
    ],
    "lskd": [("base=kd", "5"), ("base=dkd warmup_epochs=0", "5"), ("tail=uniform", "5")],
    "dkd": [
        ("warmup_epochs=0", "5"),
        ("warmup_epochs=0 nontarget_weight=2", "5"),
        ("warmup_epochs=0 hard_weight=0", "5"),
    ],
    "mlkd": [("temperatures=2,4", "5"), ("temperatures=3", "5")],
    "nkd": [("gamma=1", "5"), ("hard_smoothing=0.2", "5")],
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_recorded_and_change_the_loss(store: str, tmp_path: Path, name: str) -> None:
    losses = []
    for number, (settings, topk) in enumerate(CHOICES[name]):
        result = trained(store, tmp_path / str(number), name, *settings.split(), topk=topk)
        options = result["options"]
        assert isinstance(options, dict)
        for setting in settings.split():
            option, value = setting.split("=")
            wanted = methods[name].checked_options({option: value})[option]
            assert options[option] == (list(wanted) if isinstance(wanted, tuple) else wanted)
        losses.append(float(str(result["train_loss"])))
    assert len({round(loss, 4) for loss in losses}) == len(losses), losses


@pytest.mark.parametrize(
    ("method", "setting", "said"),
    [
        ("kd", "tail=nonsense", "one of auto, full, ghost"),
        ("kd", "tale=ghost", "nearest: tail"),
        ("kd-sim", "beta=0", "above 0"),
        ("kd-pt+sim", "mix=both", "linear, split"),
        ("kd", "tail=full", "--topk all"),
    ],
)
def test_what_a_method_does_not_take_is_refused(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, setting: str, said: str
) -> None:
    words = ["--store", store, "--method", method, "--topk", "5", "--set", setting, "--epochs", "1"]
    assert run(["distill", *words, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
