"""`pull`: a store, or the first views or classes of it, from anywhere into a local folder.

A whole store is copied chunk by chunk and stays the same store. A part is derived on this side: only the chunks of its
views travel (narrowing k does not lessen them), and the result is a store of its own that names its parent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kdcache.derive import DeriveConfig, derive
from kdcache.errors import ConfigError
from kdcache.store.reader import open_reader
from kdcache.store.transfer import Transfer, local_folder, pull_whole
from kdcache.urls import clean_url


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """What to pull.

    Attributes:
        source: URL or path of a sealed store.
        folder: local folder that will be the store.
        views: the first V' views; None for all.
        topk: the first k' classes per row; None for all.
    """

    source: str
    folder: str
    views: int | None = None
    topk: int | None = None


def pull(config: PullConfig) -> Transfer:
    """Pull a store or a part of it; errors as `store.transfer.pull_whole` and `derive.derive`."""
    if config.views is None and config.topk is None:
        return pull_whole(config.source, config.folder)
    started = time.monotonic()
    root = local_folder(config.folder)
    reader = open_reader(config.source)
    part = derive(DeriveConfig(store=config.source, out=str(root), views=config.views, topk=config.topk), reader=reader)
    return Transfer(
        store=str(root),
        source=clean_url(config.source),
        root_digest=part.root_digest,
        bytes_moved=reader.bytes_fetched,
        seconds=time.monotonic() - started,
        already=part.rows_written == 0,
        parent=part.parent,
    )


def leading_views(text: str) -> int:
    """`0:4` or `4` as the number of views.

    Raises:
        ConfigError: another form, or views that do not begin with view 0: a view's number is part of how it was drawn.
    """
    start, colon, stop = text.partition(":")
    if not colon:
        start, stop = "0", start
    if not (start.strip() or "0").isdecimal() or not stop.strip().isdecimal() or int(stop) < 1:
        raise ConfigError(f"views {text!r}: expected 0:V, the first V views")
    if int(start or 0) != 0:
        raise ConfigError(
            f"views {text!r}: a part begins with view 0, because a view's number decides how it is drawn",
            hint=f"--views 0:{stop.strip()}",
        )
    return int(stop)
