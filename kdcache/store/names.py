"""What a store is called when nobody names it: words that tell people what is inside, and the start of its key."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdcache.specs import DatasetSpec, TeacherSpec

LONGEST = 150  # characters of the words; file systems allow 255 for a name, and writers add to it


def readable_name(
    data: DatasetSpec,
    teacher: TeacherSpec,
    key: str,
    *,
    topk: int,
    num_views: int = 0,
    precision: str = "default",
    samples: int = 0,
    features: Sequence[str] = (),
) -> str:
    """`DATA-SPLIT_TEACHER_topK[_vV][_PRECISION][_samplesM][_FEATURE...]_KEY.zarr`, safe in file systems and URLs.

    Args:
        data, teacher: what was asked whom.
        key: store key; eight characters of it are kept.
        topk: classes stored per row.
        num_views: views; 0 leaves them out, as in a store that may grow.
        precision: said unless it is the default.
        samples: classes drawn per row; 0 says nothing.
        features: optional arrays, such as "features/penultimate".
    """
    words = [f"{data.name}-{data.split}", teacher.source.split(":")[-1], f"top{topk}"]
    words += [f"v{num_views}"] if num_views else []
    words += [precision] if precision != "default" else []
    words += [f"samples{samples}"] if samples else []
    words += [field.removeprefix("features/").replace("/", "-") for field in features]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words))[:LONGEST] + f"_{key[:8]}.zarr"
