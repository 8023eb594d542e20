"""How far a training step from a store is from the live one, on a real pair: the gradient of the student's parameters.

Batches of the training order, view 0, batch statistics as in a step; the live side is the dense teacher on the same
pixels with torch's own loss. Used by `benchmarks.faithfulness`; no table here.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.live import dense_kd
from kdcache.datasets.cards import open_dataset
from kdcache.distill import DistillConfig
from kdcache.loader.inputs import InputReader
from kdcache.loader.target_store import open_store
from kdcache.models.weights import load_weights
from kdcache.targets.methods import methods
from kdcache.teachers import LoadedTeacher
from kdcache.training.batch import TrainingFeed
from kdcache.training.setup import build_for_training, card_of
from kdcache.views.policy import ViewPolicy

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
KEPT = (5, 10, None)  # None: all that are stored
BATCHES = 16


def student_gradients(
    config: DistillConfig, teacher: LoadedTeacher, weights: Path | None, *, split: str
) -> dict[str, dict[str, float]]:
    """Cosine and relative L2 error of a batch's gradient, mean over batches, for each k and T.

    Args:
        config: student, data, seed, batch size, alpha, and the store.
        weights: the student's, or None for its initial ones.
        split: the store's rows.

    Returns:
        {"k=10 T=4": {"cosine", "relative_l2", "loss", "live_loss"}, ...}
    """
    training = config.training({})
    source = open_dataset(config.dataset, split=split, root=config.data_root)
    store = open_store(config.store)
    built = build_for_training(
        config.student, source, card_of(config.dataset), seed=training.seed, device=torch.device("cpu")
    )
    if weights is not None:
        load_weights(built.module, weights)
    reader = InputReader(
        source, built.preprocessing, ViewPolicy.from_spec(store.manifest.views), stored_params=store.view_params
    )
    feed = TrainingFeed(reader, torch.tensor(source.labels), batch_size=training.batch_size, seed=training.seed)
    batches = [batch for _, batch in zip(range(BATCHES), feed.epoch(0), strict=False)]
    found: dict[str, dict[str, float]] = {}
    for batch in batches:
        module = copy.deepcopy(built.module).train()  # batch statistics move the running ones: every batch starts alike
        logits = module(batch.inputs)
        with torch.inference_mode():
            opinion = teacher.logits(batch.inputs)
        dense = opinion.clone()
        for temperature in TEMPERATURES:
            live = dense_kd(logits, dense, batch.labels, temperature=temperature, alpha=config.alpha or 0.0).mean()
            truth = _gradient(live, module)
            for topk in KEPT:
                targets = store.targets(torch.from_numpy(batch.rows), 0, topk)
                loss = methods["kd"](logits, targets, batch.labels, temperature=temperature, alpha=config.alpha).mean()
                ours = _gradient(loss, module)
                figures = found.setdefault(
                    f"k={topk or store.topk} T={temperature:g}",
                    dict.fromkeys(("cosine", "relative_l2", "loss", "live_loss"), 0.0),
                )
                figures["cosine"] += float(functional.cosine_similarity(ours, truth, dim=0)) / len(batches)
                figures["relative_l2"] += float((ours - truth).norm() / truth.norm()) / len(batches)
                figures["loss"] += float(loss.detach()) / len(batches)
                figures["live_loss"] += float(live.detach()) / len(batches)
    return found


def _gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """All parameters' gradients as one float64 vector; the graph is kept for the next loss."""
    return torch.cat(
        [part.flatten().double() for part in torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)]
    )
