"""`ViewPolicy`: which random augmentation makes a view, from drawing outcomes to pixels, and its form in a manifest.

The random part of a view is shared by teacher and student and lives here; the deterministic part (resize, normalise)
belongs to each model. A policy is immutable and holds no random state: the same (seed, row, view) is the same view.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.nearest import did_you_mean
from kdcache.specs import ViewSpec
from kdcache.user_code import find_factory, is_user_factory
from kdcache.views.ops import (
    HorizontalFlip,
    MixOp,
    Mixup,
    Op,
    PadCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    UserTransform,
    check_order,
    op_from_json,
    op_to_json,
)
from kdcache.views.pixels import BATCHED, UserCode, apply_op, apply_op_batch, check_images, user_hint
from kdcache.views.sampling import Outcomes, outcome_dtype, sample_outcomes

PRESETS: Mapping[str, tuple[Op, ...]] = {
    "none": (),
    "cifar": (PadCrop(), HorizontalFlip()),
    "imagenet": (RandomResizedCrop(), HorizontalFlip()),
    "imagenet-strong": (
        RandomResizedCrop(),
        HorizontalFlip(),
        RandAugment(),
        RandomErasing(fill=(124, 116, 104)),  # ImageNet's mean colour: black would be an outlier after normalisation
    ),
    "patient": (RandomResizedCrop(), HorizontalFlip(), Mixup()),
}


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """An ordered list of augmentations with a seed.

    Attributes:
        name: a preset's or file's name, for people; it changes no pixel.
        ops: the operations, first applied first; at most one mixing op, the last.
        seed: of every random choice.
        user_code: the callable behind a `UserTransform`, when the user has named its file.
    """

    name: str = "none"
    ops: tuple[Op, ...] = ()
    seed: int = 0
    user_code: UserCode | None = None

    def __post_init__(self) -> None:
        check_order(self.ops)

    @classmethod
    def named(cls, text: str, *, seed: int = 0) -> ViewPolicy:
        """What `--augment` accepts: a preset, a FILE.toml, or FILE.py:factory for a transform of the user's own.

        Raises:
            ConfigError, NotFoundError: see `from_preset`, `from_toml` and `from_user`.
        """
        if is_user_factory(text):
            return cls.from_user(text, seed=seed)
        return cls.from_toml(text, seed=seed) if text.endswith(".toml") else cls.from_preset(text, seed=seed)

    @classmethod
    def from_preset(cls, name: str, *, seed: int = 0) -> ViewPolicy:
        """A policy by name: none, cifar, imagenet, imagenet-strong or patient.

        Raises:
            ConfigError: no such preset; the nearest names are given.
        """
        if name not in PRESETS:
            raise ConfigError(f"augment: unknown preset {name!r}", hint=did_you_mean(name, PRESETS))
        return cls(name=name, ops=PRESETS[name], seed=seed)

    @classmethod
    def from_toml(cls, path: str | Path, *, seed: int = 0) -> ViewPolicy:
        """A policy from a TOML file: an optional `name` and one `[[ops]]` table for each op, in order.

        Raises:
            NotFoundError: no such file.
            ConfigError: not TOML, an unknown key or op, or a parameter outside its range.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"augment: there is no file {path}", hint=f"presets are {', '.join(PRESETS)}")
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a TOML file: {error}") from error
        unknown = sorted(set(table) - {"name", "ops"})
        if unknown:
            raise ConfigError(f"{path}: unknown key {unknown[0]!r}; expected name and [[ops]]")
        name, ops = table.get("name", path.stem), table.get("ops", [])
        if not isinstance(name, str) or not isinstance(ops, list):
            raise ConfigError(f'{path}: expected name = "..." and [[ops]] tables')
        code = None
        for i, op in enumerate(ops):
            if isinstance(op, dict) and op.get("op") == UserTransform.NAME:
                if set(op) != {"op", "code"}:
                    raise ConfigError(f'{path}: ops[{i}]: a user-transform takes code = "FILE.py:factory" alone')
                user = cls.from_user(str(path.parent / str(op["code"])))
                ops[i], code = op_to_json(user.ops[0]), user.user_code
        parsed = tuple(op_from_json(op, where=f"{path}: ops[{i}]") for i, op in enumerate(ops))
        return cls(name=name, ops=parsed, seed=seed, user_code=code)

    @classmethod
    def from_user(cls, source: str, *, seed: int = 0) -> ViewPolicy:
        """A policy of one transform of the user's own: `factory()` returns a callable `(image, generator) -> image`.

        The image is uint8 (C, H, W), the generator a seeded `torch.Generator` on the CPU, the only randomness the
        callable may use; the result is uint8 (C, h, w).

        Raises:
            ConfigError: the form of `source`, or the factory gives no callable.
            NotFoundError: there is no such file.
        """
        factory = find_factory(source)
        code = factory.call()
        if not callable(code):
            raise ConfigError(f"{source}: expected a callable (image, generator) -> image, found {type(code).__name__}")
        op = UserTransform(code=f"{factory.path.name}:{factory.function}", digest=factory.code_digest)
        return cls(name=op.code, ops=(op,), seed=seed, user_code=code)

    @classmethod
    def from_spec(cls, spec: ViewSpec, *, user: ViewPolicy | None = None) -> ViewPolicy:
        """The policy a manifest describes.

        Args:
            user: what the user named with --augment; needed only for views of a user's transform, because a store
                never names code to run.

        Raises:
            ConfigError: the spec names an op or a parameter this version does not know.
            IncompatibleError: the user's transform was not given, or its file has changed since the store was made.
        """
        ops = tuple(op_from_json(op, where=f"views.ops[{i}]") for i, op in enumerate(spec.ops))
        wanted = next((op for op in ops if isinstance(op, UserTransform)), None)
        code = _given_code(wanted, user) if wanted else None
        return cls(name=spec.policy, ops=ops, seed=spec.seed, user_code=code)

    def spec(
        self, *, libraries: Mapping[str, Any] | None = None, canaries: tuple[Mapping[str, Any], ...] = ()
    ) -> ViewSpec:
        """The policy as the manifest keeps it."""
        ops = tuple(op_to_json(op) for op in self.ops)
        return ViewSpec(policy=self.name, ops=ops, seed=self.seed, libraries=libraries or {}, canaries=canaries)

    @property
    def is_random(self) -> bool:
        """Whether there is anything to draw and store."""
        return bool(self.ops)

    @property
    def mix_op(self) -> MixOp | None:
        """The mixing op, if the policy has one."""
        return self.ops[-1] if self.ops and isinstance(self.ops[-1], MixOp) else None

    @property
    def squashes(self) -> bool:
        """Whether a view is a free box that a model resizes to exactly its input size, aspect ratio and all.

        A model's own "resize the shorter side, crop the centre" would cut the box again.
        """
        return any(isinstance(op, RandomResizedCrop) and not op.size for op in self.ops)

    @property
    def is_batched(self) -> bool:
        """Whether `apply_batch` runs without a loop over images, on any device."""
        return all(isinstance(op, (*BATCHED, MixOp)) for op in self.ops)

    @property
    def width(self) -> int:
        """W, bytes per row of packed outcomes."""
        return outcome_dtype(self.ops).itemsize

    def sample(self, rows: NDArray[np.int64], view: int, *, sizes: NDArray[np.int64], num_rows: int) -> Outcomes:
        """Draw the outcomes of some rows of one view: a pure function of (ops, seed, row, view).

        Args:
            rows: (n,) int64 in [0, num_rows).
            sizes: (n, 2) heights and widths of the source images in pixels.

        Raises:
            ConfigError: something is out of range.
        """
        return sample_outcomes(self.ops, self.seed, rows, view, sizes=sizes, num_rows=num_rows)

    def pack(self, outcomes: Outcomes) -> NDArray[np.uint8]:
        """(n,) outcomes as (n, W) uint8, the store's `view_params` column; no number changes."""
        if not self.width:
            return np.zeros((len(outcomes), 0), dtype=np.uint8)
        return np.ascontiguousarray(outcomes).view(np.uint8).reshape(len(outcomes), self.width)

    def unpack(self, packed: NDArray[np.uint8]) -> Outcomes:
        """(n, W) uint8 back to (n,) outcomes.

        Raises:
            IncompatibleError: another width: the bytes belong to another policy.
        """
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != self.width:
            raise IncompatibleError(
                f"view parameters: policy {self.name!r} has (n, {self.width}) uint8, "
                f"found {packed.dtype} {packed.shape}"
            )
        if not self.width:
            return np.zeros(len(packed), dtype=outcome_dtype(self.ops))
        return np.ascontiguousarray(packed).view(outcome_dtype(self.ops)).reshape(len(packed))

    def apply(self, image: Tensor, outcome: np.void) -> Tensor:
        """The view of one image, before any mixing (see `mixing.mix_batch`).

        Args:
            image: uint8 (C, H, W), never changed; the result may share its memory when nothing had to be done.
            outcome: one element of `sample` or `unpack`.

        Returns:
            uint8 (C, h, w), contiguous.
        """
        if self.ops:
            check_images(image, dims=3, ops=self.ops)
        for position, op in enumerate(self.ops):
            image = apply_op(op, image, outcome, position, self.user_code)
        return image.contiguous()

    def apply_batch(self, images: Tensor, outcomes: Outcomes) -> Tensor:
        """The views of a batch of equal-sized images: the same pixels as `apply` one by one.

        Args:
            images: uint8 (B, C, H, W) on any device; pad-crop and flip run there without a loop over images.

        Returns:
            uint8 (B, C, h, w) on the same device.

        Raises:
            ConfigError: the views differ in size (a free crop box): apply them one by one and let the model resize.
        """
        if not self.ops:
            return images
        check_images(images, dims=4, ops=self.ops)
        if len(outcomes) != len(images):
            raise ConfigError(f"apply_batch: {len(images)} images but {len(outcomes)} outcomes")
        if self.squashes:
            raise ConfigError(
                f"policy {self.name!r} cuts boxes of different sizes, which make no batch before the model's resize",
                hint="use ViewPolicy.apply for each image, or give random-resized-crop a size",
            )
        for position, op in enumerate(self.ops):
            if isinstance(op, BATCHED):
                images = apply_op_batch(op, images, outcomes, position)
            elif not isinstance(op, MixOp):
                views = [
                    apply_op(op, image, outcome, position, self.user_code)
                    for image, outcome in zip(images, outcomes, strict=True)
                ]
                images = torch.stack(views)
        return images.contiguous()


def _given_code(wanted: UserTransform, user: ViewPolicy | None) -> UserCode:
    given = next((op for op in user.ops if isinstance(op, UserTransform)), None) if user else None
    if user is None or user.user_code is None or given is None:
        raise IncompatibleError(f"the store's views use {wanted.code}, which was not given", hint=user_hint(wanted))
    if given.digest != wanted.digest:
        raise IncompatibleError(
            f"{wanted.code}: expected sha256 {wanted.digest:.12}, found {given.digest:.12}",
            hint="give the file as it was when the store was made, or dump a new store",
        )
    return user.user_code
