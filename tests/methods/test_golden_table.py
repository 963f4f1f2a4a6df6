"""Runs the recipes of `tests/golden/table.yaml` over pico checkpoints and compares every tensor
with what `mergekit-yaml` 0.1.5 wrote for it; knows tokens and layers, and no method's formula.

Set aside, and counted: elements at the threshold of a TIES trim where several are equally large,
since the peer's sort is free to keep any of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from merging import Plan, Recipe, merge, plan
from merging.pairing import Step
from merging.sinks import Folder
from tests import reference
from tests.golden.make_table import make_parents, recipes

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
TABLE: dict[str, Any] = json.loads((GOLDEN / "table.json").read_text())
RECIPES = recipes()
CLOSE = 2e-6


@dataclass(frozen=True)
class Answer:
    """The peer's merged model: tensors, tokens in the order of their rows, and its config."""

    tensors: dict[str, torch.Tensor]
    words: list[str]
    layers: int
    rows: int


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the recipes name."""
    root = tmp_path_factory.mktemp("parents")
    make_parents(root)
    return root


def answer(name: str) -> Answer:
    facts = TABLE["cases"][name]
    shapes = TABLE["lists"][facts["tensors"]]
    flat = torch.from_numpy(np.load(GOLDEN / "table.npz")[name])
    parts = flat.split([int(np.prod(shape)) for shape in shapes.values()])
    tensors = {}
    for (key, shape), part in zip(shapes.items(), parts, strict=True):
        values = part.contiguous().view(torch.bfloat16) if facts["dtype"] == "bfloat16" else part
        tensors[key] = values.reshape(shape)
    return Answer(tensors, TABLE["lists"][facts["words"]], facts["layers"], facts["rows"])


def check(wanted: Answer, out: Path, aside: dict[str, np.ndarray]) -> None:
    """The written folder has the peer's tensors, tokens, layers and rows."""
    got = {k: x for file in sorted(out.glob("*.safetensors")) for k, x in load_file(file).items()}
    config = json.loads((out / "config.json").read_text())
    assert set(got) == set(wanted.tensors)
    assert (config["num_hidden_layers"], config["vocab_size"]) == (wanted.layers, wanted.rows)
    numbers = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    assert set(numbers) == set(wanted.words)
    order = [numbers[word] for word in wanted.words]
    order += range(len(order), wanted.rows)  # padding
    counted = Counted()
    for name, tensor in wanted.tensors.items():
        mine = got[name][order] if tensor.shape[0] == wanted.rows else got[name]
        assert mine.shape == tensor.shape, name
        assert mine.dtype == tensor.dtype, name
        counted.add(name, mine, tensor, aside.get(name))
    counted.check()


class Counted:
    """How many elements were compared, set aside, and one bfloat16 number off."""

    def __init__(self) -> None:
        self.total = self.aside = self.off = 0

    def add(
        self, name: str, mine: torch.Tensor, theirs: torch.Tensor, aside: np.ndarray | None
    ) -> None:
        kept = torch.ones(mine.shape, dtype=torch.bool)
        if aside is not None:
            kept &= ~torch.from_numpy(aside)
        self.total += mine.numel()
        self.aside += int((~kept).sum())
        if mine.dtype == torch.bfloat16:
            apart = (place(mine) - place(theirs)).abs()[kept]
            assert not (apart > 1).any(), f"{name}: {int((apart > 1).sum())} differ"
            self.off += int((apart > 0).sum())
        else:
            apart = (mine.double() - theirs.double()).abs()[kept]
            assert not (apart > CLOSE).any(), f"{name}: {int((apart > CLOSE).sum())} differ"

    def check(self) -> None:
        assert self.off <= 0.002 * self.total
        assert self.aside <= 0.03 * self.total


def place(x: torch.Tensor) -> torch.Tensor:
    """A bfloat16 number's place among all of them in order."""
    bits = x.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def contested(decided: Plan, words: list[str]) -> dict[str, np.ndarray]:
    """By tensor, where the trim had to choose among equal magnitudes, in the peer's row order."""
    if decided.method.name != "ties":
        return {}
    found = {}
    for step in decided.steps:
        *models, base = parents_of(decided, step, words)
        aside = np.zeros(base.shape, dtype=bool)
        for values, density in zip(models, step.values["density"], strict=True):
            sizes = np.abs(reference.delta(values, base))
            count = reference.kept_count(sizes.size, density)
            threshold = np.sort(sizes, axis=None)[-count]
            if threshold > 0 and (sizes >= threshold).sum() > count:
                aside |= sizes == threshold
        found[step.name] = aside
    return found


def parents_of(decided: Plan, step: Step, words: list[str]) -> list[np.ndarray]:
    """What each parent of a tensor holds, float32; of one with a row a token, in `words`' order."""
    values, known = [], []
    for number, name in zip(step.sources, step.reads, strict=True):
        folder = decided.sources[number].folder
        values.append(load_file(folder / "model.safetensors")[name].float().numpy())
        known.append(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab())
    if not step.by_token:
        return values
    rows = [[known[i].get(word, -1) for word in words] for i in range(len(known))]
    chosen = [x[r] for x, r in zip(values, rows, strict=True)]
    for at in range(len(words)):
        owners = [i for i, own in enumerate(rows) if own[at] >= 0]
        fill = chosen[-1] if rows[-1][at] >= 0 else chosen[owners[0]]
        assert rows[-1][at] >= 0 or len(owners) == 1
        for x, own in zip(chosen, rows, strict=True):
            if own[at] < 0:
                x[at] = fill[at]
    return chosen


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_peers_tensors(
    name: str, parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value, name, token and count that the peer wrote for the same YAML."""
    wanted = answer(name)
    monkeypatch.chdir(parents)
    decided = plan(Recipe.from_yaml(RECIPES[name]))
    for _ in merge(decided, Folder(tmp_path / "out")):
        pass
    check(wanted, tmp_path / "out", contested(decided, wanted.words))


def test_the_command_line_gives_them_too(parents: Path, tmp_path: Path) -> None:
    """One recipe with slices, gradients and a union, from a file, through the program."""
    (tmp_path / "recipe.yaml").write_text(RECIPES["slices-union"])
    command = [sys.executable, "-m", "merging", "run", str(tmp_path / "recipe.yaml")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "out"), "--device", "cpu"],
        cwd=parents, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check(answer("slices-union"), tmp_path / "out", {})
