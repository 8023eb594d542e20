"""`timm:NAME` models, with the optional package timm; nothing else imports it. Downloads only what was named."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from torch import nn

from kdcache.cache_folder import cache_folder
from kdcache.errors import ConfigError, RemoteError
from kdcache.models.weights import save_weights
from kdcache.nearest import did_you_mean
from kdcache.specs import PreprocessingSpec

PRETRAINED = "pretrained"


def build_timm(name: str, *, num_classes: int, channels: int) -> nn.Module:
    """A timm model with K outputs and random weights.

    Raises:
        ConfigError: timm is not installed, or has no such model.
    """
    model: nn.Module = _timm(name).create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)
    return model


def timm_preprocessing(name: str, weights: str) -> PreprocessingSpec | None:
    """The preprocessing of timm's pretrained weights; None unless `weights` is "pretrained"."""
    if weights != PRETRAINED:
        return None
    timm = _timm(name)
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    crop = int(config["input_size"][-1])
    interpolation = config["interpolation"]
    return PreprocessingSpec(
        resize=int(crop / config["crop_pct"]),
        crop=crop,
        interpolation=interpolation if interpolation in ("bilinear", "bicubic", "nearest") else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def timm_weights(name: str, weights: str) -> Path:
    """The file of timm's pretrained weights, fetched by timm once and kept in kdcache's cache folder.

    Raises:
        ConfigError: `weights` is neither a file nor "pretrained", or timm has none for this model.
        RemoteError: the download failed.
    """
    timm = _timm(name)
    if weights != PRETRAINED:
        raise ConfigError(
            f"weights {weights!r}: neither a file nor {PRETRAINED!r}, which timm:{name} would need",
            hint=f"give --weights FILE or --weights {PRETRAINED}",
        )
    path = cache_folder() / "timm" / f"{name}.safetensors"
    if not path.is_file():
        try:
            model = timm.create_model(name, pretrained=True)
        except (OSError, RuntimeError) as error:
            raise RemoteError(f"timm:{name}: timm could not fetch its weights ({error})") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model, path, {"source": f"timm:{name}", "timm": timm.__version__})
    return path


def _timm(name: str) -> ModuleType:
    try:
        import timm
        import timm.data
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"timm:{name}: the package timm is not installed", hint="pip install 'kdcache[timm]'"
        ) from error
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), listing="see timm.list_models()")
        raise ConfigError(f"timm:{name}: timm has no such model", hint=hint)
    module: ModuleType = timm
    return module
