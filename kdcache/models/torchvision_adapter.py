"""`torchvision:NAME` classification models and the names of their published weights. Downloads only what was named."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from kdcache.errors import ConfigError, RemoteError
from kdcache.nearest import did_you_mean
from kdcache.specs import PreprocessingSpec


def torchvision_names() -> tuple[str, ...]:
    """The classification models torchvision can build."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def build_torchvision(name: str, *, num_classes: int) -> nn.Module:
    """A torchvision classifier with K outputs and random weights.

    Raises:
        ConfigError: unknown name; the nearest ones are in the hint.
    """
    _check_name(name)
    # These two warn unless told how to initialise. Their auxiliary heads stay: published weights have them.
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return model


def published_preprocessing(name: str, weights: str) -> PreprocessingSpec | None:
    """The preprocessing that published weights were evaluated with; None when `weights` is not such a name."""
    entry = _weights_enum(name).__members__.get(weights)
    if entry is None:
        return None
    transform = entry.transforms()
    return PreprocessingSpec(
        resize=int(transform.resize_size[0]),
        crop=int(transform.crop_size[0]),
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def published_weights(name: str, weights: str) -> Path:
    """The file of published weights; downloaded into torch's hub folder unless it is there.

    Raises:
        ConfigError: unknown model or weights name.
        RemoteError: the download failed.
    """
    enum = _weights_enum(name)
    entry = enum.__members__.get(weights)
    if entry is None:
        raise ConfigError(
            f"weights {weights!r}: neither a file nor published weights of torchvision:{name}",
            hint=did_you_mean(weights, enum.__members__),
        )
    url = entry.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        try:
            torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError) as error:
            raise RemoteError(
                f"torchvision:{name} {weights}: download of {url} failed ({error})",
                hint=f"put the file at {path} yourself, or give --weights FILE",
            ) from error
    return path


def _check_name(name: str) -> None:
    known = torchvision_names()
    if name not in known:
        hint = did_you_mean(name, known, listing="see torchvision.models.list_models()")
        raise ConfigError(f"torchvision:{name}: torchvision has no such classification model", hint=hint)


def _weights_enum(name: str) -> type[torchvision.models.WeightsEnum]:
    _check_name(name)
    enum: type[torchvision.models.WeightsEnum] = torchvision.models.get_model_weights(name)
    return enum
