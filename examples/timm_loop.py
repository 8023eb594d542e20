"""A student from a store the way timm trains: its model, optimizer, scheduler and weight average, kdcache's targets.

Run `kdcache dump-teacher` first; then `python examples/timm_loop.py [STORE]` in the same folder. Needs the package
`timm` (the extra `timm` or `examples`).
"""

import sys
from pathlib import Path

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3

import kdcache
from kdcache.datasets.cards import open_dataset

dataset = open_dataset("digit-pairs", split="train")
images = torch.tensor(dataset.examples).permute(0, 3, 1, 2) / 255
pairs = torch.utils.data.TensorDataset(images, torch.tensor(dataset.labels))  # any map-style data set of (input, label)
store = kdcache.open_store(sys.argv[1] if len(sys.argv) > 1 else next(Path("kdcache-store").iterdir()))
loader = kdcache.DistillLoader(pairs, store, batch_size=128, seed=0)

torch.manual_seed(0)
student = timm.create_model("test_resnet", in_chans=1, num_classes=store.num_classes)
average = ModelEmaV3(student, decay=0.99)
optimizer = create_optimizer_v2(student, opt="adamw", lr=3e-3, weight_decay=0.05, filter_bias_and_bn=True)
scheduler, num_epochs = create_scheduler_v2(
    optimizer, sched="cosine", num_epochs=3, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=len(loader)
)
method = kdcache.methods["kd-topk"]
update = 0
for epoch in range(num_epochs):
    meter = AverageMeter()
    for inputs, labels, targets in loader:
        loss = method(student(inputs), targets, labels, temperature=4.0, alpha=0.9).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update += 1
        average.update(student, step=update)
        scheduler.step_update(num_updates=update)
        meter.update(loss.item(), len(inputs))
    print(f"epoch {epoch + 1}: loss {meter.avg:.3f}")
