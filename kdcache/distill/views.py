"""Which view of every example an epoch shows the student, and the proof that it is the one the teacher saw.

A store of views is replayed: the student adds nothing of its own. Over a store of plain examples the student may
augment by itself, which it is told the price of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from kdcache.datasets.source import DataSource
from kdcache.distill.config import DistillConfig
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.inputs import example_tensor, views_device
from kdcache.loader.target_store import TargetStore
from kdcache.models.preprocess import Preprocessing
from kdcache.progress import note
from kdcache.targets.method import Method
from kdcache.training.setup import random_augmentation
from kdcache.user_code import is_user_factory
from kdcache.views.canary import check_canaries, check_policy
from kdcache.views.mixing import mixes
from kdcache.views.policy import ViewPolicy
from kdcache.views.sampling import view_for_epoch


@dataclass(frozen=True, kw_only=True)
class ShownViews:
    """What the student sees.

    Attributes:
        policy: how views are made; None is the plain example.
        of_epoch: the view of an epoch (counted from 0).
        beside_epoch: the view that two-view methods see beside it: the next one by number, the first after the last.
        recorded: whether the outcomes are the store's; else the student draws its own.
        decides: what config.json keeps; settings at their defaults are left out.
    """

    policy: ViewPolicy | None
    of_epoch: Callable[[int], int]
    recorded: bool
    beside_epoch: Callable[[int], int] | None = None
    decides: Mapping[str, object] = field(default_factory=dict)


def shown_views(store: TargetStore, config: DistillConfig, augment: str | None) -> ShownViews:
    """The views of a request.

    Args:
        augment: the augmentation asked for, or the data card's default.

    Raises:
        ConfigError: an unknown policy or order, or an augmentation over a store that holds views already.
        IncompatibleError: more views than stored, or a user's transform that is not the store's.
    """
    spec, count = store.manifest.views, store.num_views
    of_epoch, shown, decides = _chosen(store, config)
    if not spec.ops:
        return ShownViews(
            policy=random_augmentation(augment, seed=config.seed), of_epoch=lambda epoch: epoch, recorded=False
        )
    given = _given_policy(config.augment, spec.seed)
    if config.augment not in (None, "", spec.policy) and (
        given is None or (_is_code(config) and not _needs_code(spec.ops))
    ):
        raise ConfigError(
            f"augment {config.augment!r}: {store.location} holds {count} views of {spec.policy!r}, "
            "and the student must see the pixels the teacher saw",
            hint="leave --augment out",
        )
    policy = ViewPolicy.from_spec(spec, user=given)
    if given is not None:
        check_policy(given, spec)
    return ShownViews(
        policy=policy,
        of_epoch=of_epoch,
        beside_epoch=lambda epoch: (of_epoch(epoch) + 1) % shown,
        recorded=True,
        decides=decides,
    )


def _given_policy(augment: str | None, seed: int) -> ViewPolicy | None:
    """What a file that was named says, to be compared with the store's views; a preset is compared by its name."""
    if augment is None or not (is_user_factory(augment) or augment.endswith(".toml")):
        return None
    return ViewPolicy.named(augment, seed=seed)


def _is_code(config: DistillConfig) -> bool:
    return config.augment is not None and is_user_factory(config.augment)


def check_replay(
    shown: ShownViews,
    store: TargetStore,
    source: DataSource,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    allow_drift: bool = False,
    targets_used: bool = True,
) -> None:
    """Replay the store's canary views where this run will make its views, whichever path made the store's.

    Args:
        preprocessing: the student's.
        device: where it is trained.
        allow_drift: say what drifted instead of refusing it.
        targets_used: whether the method learns from the store's targets; else no view can disagree with them.

    Raises:
        IncompatibleError: pixels drifted; one line for each canary that did.
    """
    spec = store.manifest.views
    if shown.recorded and shown.policy is not None and spec.canaries:
        report = check_canaries(
            shown.policy,
            spec,
            lambda row: example_tensor(source, row),
            store.num_rows,
            allow_drift=allow_drift,
            device=views_device(source, preprocessing, shown.policy, device),
        )
        if report.warning:
            note(report.warning)
    elif shown.policy is not None and targets_used:
        note(
            f"the student augments by itself ({shown.policy.name}), and the targets are of the plain examples: Beyer "
            "et al. 2022 (arXiv:2106.05237) found such fixed targets to be worse than views that teacher and student "
            "share; dump-teacher --augment ... --views V makes those"
        )


def check_mixing(store: TargetStore, method: Method, options: Mapping[str, object]) -> None:
    """Refuse a method that is not defined on the store's mixed views, or that needs more of them than is kept.

    Raises:
        IncompatibleError: with the reason.
    """
    manifest = store.manifest
    if not mixes(manifest.views):
        return
    method.on_mixed.check(method.name, options)
    built_on_label = method.on_mixed.each_label and bool(method.needs)
    if built_on_label and "partner_label_log_prob" not in manifest.codec.fields:
        raise IncompatibleError(
            f"method {method.name} needs 'partner_label_log_prob' of mixed views, which {store.location} does not hold",
            hint="dump the views again with kdcache dump-teacher, or use kd",
        )


def _chosen(store: TargetStore, config: DistillConfig) -> tuple[Callable[[int], int], int, Mapping[str, object]]:
    """Which stored view an epoch shows, of how many, and what to remember of that choice."""
    asked, order, stored, seed = config.views, config.view_order, store.num_views, config.seed
    if asked is not None and asked < 1:
        raise ConfigError(f"views: expected at least 1, found {asked}")
    if asked is not None and asked > stored:
        raise IncompatibleError(
            f"{store.location}: {asked} views asked for, the store holds {stored}",
            hint=f"use --views {stored} or less, or dump more with kdcache dump-teacher --views {asked}",
        )
    count = asked or stored
    view_for_epoch(0, count, order=order, seed=seed)  # an unknown order is refused here, not later
    decides: dict[str, object] = {}
    if count != stored:
        decides["views"] = count
    if order != "cycle":
        decides["view_order"] = order
    return lambda epoch: view_for_epoch(epoch, count, order=order, seed=seed), count, decides


def _needs_code(ops: tuple[Mapping[str, object], ...]) -> bool:
    return any(op.get("op") == "user-transform" for op in ops)
