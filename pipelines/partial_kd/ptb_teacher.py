"""A published small PTB language model as weights of `lstm-100`, to start from instead of training a teacher.

    python -m pipelines.partial_kd.ptb_teacher rnnlm.npz teacher.safetensors

Give the result to `python -m pipelines.partial_kd.run --data ptb --teacher-weights teacher.safetensors`.
The NPZ file has names and layout of the code of "Deep Learning from Scratch 2" (MIT), gates in the order f, g, i, o.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.models.language import LstmLanguageModel
from kdcache.models.weights import save_weights

WIDTH = 100


def published_model(file: Path) -> LstmLanguageModel:
    """`lstm-100` over the file's vocabulary, in eval mode.

    Args:
        file: NPZ with embed_W (K, 100), lstm_Wx, lstm_Wh (100, 400), lstm_b (400,), affine_W (100, K), affine_b (K,).
    """
    with np.load(file) as arrays:
        given = {name: arrays[name].astype(np.float32) for name in arrays.files}

    def gates(array: NDArray[np.float32]) -> torch.Tensor:  # PyTorch wants i, f, g, o
        forget, cell, put, out = np.split(array, 4, axis=-1)
        return torch.from_numpy(np.concatenate([put, forget, cell, out], axis=-1).T.copy())

    model = LstmLanguageModel(len(given["embed_W"]), WIDTH)
    model.load_state_dict(
        {
            "embedding.weight": torch.from_numpy(given["embed_W"]),
            "lstm.weight_ih_l0": gates(given["lstm_Wx"]),
            "lstm.weight_hh_l0": gates(given["lstm_Wh"]),
            "lstm.bias_ih_l0": gates(given["lstm_b"]),
            "lstm.bias_hh_l0": torch.zeros(4 * WIDTH),
            "head.weight": torch.from_numpy(given["affine_W"].T.copy()),
            "head.bias": torch.from_numpy(given["affine_b"]),
        }
    )
    return model.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="NPZ", help="the published weights")
    parser.add_argument("out", type=Path, metavar="SAFETENSORS", help="where the weights of lstm-100 go")
    arguments = parser.parse_args()
    if not arguments.source.is_file():
        parser.error(f"{arguments.source}: no such file; expected the NPZ file of a published model")
    save_weights(published_model(arguments.source), arguments.out, {"recipe": arguments.source.name})
    print(arguments.out)


if __name__ == "__main__":
    main()
