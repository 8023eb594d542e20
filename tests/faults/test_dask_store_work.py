"""Store work on a real local Dask cluster: the results of one process; workers and the scheduler are killed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from kdcache.derive import DeriveConfig, derive
from kdcache.errors import RemoteError
from kdcache.join import JoinConfig, join
from kdcache.merge import MergeConfig, merge
from kdcache.parallel.store_arrays import to_dask
from kdcache.stats import StoreStats, store_stats
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from kdcache.workers.store_work import push, verify
from kdcache.workers.tasks import Workforce, in_order
from tests.faults.test_dask_dump import Cluster
from tests.logit_store import random_logits, write_logit_store
from tests.store_cases import manifest_of, store_bytes
from tests.unit.workers.test_filling import make
from tests.unit.workers.work import die, echo, note_and_wait

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with one worker of one thread."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        cluster.add_worker()
        yield cluster


def figures(stats: StoreStats) -> StoreStats:
    return dataclasses.replace(stats, seconds=0.0, rows_per_second=0.0)


def test_every_command_gives_what_one_process_gives(
    s3_url: str, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, labels = random_logits(700, 12)
    views = [first, first + random_logits(700, 12, seed=3)[0]]
    write_logit_store(tmp_path / "a", views, labels, topk=5)
    write_logit_store(tmp_path / "b", [view * 1.5 for view in views], labels, topk=4, source="other")
    monkeypatch.chdir(tmp_path)  # the cluster's workers run elsewhere
    force = Workforce(dask=cluster.address)
    alone, shared = store_stats("a"), store_stats("a", force=force)
    assert figures(alone) == figures(shared)
    assert np.array_equal(alone.class_means, shared.class_means)  # type: ignore[arg-type]
    assert dataclasses.replace(verify("a", deep=True, force=force), location="") == dataclasses.replace(
        verify_store("a", deep=True), location=""
    )
    part = {"store": "a", "topk": 3, "rows": (100, 650), "class_mean": 2.0}
    derive(DeriveConfig(out="part", **part))  # type: ignore[arg-type]
    derive(DeriveConfig(out="shared", dask=cluster.address, **part))  # type: ignore[arg-type]
    assert store_bytes(tmp_path / "shared") == store_bytes(tmp_path / "part")
    one = merge(MergeConfig(stores=("a", "b"), out="mean"))
    many = merge(MergeConfig(stores=("a", "b"), out="shared-mean", dask=cluster.address))
    assert (one.bound_mean, one.bound_max, one.root_digest) == (many.bound_mean, many.bound_max, many.root_digest)
    assert store_bytes(tmp_path / "shared-mean") == store_bytes(tmp_path / "mean")
    for start, stop in ((0, 300), (300, 700)):
        derive(DeriveConfig(store="a", out=f"rows-{start}", rows=(start, stop)))
    join(JoinConfig(stores=("rows-0", "rows-300"), out="joined"))
    join(JoinConfig(stores=("rows-0", "rows-300"), out="shared-joined", dask=cluster.address))
    assert store_bytes(tmp_path / "shared-joined") == store_bytes(tmp_path / "joined")
    push("a", "copy", force=force)
    assert store_bytes(tmp_path / "copy") == store_bytes(tmp_path / "a")
    push("a", s3_url, force=force)
    index = np.stack([open_reader("a").view(view).topk_index[:, 0] for view in range(2)])
    expected = (index == open_reader("a").labels).mean(axis=0).sum()
    with distributed.Client(cluster.address, set_as_default=False) as client:
        for place in ("a", s3_url):  # the workers fetch a remote store's blocks themselves
            arrays = to_dask(place)
            right = client.compute((arrays.index[..., 0] == arrays.label).mean(axis=0).sum()).result(timeout=60)
            assert right == pytest.approx(expected)


def test_killed_workers_cost_their_task_or_their_block(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_worker()
    cluster.add_worker()
    force = Workforce(dask=cluster.address)
    for name in ("tasks", "blocks"):
        (tmp_path / name).mkdir()
    orders = [{"number": number, "folder": str(tmp_path / "tasks"), "deaths": 1} for number in range(12)]
    assert list(in_order(force, die, orders)) == [str(number).encode() for number in range(12)]
    assert sum(worker.poll() is not None for worker in cluster.workers) == 1
    manifest = manifest_of(rows=1000, views=2, classes=40)
    make(tmp_path / "shared", manifest, force, folder=str(tmp_path / "blocks"), deaths=1)
    make(tmp_path / "straight", manifest, Workforce())
    assert sum(worker.poll() is not None for worker in cluster.workers) == 2
    assert store_bytes(tmp_path / "shared") == store_bytes(tmp_path / "straight")


def test_an_answer_that_is_lost_with_its_worker_before_its_turn_is_made_again(cluster: Cluster, tmp_path: Path) -> None:
    """Answers wait for those before them on the worker that gave them; it is killed while the first is not there."""
    cluster.add_worker()
    orders = [{"number": number, "folder": str(tmp_path)} for number in range(2)]
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(list, in_order(Workforce(dask=cluster.address), note_and_wait, orders))
        while not all((tmp_path / f"did-{number}").exists() for number in (0, 1)):
            assert not answers.done()
            time.sleep(0.05)
        first, holder = ((tmp_path / f"did-{number}").read_text().strip() for number in (0, 1))
        assert holder != first
        time.sleep(1)  # until the scheduler has heard that it is done; too early, and the task is simply given again
        next(worker for worker in cluster.workers if worker.pid == int(holder)).kill()
        time.sleep(1)  # until the client has heard that it is lost
        (tmp_path / "end").touch()
        assert answers.result(timeout=120) == [b"0", b"1"]
    assert (tmp_path / "did-1").read_text().split() == [holder, first]


def test_a_lost_scheduler_is_one_error(cluster: Cluster) -> None:
    orders = ({"number": number, "seconds": 0.2} for number in range(10_000))
    answers = in_order(Workforce(dask=cluster.address), echo, orders)
    assert next(answers) == b"0"
    cluster.scheduler.kill()
    with pytest.raises(RemoteError, match="the Dask scheduler was lost; nothing was changed") as caught:
        for _ in answers:
            pass
    assert "the same command" in caught.value.hint
