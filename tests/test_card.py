"""What a merge's card tells of its figures; the rest is tested where it is published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from merging import merge, plan
from merging.__main__ import main
from merging.inside import whole
from merging.merge import Samples
from merging.samples import summed
from merging.sinks import Folder
from tests.conftest import changed, loaded, recipe, written
from tests.reference import slerp
from tests.test_inside import flat, vectors

Pico = dict[str, Path]
pytestmark = pytest.mark.usefixtures("one_thread")
HEAD = "What the merge did"


def card(tmp_path: Path, text: str) -> str:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert main(["run", str(path), str(tmp_path / "out")]) == 0
    return (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def table(text: str) -> dict[str, list[float]]:
    """The figures of each row, without their errors."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {
        name: [float(cell.split(" ")[0]) for cell in cells]
        for name, *cells in rows
        if re.match(r"[0-9.–-]", cells[0])
    }


def test_figures_of_deltas(ties: Path, tmp_path: Path, pico: Pico) -> None:
    """Those that the loop's samples give, a column a model, before the recipe."""
    text = card(tmp_path, ties.read_text())
    samples: Samples = {}
    decided = plan(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"],
                          parameters={"density": 0.5}))  # fmt: skip
    for _ in merge(decided, Folder(tmp_path / "other"), samples=samples):
        pass
    found: Any = whole(decided, summed(samples))
    rows = table(text)
    assert rows["length, as a part of the base's"] == pytest.approx(
        [*found["size"].values()], rel=5e-3
    )
    assert rows["energy that the trim keeps"] == pytest.approx([*found["kept"].values()], rel=5e-3)
    assert rows["part of it that is in the merged change"] == pytest.approx(
        [*found["merged"]["retained"].values()], rel=5e-3
    )
    assert rows["cosine"] == pytest.approx([found["cosine"][0]["value"]], rel=5e-3)
    assert "| between | models 1 and 2 |" in text
    assert f"Signs differ in {found['conflict']:.0%}" in text
    assert text.index(HEAD) < text.index("```yaml") and text.rstrip().endswith("```")


def test_figures_of_weights(tmp_path: Path, pico: Pico) -> None:
    text = card(tmp_path, written("slerp", [pico["a"], pico["c"]], base_model=pico["a"]))
    rows = table(text)
    away = ["cosine", "angle, in degrees", "distance, as a part of the first's length"]
    assert [*rows] == ["length", "cosine with the merged weights", *away]
    assert all(0.9 < value <= 1 for value in rows["cosine with the merged weights"])
    assert "Signs differ" not in text and "The merged change" not in text


def test_how_long_the_merged_change_is(tmp_path: Path, pico: Pico) -> None:
    """Beside the models' own, and what an average and a sum of unlike ones would be."""
    keys = {"base_model": pico["base"], "parameters": {"lambda": 0.7}}
    text = card(tmp_path, written("task_arithmetic", [pico["a"], pico["c"]], **keys))
    a, c = map(flat, vectors(pico)[1])
    own = 0.7 * (a + c).norm() / (a.norm() + c.norm()) * 2
    x, y = torch.eye(2)
    assert f"The merged change is {own:.3g} times as long as the models' on average." in text
    assert (
        f"the average is {(x + y).norm() / 2:.2f} times as long, the sum {(x + y).norm():.2f} times"
    ) in text
    assert "angle, in degrees" not in text and "formula" not in text
    alone = card(tmp_path / "alone", written("ties", [pico["a"]], base_model=pico["base"]))
    assert "The merged change is 1 times as long" in alone and "the sum" not in alone


def test_angle_distance_and_formulas(tmp_path: Path, pico: Pico) -> None:
    """Of SLERP: by each tensor's own angle, and of all tensors as one vector."""
    norm = "model.norm.weight"
    like = changed(pico["c"], tmp_path / "c", tensors={norm: loaded(pico["a"])[norm]})
    keys = {"base_model": pico["a"], "parameters": {"t": 0.3}}
    text = card(tmp_path, written("slerp", [pico["a"], like], **keys))
    a, c = ({k: v.float() for k, v in loaded(folder).items()} for folder in (pico["a"], like))
    merged = {k: torch.from_numpy(slerp(a[k].numpy(), c[k].numpy(), 0.3)) for k in a}
    one, other, became = map(flat, (a, c, merged))
    degrees = float(torch.acos(one @ other / one.norm() / other.norm())) * 180 / torch.pi
    away = float((one - other).norm() / one.norm())
    ratio = became.norm() / (one.norm() + other.norm()) * 2
    rows = table(text)
    assert rows["angle, in degrees"] == pytest.approx([degrees], rel=5e-3)
    assert rows["distance, as a part of the first's length"] == pytest.approx([away], rel=5e-3)
    assert f"The merged weights are {ratio:.3g} times as long as the models' on average." in text
    assert f"Tensors by formula: {len(a) - 1} spherical, 1 LERP." in text


def test_a_run_that_goes_on_says_nothing(tmp_path: Path, pico: Pico) -> None:
    """It looked at some tensors alone, and figures of those would be wrong of the whole."""
    made = recipe("task_arithmetic", [pico["a"], pico["c"]], base_model=pico["base"])
    first: Samples = {}
    steps = merge(plan(made), Folder(tmp_path / "out", shard=8000), samples=first)
    while len(first) < 8:
        next(steps)
    steps.close()  # type: ignore[attr-defined]  # a generator
    samples: Samples = {}
    sink = Folder(tmp_path / "out", shard=8000, samples=samples)
    for _ in merge(plan(made), sink, samples=samples):
        pass
    assert 0 < len(samples) < len(plan(made).steps)
    assert HEAD not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_nothing_was_looked_at(tmp_path: Path, pico: Pico) -> None:
    """Without samples the card is as it was."""
    made = recipe("linear", [pico["a"], pico["c"]])
    for _ in merge(plan(made), Folder(tmp_path / "out")):
        pass
    assert HEAD not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
