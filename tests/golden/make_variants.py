"""Makes the golden numbers of `variant: peft`: what PEFT 0.21.2 makes of the pico inputs that
`make_golden.py` stored. It knows nothing of the package under test, and the tests never run it.

    python3 -m venv peer
    peer/bin/pip install torch==2.13.0 peft==0.21.2
    peer/bin/python tests/golden/make_variants.py

It writes, beside itself, `variants.json` (what was asked, and the versions that answered) and
`variants.npz` (the merged deltas, float32, flat, one after the other in the order of the cases).
PEFT's `ties` is run on deltas taken in float32, with the sign of the "total"; it has no lambda.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.utils.merge_utils import ties
from safetensors.torch import load_file

HERE = Path(__file__).parent
Case = dict[str, Any]

DENSITIES = (0.0, 0.01, 0.2, 0.5, 0.8, 1.0)
WEIGHTS = ([1.0], [0.7, 0.3], [1.5, 0.4, 2.0], [1.5, -0.4, 2.0])
SMALL = ("vector-f32", "vector-bf16", "vector-f16", "mirrored", "degenerate")


def cases() -> Iterator[Case]:
    """The grid on small tensors, some of it on the larger ones."""
    grid = [(SMALL, DENSITIES, WEIGHTS), (("single-f32", "single-bf16"), (0.5, 1.0), WEIGHTS[2:3])]
    grid += [(("matrix-f32", "matrix-bf16"), (0.02, 0.5), WEIGHTS[2:])]
    grid += [(("embedding-bf16",), (0.2,), WEIGHTS[1:2])]
    for axes in grid:
        for inputs, density, weight in itertools.product(*axes):
            yield {"inputs": inputs, "models": "abc"[: len(weight)], "density": density,
                   "weight": weight}  # fmt: skip


def answer(asked: Case, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """What PEFT makes of a case: the merged delta, float32, flat."""
    base = inputs[f"{asked['inputs']}/base"].float()
    deltas = [inputs[f"{asked['inputs']}/{model}"].float() - base for model in asked["models"]]
    merged = ties(deltas, torch.tensor(asked["weight"]), asked["density"], "total")
    return np.asarray(merged.numpy()).reshape(-1)


def main() -> None:
    """Ask, and write down."""
    inputs, asked = load_file(HERE / "inputs.safetensors"), list(cases())
    answers = np.concatenate([answer(case, inputs) for case in asked])
    np.savez_compressed(HERE / "variants.npz", answers=answers)
    versions = {name: version(name) for name in ("peft", "torch", "numpy")}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in asked)
    text = f'{{"versions": {json.dumps(versions)},\n"cases": [\n{lines}\n]}}\n'
    (HERE / "variants.json").write_text(text)


if __name__ == "__main__":
    main()
