"""A student from a store in plain PyTorch: the loop is yours, kdcache brings the targets.

Run `kdcache dump-teacher` first; then `python examples/own_loop.py [STORE]` in the same folder.
"""

import sys
from pathlib import Path

import torch

import kdcache
from kdcache.datasets.cards import open_dataset

dataset = open_dataset("digit-pairs", split="train")
images = torch.tensor(dataset.examples).permute(0, 3, 1, 2) / 255
pairs = torch.utils.data.TensorDataset(images, torch.tensor(dataset.labels))  # any map-style data set of (input, label)
student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 32), torch.nn.ReLU(), torch.nn.Linear(32, 100))
optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)

store = kdcache.open_store(sys.argv[1] if len(sys.argv) > 1 else next(Path("kdcache-store").iterdir()))
loader = kdcache.DistillLoader(pairs, store, batch_size=128, seed=0)
method = kdcache.methods["kd-topk"]
for epoch in range(10):
    for inputs, labels, targets in loader:  # targets: gathered by row number, here in the training process
        loss = method(student(inputs), targets, labels, temperature=4.0, alpha=0.9).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")
