"""A student from a store in the Hugging Face Trainer: `compute_loss` is the only thing that changes.

Run `kdcache dump-teacher` first; then `python examples/huggingface_trainer.py [STORE]` in the same folder. Needs the
packages `transformers` and `accelerate` (the extra `examples`).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import kdcache
from kdcache.datasets.cards import open_dataset

dataset = open_dataset("digit-pairs", split="train")
images = torch.tensor(dataset.examples).permute(0, 3, 1, 2) / 255
pairs = torch.utils.data.TensorDataset(images, torch.tensor(dataset.labels))  # any map-style data set of (input, label)
store = kdcache.open_store(sys.argv[1] if len(sys.argv) > 1 else next(Path("kdcache-store").iterdir()))
attached = kdcache.AttachedDataset(pairs, store)  # refuses a data set that is not the store's


class DistillTrainer(Trainer):
    """The Trainer with a loss from the store."""

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **more: Any
    ) -> Any:
        """Mean of kd-topk over the batch; without `labels` the model computes no loss of its own."""
        outputs = model(pixel_values=inputs["pixel_values"])
        targets = attached.targets(inputs["rows"])
        method = kdcache.methods["kd-topk"]
        loss = method(outputs.logits, targets, inputs["labels"], temperature=4.0, alpha=0.9).mean()
        return (loss, outputs) if return_outputs else loss


def collate(items: list[tuple[torch.Tensor, int, int]]) -> dict[str, torch.Tensor]:
    """Items (input, label, row) to the dictionary the Trainer passes on."""
    inputs, labels, rows = zip(*items, strict=True)
    return {"pixel_values": torch.stack(inputs), "labels": torch.tensor(labels), "rows": torch.tensor(rows)}


config = ResNetConfig(num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=100)
config.layer_type = "basic"
arguments = TrainingArguments(
    output_dir="student",
    num_train_epochs=3,
    per_device_train_batch_size=128,
    learning_rate=5e-3,
    remove_unused_columns=False,  # the Trainer would drop `rows`, which the model does not take
    save_strategy="no",
    logging_strategy="epoch",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    seed=0,
)
torch.manual_seed(0)
trainer = DistillTrainer(
    model=ResNetForImageClassification(config), args=arguments, train_dataset=attached, data_collator=collate
)
trainer.train()
for line in trainer.state.log_history:
    if "loss" in line:
        print(f"epoch {line['epoch']:.0f}: loss {line['loss']:.3f}")
