"""Runs four recipes over pico checkpoints and compares with what `mergekit-yaml` 0.1.5 wrote for
them; knows the densities that the TIES recipe spells out, and nothing of how the package works.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import reference

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "tests" / "golden" / "checkpoints"
WHOLE = ("ties", "slerp")


def expected(recipe: str) -> dict[str, torch.Tensor]:
    """The peer's tensors by name, bfloat16; of the plain averages only layer 1 was kept."""
    parent = load_file(CHECKPOINTS / "base" / "model.safetensors")
    kept = {k: x for k, x in sorted(parent.items()) if recipe in WHOLE or ".layers.1." in k}
    flat = torch.from_numpy(np.load(CHECKPOINTS / "expected.npz")[recipe])
    parts = flat.split([x.numel() for x in kept.values()])
    values = [part.contiguous().view(torch.bfloat16) for part in parts]
    return {k: v.reshape(x.shape) for v, (k, x) in zip(values, kept.items(), strict=True)}


def run(recipe: str, out: Path) -> dict[str, torch.Tensor]:
    """What our program writes for a recipe; model names are folders beside it."""
    command = [
        sys.executable,
        "-m",
        "merging",
        "run",
        f"{recipe}.yaml",
        str(out),
        "--device",
        "cpu",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=CHECKPOINTS, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {k: x for file in sorted(out.glob("*.safetensors")) for k, x in load_file(file).items()}


def contested(name: str) -> np.ndarray:
    """Where the peer's trim of the TIES recipe chose among equal magnitudes."""
    layer = int(name.split(".")[2]) if ".layers." in name else 0
    densities = {"a": 0.2 + 0.6 * layer / 2, "b": 0.5}
    parents = {
        folder: load_file(CHECKPOINTS / folder / "model.safetensors")[name].float().numpy()
        for folder in ("base", "a", "b")
    }
    aside = np.zeros(parents["base"].shape, dtype=bool)
    for folder, density in densities.items():
        sizes = np.abs(reference.delta(parents[folder], parents["base"]))
        count = reference.kept_count(sizes.size, density)
        threshold = np.sort(sizes, axis=None)[-count]
        if threshold > 0 and (sizes >= threshold).sum() > count:
            aside |= sizes == threshold
    return aside


def steps_apart(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """How many bfloat16 numbers lie between the two, element by element."""

    def place(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return np.asarray((place(one) - place(other)).abs().numpy())


@pytest.mark.parametrize("recipe", ["ties", "slerp", "linear", "task_arithmetic"])
def test_recipe_gives_the_peers_tensors(recipe: str, tmp_path: Path) -> None:
    """The same YAML, gradients and filters included, writes the same bfloat16 tensors."""
    wanted = expected(recipe)
    got = run(recipe, tmp_path / "out")
    assert set(got) == set(load_file(CHECKPOINTS / "base" / "model.safetensors"))
    off = total = aside = 0
    for name, tensor in wanted.items():
        assert got[name].dtype == torch.bfloat16
        assert got[name].shape == tensor.shape
        skip = contested(name) if recipe == "ties" else np.zeros(tensor.shape, dtype=bool)
        apart = steps_apart(got[name], tensor)[~skip]
        assert not apart.size or apart.max() <= 1, f"{name}: {(apart > 1).sum()} differ"
        off, total, aside = off + (apart > 0).sum(), total + apart.size, aside + skip.sum()
    assert off <= 0.001 * total
    assert aside <= 0.03 * (total + aside)
