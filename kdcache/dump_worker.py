"""A worker of a shared dump: build the teacher once, join the store, ask about blocks it can claim until none is left.

The same work in a process of `--workers`, in a rank under torchrun and in a task on a Dask cluster.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.source import DataSource
from kdcache.devices import choose_device
from kdcache.dump_plan import DumpConfig, DumpPlan, load_policy, teacher_choice
from kdcache.errors import ConfigError, IncompatibleError, LockedError
from kdcache.specs import ViewSpec, store_key
from kdcache.store.files import local_path
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.lease import holder_of
from kdcache.teacher_run import TeacherRun
from kdcache.teachers import TeacherRequest
from kdcache.version import __version__
from kdcache.views.policy import ViewPolicy
from kdcache.worker_processes import work_once
from kdcache.workers.joining import JOIN_SECONDS, absolute_location, is_finished, join
from kdcache.workers.reports import reported


@dataclass(frozen=True, kw_only=True)
class WorkOrder:
    """What a worker is told.

    Attributes:
        config: the dump's request; paths must mean the same where the worker runs.
        location: the store, an absolute path.
        run: names the dump to join.
        device: where this worker's teacher runs.
        threads: of the CPU; 0 leaves torch's own choice.
        patience: seconds to wait for the coordinator; 0 waits for ever (then something else ends the worker).
        version: of kdcache.
    """

    config: DumpConfig
    location: str
    run: str
    device: str
    threads: int = 0
    patience: float = 0.0
    version: str = __version__

    def to_text(self) -> str:
        """One line of JSON."""
        root = self.config.data_root
        config = {**asdict(self.config), "data_root": None if root is None else str(root)}
        return json.dumps({**asdict(self), "config": config})

    @classmethod
    def from_text(cls, text: str) -> WorkOrder:
        """The order of one line of JSON."""
        value: dict[str, Any] = json.loads(text)
        config = value.pop("config")
        if value["version"] != __version__:
            raise ConfigError(
                f"a worker runs kdcache {__version__}, the dump was started with {value['version']}",
                hint="install the same version everywhere",
            )
        root = config.pop("data_root")
        return cls(config=DumpConfig(**config, data_root=None if root is None else Path(root)), **value)


def work(
    order: WorkOrder, source: DataSource, policy: ViewPolicy | None, request: TeacherRequest, key: str
) -> tuple[JoinedWriter, TeacherRun] | None:
    """Build the teacher and join the dump; None when it was finished meanwhile.

    Raises:
        IncompatibleError: the store is of another teacher, data set or views than this worker sees.
        LockedError: no coordinator came within the order's patience.
    """
    teacher = request.load(source, choose_device(order.device))
    writer = join(order.location, order.run, patience=order.patience)
    if writer is None:
        return None
    try:
        if writer.manifest.store_key != key:
            raise IncompatibleError(
                f"{order.location}: this worker sees another teacher, data set or views (key {key[:12]}) than the "
                f"coordinator (key {writer.manifest.store_key[:12]})",
                hint="give every worker the same files: data set, weights, teacher file and versions",
            )
        run = TeacherRun.for_store(writer.manifest, source, teacher, policy, decode_workers=order.config.decode_workers)
    except BaseException:
        writer.close()
        raise
    return writer, run


def help_first_rank(config: DumpConfig, plan: DumpPlan, run: str, device: str) -> int:
    """Do the work of a rank other than the first under torchrun, until the first has sealed the store; rows committed.

    Raises:
        LockedError: the first rank ended without sealing.
    """
    order = WorkOrder(config=config, location=absolute_location(plan.location), run=run, device=device)
    joined = work(order, plan.source, plan.policy, plan.teacher, plan.key)
    rows = 0 if joined is None else _fill(*joined)
    while not is_finished(order.location):
        if holder_of(local_path(order.location)) is None and not is_finished(order.location):
            raise LockedError(
                f"{order.location}: the first rank ended before it sealed the store",
                hint="its own message says why; the same command continues",
            )
        time.sleep(JOIN_SECONDS)
    return rows


def do_order(order: WorkOrder) -> int:
    """Do a worker's whole work; the rows it committed."""
    if order.threads:
        torch.set_num_threads(order.threads)
    config = order.config
    source = open_dataset(config.dataset, split=config.split, root=config.data_root)
    data = dataset_spec(source, card=config.dataset)
    policy = load_policy(config.augment, seed=config.view_seed)
    request = TeacherRequest.resolve(teacher_choice(config), source)
    key = store_key(data, request.spec, policy.spec() if policy is not None else ViewSpec())
    joined = work(order, source, policy, request, key)
    if joined is None:
        return 0
    return _fill(*joined)


def report_of(text: str) -> str:
    """Do the order of one line of JSON; the report of what became of it. Never raises. Runs on workers."""
    return reported(lambda: do_order(WorkOrder.from_text(text)))


def main() -> None:
    """A worker process of `ProcessTeam`."""
    work_once(report_of)


def for_elsewhere(config: DumpConfig) -> DumpConfig:
    """The request with every path that exists here made absolute, for workers in other folders."""
    root = config.data_root or (Path(os.environ["KDCACHE_DATA_ROOT"]) if os.environ.get("KDCACHE_DATA_ROOT") else None)
    default = Path("data") / "cache"
    if root is None and default.exists():
        root = default
    return replace(
        config,
        data_root=None if root is None else root.expanduser().resolve(),
        dataset=_absolute(config.dataset),
        teacher=_absolute(config.teacher),
        weights=_absolute(config.weights),
        augment=_absolute(config.augment),
    )


def _absolute(name: str) -> str:
    path, colon, function = name.rpartition(":")
    file = Path(path if path.endswith(".py") and colon else name).expanduser()
    if not name or not file.is_file():
        return name
    return f"{file.resolve()}:{function}" if path.endswith(".py") and colon else str(file.resolve())


def _fill(writer: JoinedWriter, run: TeacherRun) -> int:
    rows: list[int] = []
    with writer:
        run.fill(
            writer,
            batch_size=int(writer.manifest.creator["batch_size"]),
            on_block=lambda block: rows.append(block.rows),
        )
    return sum(rows)
