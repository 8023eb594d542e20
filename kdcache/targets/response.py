"""The seed losses: ce, ls, kd, kd-topk, kd-pt, kd-sim and kd-pt+sim. Pure functions of `LossInputs`, one value per row.

L = (1 - alpha) * CE(label) + alpha * T^2 * KL(target^T || q^T). Forms and their status: docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.targets import divergence
from kdcache.targets.head_sums import head_sums
from kdcache.targets.method import LossInputs, MethodContext, Similarity, StoreColumns
from kdcache.targets.similarity import class_means, from_weights, mean_confidence, required_weight
from kdcache.targets.split import log_label_probs

# kd-sim is compared with ls at its usual 0.1; a teacher that is surer of its own training rows would turn R into onehot
HIGHEST_DEFAULT_CONFIDENCE = 0.9


def ce_loss(inputs: LossInputs) -> Tensor:
    """Cross-entropy with the label; (B,) nats."""
    return functional.cross_entropy(inputs.student, inputs.labels, reduction="none")


def ls_loss(inputs: LossInputs) -> Tensor:
    """Cross-entropy with (1 - smoothing) onehot + smoothing / K; (B,) nats."""
    return functional.cross_entropy(
        inputs.student, inputs.labels, reduction="none", label_smoothing=inputs.number("smoothing")
    )


def kd_divergence(
    logits: Tensor, inputs: LossInputs, temperature: float | Tensor, *, tail: str | None = None
) -> Tensor:
    """KL(p^T || q^T) with the tail that the options choose; (B,) nats without T^2.

    Args:
        logits: (B, K) student logits (not always `inputs.student`: lskd standardises them first).
        inputs: targets, options and context.
        temperature: T.
        tail: overrides the option `tail`.
    """
    targets = inputs.targets
    chosen = inputs.text("tail") if tail is None else tail
    if chosen == "auto":
        chosen = "full" if targets.topk == targets.num_classes else "ghost"
    if chosen == "full":
        return divergence.full_kl(logits, targets, temperature)
    if chosen == "ghost":
        return divergence.ghost_kl(logits, targets, temperature)
    if chosen == "uniform":
        return divergence.uniform_kl(logits, targets, temperature)
    if chosen == "prior":
        return divergence.prior_kl(logits, targets, temperature, inputs.similarity_rows())
    if chosen == "decoupled":
        return divergence.decoupled_kl(logits, targets, temperature, head_weight=inputs.number("head_weight"))
    if chosen == "renormalised":
        return divergence.renormalised_kl(logits, targets, temperature)
    raise ConfigError(f"tail: expected one of {', '.join(divergence.TAILS)}, found {chosen!r}")


def kd_loss(inputs: LossInputs) -> Tensor:
    """Hinton's distillation from the named classes and a tail; (B,) nats."""
    return inputs.blend(kd_divergence(inputs.student, inputs, inputs.temperature))


def kd_topk_loss(inputs: LossInputs) -> Tensor:
    """Top k of p^T, the rest of the mass spread evenly over the other K - k classes; (B,) nats."""
    return inputs.blend(divergence.uniform_kl(inputs.student, inputs.targets, inputs.temperature, label_named=False))


def kd_pt_loss(inputs: LossInputs) -> Tensor:
    """p_y^T on the label, the rest spread evenly; (B,) nats."""
    return inputs.blend(_pt_divergence(inputs, None))


def _pt_divergence(inputs: LossInputs, shape: Tensor | None) -> Tensor:
    """KL of (p_y^T on the label, 1 - p_y^T in a given shape (B, K) or evenly elsewhere); (B,) nats."""
    temperature, label, logits = inputs.temperature, inputs.targets.label[:, None], inputs.student
    log_p, log_rest = log_label_probs(inputs.targets, temperature)
    scaled, rest = head_sums(logits, label, temperature, with_rest=shape is None)
    log_q = scaled.log_softmax(dim=1)[:, 0]
    partition = scaled[:, 0] - log_q
    if shape is None:
        assert rest is not None
        classes = logits.shape[1] - 1
        mean_log_q, entropy = rest / classes - partition, torch.full_like(log_q, float(classes)).log()
    else:
        shape = shape.to(logits.dtype).scatter(1, label, 0.0)
        shape = shape / shape.sum(dim=1, keepdim=True)
        mean_log_q = (shape * logits).sum(dim=1) / temperature - partition
        entropy = -torch.xlogy(shape, shape).sum(dim=1)
    return log_p.exp() * (log_p - log_q) + log_rest.exp() * (log_rest - entropy - mean_log_q)


def _sim_divergence(logits: Tensor, similarity: Similarity, label: Tensor, temperature: float) -> Tensor:
    """KL(R[y] || q^T); (B,) nats."""
    rows = similarity.rows(label).to(logits.dtype)
    scaled = logits / temperature
    negative_entropy = torch.xlogy(rows, rows).sum(dim=1)
    return negative_entropy - (rows * scaled.log_softmax(dim=1)).sum(dim=1)


def kd_sim_loss(inputs: LossInputs) -> Tensor:
    """KL to the label's row of R; (B,) nats."""
    return inputs.blend(_sim_divergence(inputs.student, inputs.similarity(), inputs.labels, inputs.temperature))


def kd_pt_sim_loss(inputs: LossInputs) -> Tensor:
    """kd-pt and kd-sim together, as two terms (mix=linear) or as one target (mix=split); (B,) nats."""
    similarity = inputs.similarity()
    if inputs.text("mix") == "split":
        return inputs.blend(_pt_divergence(inputs, similarity.rows(inputs.targets.label)))
    t, mu = inputs.temperature, inputs.number("mu")
    sim = _sim_divergence(inputs.student, similarity, inputs.labels, 1.0)
    return inputs.blend((1 - mu) * t * t * _pt_divergence(inputs, None) + mu * sim, temperature=1.0)


def prepare_similarity(store: StoreColumns, options: Mapping[str, object], temperature: float) -> MethodContext:
    """R as the options `similarity`, `power`, `beta` and `confidence` ask for it.

    Raises:
        IncompatibleError: similarity=weights and the store keeps no class weights.
    """
    kind = options["similarity"]
    if kind == "auto":
        kind = "weights" if store.class_weight is not None else "mean"
    if kind == "mean":
        return MethodContext(similarity=class_means(store, temperature))
    weight = required_weight(store, "kd-sim")
    beta, confidence = options["beta"], options["confidence"]
    facts: dict[str, float] = {}
    if beta is None and confidence is None:
        # at least 2/K: a teacher below chance leaves no beta to find, and is refused elsewhere for what it is
        confidence = max(mean_confidence(store, temperature), 2 / store.num_classes)
        confidence = min(confidence, HIGHEST_DEFAULT_CONFIDENCE)
        facts["confidence"] = confidence
    similarity, used = from_weights(
        weight,
        power=float(str(options["power"])),
        beta=None if beta is None else float(str(beta)),
        confidence=HIGHEST_DEFAULT_CONFIDENCE if confidence is None else float(str(confidence)),
    )
    return MethodContext(similarity=similarity, facts={**facts, "beta": used})


def prepare_mixed_similarity(store: StoreColumns, options: Mapping[str, object], temperature: float) -> MethodContext:
    """R for kd-pt+sim: mix=linear compares it with the student at T=1, mix=split uses its shape at T."""
    return prepare_similarity(store, options, 1.0 if options["mix"] == "linear" else temperature)


def prepare_prior(store: StoreColumns, options: Mapping[str, object], temperature: float) -> MethodContext:
    """R for kd's tail=prior; nothing for the other tails."""
    return prepare_similarity(store, options, temperature) if options["tail"] == "prior" else MethodContext()
