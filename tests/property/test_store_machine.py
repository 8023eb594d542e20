"""A store against a model in memory, under any order of write, leave, kill, damage, resume, grow, seal and read."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from kdcache.errors import KdcacheError
from kdcache.specs import StoreManifest
from kdcache.store.blocks import BlockId, all_blocks
from kdcache.store.files import WORK_FOLDER
from kdcache.store.layout import layout_of
from kdcache.store.reader import open_reader
from kdcache.store.values import to_stored
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from tests.store_cases import columns_of, manifest_of, write_store

ROWS, CLASSES, TOPK = 520, 40, 3


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

    def manifest(self) -> StoreManifest:
        return manifest_of(rows=ROWS, classes=CLASSES, topk=TOPK, views=self.views)

    def expected(self, block: BlockId) -> dict[str, NDArray[Any]]:
        manifest = self.manifest()
        return to_stored(manifest, layout_of(manifest), block, columns_of(manifest, block))

    @precondition(lambda self: self.writer is None)
    @rule()
    def open(self) -> None:
        self.writer = StoreWriter.open(self.store, self.manifest())
        assert set(self.writer.pending) == set(all_blocks(self.manifest())) - self.committed
        if self.writer.pending:
            self.sealed_views = 0

    @precondition(lambda self: self.writer is not None and bool(self.writer.pending))
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
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule()
    def kill(self) -> None:
        """A writer that is gone without a word: the lease file stays, its process does not."""
        assert self.writer is not None
        lease = self.store / WORK_FOLDER / "lease.json"
        text = lease.read_text()
        self.writer.close()
        self.writer = None
        if (self.store / WORK_FOLDER).is_dir():
            lease.write_text(text.replace('"process_start": "', '"process_start": "0'))
            (self.store / "tail" / "c" / "0").mkdir(parents=True, exist_ok=True)
            (self.store / "tail" / "c" / "0" / "9.abc.partial").write_bytes(b"half")

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
        shutil.rmtree(self.folder, ignore_errors=True)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)
