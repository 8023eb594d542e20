"""`hf:PATH` teachers: a causal language model in a local checkpoint folder, with the optional package transformers.

Only files in the folder are read: config.json and safetensors. Nothing is downloaded, no code that comes with a
checkpoint is run, no pickle is opened. No other module imports transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.models.language import Segment
from kdcache.models.weights import WeightsInfo, digest_tensors

PREFIX = "hf:"
_PROBE = 4  # tokens of the forward pass that tells whether the head's output is the model's


class HfLanguageModel(nn.Module):
    """A transformers model that reads segments: every lane on its own, positions counted from its first token.

    Args:
        model: a causal language model in float32.
    """

    reads_segments = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head = model.get_output_embeddings()
        self._longest = int(getattr(model.config, "max_position_embeddings", 0) or 0)
        self._head_alone = self._head_makes_the_logits()

    def forward(self, segment: Segment) -> Tensor:
        """Logits (R, K) of the R kept rows, lane after lane.

        Raises:
            ConfigError: a lane is longer than the model's positions.
        """
        length = segment.tokens.shape[1]
        if self._longest and length > self._longest:
            raise ConfigError(
                f"a lane of {length} tokens for a model of {self._longest} positions",
                hint=f"use --context {max(1, self._longest // 2)} (a lane has up to twice the context) or less",
            )
        # Lanes are padded at the end and attention is causal, so no token sees padding; the mask says so all the same.
        mask = (torch.arange(length, device=segment.tokens.device)[None, :] < segment.lengths[:, None]).long()
        if self._head_alone:
            hidden = self.model.base_model(input_ids=segment.tokens, attention_mask=mask, use_cache=False)[0]
            logits: Tensor = self.head(hidden[segment.keep])
            return logits
        every: Tensor = self.model(input_ids=segment.tokens, attention_mask=mask, use_cache=False).logits
        return every[segment.keep]

    @torch.inference_mode()
    def _head_makes_the_logits(self) -> bool:
        """Whether logits are head(last hidden state); some models scale or cap them after."""
        if not isinstance(self.head, nn.Linear):
            return False
        was_training = self.model.training
        self.model.eval()
        tokens = torch.arange(_PROBE)[None] % self.model.config.vocab_size
        whole = self.model(input_ids=tokens, use_cache=False).logits
        hidden = self.model.base_model(input_ids=tokens, use_cache=False)[0]
        self.model.train(was_training)
        return bool(torch.allclose(self.head(hidden), whole, rtol=1e-4, atol=1e-5))


def is_hf(name: str) -> bool:
    """Whether a model's name is `hf:PATH`."""
    return name.startswith(PREFIX)


def hf_identity(name: str) -> tuple[str, str]:
    """What a checkpoint is: (source `hf:ARCHITECTURE`, hex sha256 of its config.json). Nothing is imported or built.

    Raises:
        NotFoundError: no folder with a config.json. ConfigError: not a causal language model of transformers.
    """
    content, config = _config(name)
    known = config.get("architectures")
    architecture = str(known[0]) if isinstance(known, list) and known else ""
    if "auto_map" in config:
        raise ConfigError(
            f"{name}: the checkpoint brings code of its own (auto_map), which kdcache does not run",
            hint="convert it to an architecture of transformers, or write a file.py:factory of your own",
        )
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(
            f"{name}: architecture {architecture!r}; expected a causal language model (...ForCausalLM)",
            hint="save the model with its language-model head: AutoModelForCausalLM ... .save_pretrained(PATH)",
        )
    return f"{PREFIX}{architecture}", hashlib.sha256(content).hexdigest()


def hf_weights(name: str) -> WeightsInfo:
    """The identity of a checkpoint's weights, one tensor in memory at a time.

    Returns:
        path: the folder; sha256: over the names and hex sha256 of its safetensors files; state_digest: as of any
        other weights, whatever the number of files.

    Raises:
        NotFoundError: no safetensors files. IncompatibleError: one of them is damaged.
    """
    folder = _folder(name)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise NotFoundError(
            f"{name}: no .safetensors files in {folder.resolve()}",
            hint="save the model with save_pretrained(PATH); pickled weights (.bin) are not read",
        )
    listing = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            listing.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    try:
        digest = digest_tensors(_tensors(files))
    except safetensors.SafetensorError as error:
        raise IncompatibleError(f"{name}: not safetensors ({error})", hint="copy the checkpoint again") from error
    return WeightsInfo(path=folder, sha256=listing.hexdigest(), state_digest=digest)


def build_hf(name: str) -> HfLanguageModel:
    """The checkpoint's model with its weights in float32, in eval mode.

    Raises:
        ConfigError: transformers is not installed, or does not know the model or cannot load it.
    """
    folder, transformers = _folder(name), _transformers(name)
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{name}: transformers {transformers.__version__} cannot load the checkpoint: {first}",
            hint="it must be complete (config.json and all safetensors files) and of a model this version knows",
        ) from error
    return HfLanguageModel(model.eval())


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    with ExitStack() as stack:
        opened = [stack.enter_context(safetensors.safe_open(file, framework="pt")) for file in files]
        places = {tensor: handle for handle in opened for tensor in handle.keys()}  # noqa: SIM118 - not a mapping
        for tensor in sorted(places):
            yield tensor, places[tensor].get_tensor(tensor)


def _folder(name: str) -> Path:
    return Path(name.removeprefix(PREFIX)).expanduser()


def _config(name: str) -> tuple[bytes, dict[str, Any]]:
    path = _folder(name) / "config.json"
    try:
        content = path.read_bytes()
        config = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"{name}: no {path.resolve()}",
            hint="give the folder of a checkpoint saved with save_pretrained; kdcache downloads none",
        ) from None
    except ValueError as error:
        raise ConfigError(f"{name}: {path} is not JSON ({error})") from error
    return content, config if isinstance(config, dict) else {}


def _transformers(name: str) -> ModuleType:
    try:
        import transformers
        import transformers.utils.logging
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{name}: the package transformers is not installed", hint="pip install 'kdcache[hf]'"
        ) from error
    module: ModuleType = transformers
    return module
