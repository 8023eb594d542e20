#!/usr/bin/env python3
"""Make data/sample/digits.npz from scikit-learn's digits, bit for bit: `python data/prepare_sample.py [OUT]`.

Needs scikit-learn, which kdcache itself does not. The file is a zip of two plain arrays with fixed dates and no
compression level of its own, so that the same digits always give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

PROVENANCE = (
    "Optical Recognition of Handwritten Digits (test part), E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning "
    "Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; 8x8 counts 0..16, order of sklearn.datasets.load_digits."
)


def sample_bytes() -> bytes:
    """The file's bytes."""
    digits = load_digits()
    arrays = {
        "images": digits.images.astype(np.uint8),
        "labels": digits.target.astype(np.uint8),
        "provenance": np.array(PROVENANCE),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), member.getvalue())
    return content.getvalue()


def main() -> None:
    """Write the file and say how large it is."""
    parser = argparse.ArgumentParser(description="Make the embedded sample from scikit-learn's digits.")
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "sample" / "digits.npz")
    out = parser.parse_args().out
    content = sample_bytes()
    out.write_bytes(content)
    print(f"{out}: {len(content)} bytes")


if __name__ == "__main__":
    main()
