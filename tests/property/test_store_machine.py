"""A store against a model in memory, under any order of write, leave, kill, damage, resume, grow, seal and read; and of
several workers that join, claim, commit, fall silent, are killed or outlive their coordinator.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from kdcache.errors import KdcacheError, LockedError, LostClaimError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, all_blocks
from kdcache.store.claims import CLAIMS_FOLDER
from kdcache.store.files import WORK_FOLDER
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.layout import layout_of
from kdcache.store.reader import open_reader
from kdcache.store.values import to_stored
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from tests.store_cases import columns_of, manifest_of, write_store

ROWS, CLASSES, TOPK = 520, 40, 3


@dataclass(eq=False)
class Worker:
    """A joined writer and what the model knows of it."""

    writer: JoinedWriter
    held: set[BlockId] = field(default_factory=set)
    lost: set[BlockId] = field(default_factory=set)  # taken over while it was silent, which it has not noticed


class StoreMachine(RuleBasedStateMachine):
    """The model: which blocks are committed, whether the store is sealed, and what each block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kdcache-machine-"))
        self.store = self.folder / "store"
        self.views = 1
        self.committed: set[BlockId] = set()
        self.sealed_views = 0
        self.writer: StoreWriter | None = None
        self.shared = False
        self.workers: list[Worker] = []
        self.orphans: list[Worker] = []  # their coordinator is gone
        self.dead: set[BlockId] = set()  # claimed by killed workers, not yet taken over
        self.unseen: set[BlockId] = set()  # committed by workers, not yet seen by the coordinator

    def manifest(self) -> StoreManifest:
        return manifest_of(rows=ROWS, classes=CLASSES, topk=TOPK, views=self.views)

    def expected(self, block: BlockId) -> dict[str, NDArray[Any]]:
        manifest = self.manifest()
        return to_stored(manifest, layout_of(manifest), block, columns_of(manifest, block))

    @precondition(lambda self: self.writer is None)
    @rule()
    def open(self) -> None:
        self.writer = StoreWriter.open(self.store, self.manifest())
        if self.writer.pending:
            self.dead.clear()
        assert set(self.writer.pending) == set(all_blocks(self.manifest())) - self.committed
        if self.writer.pending:
            self.sealed_views = 0

    @precondition(lambda self: self.writer is not None and not self.shared and bool(self.writer.pending))
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        assert self.writer is not None
        block = data.draw(st.sampled_from(self.writer.pending))
        self.writer.write_block(block, columns_of(self.manifest(), block))
        self.committed.add(block)

    @precondition(lambda self: self.writer is not None and bool(self.writer.pending))
    @rule()
    def write_nonsense(self) -> None:
        assert self.writer is not None
        block = self.writer.pending[0]
        columns = columns_of(self.manifest(), block)
        columns["topk_log_prob"] = columns["topk_log_prob"] * np.float32(np.nan)
        try:
            self.writer.write_block(block, columns)
        except KdcacheError:
            return
        raise AssertionError("NaN was stored")

    @precondition(lambda self: self.writer is not None)
    @rule()
    def leave(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.forget_writer()

    def forget_writer(self) -> None:
        self.writer = None
        self.shared = False
        self.unseen.clear()
        self.orphans += self.workers
        self.workers = []

    @precondition(lambda self: self.writer is not None)
    @rule()
    def kill(self) -> None:
        """A writer that is gone without a word: its lease and its session stay, its process does not."""
        assert self.writer is not None
        lease, session = self.store / WORK_FOLDER / "lease.json", self.store / WORK_FOLDER / "session.json"
        text, shared = lease.read_text(), session.read_bytes() if session.exists() else None
        self.writer.close()
        self.forget_writer()
        if (self.store / WORK_FOLDER).is_dir():
            if shared is not None:
                session.write_bytes(shared)
            lease.write_text(text.replace('"process_start": "', '"process_start": "0'))
            (self.store / "tail" / "c" / "0").mkdir(parents=True, exist_ok=True)
            (self.store / "tail" / "c" / "0" / "9.abc.partial").write_bytes(b"half")

    @precondition(lambda self: self.writer is not None and not self.shared and bool(self.writer.pending))
    @rule()
    def share(self) -> None:
        assert self.writer is not None
        self.writer.share("machine")
        self.shared = True

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def join(self) -> None:
        joined = JoinedWriter.join(self.store, run="machine", beat_seconds=1000) if self.store.exists() else None
        assert (joined is not None) == self.shared
        if joined is not None:
            self.workers.append(Worker(joined))

    def claimed(self) -> set[BlockId]:
        """Blocks that a claim file covers."""
        return self.dead.union(*(worker.held - worker.lost for worker in (*self.workers, *self.orphans)))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        view = data.draw(st.integers(0, self.views - 1))
        free = sorted({block for block in all_blocks(self.manifest()) if block.view == view} - self.committed)
        expected = next((block for block in free if block not in self.claimed() | worker.held), None)
        assert worker.writer.claim(view) == expected
        if expected is not None:
            worker.held.add(expected)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.held]))
        block = data.draw(st.sampled_from(sorted(worker.held)))
        worker.held.discard(block)
        columns = columns_of(self.manifest(), block)
        if block in worker.lost:
            worker.lost.discard(block)
            with pytest.raises(LostClaimError):
                worker.writer.write_block(block, columns)
            return
        worker.writer.write_block(block, columns)
        self.committed.add(block)
        self.unseen.add(block)

    @precondition(lambda self: any(worker.held - worker.lost for worker in self.workers))
    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        """A worker that does not beat for longer than is allowed: the coordinator takes its block over."""
        assert self.writer is not None
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.held - worker.lost]))
        block = data.draw(st.sampled_from(sorted(worker.held - worker.lost)))
        os.utime(self.claim_file(block), (1, 1))
        assert len(self.writer.take_over_dead_claims()) == 1 + len(self.dead)
        worker.lost.add(block)
        self.dead.clear()

    def claim_file(self, block: BlockId) -> Path:
        return self.store / CLAIMS_FOLDER / f"{block.view}-{block.block}.json"

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data(), gently=st.booleans())
    def lose_worker(self, data: st.DataObject, gently: bool) -> None:
        """A worker ends; killed, it leaves its claims and a half-written file behind."""
        worker = data.draw(st.sampled_from(self.workers))
        self.workers.remove(worker)
        kept = {} if gently else {block: self.claim_file(block).read_text() for block in worker.held - worker.lost}
        worker.writer.close()
        for block, text in kept.items():
            self.claim_file(block).write_text(json.dumps({**json.loads(text), "process_start": "0"}))
            half = self.store / "tail" / "c" / str(block.view) / str(block.block) / "0.abc.partial"
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(b"half")
        self.dead |= set(kept)

    @precondition(lambda self: self.shared)
    @rule()
    def look(self) -> None:
        """The coordinator sees what was committed, and frees the blocks of the dead."""
        assert self.writer is not None
        assert set(self.writer.refresh()) == self.unseen
        assert len(self.writer.take_over_dead_claims()) == len(self.dead)
        self.unseen.clear()
        self.dead.clear()

    @precondition(lambda self: bool(self.orphans))
    @rule()
    def orphan_notices(self) -> None:
        """A worker that outlived its coordinator commits nothing."""
        orphan = self.orphans.pop()
        for block in orphan.held:
            with pytest.raises(LockedError):
                orphan.writer.write_block(block, columns_of(self.manifest(), block))
        orphan.writer.close()

    @precondition(lambda self: self.writer is None and bool(self.committed))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.committed)))
        name = data.draw(st.sampled_from(["tail", "topk_index"]))
        path = self.store / name / "c" / str(block.view) / str(block.block) / "0"
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(content))
        self.committed.discard(block)
        assert verify_store(self.store).exit_code == 4

    @precondition(lambda self: self.writer is not None and not self.writer.pending)
    @rule()
    def seal(self) -> None:
        assert self.writer is not None
        assert self.writer.seal().complete
        self.sealed_views = self.views
        self.leave()
        assert not list(self.store.rglob("*.partial"))

    @precondition(lambda self: self.writer is None and self.views < 3)
    @rule()
    def grow(self) -> None:
        self.views += 1

    def is_sound(self) -> bool:
        """Whether the store must be readable: sealed, and nothing of it damaged since."""
        blocks = {block for block in all_blocks(self.manifest()) if block.view < self.sealed_views}
        return bool(blocks) and blocks <= self.committed

    @precondition(lambda self: self.writer is None and self.store.exists())
    @rule()
    def read(self) -> None:
        if not self.is_sound():
            with pytest.raises(KdcacheError) as caught:
                self.compare_every_block()
            assert caught.value.exit_code == (4 if self.sealed_views else 3)
            return
        self.compare_every_block()

    def compare_every_block(self) -> None:
        reader = open_reader(self.store)
        for view in range(reader.manifest.num_views):
            for block, columns in reader.blocks(view):
                wanted = self.expected(block)
                assert all((columns[name] == wanted[name]).all() for name in wanted)

    @precondition(lambda self: self.writer is None and self.is_sound())
    @rule()
    def equals_a_straight_dump(self) -> None:
        found = open_reader(self.store).manifest
        wanted = manifest_of(rows=ROWS, classes=CLASSES, topk=TOPK, views=self.sealed_views)
        straight = write_store(self.folder / "straight", wanted, quality={})
        shutil.rmtree(self.folder / "straight")
        assert found.root_digest == straight.root_digest

    @invariant()
    def never_sealed_by_accident(self) -> None:
        if (
            self.store.exists()
            and not self.sealed_views
            and self.writer is None
            and (self.store / "zarr.json").exists()
        ):
            assert verify_store(self.store).exit_code in (3, 4)

    def teardown(self) -> None:
        if self.writer is not None:
            self.writer.close()
        for worker in (*self.workers, *self.orphans):
            worker.writer.close()
        shutil.rmtree(self.folder, ignore_errors=True)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


@pytest.mark.slow
class TestManyStores(StoreMachine.TestCase):  # type: ignore[misc]
    """The same machine for two minutes."""

    settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
