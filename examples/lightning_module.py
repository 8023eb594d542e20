"""A student from a store in Lightning: the module asks for targets by row number, everything else is Lightning's.

Run `kdcache dump-teacher` first; then `python examples/lightning_module.py [STORE]` in the same folder. Needs the
package `lightning` (the extra `examples`).
"""

import sys
from pathlib import Path

import lightning
import torch

import kdcache
from kdcache.datasets.cards import open_dataset


class Student(lightning.LightningModule):
    """A student whose training batches say which rows they are."""

    def __init__(self, attached: kdcache.AttachedDataset) -> None:
        super().__init__()
        self.attached = attached
        self.method = kdcache.methods["kd-topk"]
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(128, 32), torch.nn.ReLU(), torch.nn.Linear(32, 100)
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss of one batch: targets are gathered here, in the training process."""
        inputs, labels, rows = batch
        targets = self.attached.targets(rows)
        loss = self.method(self.layers(inputs), targets, labels, temperature=4.0, alpha=0.9).mean()
        self.log("loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        """Say how it goes."""
        print(f"epoch {self.current_epoch + 1}: loss of the last batch {self.trainer.callback_metrics['loss']:.3f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As in any Lightning module."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)


dataset = open_dataset("digit-pairs", split="train")
images = torch.tensor(dataset.examples).permute(0, 3, 1, 2) / 255
pairs = torch.utils.data.TensorDataset(images, torch.tensor(dataset.labels))  # any map-style data set of (input, label)
store = kdcache.open_store(sys.argv[1] if len(sys.argv) > 1 else next(Path("kdcache-store").iterdir()))
attached = kdcache.AttachedDataset(pairs, store)  # refuses a data set that is not the store's
loader = torch.utils.data.DataLoader(attached, batch_size=128, shuffle=True)

lightning.seed_everything(0)
trainer = lightning.Trainer(
    max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(Student(attached), loader)
