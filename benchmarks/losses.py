"""Time and memory of the sparse losses against a dense KL in the same run: bench id `losses`.

Per (rows, classes): forward and backward of each loss to the student's logits, median of repeats on one thread, and the
most memory that tensors took above what was there before (counted by the allocator's profiler on CPU, by the caching
allocator on a GPU). The dense reference holds the teacher's (B, K) logits, as live distillation does. Soft part alone:
alpha = 1.

    python -m benchmarks.losses [--device cuda] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from kdcache.targets.encode import encode_topk
from kdcache.targets.methods import methods

SHAPES = ((256, 1_000), (32, 150_000))
TOPK = (10, 100)
TEMPERATURE = 4.0
REPEATS = 15
SPARSE = (("kd ghost", "kd", {"tail": "ghost"}), ("kd uniform", "kd", {"tail": "uniform"}), ("kd-topk", "kd-topk", {}))

Loss = Callable[[Tensor], Tensor]


def dense_loss(teacher: Tensor) -> Loss:
    """Textbook KL with the teacher's logits at hand."""

    def loss(student: Tensor) -> Tensor:
        target = (teacher / TEMPERATURE).softmax(dim=1)
        log_q = (student / TEMPERATURE).log_softmax(dim=1)
        return TEMPERATURE**2 * functional.kl_div(log_q, target, reduction="none").sum(dim=1)

    return loss


def sparse_losses(teacher: Tensor, label: Tensor) -> dict[str, Loss]:
    """The methods from stored targets at each k."""
    losses: dict[str, Loss] = {}
    for topk in TOPK:
        targets = encode_topk(teacher, label, topk=topk).targets()
        for title, name, options in SPARSE:

            def loss(student: Tensor, name=name, options=options, targets=targets) -> Tensor:  # type: ignore[no-untyped-def]
                fresh = replace(targets)  # every step of a run has new targets; these would remember their split
                return methods[name](student, fresh, label, temperature=TEMPERATURE, alpha=1.0, options=options)

            losses[f"{title} k={topk}"] = loss
    return losses


def step(loss: Loss, student: Tensor) -> None:
    """One forward and backward pass."""
    student.grad = None
    loss(student).mean().backward()


def seconds(losses: dict[str, Loss], student: Tensor) -> dict[str, float]:
    """Median time of a step of each loss, the losses taking turns; on CPU the thread's own time, so that other
    processes on the machine do not count.
    """
    clock = time.perf_counter if student.is_cuda else time.thread_time
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(REPEATS + 2):
        for name, loss in losses.items():
            _wait(student)
            start = clock()
            step(loss, student)
            _wait(student)
            times[name].append(clock() - start)
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def _wait(student: Tensor) -> None:
    if student.is_cuda:
        torch.cuda.synchronize()


def peak_bytes(loss: Loss, student: Tensor) -> int:
    """Most bytes allocated during a step above those before it; the student's gradient is in it for every loss."""
    student.grad = None
    if student.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, student)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(loss, student)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def measure(rows: int, classes: int, device: str) -> list[dict[str, object]]:
    """One row of numbers per loss."""
    generator = torch.Generator().manual_seed(0)
    teacher = (2 * torch.randn(rows, classes, generator=generator)).to(device)
    label = torch.randint(classes, (rows,), generator=generator).to(device)
    student = torch.randn(rows, classes, generator=generator).to(device).requires_grad_()
    losses = {"dense KL": dense_loss(teacher), **sparse_losses(teacher, label)}
    results = []
    times = seconds(losses, student)
    for name, loss in losses.items():
        numbers = {
            "seconds": times[name],
            "time_ratio": times[name] / times["dense KL"],
            "peak_mib": peak_bytes(loss, student) / 2**20,
        }
        held = teacher.nbytes if name == "dense KL" else 0
        results.append({"rows": rows, "classes": classes, "loss": name, **numbers, "teacher_mib": held / 2**20})
    return results


def failures(results: list[dict[str, object]]) -> list[str]:
    """Losses that are not both faster and smaller than the dense KL of the same shape."""
    dense = {row["classes"]: float(str(row["peak_mib"])) for row in results if row["loss"] == "dense KL"}
    return [
        f"{row['loss']} at K={row['classes']}: time ratio {row['time_ratio']:.2f}, peak {row['peak_mib']:.1f} MiB"
        for row in results
        if row["loss"] != "dense KL"
        and not (float(str(row["time_ratio"])) < 1 and float(str(row["peak_mib"])) < dense[row["classes"]])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 unless every loss is faster and smaller than dense"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # thread_time counts one thread
    results = [row for shape in SHAPES for row in measure(*shape, arguments.device)]
    if arguments.json:
        print(json.dumps({"bench": "losses", "device": arguments.device, "rows": results}, indent=1))
    else:
        print(f"{'rows':>5} {'classes':>8} {'loss':20} {'ms':>9} {'of dense':>9} {'peak MiB':>9} {'teacher MiB':>11}")
        for row in results:
            print(
                f"{row['rows']:5} {row['classes']:8} {row['loss']:20} {1e3 * float(str(row['seconds'])):9.2f} "
                f"{row['time_ratio']:9.2f} {float(str(row['peak_mib'])):9.1f} {float(str(row['teacher_mib'])):11.1f}"
            )
    if arguments.check and (failed := failures(results)):
        raise SystemExit("not faster and smaller than the dense KL:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
