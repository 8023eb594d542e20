"""What making and using a store costs: requests, seconds and money, as pure functions of its manifest and its size.

Requests follow from what `store` does and are exact but for retries and heartbeats. Seconds come from a teacher's rate
and from rates measured on one core. Prices are the caller's. Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from kdcache.cost_model import StoreSize
from kdcache.specs import StoreManifest
from kdcache.store.layout import block_arrays, layout_of, row_bytes
from kdcache.store.manifest_file import group_folders

LIST_PAGE = 1000  # objects a listing or a bulk delete of S3 names in one request
SINGLE_PUT_BYTES, PART_BYTES = 32 * 2**20, 16 * 2**20  # `store.location` sends larger objects in parts


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Requests of an object store with the S3 API; `put` counts parts, `list` pages, `delete` bulk deletes."""

    put: int = 0
    get: int = 0
    head: int = 0
    list: int = 0
    delete: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.put + self.get + self.head + self.list + self.delete

    def __add__(self, other: Requests) -> Requests:
        return Requests(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Requests)})


def push_requests(manifest: StoreManifest, size: StoreSize) -> Requests:
    """A push to an empty place, or what a dump with `--out URL` sends: chunks, a record per block, metadata, lease."""
    blocks = manifest.num_views * manifest.blocks_per_view
    puts = 0
    for name, count in size.array_objects.items():
        each = -(-size.array_bytes[name] // count)
        puts += count * (1 if each <= SINGLE_PUT_BYTES else 2 + -(-each // PART_BYTES))
    return Requests(
        put=puts + blocks + size.metadata_objects + 2,  # the lease, taken and shown once more before publishing
        get=2,  # the lease, read back and given back
        head=1,
        list=2,  # of an empty place
        delete=-(-blocks // LIST_PAGE) + 1,
    )


def open_requests() -> Requests:
    """Opening a remote store: its manifest and its ledger."""
    return Requests(get=2)


def view_requests(manifest: StoreManifest, view: int) -> Requests:
    """A view of an open store, the first time on a machine: its chunks. Later epochs read the local copy."""
    return Requests(get=manifest.blocks_per_view * len(block_arrays(layout_of(manifest), view)))


def verify_requests(manifest: StoreManifest, size: StoreSize) -> Requests:
    """`verify` of a remote store: everything is read once and listed once."""
    return Requests(get=size.objects - len(group_folders(layout_of(manifest))), list=-(-size.objects // LIST_PAGE))


def pull_requests(manifest: StoreManifest, size: StoreSize) -> Requests:
    """`pull` of a whole store: every chunk; metadata follow from the manifest."""
    chunks = sum(size.array_objects.values()) - size.array_objects["commit"]
    return open_requests() + Requests(get=chunks)


@dataclass(frozen=True, kw_only=True)
class CoreRates:
    """What one core does with decoded bytes a second. Defaults: 2 shared cores of an EPYC without AVX-512.

    Attributes:
        write: round, digest, compress and write (0.43 M rows/s of 52 bytes at k = 10; 0.08 M of 420 at k = 100).
        read: read, decompress and compare with the ledger (3.8 M rows/s at k = 10).
        start: seconds of imports, building the teacher and opening the store.
    """

    write: float = 25e6
    read: float = 190e6
    start: float = 5.0


@dataclass(frozen=True, kw_only=True)
class DumpTime:
    """Seconds of one dump; `total` is what a clock on the wall shows."""

    start: float
    forward: float
    write: float
    seal: float
    overlapped: bool

    @property
    def total(self) -> float:
        """Forward and write side by side where the teacher has a device of its own, one after another on a CPU."""
        middle = max(self.forward, self.write) if self.overlapped else self.forward + self.write
        return self.start + middle + self.seal


def dump_time(
    manifest: StoreManifest,
    *,
    rows_per_second: float,
    workers: int = 1,
    overlapped: bool = False,
    core: CoreRates | None = None,
) -> DumpTime:
    """Seconds of a dump.

    Args:
        manifest: of the store.
        rows_per_second: of one worker's teacher, reading and views included.
        workers: that share the blocks, each on its own device.
        overlapped: whether writing runs beside the forward pass: a GPU's teacher, or a core that is free.
        core: what a core does.
    """
    core = core or CoreRates()
    cells = manifest.dataset.num_rows * manifest.num_views
    blocks = manifest.num_views * manifest.blocks_per_view
    rounds = -(-blocks // workers) * workers / blocks if blocks < 1000 else 1.0  # the last round of few blocks
    decoded = cells * row_bytes(layout_of(manifest))
    first_view = decoded / manifest.num_views  # read once more, for the teacher's accuracy
    return DumpTime(
        start=core.start,
        forward=cells / (rows_per_second * workers) * rounds,
        write=decoded / (core.write * workers),
        seal=(decoded + first_view) / core.read,
        overlapped=overlapped,
    )


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Somebody's prices on a day, in one currency. They are inputs, not facts; there are no defaults.

    Attributes:
        as_of: the day they were read, and where.
        device_hour: one worker's machine, an hour.
        gb_month: 10^9 bytes kept for a month.
        put_thousand: a thousand requests that write or list.
        get_thousand: a thousand requests that read.
        egress_gb: 10^9 bytes that leave the service.
    """

    as_of: str
    device_hour: float
    gb_month: float
    put_thousand: float
    get_thousand: float
    egress_gb: float


@dataclass(frozen=True, kw_only=True)
class Money:
    """What a store costs in the currency of the prices.

    Attributes:
        dump: the workers' hours. push: requests that bring it to the service. month: keeping it for a month.
        reading: one student on a new machine reading every view once: requests and egress.
    """

    dump: float
    push: float
    month: float
    reading: float


def money(manifest: StoreManifest, size: StoreSize, time: DumpTime, prices: Prices, *, workers: int = 1) -> Money:
    """Money for dumping, pushing, keeping and reading a store."""
    push, pull = push_requests(manifest, size), pull_requests(manifest, size)
    return Money(
        dump=time.total / 3600 * workers * prices.device_hour,
        push=_requests_cost(push, prices),
        month=size.bytes / 1e9 * prices.gb_month,
        reading=_requests_cost(pull, prices) + size.bytes / 1e9 * prices.egress_gb,
    )


def _requests_cost(requests: Requests, prices: Prices) -> float:
    written = (requests.put + requests.list) / 1000 * prices.put_thousand
    return written + (requests.get + requests.head) / 1000 * prices.get_thousand
