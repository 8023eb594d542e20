#!/usr/bin/env python3
"""Fetch CIFAR-10, CIFAR-100 or Fashion-MNIST with torchvision and check every byte: `prepare_torchvision.py NAME`.

torchvision downloads from the authors' sites and compares the archive's md5; kdcache then compares the pixels with the
digests its card pins. Given again, it downloads nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torchvision

from kdcache.datasets.availability import check_data, look_for
from kdcache.datasets.cards import data_place, load_card

CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}


def main() -> int:
    """Fetch what is missing, then check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CLASSES)
    parser.add_argument("--data-root", type=Path, default=None, help="else KDCACHE_DATA_ROOT, else ./data/cache")
    arguments = parser.parse_args()
    card, root = load_card(arguments.name), data_place(arguments.data_root)
    if look_for(card, root).state != "found":
        root.mkdir(parents=True, exist_ok=True)
        for train in (True, False):
            getattr(torchvision.datasets, CLASSES[arguments.name])(str(root), train=train, download=True)
    checks = check_data(card, root)
    for check in checks:
        print(f"{card.name} {check.split}: {check.problem or f'{check.rows:,} rows, as published'}")
    return int(any(check.problem for check in checks))


if __name__ == "__main__":
    sys.exit(main())
