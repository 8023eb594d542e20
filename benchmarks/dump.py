"""Rows per second of `dump-teacher` against the bare teacher over the same reader, in one run: bench id `dump`.

The bare side reads and forwards the same batches and throws the logits away. The ratio is bare time / dump time, so 1
is "recording costs nothing"; the probe before a dump and the sealing after it are not in it. Random weights: arithmetic
does not depend on them.

    python -m benchmarks.dump [--repeats 5] [--model resnet8 --model resnet32x4 ...]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import median_ratio, paired_seconds, report
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.source import ArraySource
from kdcache.specs import CodecSpec, PreprocessingSpec, StoreManifest, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import TeacherRun
from kdcache.teachers import LoadedTeacher, TeacherChoice, TeacherRequest

# model -> (rows, pixels, classes, batch): sized so that one pass takes about ten seconds on a slow core
CASES = {
    "resnet8": (8192, 32, 100, 256),
    "resnet32x4": (512, 32, 100, 128),
    "torchvision:resnet18": (128, 224, 1000, 32),
}
MEAN_STD = PreprocessingSpec(mean=(0.5,), std=(0.25,))


def images(rows: int, pixels: int, classes: int) -> ArraySource:
    """Seeded noise images: the reader's and the forward's cost does not depend on what they show."""
    random = np.random.default_rng(0)
    examples = random.integers(0, 256, (rows, pixels, pixels, 3), dtype=np.uint8)
    return ArraySource(
        examples, random.integers(0, classes, rows), name=f"noise{pixels}", split="train", num_classes=classes
    )


def loaded(model: str, source: ArraySource, device: torch.device) -> LoadedTeacher:
    """The model with random weights, ready to be asked."""
    choice = TeacherChoice(source=model, init_seed=0, data=MEAN_STD)
    return TeacherRequest.resolve(choice, source).load(source, device)


def measure(model: str, *, repeats: int) -> dict[str, object]:
    """Bare forward against dump for one model."""
    rows, pixels, classes, batch_size = CASES[model]
    source = images(rows, pixels, classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = loaded(model, source, device)
    codec = CodecSpec(topk=10, fields=tuple(sorted(teacher.static)))
    manifest = StoreManifest(
        format_version=1,
        dataset=dataset_spec(source, card=""),
        teacher=teacher.spec,
        views=ViewSpec(),
        codec=codec,
        num_views=1,
        block_rows=block_rows_for(rows),
        static_shapes={name: list(array.shape) for name, array in teacher.static.items()},
        creator={"batch_size": batch_size},
    )
    run = TeacherRun(source, teacher, codec, None)
    batches = [
        np.arange(start, min(start + batch_size, stop), dtype=np.int64)
        for block in range(0, rows, manifest.block_rows)
        for stop in [min(block + manifest.block_rows, rows)]
        for start in range(block, stop, batch_size)
    ]

    def bare() -> None:
        for _ in run.forward(batches, view=0):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()

    def dump() -> None:
        folder = Path(tempfile.mkdtemp(prefix="kdcache-bench-"))
        try:
            with StoreWriter.open(folder / "store.zarr", manifest, static=teacher.static) as writer:
                run.fill(writer, batch_size=batch_size)
        finally:
            shutil.rmtree(folder)

    pairs = paired_seconds(bare, dump, repeats=repeats)
    bare_seconds = statistics.median(a for a, _ in pairs)
    dump_seconds = statistics.median(b for _, b in pairs)
    return {
        "model": model,
        "rows": rows,
        "pixels": pixels,
        "classes": classes,
        "batch_size": batch_size,
        "bare_rows_per_s": round(rows / bare_seconds),
        "dump_rows_per_s": round(rows / dump_seconds),
        "ratio": round(median_ratio(pairs), 3),
        "overhead_us_per_row": round(statistics.median(b - a for a, b in pairs) / rows * 1e6, 2),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", action="append", choices=list(CASES), default=None)
    arguments = parser.parse_args()
    report("dump", [measure(model, repeats=arguments.repeats) for model in arguments.model or CASES])


if __name__ == "__main__":
    main()
