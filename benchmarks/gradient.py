"""How far the batch gradient from a store is from the one of the live teacher: bench id `gradient`.

Real teacher and student logits (resnet56 and resnet20 on CIFAR-100 test images), numbers rounded to float16 as
`--precision exact` keeps them; relative L2 error and cosine of the mean loss's gradient to the student's logits.

    python -m benchmarks.gradient [FOLDER_OF_LOGITS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import ROOT, report
from benchmarks.tail import stored
from kdcache.targets.encode import encode_topk
from kdcache.targets.methods import methods

ALPHA = 0.9


def live_gradient(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Gradient of (1-alpha) CE + alpha T^2 KL against the dense teacher, in float64."""
    logits = student.double().requires_grad_()
    target = (teacher.double() / temperature).log_softmax(dim=1)
    soft = functional.kl_div((logits / temperature).log_softmax(dim=1), target, reduction="batchmean", log_target=True)
    loss = (1 - ALPHA) * functional.cross_entropy(logits, labels) + ALPHA * temperature**2 * soft
    return torch.autograd.grad(loss, logits)[0]


def main() -> None:
    """Command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data" / "logits"
    if not folder.is_dir():
        print(f"gradient: skipped, no folder of real logits at {folder}", file=sys.stderr)
        return
    with np.load(folder / "cifar100_test_f16.npz") as pack:
        student = torch.from_numpy(pack["resnet20"].astype(np.float32))
        labels = torch.from_numpy(pack["labels"].astype(np.int64))
    with np.load(folder / "cifar100_test_resnet56_f32.npz") as pack:
        teacher = torch.from_numpy(pack["resnet56"])
    figures = {}
    for topk in (10, 25, 100):
        targets = stored(encode_topk(teacher, labels, topk=topk).targets())
        for temperature in (1.0, 2.0, 4.0):
            logits = student.clone().requires_grad_()
            loss = methods["kd"](logits, targets, labels, temperature=temperature, alpha=ALPHA).mean()
            found = torch.autograd.grad(loss, logits)[0].double()
            truth = live_gradient(student, teacher, labels, temperature)
            error = float((found - truth).norm() / truth.norm())
            cosine = float(functional.cosine_similarity(found.flatten(), truth.flatten(), dim=0))
            figures[f"k={topk} T={temperature:g}"] = {"relative_l2": f"{error:.1e}", "cosine": round(cosine, 5)}
    report("gradient", figures)


if __name__ == "__main__":
    main()
