"""Several writers of one store: they share the blocks, follow their coordinator, and what they write is one dump."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kdcache.errors import ChecksumError, CorruptStoreError, LockedError, LostClaimError
from kdcache.store.blocks import BlockId
from kdcache.store.claims import CLAIMS_FOLDER, claimed_places
from kdcache.store.joined_writer import JoinedWriter
from kdcache.store.ledger import LEDGER_FOLDER
from kdcache.store.verify import verify_store
from kdcache.store.writer import StoreWriter
from tests.store_cases import columns_of, manifest_of, store_bytes, write_store

MANIFEST = manifest_of(rows=1200, views=2, classes=40)


def join(store: Path, run: str = "here") -> JoinedWriter:
    worker = JoinedWriter.join(store, run=run, beat_seconds=100)
    assert worker is not None
    return worker


def write_next(worker: JoinedWriter) -> BlockId | None:
    """Claim and write one block, the way the dump does."""
    for view in worker.views_left():
        block = worker.claim(view)
        if block is not None:
            worker.write_block(block, columns_of(MANIFEST, block))
            return block
    return None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_workers_writes_the_same_store(tmp_path: Path, count: int) -> None:
    straight = write_store(tmp_path / "straight", MANIFEST)
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        workers = [join(tmp_path / "s") for _ in range(count)]
        seen: list[BlockId] = []
        while any(write_next(worker) for worker in workers):
            seen += coordinator.refresh()
        assert len(seen) == len(set(seen)) == 10
        assert not coordinator.pending
        assert not any(worker.views_left() for worker in workers)
        for worker in workers:
            worker.close()
        assert coordinator.seal(quality={"top1": 0.5}).root_digest == straight.root_digest
    assert store_bytes(tmp_path / "s") == store_bytes(tmp_path / "straight")
    assert not (tmp_path / "s" / ".kdcache").exists()


def test_only_workers_of_this_dump_join_and_only_while_it_is_shared(tmp_path: Path) -> None:
    store = tmp_path / "s"
    with StoreWriter.open(store, MANIFEST) as coordinator:
        assert JoinedWriter.join(store, run="here") is None
        coordinator.share("here")
        assert JoinedWriter.join(store, run="elsewhere") is None
        join(store).close()
        with pytest.raises(LockedError, match="is writing this store"):
            StoreWriter.open(store, MANIFEST)
    assert JoinedWriter.join(store, run="here") is None


def test_two_workers_never_hold_the_same_block(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        one, two = join(tmp_path / "s"), join(tmp_path / "s")
        mine, yours = [one.claim(0) for _ in range(3)], [two.claim(0) for _ in range(3)]
        assert [block and block.block for block in mine + yours] == [0, 1, 2, 3, 4, None]
        assert one.views_left() == (0, 1)  # view 0: those of the other one
        assert mine[1] is not None
        one.release(mine[1])
        assert two.claim(0) == mine[1]
        one.close()
        assert two.claim(0) == mine[0]
        two.close()
        assert not claimed_places(tmp_path / "s")


def test_what_is_left_can_be_asked_while_the_writing_thread_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        worker = join(tmp_path / "s")
        held = [worker.claim(0) for _ in range(3)]
        assert None not in held
        holds = worker._claims.holds

        def committed_meanwhile(block: BlockId) -> bool:  # what `write_block` does last, in another thread
            worker._forget(block.view, block.block)
            return holds(block)

        monkeypatch.setattr(worker._claims, "holds", committed_meanwhile)
        assert worker.views_left() == (0, 1)
        worker.close()


def test_a_block_that_was_lost_can_be_claimed_again_by_whoever_lost_it(tmp_path: Path) -> None:
    """Its files were taken away, but nobody took the claim: it must not stay claimed by one who does not work on it."""
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        worker = join(tmp_path / "s")
        block = worker.claim(0)
        assert block is not None
        (tmp_path / "s" / LEDGER_FOLDER).rename(tmp_path / "away")
        with pytest.raises(LostClaimError):
            worker.write_block(block, columns_of(MANIFEST, block))
        (tmp_path / "away").rename(tmp_path / "s" / LEDGER_FOLDER)
        assert worker.claim(0) == block
        worker.close()


def test_a_committed_block_is_not_claimed_again(tmp_path: Path) -> None:
    write_store(tmp_path / "s", MANIFEST, blocks=4)
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        one, two = join(tmp_path / "s"), join(tmp_path / "s")
        assert write_next(one) == BlockId(0, 4, 1024, 1200)
        assert two.views_left() == (1,)
        assert two.claim(0) is None
        one.close()
        two.close()


def test_a_worker_ends_when_its_coordinator_ends(tmp_path: Path) -> None:
    coordinator = StoreWriter.open(tmp_path / "s", MANIFEST)
    coordinator.share("here")
    worker = join(tmp_path / "s")
    block = worker.claim(0)
    assert block is not None
    coordinator.close()
    with pytest.raises(LockedError, match="coordinates the writing of this store has ended"):
        worker.write_block(block, columns_of(MANIFEST, block))
    worker._look()
    for ask in (worker.views_left, lambda: worker.claim(0)):
        with pytest.raises(LockedError, match="coordinates the writing of this store has ended") as caught:
            ask()
        assert caught.value.exit_code == 6
    worker.close()
    assert verify_store(tmp_path / "s").blocks_checked == 0


def test_a_worker_of_an_earlier_coordinator_commits_nothing(tmp_path: Path) -> None:
    first = StoreWriter.open(tmp_path / "s", MANIFEST)
    first.share("here")
    orphan = join(tmp_path / "s")
    block = orphan.claim(0)
    assert block is not None
    first.close()
    with StoreWriter.open(tmp_path / "s", MANIFEST) as second:
        second.share("here")
        with pytest.raises(LockedError, match="has ended"):
            orphan.write_block(block, columns_of(MANIFEST, block))
        assert not second.refresh()
        worker = join(tmp_path / "s")
        claimed = worker.claim(0)
        assert claimed is not None
        assert claimed.block == 1  # the orphan lives: its claim counts until it gives it back
        orphan.close()
        assert worker.claim(0) == block
        worker.close()


def test_a_silent_workers_block_is_taken_over_with_a_message(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        slow, quick = join(tmp_path / "s"), join(tmp_path / "s")
        block = slow.claim(0)
        assert block is not None
        assert not coordinator.take_over_dead_claims()
        claim = tmp_path / "s" / CLAIMS_FOLDER / "0-0.json"
        long_ago = time.time() - 61
        os.utime(claim, (long_ago, long_ago))
        (message,) = coordinator.take_over_dead_claims()
        assert f"view 0 block 0 (rows 0..255) over from process {os.getpid()}" in message
        assert "is silent" in message
        assert quick.claim(0) == block
        with pytest.raises(LostClaimError):
            slow.write_block(block, columns_of(MANIFEST, block))
        quick.write_block(block, columns_of(MANIFEST, block))
        assert coordinator.refresh() == (block,)
        slow.close()
        quick.close()


def test_a_partial_file_of_a_living_claim_survives_opening_and_none_survives_sealing(tmp_path: Path) -> None:
    store = tmp_path / "s"
    first = StoreWriter.open(store, MANIFEST)
    first.share("here")
    orphan = join(store)
    assert orphan.claim(0) == BlockId(0, 0, 0, 256)
    first.close()
    living, dead = store / "tail/c/0/0/0.ab1.partial", store / "tail/c/0/1/0.ab2.partial"
    for path in (living, dead):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with StoreWriter.open(store, MANIFEST) as second:
        assert living.exists()
        assert not dead.exists()
        orphan.close()
        second.share("here")
        worker = join(store)
        while write_next(worker):
            pass
        worker.close()
        second.refresh()
        assert living.exists()
        assert second.seal(quality={}).complete
    assert not living.exists()
    assert verify_store(store, deep=True).exit_code == 0


def test_sealing_finds_every_bad_block_takes_its_record_back_and_asks_again(tmp_path: Path) -> None:
    store = tmp_path / "s"
    straight = write_store(tmp_path / "straight", MANIFEST)
    with StoreWriter.open(store, MANIFEST) as coordinator:
        coordinator.share("here")
        worker = join(store)
        while write_next(worker):
            pass
        worker.close()
        coordinator.refresh()
        for view, block in ((0, 2), (1, 4)):  # as if another machine's bytes had come last
            chunk = store / "tail" / "c" / str(view) / str(block) / "0"
            chunk.write_bytes((store / "tail" / "c" / str(view) / "0" / "0").read_bytes())
        with pytest.raises((ChecksumError, CorruptStoreError)):
            coordinator.seal()
        assert [(block.view, block.block) for block in coordinator.pending] == [(0, 2), (1, 4)]
        assert not (store / LEDGER_FOLDER / "0-2.json").exists()
        coordinator.share("again")
        worker = join(store, "again")
        while write_next(worker):
            pass
        worker.close()
        assert len(coordinator.refresh()) == 2
        assert coordinator.seal(quality={"top1": 0.5}).root_digest == straight.root_digest
    assert store_bytes(store) == store_bytes(tmp_path / "straight")


def test_a_torn_or_foreign_record_commits_nothing(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        record = tmp_path / "s" / LEDGER_FOLDER / "0-0.json"
        record.write_text('{"store_id": "another", "view": 0')
        assert not coordinator.refresh()
        assert not record.exists()
        worker = join(tmp_path / "s")
        assert worker.claim(0) == BlockId(0, 0, 0, 256)
        worker.close()


def test_a_repaired_store_shares_only_its_bad_blocks(tmp_path: Path) -> None:
    store = tmp_path / "s"
    sealed = write_store(store, MANIFEST)
    chunk = store / "tail" / "c" / "1" / "3" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    with StoreWriter.open(store, MANIFEST) as coordinator:
        coordinator.share("here")
        worker = join(store)
        assert worker.views_left() == (1,)
        assert write_next(worker) == BlockId(1, 3, 768, 1024)
        assert write_next(worker) is None
        worker.close()
        coordinator.refresh()
        assert coordinator.seal(quality={"top1": 0.5}).root_digest == sealed.root_digest


def test_a_lost_block_can_be_claimed_again_when_its_second_holder_gives_it_up(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", MANIFEST) as coordinator:
        coordinator.share("here")
        slow, quick = join(tmp_path / "s"), join(tmp_path / "s")
        block = slow.claim(0)
        assert block is not None
        long_ago = time.time() - 61
        os.utime(tmp_path / "s" / CLAIMS_FOLDER / "0-0.json", (long_ago, long_ago))
        coordinator.take_over_dead_claims()
        assert quick.claim(0) == block
        with pytest.raises(LostClaimError):
            slow.write_block(block, columns_of(MANIFEST, block))
        quick.release(block)
        assert slow.claim(0) == block
        slow.close()
        quick.close()
