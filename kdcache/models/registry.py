"""From a model's name to a module: built-in, `torchvision:NAME`, `timm:NAME`, `hf:FOLDER`, `path/to/file.py:factory`.

`identify_model` says what a model is without building it (that is how a covering store is found without the teacher);
`build_model` builds it with random weights; `weights.load_weights` fills them in.

A user's factory has the signature

    def factory(num_classes: int, input_shape: tuple[int, ...]) -> tuple[nn.Module, Preprocessing | Callable]

where `input_shape` is the shape of one raw example ((C, H, W) for images) and the second part is a
`kdcache.models.preprocess.Preprocessing` or a callable from a uint8 (C, H, W) tensor to a float tensor. For token rows
`input_shape` is (), the module maps (B, L) int64 tokens to (B, L, K) logits, and the second part is not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from kdcache.errors import ConfigError
from kdcache.models.cifar_mobile import CifarMobileNetV2, CifarShuffleNetV1, CifarShuffleNetV2
from kdcache.models.cifar_resnet import CifarResNet, WideResNet
from kdcache.models.cifar_vgg import CifarVgg
from kdcache.models.hf_adapter import build_hf, hf_identity, is_hf
from kdcache.models.language import LSTM_EXAMPLES, is_lstm_name, lstm_named, read_segments
from kdcache.models.preprocess import Preprocessing
from kdcache.models.timm_adapter import build_timm, timm_preprocessing, timm_weights
from kdcache.models.tiny import Mlp, SmallCnn
from kdcache.models.torchvision_adapter import build_torchvision, published_preprocessing, published_weights
from kdcache.nearest import did_you_mean
from kdcache.specs import PreprocessingSpec
from kdcache.user_code import find_factory, is_user_factory

_HALF = (8, 8, 16, 32)
_NARROW = (16, 16, 32, 64)
_WIDE4 = (32, 64, 128, 256)

_IMAGE_MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    **{f"resnet{d}": partial(CifarResNet, d, _NARROW) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": partial(CifarResNet, d, _WIDE4) for d in (8, 32)},
    "resnet8x0.5": partial(CifarResNet, 8, _HALF),  # not of the papers: a student that a CPU trains
    **{f"wrn-{d}-{w}": partial(WideResNet, d, w) for d, w in ((16, 1), (16, 2), (16, 4), (40, 1), (40, 2), (40, 4))},
    **{f"vgg{d}": partial(CifarVgg, d) for d in (8, 11, 13)},
    "mobilenet-v2": partial(CifarMobileNetV2, 0.5),
    "shufflenet-v1": CifarShuffleNetV1,
    "shufflenet-v2": CifarShuffleNetV2,
}
TOKEN = ()  # input shape of token rows: a row is one number
_TINY_EXAMPLES = ("mlp-32", "mlp-64", "mlp-128", "cnn-16", "cnn-32")
_MLP = re.compile(r"mlp((?:-[1-9]\d{0,4}){1,8})")
_CNN = re.compile(r"cnn-([1-9]\d{0,3})")


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What a model is, short of its weights; known without building it.

    Attributes:
        source: the name it was asked for by; a user's file is reduced to `file.py:factory`, its digest says which.
        preprocessing: how inputs reach it.
        code_digest: hex sha256 of a user's file, or of an hf: checkpoint's config; "" for models of a library.
    """

    source: str
    preprocessing: PreprocessingSpec
    code_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A module with random weights (or the factory's own), in train mode as PyTorch makes it, and its preprocessing."""

    module: nn.Module
    preprocessing: Preprocessing
    code_digest: str = ""


def known_models() -> tuple[str, ...]:
    """Names of the built-in models; `mlp-W[-W...]`, `cnn-W` and `lstm-...` take any width; examples are listed."""
    return (*_IMAGE_MODELS, *_TINY_EXAMPLES, *LSTM_EXAMPLES)


def identify_model(name: str, *, data: PreprocessingSpec | None = None, weights: str = "") -> ModelIdentity:
    """Preprocessing and code digest of a model, without building it or running a user's file.

    Args:
        name: MODEL as on the command line.
        data: the data card's preprocessing; used by every model that does not bring its own.
        weights: a file, or the name of published weights, which bring their own preprocessing.

    Raises:
        ConfigError: unknown name, with the nearest ones.
        NotFoundError: the user's file is not there.
    """
    given = data or PreprocessingSpec()
    if is_user_factory(name):
        factory = find_factory(name)
        source = f"{factory.path.name}:{factory.function}"
        return ModelIdentity(
            source=source, preprocessing=PreprocessingSpec(code=source), code_digest=factory.code_digest
        )
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision" and rest:
        return ModelIdentity(source=name, preprocessing=published_preprocessing(rest, weights) or given)
    if prefix == "timm" and rest:
        return ModelIdentity(source=name, preprocessing=timm_preprocessing(rest, weights) or given)
    if is_hf(name):
        source, digest = hf_identity(name)
        return ModelIdentity(source=source, preprocessing=given, code_digest=digest)
    _check_builtin(name)
    return ModelIdentity(source=name, preprocessing=given)


def build_model(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    data: PreprocessingSpec | None = None,
    weights: str = "",
) -> BuiltModel:
    """Build a model with random weights from torch's global generator; seed it before (`torch.manual_seed`).

    Args:
        name: MODEL as on the command line.
        num_classes: K.
        input_shape: shape of one raw example, (C, H, W) for images, before preprocessing.
        data: the data card's preprocessing; used by every model that does not bring its own.
        weights: only chooses the preprocessing of published weights; nothing is loaded here.

    Raises:
        ConfigError: unknown name, an input shape the model cannot take, or a factory that breaks its signature.
        NotFoundError: the user's file is not there.
    """
    identity = identify_model(name, data=data, weights=weights)
    if is_user_factory(name):
        return _build_user_model(name, identity, num_classes, input_shape)
    preprocessing = Preprocessing(identity.preprocessing)
    if is_hf(name):
        if input_shape != TOKEN:
            raise ConfigError(f"{name}: a language model reads token rows, found examples of shape {input_shape}")
        return BuiltModel(module=build_hf(name), preprocessing=preprocessing, code_digest=identity.code_digest)
    shape = preprocessing.output_shape(input_shape)
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision" and rest:
        module = build_torchvision(rest, num_classes=num_classes)
    elif prefix == "timm" and rest:
        module = build_timm(rest, num_classes=num_classes, channels=_image_shape(name, shape)[0])
    else:
        module = _build_builtin(name, num_classes, shape)
    return BuiltModel(module=module, preprocessing=preprocessing)


def resolve_weights(name: str, weights: str) -> Path:
    """The file behind `--weights`: a path as it is, or published weights of a torchvision or timm model by name.

    Only published weights are ever downloaded, and only when they are named.

    Raises:
        ConfigError: neither a file nor the name of published weights.
        RemoteError: the download failed.
    """
    path = Path(weights).expanduser()
    looks_like_path = path.suffix != "" or len(path.parts) > 1
    prefix, _, rest = name.partition(":")
    if path.exists() or looks_like_path or prefix not in ("torchvision", "timm") or is_user_factory(name):
        return path
    return published_weights(rest, weights) if prefix == "torchvision" else timm_weights(rest, weights)


def _check_builtin(name: str) -> None:
    if name in _IMAGE_MODELS or _MLP.fullmatch(name) or _CNN.fullmatch(name) or is_lstm_name(name):
        return
    hint = did_you_mean(
        name, known_models(), listing="built-in, torchvision:NAME, timm:NAME, hf:FOLDER or path/to/file.py:factory"
    )
    raise ConfigError(f"model {name!r} is unknown", hint=hint)


def _build_builtin(name: str, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    if (lstm := lstm_named(name, vocabulary=num_classes)) is not None or shape == TOKEN:
        if lstm is None or shape != TOKEN:
            raise ConfigError(
                f"model {name!r}: language models read token rows and other models do not; found examples of {shape}",
                hint="for tokens use lstm-200 (any width) or a file.py:factory; for images resnet20, mlp-64 ...",
            )
        return lstm
    mlp = _MLP.fullmatch(name)
    if mlp:
        return Mlp(shape, [int(width) for width in mlp.group(1)[1:].split("-")], num_classes)
    channels, height, width = _image_shape(name, shape)
    cnn = _CNN.fullmatch(name)
    if cnn:
        if min(height, width) < 4:
            raise ConfigError(f"model {name!r}: expected images of at least 4x4 pixels, found {height}x{width}")
        return SmallCnn(shape, int(cnn.group(1)), num_classes)
    if min(height, width) < 8:
        raise ConfigError(
            f"model {name!r}: expected images of at least 8x8 pixels, found {height}x{width}",
            hint="use a small model such as cnn-32 or mlp-64",
        )
    return _IMAGE_MODELS[name](num_classes, channels)


def _image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ConfigError(
            f"model {name!r}: expected images (C, H, W), found examples of shape {shape}",
            hint="use mlp-64 or a file.py:factory of your own for such data",
        )
    return shape[0], shape[1], shape[2]


def _build_user_model(name: str, identity: ModelIdentity, num_classes: int, shape: tuple[int, ...]) -> BuiltModel:
    made = find_factory(name).call(num_classes, shape)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ConfigError(
            f"{name}: expected (nn.Module, preprocessing), found {type(made).__name__}",
            hint="def factory(num_classes, input_shape): return module, preprocessing",
        )
    module, preprocessing = made
    if shape == TOKEN:
        module = read_segments(module)
    if isinstance(preprocessing, Preprocessing):
        # Known by the file's digest, not by its numbers, so that the store key is there before the file runs.
        named = preprocessing.named(identity.preprocessing.code)
        return BuiltModel(module=module, preprocessing=named, code_digest=identity.code_digest)
    if not callable(preprocessing):
        raise ConfigError(f"{name}: the preprocessing must be callable, found {type(preprocessing).__name__}")
    return BuiltModel(
        module=module,
        preprocessing=Preprocessing(identity.preprocessing, preprocessing),
        code_digest=identity.code_digest,
    )
