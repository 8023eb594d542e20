"""`hf:FOLDER` teachers: a small transformer with random weights, built here and saved as people save theirs."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.dump import DumpConfig, dump_teacher
from kdcache.errors import ConfigError, NotFoundError
from kdcache.loader.target_store import open_store
from kdcache.models.hf_adapter import build_hf, hf_identity, hf_weights
from kdcache.models.language import example_segment
from kdcache.models.weights import state_digest
from kdcache.store.reader import open_reader

transformers = pytest.importorskip("transformers")

LENGTHS = (60, 2, 33)


def save_model(folder: Path, *, vocabulary: int = 97, shards: str = "5GB", **more: Any) -> Path:
    """A Llama of one layer with random weights; its folder."""
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=128, **settings, **more)
        transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shards)
    return folder


def save_corpus(path: Path, *, vocabulary: int = 97) -> np.ndarray:
    """Three sequences of random tokens; the tokens."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, sum(LENGTHS))
    np.savez(path, train_tokens=tokens, train_lengths=np.array(LENGTHS), vocab_size=vocabulary)
    return tokens


def dump(folder: Path, model: Path, *, out: str = "store.zarr", **more: Any) -> str:
    """A store of the corpus; its path."""
    settings: dict[str, Any] = {"topk": 64, "batch_size": 32, "context": 64, **more}
    config = DumpConfig(
        dataset="tokens",
        data_root=folder / "corpus.npz",
        teacher=f"hf:{model}",
        out=str(folder / out),
        allow_weak_teacher=True,
        **settings,
    )
    return dump_teacher(config).store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of 97 tokens."""
    return save_model(tmp_path_factory.mktemp("model"))


def test_the_stored_opinion_is_the_models_own_for_each_sequence_alone(tmp_path: Path, model: Path) -> None:
    tokens = save_corpus(tmp_path / "corpus.npz")
    store = open_store(dump(tmp_path, model, topk="all", precision="exact"))
    live = transformers.AutoModelForCausalLM.from_pretrained(str(model), local_files_only=True).eval()
    first = 0
    with torch.inference_mode():
        for sequence in np.split(tokens, np.cumsum(LENGTHS)[:-1]):
            expected = live(torch.from_numpy(sequence[:-1])[None]).logits[0].log_softmax(dim=-1)
            rows = torch.arange(first, first + len(sequence) - 1)
            found = store.targets(rows)
            assert found.label.tolist() == sequence[1:].tolist()
            ordered = expected.gather(1, found.index)
            torch.testing.assert_close(found.log_prob, ordered, rtol=1e-3, atol=2e-3)  # float16 at rest
            first += len(rows)
    assert store.manifest.teacher.source == "hf:LlamaForCausalLM"
    assert store.class_weight is not None
    assert store.class_weight.shape == (97, 16)


def test_packed_documents_are_answered_as_under_a_block_diagonal_mask(tmp_path: Path, model: Path) -> None:
    tokens = save_corpus(tmp_path / "corpus.npz")
    store = open_store(dump(tmp_path, model, topk="all", precision="exact"))
    live = transformers.AutoModelForCausalLM.from_pretrained(str(model), local_files_only=True).eval()
    # One lane of all documents: positions begin again with each, and a token sees its own document up to itself only.
    document = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    seen = (document[:, None] == document[None, :]) & torch.ones(len(tokens), len(tokens)).tril().bool()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        packed = live(
            torch.from_numpy(tokens)[None], attention_mask=mask, position_ids=positions[None], use_cache=False
        ).logits[0]
    inside = torch.cat([document[1:] == document[:-1], torch.tensor([False])])  # the last token of each has no target
    found = store.targets(torch.arange(int(inside.sum())))
    expected = packed[inside].log_softmax(dim=-1).gather(1, found.index)
    torch.testing.assert_close(found.log_prob, expected, rtol=1e-3, atol=2e-3)
    assert found.label.tolist() == tokens[1:][inside[:-1].numpy()].tolist()


def test_without_boundaries_packed_documents_see_each_other(tmp_path: Path, model: Path) -> None:
    tokens = save_corpus(tmp_path / "corpus.npz")
    np.savez(tmp_path / "corpus.npz", train_tokens=tokens, vocab_size=97)  # one sequence, as far as anyone can tell
    whole = open_store(dump(tmp_path, model, topk="all"))
    assert whole.num_rows == len(tokens) - 1
    other = tokens.copy()
    other[: LENGTHS[0]] = (other[: LENGTHS[0]] + 1) % 97
    np.savez(tmp_path / "corpus.npz", train_tokens=other, vocab_size=97)
    changed = open_store(dump(tmp_path, model, topk="all", out="other.zarr"))
    rows = torch.arange(LENGTHS[0], len(tokens) - 1)
    assert not torch.equal(whole.targets(rows).log_prob, changed.targets(rows).log_prob)


def test_a_vocabulary_of_151_936_and_k_64(tmp_path: Path) -> None:
    vocabulary = 151_936
    save_corpus(tmp_path / "corpus.npz", vocabulary=vocabulary)
    path = dump(tmp_path, save_model(tmp_path / "model", vocabulary=vocabulary, tie_word_embeddings=True))
    reader = open_reader(path)
    assert reader.view(0).topk_index.dtype == np.uint32
    assert int(reader.view(0).topk_index.max()) > 131_072
    targets = open_store(path).targets(torch.arange(reader.manifest.dataset.num_rows))
    head = targets.log_prob.exp().sum(dim=1)
    outside = (targets.index != targets.label[:, None]).all(dim=1)
    label = torch.where(outside, targets.label_log_prob.exp(), torch.zeros_like(head))
    torch.testing.assert_close(head + label + targets.tail[:, 0].exp(), torch.ones_like(head), rtol=0, atol=5e-3)


def test_what_is_read_beside_a_row_does_not_matter(tmp_path: Path, model: Path) -> None:
    save_corpus(tmp_path / "corpus.npz")
    one = open_store(dump(tmp_path, model, context=8, batch_size=92))
    other = open_store(dump(tmp_path, model, context=8, batch_size=7, out="other.zarr"))
    rows = torch.arange(one.num_rows)
    torch.testing.assert_close(one.targets(rows).log_prob, other.targets(rows).log_prob, rtol=2e-3, atol=2e-3)


def test_logits_that_are_changed_after_the_head_are_taken_from_the_model(tmp_path: Path) -> None:
    config = transformers.Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = transformers.Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(50)
    made.save_pretrained(tmp_path / "capped")
    module = build_hf(f"hf:{tmp_path / 'capped'}")
    with torch.inference_mode():
        logits = module(example_segment([3, 4, 5]))
        torch.testing.assert_close(logits, made(torch.tensor([[3, 4, 5]])).logits[0], rtol=1e-4, atol=1e-5)
    assert float(logits.abs().max()) <= 0.5


def test_the_same_weights_in_several_files_are_the_same_teacher(tmp_path: Path, model: Path) -> None:
    parts = save_model(tmp_path / "parts", shards="4KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    one, many = hf_weights(f"hf:{model}"), hf_weights(f"hf:{parts}")
    assert one.state_digest == many.state_digest
    assert one.sha256 != many.sha256
    live = transformers.AutoModelForCausalLM.from_pretrained(str(model), local_files_only=True)
    assert one.state_digest == state_digest(live.state_dict())
    assert hf_identity(f"hf:{model}")[0] == "hf:LlamaForCausalLM"


def test_a_lane_longer_than_the_models_positions_names_the_context_to_use(tmp_path: Path, model: Path) -> None:
    tokens = np.arange(400) % 97
    np.savez(tmp_path / "corpus.npz", train_tokens=tokens, vocab_size=97)
    with pytest.raises(ConfigError, match="model of 128 positions") as caught:
        dump(tmp_path, model, context=100, batch_size=400)
    assert "--context 64" in (caught.value.hint or "")
    shutil.rmtree(tmp_path / "store.zarr", ignore_errors=True)  # another context is another store
    assert open_store(dump(tmp_path, model, context=64, batch_size=400)).num_rows == 399


def test_what_is_no_checkpoint_is_refused_before_anything_is_built(tmp_path: Path, model: Path) -> None:
    save_corpus(tmp_path / "corpus.npz")
    with pytest.raises(NotFoundError, match=r"config\.json"):
        dump(tmp_path, tmp_path / "gone")
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(ConfigError, match="expected a causal language model"):
        dump(tmp_path, other)
    (other / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ConfigError, match="code of its own"):
        dump(tmp_path, other)
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotFoundError, match=r"no \.safetensors"):
        dump(tmp_path, other)
    (other / "pytorch_model.bin").write_bytes(pickle.dumps({"evil": 1}))
    with pytest.raises(NotFoundError, match=r"no \.safetensors"):
        dump(tmp_path, other)
    with pytest.raises(ConfigError, match="brings its own weights"):
        dump(tmp_path, model, init_seed=0)
    assert not (tmp_path / "store.zarr").exists()


def test_a_missing_transformers_names_the_extra(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        build_hf(f"hf:{model}")
    assert "kdcache[hf]" in (caught.value.hint or "")


def test_padding_reaches_no_token(model: Path) -> None:
    module = build_hf(f"hf:{model}")
    segment = example_segment([3, 4, 5])
    padded = replace(
        segment,
        tokens=torch.tensor([[3, 4, 5, 0, 0], [7, 8, 9, 10, 11]]),
        keep=torch.tensor([[True, True, True, False, False], [True] * 5]),
        lengths=torch.tensor([3, 5]),
    )
    with torch.inference_mode():
        torch.testing.assert_close(module(padded)[:3], module(segment), rtol=1e-4, atol=1e-5)
