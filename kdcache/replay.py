"""`verify --replay` and `--views`: ask the teacher again about sampled rows, or draw the views again, and compare.

The only checks that need more than the store: the teacher and the data set, or the data set alone. A "no" is an answer
(exit code 1), not an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.identity import check_identity
from kdcache.datasets.source import DataSource
from kdcache.devices import choose_device
from kdcache.dump_plan import DumpConfig, load_policy, teacher_choice
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.inputs import example_tensor
from kdcache.loader.target_store import TargetStore, open_store
from kdcache.loader.tokens import context_of
from kdcache.store.features import feature_columns
from kdcache.targets.soft import SoftTargets
from kdcache.teacher_run import TeacherRun
from kdcache.teachers import TeacherRequest
from kdcache.user_code import is_user_factory
from kdcache.views.canary import check_canaries, check_sampling
from kdcache.views.policy import ViewPolicy

# Total variation that float16, --precision compact and another machine's arithmetic stay far below (1e-3 is typical);
# another teacher, preprocessing or row is far above it.
LARGEST_DISTANCE = 0.02
# Relative L2 distance of a row's features: float16 rounds to 3e-4; another row or layer is tenths away.
LARGEST_FEATURE_DISTANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What asking again said.

    Attributes:
        rows: how many (row, view) pairs were asked.
        mean_distance, max_distance: total variation between stored and fresh probabilities of the fresh top k.
        different: the (row, view) pairs further apart than the tolerance.
        features: by feature array, the largest relative L2 distance of a row's stored values from its fresh ones.
        views_checked: canary views replayed; 0 when the store has none.
        warning: what differs harmlessly, for the screen.
    """

    rows: int = 0
    mean_distance: float = 0.0
    max_distance: float = 0.0
    different: tuple[tuple[int, int], ...] = ()
    features: Mapping[str, float] = field(default_factory=dict)
    views_checked: int = 0
    warning: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything asked again came out the same."""
        return not self.different and not self.other_features

    @property
    def other_features(self) -> tuple[str, ...]:
        """Feature arrays that hold something else than what passes inside the teacher now."""
        return tuple(name for name, largest in self.features.items() if not largest <= LARGEST_FEATURE_DISTANCE)

    def __str__(self) -> str:
        parts = []
        if self.rows:
            parts.append(
                f"{self.rows} rows asked again: mean distance {self.mean_distance:.1e}, largest {self.max_distance:.1e}"
            )
        for name, largest in self.features.items():
            parts.append(f"{name}: largest distance {largest:.1e}")
        if self.other_features:
            parts.append(f"{', '.join(self.other_features)} differ by more than {LARGEST_FEATURE_DISTANCE}")
        if self.views_checked:
            parts.append(f"{self.views_checked} canary views replayed: the same pixels")
        if self.different:
            shown = ", ".join(f"row {row} view {view}" for row, view in self.different[:8])
            parts.append(f"{len(self.different)} differ by more than {LARGEST_DISTANCE}: {shown}")
        return "; ".join([*parts, *([self.warning] if self.warning else [])])


def replay_rows(location: str, count: int, config: DumpConfig) -> ReplayReport:
    """Run the teacher on sampled rows and compare its opinion with the stored one.

    Args:
        location: a sealed store.
        count: rows to ask, spread evenly; views in turn.
        config: names teacher, weights, data set and device as `dump_teacher` takes them; "" is the store's card.

    Raises:
        NotFoundError, ConfigError: teacher or data are not there.
        IncompatibleError: another teacher, other data or other views than the store's.
    """
    store = open_store(location)
    source = checked_source(store, config)
    config = replace(
        config,
        dataset=config.dataset or store.manifest.dataset.card,
        amp=_amp(store),
        context=context_of(store.manifest.teacher.preprocessing) or None,
    )
    maker = store.manifest.teacher
    if not config.teacher:
        if is_user_factory(maker.source):
            raise ConfigError(
                f"{location}: its teacher is code of its maker's own ({maker.source}); expected that file",
                hint=f"kdcache verify {location} --replay N --teacher PATH/TO/{maker.source} --weights FILE",
            )
        config = replace(config, teacher=maker.source)
    request = TeacherRequest.resolve(teacher_choice(config), source)
    stored, given = maker.identity(), request.spec.identity()
    for name in stored:
        if stored[name] != given[name]:
            raise IncompatibleError(
                f"{location}: the store's teacher has {name} {stored[name]!r:.80}, the one given {given[name]!r:.80}",
                hint="name the teacher the store was made with: --teacher SOURCE --weights FILE",
            )
    policy = views_of(store, config)
    if policy is not None and (elsewhere := _drawn_elsewhere(store, policy, len(source))):
        raise IncompatibleError(
            f"{location}: {elsewhere}; the teacher would be asked about other views than it was",
            hint="kdcache verify PARENT --replay N of the stores it was made from",
        )
    teacher = request.load(source, choose_device(config.device))
    run = TeacherRun(
        source,
        teacher,
        store.manifest.codec,
        policy,
        features=[column.field for column in feature_columns(store.manifest)],
        decode_workers=config.decode_workers,
    )
    return _compare(store, run, sampled(store, count), batch_size=config.batch_size)


def replay_views(location: str, config: DumpConfig, *, allow_drift: bool = False) -> ReplayReport:
    """Draw the recorded views again, without a teacher, and compare outcomes and pixels with the canaries.

    Raises:
        IncompatibleError: the views drifted (one line for each canary), or the data is not the store's.
    """
    store = open_store(location)
    source = checked_source(store, config)
    policy, spec = views_of(store, config), store.manifest.views
    if policy is None or not spec.canaries:
        return ReplayReport(warning="the store has no augmented views: there is nothing to replay")
    elsewhere = _drawn_elsewhere(store, policy, len(source))
    report = check_canaries(policy, spec, lambda row: example_tensor(source, row), len(source), allow_drift=allow_drift)
    warnings = [report.warning, f"{elsewhere}: replayed as recorded, not drawn again" if elsewhere else ""]
    return ReplayReport(views_checked=report.compared, warning="; ".join(filter(None, warnings)))


def _drawn_elsewhere(store: TargetStore, policy: ViewPolicy, num_rows: int) -> str:
    """Says that views were drawn by other row numbers than the rows have now; "" when they were drawn by these.

    Raises:
        IncompatibleError: they were drawn by these numbers (the store is nobody's part), but come out otherwise now.
    """
    manifest = store.manifest
    try:
        check_sampling(policy, manifest.views, num_rows)
    except IncompatibleError:
        if not manifest.parents:
            raise
        made = " and ".join(sorted({str(parent.get("relation")) for parent in manifest.parents}))
        return f"the store was {made} from others, whose row numbers its views were drawn by"
    return ""


def checked_source(store: TargetStore, config: DumpConfig) -> DataSource:
    """The store's data set, opened and checked row by row against it."""
    spec = store.manifest.dataset
    source = open_dataset(config.dataset or spec.card, split=spec.split, root=config.data_root)
    check_identity(source, spec, store.labels, store.row_digests)
    return source


def views_of(store: TargetStore, config: DumpConfig) -> ViewPolicy | None:
    """The policy that made the store's views; a user's transform must be named with --augment."""
    spec = store.manifest.views
    if not spec.ops:
        return None
    user = load_policy(config.augment, seed=spec.seed) if config.augment != "none" else None
    return ViewPolicy.from_spec(spec, user=user)


def sampled(store: TargetStore, count: int) -> list[tuple[int, NDArray[np.int64]]]:
    """(view, rows) pairs: `count` rows spread evenly over the data set, dealt out to the views."""
    rows = np.unique(np.linspace(0, store.num_rows - 1, min(count, store.num_rows)).astype(np.int64))
    dealt = [(view, rows[view :: store.num_views]) for view in range(store.num_views)]
    return [(view, part) for view, part in dealt if len(part)]


def distance(stored: SoftTargets, fresh: SoftTargets) -> Tensor:
    """(B,) half the sum over the fresh top k of |stored p - fresh p|; a class that is not stored counts as p = 0."""
    same = fresh.index[:, :, None] == stored.index[:, None, :]
    found = (same * stored.log_prob.exp()[:, None, :]).sum(dim=2)
    return (found - fresh.log_prob.exp()).abs().sum(dim=1) / 2


def feature_distance(stored: Tensor, fresh: Tensor) -> Tensor:
    """(B,) ||stored - fresh|| / ||fresh|| of each row's values (B, ...); the plain norm where fresh is all zero."""
    stored, fresh = stored.flatten(1).double(), fresh.flatten(1).double()
    norm = torch.linalg.vector_norm(fresh, dim=1)
    apart: Tensor = torch.linalg.vector_norm(stored - fresh, dim=1) / torch.where(norm > 0, norm, 1.0)
    return apart


def _compare(
    store: TargetStore, run: TeacherRun, asked: list[tuple[int, NDArray[np.int64]]], *, batch_size: int
) -> ReplayReport:
    distances, places = [], []
    largest = {column.field: 0.0 for column in feature_columns(store.manifest)}
    step = min(batch_size, max(1, 2**24 // store.topk**2))  # (B, k, k) stays small when all K are stored
    for view, rows in asked:
        batches = [rows[start : start + step] for start in range(0, len(rows), step)]
        for batch, fresh in zip(batches, run.encoded(batches, view=view), strict=True):
            distances.append(distance(store.targets(batch, view), fresh.targets().to("cpu")))
            places += [(int(row), view) for row in batch]
            for name, values in fresh.features.items():
                apart = feature_distance(store.features(name, batch, view), values.to("cpu"))
                largest[name] = max(largest[name], float(apart.max()))
    all_distances = torch.cat(distances)
    different = tuple(places[i] for i in torch.nonzero(all_distances > LARGEST_DISTANCE)[:, 0].tolist())
    return ReplayReport(
        rows=len(places),
        mean_distance=float(all_distances.mean()),
        max_distance=float(all_distances.max()),
        different=different,
        features=largest,
    )


def _amp(store: TargetStore) -> Literal["none", "bf16"]:
    return "bf16" if store.manifest.teacher.numeric_mode == "bfloat16" else "none"


def config_for_replay(
    *,
    dataset: str,
    data_root: Path | None,
    teacher: str,
    weights: str,
    augment: str,
    device: str,
    init_seed: int | None = None,
) -> DumpConfig:
    """The part of a `DumpConfig` that a replay uses; "" means what the store's card says."""
    return DumpConfig(
        dataset=dataset,
        data_root=data_root,
        teacher=teacher,
        weights=weights,
        augment=augment or "none",
        device=device,
        init_seed=init_seed,
    )
