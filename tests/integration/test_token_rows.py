"""Token rows through the whole product: train a language model, dump it, distil from it; killed, resumed, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from kdcache.datasets.cards import open_dataset
from kdcache.datasets.sequences import is_sequence
from kdcache.distill import DistillConfig, distill
from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import ConfigError, IncompatibleError
from kdcache.loader.target_store import open_store
from kdcache.replay import replay_rows
from kdcache.store.reader import open_reader
from kdcache.store.verify import verify_store
from kdcache.teacher_training import TeacherConfig, train_teacher
from kdcache.training.processes import Processes
from kdcache.training.token_rows import TokenFeed, token_evaluation_on
from pipelines.partial_kd.ptb_teacher import published_model
from tests.integration.distill_setup import finish, start
from tests.token_world import LENGTHS, make_token_world

ROWS = sum(LENGTHS["train"]) - len(LENGTHS["train"])
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def dump(folder: Path, *, teacher: str = "sums", out: str = "store.zarr", **more: Any) -> str:
    """A store over the training tokens at OUT; its path."""
    settings: dict[str, Any] = {"topk": 8, "batch_size": 64, "context": 16, **more}
    result = dump_teacher(
        DumpConfig(
            dataset="tokens",
            data_root=folder / "corpus.npz",
            teacher=f"{folder / 'teachers.py'}:{teacher}",
            out=str(folder / out),
            allow_weak_teacher=True,
            **settings,
        )
    )
    return result.store


def student(folder: Path, out: str, *, method: str = "kd", **more: Any) -> DistillConfig:
    """One small LSTM student of the store."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 64, "segment": 16, "context": 16, "lr": 0.02, **more}
    return DistillConfig(
        store=str(folder / "store.zarr"),
        data_root=folder / "corpus.npz",
        student=settings.pop("student", "lstm-12"),
        method=method,
        out=str(folder / out),
        **settings,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with a store over its training tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    make_token_world(folder)
    dump(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The last weights of a run."""
    return safetensors.torch.load_file(folder / "last.safetensors")


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two stores hold the same array bytes and root digest."""
    digests = [open_reader(place).manifest.root_digest for place in (one, other)]
    return digests[0] == digests[1] and verify_store(one, deep=True).exit_code == 0


def test_a_store_of_token_rows_says_where_its_sequences_are(world: Path) -> None:
    store = open_store(world / "store.zarr")
    assert store.num_rows == ROWS
    assert store.sequence_offsets is not None
    assert np.diff(store.sequence_offsets).tolist() == [length - 1 for length in LENGTHS["train"]]
    assert store.manifest.teacher.preprocessing.code.endswith("context:16")
    assert verify_store(world / "store.zarr", deep=True).exit_code == 0


def test_an_interrupted_dump_continues_to_the_same_bits(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        dump(world, teacher="stopped", out="again.zarr")
    begun = list((world / "again.zarr").rglob("*"))
    assert begun
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    dump(world, teacher="stopped", out="again.zarr")
    dump(world, teacher="stopped", out="straight.zarr")
    assert same_bytes(world / "again.zarr", world / "straight.zarr")


def test_the_stored_opinion_is_the_teachers_after_its_context(world: Path) -> None:
    """Asked again in other company (scattered rows), the teacher says the same; with another context it is another."""
    teacher = f"{world / 'teachers.py'}:sums"
    report = replay_rows(
        str(world / "store.zarr"), 40, DumpConfig(dataset="", data_root=world / "corpus.npz", teacher=teacher)
    )
    assert report.rows == 40
    assert report.ok, str(report)
    other = open_store(dump(world, out="longer.zarr", context=32))
    assert other.manifest.store_key != open_store(world / "store.zarr").manifest.store_key
    first, far = other.targets([3]), other.targets([600])
    store = open_store(world / "store.zarr")
    torch.testing.assert_close(first.log_prob, store.targets([3]).log_prob)  # the same tokens lie before it
    assert not torch.equal(far.log_prob, store.targets([600]).log_prob)


def test_batch_size_does_not_change_an_opinion(world: Path) -> None:
    one, other = open_store(world / "store.zarr"), open_store(dump(world, out="batches.zarr", batch_size=250))
    rows = torch.arange(ROWS)
    torch.testing.assert_close(one.targets(rows).log_prob, other.targets(rows).log_prob, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", ["ce", "ls", "kd", "kd-topk", "kd-pt", "kd-sim"])
def test_every_method_trains_a_student_of_token_rows(world: Path, method: str) -> None:
    options = {"similarity": "mean"} if method == "kd-sim" else {}
    figures = distill(student(world, f"run-{method}", method=method, options=options, epochs=1)).figures
    assert figures["perplexity"] == pytest.approx(np.exp(figures["nll"]))
    if method in ("kd", "kd-topk"):
        assert figures["train_agreement"] > 0.1  # with the teacher on the rows it was asked about; chance is 0.025
    elif method != "kd-sim":  # whose similarities come from a teacher that knows nothing
        assert 1 < figures["perplexity"] < 60
    assert figures["test_rows"] == sum(LENGTHS["test"]) - len(LENGTHS["test"])


def test_a_resumed_student_ends_with_the_same_bits(world: Path) -> None:
    config = student(world, "straight", student="lstm-12-drop20", epochs=3)
    distill(config)
    part = student(world, "resumed", student="lstm-12-drop20", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(part)
    distill(DistillConfig(**{**vars(part), "resume": True}))
    one, other = weights(world / "straight"), weights(world / "resumed")
    assert all(torch.equal(one[name], other[name]) for name in one)


def _interrupted(config: DistillConfig) -> None:
    """Stop in the middle of the second epoch, as Ctrl-C would."""
    whole = TokenFeed.epoch

    def broken(self: TokenFeed, epoch: int) -> Any:
        for number, batch in enumerate(whole(self, epoch)):
            if epoch == 1 and number == 4:
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenFeed, "epoch", broken)
        distill(config)


def test_a_trained_language_model_becomes_a_teacher_that_beats_chance(tmp_path: Path) -> None:
    make_token_world(tmp_path)
    common = {"dataset": "tokens", "data_root": tmp_path / "corpus.npz"}
    taught = train_teacher(
        TeacherConfig(
            **common, model="lstm-16", epochs=6, batch_size=64, segment=16, lr=0.02, out=str(tmp_path / "teacher")
        )  # type: ignore[arg-type]
    )
    assert taught.figures["perplexity"] < 20  # of 40 words
    result = dump_teacher(
        DumpConfig(**common, teacher="lstm-16", weights=str(taught.weights), topk=5, out=str(tmp_path / "store.zarr"))  # type: ignore[arg-type]
    )
    store = open_store(result.store)
    assert store.class_weight is not None
    assert store.class_weight.shape == (40, 16)
    found = distill(student(tmp_path, "run", method="kd-sim", epochs=2))
    assert found.figures["perplexity"] < 30
    shown = json.loads((found.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert shown["test_perplexity"] == pytest.approx(found.figures["perplexity"])


def test_rows_that_do_not_count_are_stored_and_left_out_of_losses_and_figures(tmp_path: Path) -> None:
    make_token_world(tmp_path, masked=True)
    store = dump(tmp_path)
    reader = open_reader(store)
    assert "mask" in reader.manifest.codec.fields
    counted = reader.row_array("mask").astype(bool)
    assert 0.7 < counted.mean() < 0.9
    result = distill(student(tmp_path, "run", epochs=1))
    assert result.figures["test_rows"] < sum(LENGTHS["test"]) - len(LENGTHS["test"])


def test_a_student_that_stands_alone_in_every_segment_comes_from_a_users_file(world: Path) -> None:
    figures = distill(student(world, "users", student=f"{world / 'teachers.py'}:sums", epochs=1)).figures
    assert figures["perplexity"] > 1


def test_other_tokens_views_and_settings_are_refused_before_the_first_step(world: Path, tmp_path: Path) -> None:
    path = make_token_world(tmp_path)
    arrays = dict(np.load(path))
    arrays["train_tokens"] = arrays["train_tokens"].copy()
    arrays["train_tokens"][0] = (arrays["train_tokens"][0] + 1) % 40  # only ever read, never a label
    np.savez(path, **arrays)
    config = student(world, "never")
    with pytest.raises(IncompatibleError, match="is not the one the store was made from"):
        distill(DistillConfig(**{**vars(config), "data_root": path}))
    with pytest.raises(ConfigError, match="token rows, which have one view"):
        dump(world, augment="cifar", out="views.zarr")
    with pytest.raises(ConfigError, match="0 parallel lanes"):
        distill(student(world, "never", batch_size=8))
    with pytest.raises(ConfigError, match="is not cut into pieces"):
        distill(student(world, "never", accumulate=2))
    with pytest.raises(ConfigError, match="language models read token rows"):
        distill(student(world, "never", student="mlp-16"))
    with pytest.raises(ConfigError, match=r"expected \(B, L, K\) logits"):
        dump(world, teacher="pooled", out="pooled.zarr")
    assert not (world / "never").exists()


def test_a_vocabulary_beyond_65535_is_stored_in_uint32(tmp_path: Path) -> None:
    vocabulary = 70_000
    tokens = np.random.default_rng(0).integers(0, vocabulary, 130)
    tokens[50] = vocabulary - 1
    np.savez(tmp_path / "corpus.npz", train_tokens=tokens, test_tokens=tokens[:60], vocab_size=vocabulary)
    result = dump_teacher(
        DumpConfig(
            dataset="tokens",
            data_root=tmp_path / "corpus.npz",
            teacher="lstm-4",
            init_seed=0,
            topk=64,
            batch_size=64,
            context=8,
            out=str(tmp_path / "store.zarr"),
            allow_weak_teacher=True,
        )
    )
    reader = open_reader(result.store)
    assert reader.row_array("label").dtype == np.uint32
    assert int(reader.row_array("label").max()) == vocabulary - 1
    targets = open_store(result.store).targets([0, 49, 128])
    assert int(targets.label[1]) == vocabulary - 1
    assert int(targets.index.max()) > 65_535
    figures = distill(student(tmp_path, "run", method="kd-topk", epochs=1, student="lstm-4")).figures
    assert figures["perplexity"] == pytest.approx(vocabulary, rel=0.1)


@pytest.mark.slow
def test_two_processes_train_as_one_does(world: Path) -> None:
    words = ["--store", "store.zarr", "--data-root", "corpus.npz", "--student", "lstm-12", "--method", "kd"]
    words += ["--epochs", "2", "--batch-size", "64", "--segment", "16", "--context", "16", "--lr", "0.02", "--json"]
    one = json.loads(finish(start(world, "-m", "kdcache", "-q", "distill", *words, "--out", "alone")))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = json.loads(finish(start(world, *torchrun, "-m", "kdcache", "-q", "distill", *words, "--out", "shared")))
    assert two["test_rows"] == one["test_rows"]
    assert two["perplexity"] == pytest.approx(one["perplexity"], rel=1e-4)
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data is not at {SHARED}")
def test_real_weights_have_their_published_perplexity_after_a_context_of_128() -> None:
    """The shared PTB model's is 135.9 when its state is carried from the first word to the last."""
    test = open_dataset("ptb", split="test", root=SHARED)
    assert is_sequence(test)
    figures = token_evaluation_on(test, Processes(device=torch.device("cpu")), context=128)
    assert figures(published_model(SHARED / "weights" / "ptb_rnnlm_f16.npz")).perplexity == pytest.approx(
        135.9, abs=0.1
    )


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data is not at {SHARED}")
def test_a_context_of_64_gives_real_weights_the_perplexity_of_reading_in_one_go() -> None:
    test, model = (
        open_dataset("ptb", split="test[:4000]", root=SHARED),
        published_model(SHARED / "weights" / "ptb_rnnlm_f16.npz"),
    )
    assert is_sequence(test)
    found = token_evaluation_on(test, Processes(device=torch.device("cpu")), context=64)(model)
    with torch.inference_mode():
        tokens = torch.from_numpy(test.tokens.astype(np.int64))[None]
        logits = model.head(model.lstm(model.embedding(tokens))[0][0])
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(test.labels))
    assert found.nll == pytest.approx(float(expected), abs=0.005)
