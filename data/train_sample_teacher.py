#!/usr/bin/env python3
"""Train the embedded sample's teacher: `python data/train_sample_teacher.py [OUT]`, about a minute on one core.

Plain PyTorch on the pairs of split "teacher"; neither the students' pairs nor the test pairs share a digit with them.
On the machine that made data/sample/teacher.safetensors the same command gives the same bytes; on another machine
expect the same test accuracy within 1 point.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdcache.datasets.cards import load_card, open_dataset
from kdcache.datasets.identity import content_digest
from kdcache.models.preprocess import Preprocessing
from kdcache.models.registry import build_model
from kdcache.models.weights import save_weights

RECIPE: dict[str, Any] = {
    "model": "cnn-16",
    "epochs": 5,
    "batch_size": 100,
    "optimizer": "sgd, Nesterov momentum 0.9",
    "peak_lr": 0.1,
    "schedule": "one cycle",
    "weight_decay": 5e-4,
    "seed": 0,
}


def load_split(split: str, preprocessing: Preprocessing) -> tuple[Tensor, Tensor, str]:
    """All inputs (N, 1, 8, 16) float32, labels (N,) int64 and the content digest of a split."""
    source = open_dataset("digit-pairs", split=split)
    pixels = torch.stack([torch.from_numpy(source.example(row)).permute(2, 0, 1) for row in range(len(source))])
    return preprocessing.batch(pixels), torch.from_numpy(source.labels), content_digest(source)


def accuracy(model: torch.nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label, in eval mode."""
    model.eval()
    with torch.no_grad():
        return float((model(inputs).argmax(dim=1) == labels).double().mean())


def train(recipe: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Train by the recipe; returns the model and its provenance."""
    torch.manual_seed(recipe["seed"])
    card = load_card("digit-pairs")
    built = build_model(
        recipe["model"], num_classes=card.num_classes, input_shape=card.image_shape, data=card.preprocessing
    )
    model, batch_size = built.module, recipe["batch_size"]
    inputs, labels, digest = load_split("teacher", built.preprocessing)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe["peak_lr"], momentum=0.9, nesterov=True, weight_decay=recipe["weight_decay"]
    )
    steps = recipe["epochs"] * len(labels) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["peak_lr"], total_steps=steps)
    for _ in range(recipe["epochs"]):
        model.train()
        for rows in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    scores = {split: accuracy(model, *load_split(split, built.preprocessing)[:2]) for split in ("train", "val", "test")}
    return model, {**recipe, "data": "digit-pairs, split teacher", "data_digest": digest, "accuracy": scores}


def main() -> None:
    """Train and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Train the embedded sample's teacher.")
    default = Path(__file__).parent / "sample" / "teacher.safetensors"
    parser.add_argument("out", nargs="?", type=Path, default=default)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model, provenance = train(RECIPE)
    info = save_weights(model, out, provenance)
    print(f"{out}: accuracy {provenance['accuracy']}, sha256 {info.sha256}")


if __name__ == "__main__":
    main()
