"""Token rows at k = 64: bytes per token, tokens per second dumped and read back: bench id `tokens`.

`lstm` is a word model of the size of the shared one (K = 10,000), `hf` a small random transformer with the vocabulary
of today's large ones (K = 151,936, needs the extra hf). The bare side forwards the same batches and throws the logits
away; the ratio is bare time / dump time, in seconds and in processor seconds (of all threads; they stay about the same
on a machine that does other things, too). Creating the store, which writes the teacher's last layer once, is given
apart (`open_s`), as are the three parts of a dump in processor time a token: forward, encode (the same batches encoded
and thrown away) and write (the rest). With --ptb and --weights the rows are real text and a trained lstm-100: only then
are the bytes those of real opinions (random weights are nearly uniform, and their ids hardly compress).

    python -m benchmarks.tokens [--repeats 3] [--case lstm --case hf] [--ptb FOLDER --weights FILE]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.machine import median_ratio, report, seconds_of
from kdcache.datasets.cards import open_dataset
from kdcache.datasets.identity import dataset_spec
from kdcache.datasets.sequences import TokenSource
from kdcache.datasets.source import DataSource
from kdcache.loader.target_store import open_store
from kdcache.specs import CodecSpec, StoreManifest, ViewSpec
from kdcache.store.blocks import block_rows_for
from kdcache.store.info import describe
from kdcache.store.writer import StoreWriter
from kdcache.teacher_run import TeacherRun
from kdcache.teachers import LoadedTeacher, TeacherChoice, TeacherRequest

TOPK = 64
Clocks = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model's kind and its sizes: K, rows dumped, rows per forward pass, tokens of context."""

    classes: int
    rows: int
    batch_size: int
    context: int


CASES = {
    # 16 blocks of one batch each: in blocks of a quarter of that, flushing them was a third of the dump
    "lstm": Case(classes=10_000, rows=32_768, batch_size=2048, context=128),
    "hf": Case(classes=151_936, rows=4096, batch_size=256, context=128),
}


def words(case: Case) -> TokenSource:
    """One sequence whose ids are as uneven as words are (Zipf's law)."""
    rank = np.random.default_rng(0).zipf(1.2, 4 * case.rows)
    return TokenSource.from_tokens(
        rank[rank < case.classes][: case.rows + 1], name="zipf", split="train", num_classes=case.classes
    )


@contextmanager
def teacher_choice(name: str, case: Case, weights: str) -> Iterator[TeacherChoice]:
    """The case's teacher; a checkpoint folder is made, and removed after."""
    if name == "lstm":
        seed = None if weights else 0
        yield TeacherChoice(source="lstm-100", weights=weights, init_seed=seed, context=case.context)
        return
    with tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=case.classes,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=2 * case.context,
            tie_word_embeddings=True,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        yield TeacherChoice(source=f"hf:{folder}", context=case.context)


def new_manifest(source: DataSource, teacher: LoadedTeacher, batch_size: int) -> StoreManifest:
    """A store of k = 64 over the rows."""
    return StoreManifest(
        format_version=1,
        dataset=dataset_spec(source, card=""),
        teacher=teacher.spec,
        views=ViewSpec(),
        codec=CodecSpec(topk=TOPK, fields=tuple(sorted(teacher.static))),
        num_views=1,
        block_rows=block_rows_for(len(source)),
        static_shapes={name: list(array.shape) for name, array in teacher.static.items()},
        creator={"batch_size": batch_size},
    )


def measure(name: str, source: DataSource, *, weights: str, repeats: int) -> dict[str, object]:
    """Dump, bare forward, bytes and reading of one case."""
    case, rows = CASES[name], len(source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with teacher_choice(name, case, weights) as choice, tempfile.TemporaryDirectory(prefix="kdcache-bench-") as folder:
        teacher = TeacherRequest.resolve(choice, source).load(source, device)
        manifest = new_manifest(source, teacher, case.batch_size)
        run = TeacherRun(source, teacher, manifest.codec, None)
        batches = [
            np.arange(start, min(start + case.batch_size, stop), dtype=np.int64)
            for block in range(0, rows, manifest.block_rows)
            for stop in [min(block + manifest.block_rows, rows)]
            for start in range(block, stop, case.batch_size)
        ]
        place = Path(folder) / "store.zarr"
        opening: list[float] = []

        def bare() -> None:
            for _ in run.forward(batches, view=0):
                pass

        def encode() -> None:
            for _ in run.encoded(batches, view=0):
                pass

        def dump() -> Clocks:
            shutil.rmtree(place, ignore_errors=True)
            opening.append(time.perf_counter())
            with StoreWriter.open(place, manifest, static=teacher.static) as writer:
                opening[-1] = time.perf_counter() - opening[-1]
                return clocks_of(lambda: run.fill(writer, batch_size=case.batch_size), device)

        sides: dict[str, Callable[[], Clocks]] = {
            "bare": lambda: clocks_of(bare, device),
            "encode": lambda: clocks_of(encode, device),
            "dump": dump,
        }
        for warm_up in sides.values():
            warm_up()
        taken: dict[str, list[Clocks]] = {side: [] for side in sides}
        for repeat in range(repeats):
            for side in sorted(sides, reverse=bool(repeat % 2)):
                taken[side].append(sides[side]())
        with StoreWriter.open(place, manifest, static=teacher.static) as writer:
            writer.seal()
        arrays = describe(place)["arrays"]
        stored = sum(
            item["bytes_on_disk"] for key, item in arrays.items() if key not in teacher.static and key != "commit"
        )
        store = open_store(place)
        store.targets([0])  # verified and decoded here, once
        reading = statistics.median(
            seconds_of(
                lambda: [store.targets(torch.arange(start, min(start + 700, rows))) for start in range(0, rows, 700)]
            )
            for _ in range(max(3, repeats))
        )
    wall, processor = (
        {side: [clocks[clock] for clocks in several] for side, several in taken.items()} for clock in (0, 1)
    )
    each = {side: statistics.median(seconds) / rows * 1e6 for side, seconds in processor.items()}
    return {
        "case": name,
        "classes": source.num_classes,
        "topk": TOPK,
        "tokens": rows,
        "block_rows": manifest.block_rows,
        "context": case.context,
        "batch_size": case.batch_size,
        "trained": bool(weights),
        "bytes_per_token": round(stored / rows, 1),
        "all_logits_bytes_per_token": 4 * source.num_classes,
        "bare_tokens_per_s": round(rows / statistics.median(wall["bare"])),
        "dump_tokens_per_s": round(rows / statistics.median(wall["dump"])),
        "ratio": round(median_ratio(list(zip(wall["bare"], wall["dump"], strict=True))), 3),
        "ratio_processor": round(median_ratio(list(zip(processor["bare"], processor["dump"], strict=True))), 3),
        "processor_us_per_token": {
            "forward": round(each["bare"], 1),
            "encode": round(each["encode"] - each["bare"], 1),
            "write": round(each["dump"] - each["encode"], 1),
        },
        "open_s": round(statistics.median(opening), 2),
        "read_tokens_per_s": round(rows / reading),
    }


def clocks_of(action: Callable[[], None], device: torch.device) -> Clocks:
    """Seconds and processor seconds of one call, the device's work included."""
    began = time.process_time()

    def settled() -> None:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return seconds_of(settled), time.process_time() - began


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", action="append", choices=list(CASES), default=None)
    parser.add_argument("--ptb", type=Path, default=None, help="folder that holds ptb/, for the case lstm")
    parser.add_argument("--weights", default="", help="a trained lstm-100 of PTB, for the case lstm")
    arguments = parser.parse_args()
    figures = []
    for name in arguments.case or CASES:
        real = name == "lstm" and arguments.ptb is not None
        rows = CASES[name].rows
        source = open_dataset("ptb", split=f"train[:{rows}]", root=arguments.ptb) if real else words(CASES[name])
        weights = arguments.weights if real else ""
        figures.append(measure(name, source, weights=weights, repeats=arguments.repeats))
    report("tokens", figures)


if __name__ == "__main__":
    main()
