"""Names become the models they promise; unknown names are answered with the nearest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from kdcache.errors import ConfigError, NotFoundError
from kdcache.models.cifar_resnet import WideResNet
from kdcache.models.registry import build_model, identify_model, known_models, resolve_weights
from kdcache.specs import PreprocessingSpec

# Parameters with 100 classes and 32-pixel colour images, and where a number was read. "imgclsmob": the table of exact
# counts of github.com/osmr/imgclsmob (models of other authors' code). "recalled": of the public benchmark code of
# Tian et al. 2020, which we could not count again; nothing in the literature at hand prints them.
# The papers' own rounded numbers are compared below, and resnets and vggs with their arithmetic.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,  # imgclsmob
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,  # imgclsmob
    "resnet110": 1_736_564,  # imgclsmob
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn-16-1": 180_916,
    "wrn-16-2": 703_284,
    "wrn-40-1": 569_780,
    "wrn-40-2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "mobilenet-v2": 812_836,  # recalled, as the two below
    "shufflenet-v1": 949_258,
    "shufflenet-v2": 1_355_528,
}
# Millions of parameters with 10 classes, as the papers print them. He et al. 2016 (arXiv:1512.03385), table 6, without
# projections in the shortcuts; Zagoruyko and Komodakis 2016 (arXiv:1605.07146).
PRINTED = {
    "resnet20": "0.27",
    "resnet32": "0.46",
    "resnet44": "0.66",
    "resnet56": "0.85",
    "resnet110": "1.7",
    "wrn-16-4": "2.7",
    "wrn-40-1": "0.6",
    "wrn-40-2": "2.2",
    "wrn-40-4": "8.9",
}
FACTORY = """
import torch
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from sibling import WIDTH

def callable_pair(num_classes, input_shape):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(input_shape[1] * WIDTH, num_classes))
    return model, lambda image: image.float()[:1] / 255

def spec_pair(num_classes, input_shape):
    return torch.nn.Linear(3, num_classes), Preprocessing(PreprocessingSpec(resize=8, mean=(0.5,), std=(0.5,)))

def wrong(num_classes, input_shape):
    return torch.nn.Linear(3, num_classes)

def broken(num_classes, input_shape):
    raise ValueError("no such layer")
"""


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_family_has_the_literature_parameter_count(name: str, expected: int) -> None:
    with torch.device("meta"):
        module = build_model(name, num_classes=100, input_shape=(3, 32, 32)).module
    assert sum(parameter.numel() for parameter in module.parameters()) == expected


@pytest.mark.parametrize(("name", "printed"), PRINTED.items())
def test_ten_classes_have_the_number_the_paper_prints(name: str, printed: str) -> None:
    with torch.device("meta"):
        module = build_model(name, num_classes=10, input_shape=(3, 32, 32)).module
    counted = {part: parameter.numel() for part, parameter in module.named_parameters() if "shortcut" not in part}
    assert f"{sum(counted.values()) / 1e6:.{len(printed) - 2}f}" == printed


def test_a_wide_resnet_of_another_size_has_the_published_exact_count() -> None:
    with torch.device("meta"):
        module = WideResNet(16, 10, 100, 3)
    assert sum(parameter.numel() for parameter in module.parameters()) == 17_174_324  # imgclsmob, WRN-16-10


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
@pytest.mark.parametrize("factor", [1, 4])
def test_resnets_have_the_parameters_of_their_arithmetic(depth: int, factor: int) -> None:
    name = f"resnet{depth}" + ("x4" if factor == 4 else "")
    if name not in PARAMETERS:
        pytest.skip(f"{name} is not built in")
    stem, widths = (16, (16, 32, 64)) if factor == 1 else (32, (64, 128, 256))
    total, inputs = 27 * stem + 2 * stem, stem
    for width in widths:
        for _ in range((depth - 2) // 6):
            total += 9 * width * (inputs + width) + 4 * width  # two convolutions, each with scale and shift
            if inputs != width:
                total += inputs * width + 2 * width  # the projection, where the shape changes
            inputs = width
    assert total + (widths[-1] + 1) * 100 == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("vgg8", (64, 128, 256, 512, 512)),
        ("vgg11", (64, 128, 256, 256, 512, 512, 512, 512)),
        ("vgg13", (64, 64, 128, 128, 256, 256, 512, 512, 512, 512)),
    ],
)
def test_vggs_have_the_parameters_of_their_arithmetic(name: str, widths: tuple[int, ...]) -> None:
    layers = zip((3, *widths), widths, strict=False)
    assert sum(9 * a * b + 3 * b for a, b in layers) + 513 * 100 == PARAMETERS[name]


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-1", "vgg8", "mobilenet-v2", "shufflenet-v1", "shufflenet-v2"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_logits_are_rows_by_classes_for_any_image(name: str, shape: tuple[int, ...]) -> None:
    module = build_model(name, num_classes=7, input_shape=shape).module.eval()
    assert module(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mlp-32", "mlp-64-32", "cnn-16"])
@pytest.mark.parametrize("shape", [(1, 8, 16), (3, 9, 11)])
def test_tiny_models_adapt_to_the_input_shape(name: str, shape: tuple[int, ...]) -> None:
    assert build_model(name, num_classes=5, input_shape=shape).module.eval()(torch.zeros(2, *shape)).shape == (2, 5)


def test_mlp_takes_feature_vectors_and_image_models_refuse_them() -> None:
    assert build_model("mlp-8", num_classes=5, input_shape=(500,)).module(torch.zeros(2, 500)).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"expected images \(C, H, W\), found examples of shape \(500,\)"):
        build_model("resnet8", num_classes=5, input_shape=(500,))


def test_weights_of_a_seed_are_reproducible() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model("resnet8", num_classes=5, input_shape=(3, 32, 32)).module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet8x5", "resnet8x4"), ("wrn_16_2", "wrn-16-2"), ("MobileNetV2", "mobilenet-v2"), ("mlp32", "mlp-32")],
)
def test_unknown_model_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match="is unknown") as caught:
        build_model(name, num_classes=10, input_shape=(3, 32, 32))
    assert nearest in caught.value.hint


@pytest.mark.parametrize("shape", [(3, 2, 32), (3, 32, 3)])
def test_too_small_images_are_refused(shape: tuple[int, ...]) -> None:
    for name in ("cnn-16", "resnet8"):
        with pytest.raises(ConfigError, match="expected images of at least"):
            build_model(name, num_classes=10, input_shape=shape)


def test_built_in_models_use_the_cards_preprocessing() -> None:
    data = PreprocessingSpec(resize=16, crop=16, mean=(0.5,), std=(0.25,))
    built = build_model("mlp-8", num_classes=5, input_shape=(1, 40, 50), data=data)
    assert built.preprocessing.spec == data == identify_model("mlp-8", data=data).preprocessing
    assert built.module(torch.zeros(2, 1, 16, 16)).shape == (2, 5)


def test_torchvision_model_has_the_datas_classes() -> None:
    built = build_model("torchvision:resnet18", num_classes=13, input_shape=(3, 64, 64))
    assert built.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 13)


def test_published_weights_bring_their_preprocessing_without_a_download() -> None:
    data = PreprocessingSpec(mean=(0.5,), std=(0.5,))
    spec = identify_model("torchvision:resnet50", data=data, weights="IMAGENET1K_V2").preprocessing
    assert (spec.resize, spec.crop) == (232, 224)
    assert identify_model("torchvision:resnet50", data=data, weights="my.pth").preprocessing == data


def test_unknown_torchvision_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no such classification model") as caught:
        identify_model("torchvision:resnet19")
    assert "resnet18" in caught.value.hint
    with pytest.raises(ConfigError, match="neither a file nor published weights") as caught:
        resolve_weights("torchvision:resnet18", "IMAGENET1K_V9")
    assert "IMAGENET1K_V1" in caught.value.hint


def test_published_weights_already_there_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert resolve_weights("torchvision:resnet18", "IMAGENET1K_V1") == file


def test_a_path_stays_a_path(tmp_path: Path) -> None:
    for weights in ("w.safetensors", "runs/last", str(tmp_path)):
        assert resolve_weights("torchvision:resnet18", weights) == Path(weights)
    assert resolve_weights("resnet8", "IMAGENET1K_V1") == Path("IMAGENET1K_V1")


@pytest.fixture
def factory_file(tmp_path: Path) -> Path:
    (tmp_path / "sibling.py").write_text("WIDTH = 4\n")
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


def test_factory_builds_with_a_callable(factory_file: Path) -> None:
    built = build_model(f"{factory_file}:callable_pair", num_classes=6, input_shape=(3, 4, 4))
    example = built.preprocessing.per_example(torch.full((3, 4, 4), 255, dtype=torch.uint8))
    assert built.preprocessing.spatial
    assert built.module(built.preprocessing.batch(example[None])).shape == (1, 6)
    assert built.code_digest == hashlib.sha256(factory_file.read_bytes()).hexdigest()


def test_factory_identity_is_known_before_it_runs(factory_file: Path) -> None:
    name = f"{factory_file}:spec_pair"
    built = build_model(name, num_classes=6, input_shape=(3, 4, 4))
    identity = identify_model(name)
    assert identity.preprocessing == built.preprocessing.spec == PreprocessingSpec(code="mine.py:spec_pair")
    assert built.preprocessing.per_example(torch.zeros(3, 4, 6, dtype=torch.uint8)).shape == (3, 8, 12)
    assert built.preprocessing.batch(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).eq(-1).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [("wrong", r"expected \(nn.Module, preprocessing\)"), ("broken", "raised ValueError: no such layer")],
)
def test_factory_that_breaks_its_signature_is_refused(factory_file: Path, function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(f"{factory_file}:{function}", num_classes=6, input_shape=(3, 4, 4))


def test_missing_factory_file_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        identify_model("nowhere/mine.py:factory")


def test_known_models_all_build() -> None:
    with torch.device("meta"):
        for name in known_models():
            build_model(name, num_classes=10, input_shape=() if name.startswith("lstm") else (3, 32, 32))
