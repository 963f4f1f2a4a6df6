"""Folders of models that the app's tests need beside the embedded ones, made from those."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.ui.running import ROOT

DEMO = ROOT / "assets" / "demo"
WEIGHTS = "model.safetensors"
END = 2
"""The number of the token that ends an answer of the demo models."""
NAMES = ("base", "a", "b")
TIES, SLERP = (
    (ROOT / "assets" / "recipes" / name).read_text(encoding="utf-8")
    for name in ("01-demo-ties.yaml", "02-demo-slerp.yaml")
)


def talkative(folder: Path) -> dict[str, Path]:
    """Copies of the demo models that hardly ever end an answer, for tests that need long ones."""
    made = {}
    for name in NAMES:
        made[name] = Path(shutil.copytree(DEMO / name, folder / name))
        weights = load_file(made[name] / WEIGHTS)
        weights["lm_head.weight"][END] = 0  # its score is 0, and the likeliest token's is above
        save_file(weights, made[name] / WEIGHTS, metadata={"format": "pt"})
    return made


def recipe_of(models: dict[str, Path]) -> str:
    """The default preset's recipe over other folders."""
    text = TIES
    for name, folder in models.items():
        text = text.replace(f"assets/demo/{name}\n", f"{folder}\n")
    return text
