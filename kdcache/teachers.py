"""Who is asked: a teacher's identity before it is built, and the built teacher ready to give logits.

The identity is enough for the store key, so a covering store is found without building the teacher. Only a user's
`file.py:factory` that brings its own weights, or weights drawn from a seed, must be built to be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.datasets.sequences import is_sequence
from kdcache.datasets.source import DataSource
from kdcache.devices import autocast
from kdcache.errors import ConfigError, KdcacheError
from kdcache.loader.inputs import example_shape
from kdcache.loader.tokens import DEFAULT_CONTEXT, with_context
from kdcache.models.features import FeaturePoint, feature_shapes, find_features
from kdcache.models.head import find_head
from kdcache.models.hf_adapter import hf_weights, is_hf
from kdcache.models.language import Segment, example_segment
from kdcache.models.preprocess import Preprocessing
from kdcache.models.registry import build_model, identify_model, resolve_weights
from kdcache.models.weights import WeightsFile, load_state, read_weights, state_digest
from kdcache.progress import note
from kdcache.seeding import torch_seed_for
from kdcache.specs import PreprocessingSpec, TeacherSpec
from kdcache.user_code import is_user_factory

NumericMode = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TeacherChoice:
    """What the user said about the teacher.

    Attributes:
        source: model name, torchvision:NAME, timm:NAME, hf:FOLDER (brings its weights) or file.py:factory.
        weights: a file or the name of published weights; "" for none.
        init_seed: draw random weights from this seed.
        head: name of the last layer; "" finds it.
        numeric_mode: arithmetic of the forward pass.
        data: the data card's preprocessing.
        context: of token rows: tokens read before each row, at least; part of the teacher's identity.
    """

    source: str
    weights: str = ""
    init_seed: int | None = None
    head: str = ""
    numeric_mode: NumericMode = "float32"
    data: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    context: int = DEFAULT_CONTEXT

    def __post_init__(self) -> None:
        if self.weights and self.init_seed is not None:
            raise ConfigError(f"--weights {self.weights} and --init-seed {self.init_seed} exclude each other")
        if is_hf(self.source) and (self.weights or self.init_seed is not None):
            raise ConfigError(
                f"teacher {self.source!r}: a checkpoint folder brings its own weights; found --weights or --init-seed",
                hint="leave them out",
            )
        if not self.weights and self.init_seed is None and not is_hf(self.source) and not is_user_factory(self.source):
            raise ConfigError(
                f"teacher {self.source!r} has no weights; expected --weights FILE",
                hint="train one with kdcache train-teacher, or --init-seed 0 for random weights (a trial run)",
            )


@dataclass(frozen=True, kw_only=True)
class LoadedTeacher:
    """A teacher on its device, in eval mode.

    Attributes:
        spec: its identity.
        preprocessing: from raw example to input.
        device: where it runs.
        static: store-level arrays it contributes: class_weight (K, D) and class_bias (K,) float32, when it has a head;
            for token rows sequence_offsets (S + 1,) int64, the boundaries it did not read across.
    """

    module: nn.Module
    spec: TeacherSpec
    preprocessing: Preprocessing
    device: torch.device
    static: Mapping[str, NDArray[np.generic]]

    def logits(self, inputs: Tensor | Segment) -> Tensor:
        """Logits (B, K) in float32 for normalised inputs (B, ...) on any device, or of a segment's kept rows."""
        inputs = inputs.to(self.device, non_blocking=True)
        if isinstance(inputs, Tensor) and inputs.ndim == 4 and self._channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast("bf16" if self.spec.numeric_mode == "bfloat16" else "none", self.device):
            logits = self._run(inputs)
        if not isinstance(logits, Tensor):
            raise ConfigError(
                f"teacher {self.spec.source!r} returned {type(logits).__name__}; expected a tensor of logits (B, K)",
                hint="wrap the model in a file.py:factory whose module returns logits alone",
            )
        return logits.float()

    def feature_points(self, names: Sequence[str]) -> tuple[FeaturePoint, ...]:
        """Where named features pass in this teacher; errors as `find_features`."""
        return find_features(self.module, names, head=self.spec.head)

    def _run(self, inputs: Tensor | Segment) -> Tensor:
        """The module's answer; an exception inside a user's own module is the user's error, not ours."""
        try:
            logits: Tensor = self.module(inputs)
        except (KdcacheError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not is_user_factory(self.spec.source):
                raise
            raise ConfigError(
                f"teacher {self.spec.source!r} raised {type(error).__name__} for inputs of shape "
                f"{tuple(inputs.shape)}: {error}",
                hint="-v shows the traceback; the same command continues what was dumped, and an edited teacher file "
                "is another teacher, with a store of its own",
            ) from error
        return logits

    @property
    def _channels_last(self) -> bool:
        # A pure function of the recorded mode and device kind: the layout changes the last bits of a convolution.
        return self.spec.numeric_mode == "bfloat16" or self.device.type == "cuda"


def feature_shapes_of(
    teacher: LoadedTeacher, source: DataSource, names: Sequence[str]
) -> Mapping[str, tuple[int, ...]]:
    """Shape of one row of named features, from one forward pass of one example.

    Raises:
        ConfigError, IncompatibleError: no such layer, or one whose values are not rows.
    """
    points = teacher.feature_points(names)
    example = _example_batch(source, teacher.preprocessing).to(teacher.device)
    return feature_shapes(teacher.module, points, example)


class TeacherRequest:
    """A teacher whose identity is known; `load` builds it."""

    def __init__(
        self, choice: TeacherChoice, spec: TeacherSpec, weights: WeightsFile | None, built: LoadedTeacher | None
    ) -> None:
        self._choice = choice
        self._weights = weights
        self._built = built
        self.spec = spec

    @classmethod
    def resolve(cls, choice: TeacherChoice, source: DataSource) -> TeacherRequest:
        """Identify a teacher for a data set; builds it only when nothing else tells its weights.

        Raises:
            ConfigError, NotFoundError, IncompatibleError: unknown model, no weights file, not weights.
        """
        identity = identify_model(choice.source, data=choice.data, weights=choice.weights)
        weights = read_weights(resolve_weights(choice.source, choice.weights)) if choice.weights else None
        info = weights.info if weights else hf_weights(choice.source) if is_hf(choice.source) else None
        preprocessing = identity.preprocessing
        if is_sequence(source):
            preprocessing = with_context(preprocessing, choice.context)
        spec = TeacherSpec(
            source=identity.source,
            weights=info.path.name if info else _random_name(choice),
            weights_sha256=info.sha256 if info else "",
            state_digest=info.state_digest if info else "",
            code_digest=identity.code_digest,
            preprocessing=preprocessing,
            numeric_mode=choice.numeric_mode,
            training=dict(info.training) if info else {},
        )
        if info is not None:
            return cls(choice, spec, weights, None)
        request = cls(choice, spec, None, None)
        built = request._build(source, torch.device("cpu"))
        request._built, request.spec = built, built.spec
        if choice.init_seed is None:
            note(f"teacher {identity.source}: no --weights given, so it is asked with the weights its factory returned")
        return request

    def load(self, source: DataSource, device: torch.device) -> LoadedTeacher:
        """Build the teacher with its weights on a device, in eval mode, and find its head.

        Raises:
            IncompatibleError: weights that do not fit. ConfigError: a head that is not there.
        """
        if self._built is None:
            self._built = self._build(source, torch.device("cpu"))
        built = self._built
        module = built.module.to(device)
        return replace(built, module=module, device=device)

    def _build(self, source: DataSource, device: torch.device) -> LoadedTeacher:
        choice = self._choice
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed_for("teacher-init", choice.init_seed or 0))
            built = build_model(
                choice.source,
                num_classes=source.num_classes,
                input_shape=example_shape(source),
                data=choice.data,
                weights=choice.weights,
            )
        module = built.module
        if self._weights is not None:
            load_state(module, self._weights.state, subject=f"weights {self._weights.info.path}")
        module = module.to(device).eval().requires_grad_(False)
        head = find_head(module, _example_batch(source, built.preprocessing), choice.head)
        if self._choice.numeric_mode == "bfloat16":
            module = module.to(memory_format=torch.channels_last)
        static: dict[str, NDArray[np.generic]] = {}
        if head is not None and head.weight.shape[0] == source.num_classes:
            static["class_weight"] = head.weight.numpy()
            if head.bias is not None:
                static["class_bias"] = head.bias.numpy()
        if is_sequence(source):
            static["sequence_offsets"] = source.sequence_offsets
        digest = self.spec.state_digest or state_digest(module.state_dict())
        spec = replace(self.spec, state_digest=digest, head=head.name if head else "")
        return LoadedTeacher(module=module, spec=spec, preprocessing=built.preprocessing, device=device, static=static)


def _example_batch(source: DataSource, preprocessing: Preprocessing) -> Tensor | Segment:
    if is_sequence(source):
        return example_segment(source.tokens[:2].tolist())
    example = torch.tensor(source.example(0))  # a copy: decoded images are read-only
    if example.dtype == torch.uint8 and example.ndim == 3:
        example = example.permute(2, 0, 1).contiguous()
    return preprocessing.batch(preprocessing.per_example(example)[None])


def _random_name(choice: TeacherChoice) -> str:
    return "the factory's own" if choice.init_seed is None else f"random, seed {choice.init_seed}"
