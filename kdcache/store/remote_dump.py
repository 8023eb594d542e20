"""Writing a store whose place is a URL: blocks go into a local staging store and are uploaded while others are made.

The staging store is an ordinary one, so whoever writes it (one process or many) knows nothing of the network. What is
committed there is uploaded behind the writers' backs; what was committed at the URL before, by this machine or another
one, is brought here first and checked. Publishing happens once, when the staging store is sealed.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from kdcache.cache_folder import cache_folder
from kdcache.canonical import digest_of
from kdcache.errors import CorruptStoreError, IncompatibleError, KdcacheError
from kdcache.progress import note
from kdcache.specs import StoreManifest
from kdcache.store import ledger
from kdcache.store.block_reader import check_block, read_block, read_commit
from kdcache.store.blocks import all_blocks, block_at
from kdcache.store.files import make_folder
from kdcache.store.layout import layout_of
from kdcache.store.location import Location
from kdcache.store.manifest_file import ROOT_FILE, read_manifest, write_manifest
from kdcache.store.mirror import Mirror
from kdcache.store.publish import CONNECTIONS, Publisher, published_at, refuse_other
from kdcache.store.remote_lease import RemoteLease

LOOK_SECONDS = 0.2  # between two looks for blocks that were committed
WAITING_BLOCKS = 2 * CONNECTIONS  # that may wait for an upload; the others wait on the disk


@contextmanager
def written_at(location: str, manifest: StoreManifest) -> Iterator[str]:
    """The local folder in which to write a store that shall be at `location`; sealed there, it is published on leaving.

    Args:
        location: local path (then it is the folder itself) or URL.
        manifest: of the store asked for, as `StoreWriter.open` takes it.

    Raises:
        IncompatibleError: another store is published there. LockedError: someone else is writing there.
        ConfigError: the place cannot be written. RemoteError: the service failed; the same dump continues.
    """
    target = Location.at(location)
    if target.folder is not None:
        yield str(target.folder)
        return
    target.require_writable()
    wanted = replace(manifest, store_id=ledger.store_id_of(manifest), complete=False, root_digest="", quality={})
    _refuse_published(target, wanted)
    staging = staging_folder(target, wanted)
    with RemoteLease.acquire(target) as lease:
        publisher = Publisher(staging, target, wanted, lease)
        _bring_committed(publisher, target, staging, wanted)
        with _following(publisher, staging, wanted):
            yield str(staging)
        sealed = read_manifest(staging)
        if not sealed.complete:
            return
        commit = read_commit(staging, layout_of(sealed)["commit"])
        digests = ledger.Digests(sealed, commit=commit)
        publisher.finish(sealed, {(block.view, block.block): digests.of(block) or "" for block in all_blocks(sealed)})
    _keep_as_copy(staging, sealed)


def staging_folder(target: Location, manifest: StoreManifest) -> Path:
    """Where a store is written before it is at its URL: named by the URL, the store and its number of views."""
    name = digest_of([str(target), manifest.store_id, manifest.num_views])[:32]
    return cache_folder() / "staging" / name


def _refuse_published(target: Location, wanted: StoreManifest) -> None:
    there = published_at(target)
    if there is None:
        return
    if ledger.store_id_of(there) == wanted.store_id:
        raise IncompatibleError(
            f"{target}: holds this store with {there.num_views} views, asked for {wanted.num_views}; what is published"
            " never changes",
            hint=f"kdcache pull {target} DIR, dump the other views with --out DIR, then push it to another URL",
        )
    refuse_other(target, wanted)


def _bring_committed(publisher: Publisher, target: Location, staging: Path, wanted: StoreManifest) -> None:
    """Blocks that are committed at the URL and not here: fetch them, check them, and record them here."""
    here = ledger.recorded_places(staging)
    away = {place: record for place, record in publisher.records.items() if place not in here}
    if not away or ((staging / ROOT_FILE).is_file() and read_manifest(staging).complete):
        return
    note(f"{target}: {len(away)} blocks are there already; they are fetched and checked, not computed again")
    layout = layout_of(wanted)
    ledger.make_ledger_folder(staging)
    if not (staging / ROOT_FILE).is_file():
        write_manifest(staging, wanted)  # says whose blocks these are, to the writer that finds them
    mirror = Mirror(target, staging, layout)
    for (view, number), record in away.items():
        block = block_at(wanted, view, number)
        try:
            mirror.fetch_blocks([block])
            check_block(staging, wanted, block, read_block(staging, wanted, layout, block), record.sha256)
        except CorruptStoreError:
            mirror.forget_blocks([block])
            del publisher.uploaded[view, number]  # a new upload replaces it
            continue
        ledger.write_record(staging, wanted, block, record)


@contextmanager
def _following(publisher: Publisher, staging: Path, wanted: StoreManifest) -> Iterator[None]:
    """Upload what is committed in the staging store while the body runs; what is left over is uploaded afterwards."""
    make_folder(staging)
    stop = threading.Event()

    def follow() -> None:
        begun = {place for place in publisher.uploaded if place in publisher.records}
        waiting: dict[tuple[int, int], Future[None]] = {}
        committed: deque[tuple[int, int]] = deque()
        next_look = 0.0
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="kdcache-upload") as pool:
            while not stop.wait(LOOK_SECONDS):
                waiting = {place: future for place, future in waiting.items() if not _is_over(future)}
                started = time.monotonic()
                if not committed and started >= next_look:
                    committed.extend(sorted(ledger.recorded_places(staging) - begun))
                    # a look lists the ledger, at 10^6 records for a second, in the process that runs the teacher
                    next_look = started + 10 * (time.monotonic() - started)
                while committed and len(waiting) < WAITING_BLOCKS:
                    place = committed.popleft()
                    block = block_at(wanted, *place)
                    record = ledger.read_record(staging, wanted, block)
                    if record is not None:
                        begun.add(place)
                        waiting[place] = pool.submit(publisher.upload_block, block, record)
            pool.shutdown(cancel_futures=True)

    def guarded() -> None:
        try:
            follow()
        except (KdcacheError, OSError) as error:
            # The teacher's work is kept in the staging store; the final upload says it again if it still fails.
            note(f"uploading stopped, the dump goes on in {staging}: {str(error).splitlines()[0]}")

    thread = threading.Thread(target=guarded, name="kdcache-follow", daemon=True)
    thread.start()
    try:
        yield
    except Exception:  # not after Ctrl-C, which wants to end now
        stop.set()
        thread.join()
        _upload_committed(publisher, staging, wanted)
        raise
    finally:
        stop.set()
        thread.join()


def _upload_committed(publisher: Publisher, staging: Path, wanted: StoreManifest) -> None:
    """Bring to the URL what a failing dump has committed, so that it may continue elsewhere."""
    records = ledger.read_records(staging, wanted)
    blocks = [block_at(wanted, *place) for place in records if place not in publisher.uploaded]
    try:
        publisher.upload_all(blocks, {place: record.sha256 for place, record in records.items()})
    except KdcacheError as error:
        note(f"committed blocks could not be uploaded, they are kept in {staging}: {error.message}")


def _is_over(future: Future[None]) -> bool:
    if not future.done():
        return False
    future.result()  # raises what went wrong
    return True


def _keep_as_copy(staging: Path, sealed: StoreManifest) -> None:
    """The staging store becomes the local copy that readers of the URL would otherwise fetch."""
    copy = cache_folder() / sealed.root_digest / "store"
    with suppress(OSError):  # the copy exists, or its folder cannot be made: then it is fetched when it is needed
        if not copy.exists():
            make_folder(copy.parent)
            staging.rename(copy)
    shutil.rmtree(staging, ignore_errors=True)
