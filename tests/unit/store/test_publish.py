"""What a push still has to send. Pushes and pulls themselves are in tests/integration/test_push.py."""

from __future__ import annotations

import time

from kdcache.store.blocks import all_blocks
from kdcache.store.publish import missing_blocks
from tests.store_cases import manifest_of


def test_a_continued_push_sends_what_is_not_there_and_finds_it_at_once_however_many_blocks_there_are() -> None:
    manifest = manifest_of(rows=1_000_000, views=200)
    blocks = list(all_blocks(manifest))
    assert len(blocks) > 3000
    digests = {(block.view, block.block): f"{i:064x}" for i, block in enumerate(blocks)}
    uploaded = dict(list(digests.items())[: len(blocks) // 2])
    uploaded[0, 3] = "of an earlier store"
    started = time.process_time()
    missing = missing_blocks(manifest, digests, uploaded)
    assert time.process_time() - started < 1  # a set made anew for each block took 3 s
    assert missing == [blocks[3], *blocks[len(blocks) // 2 :]]
