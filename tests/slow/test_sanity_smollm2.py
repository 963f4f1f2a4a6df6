"""The check over merges of SmolLM2: it knows prose, which the embedded models do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from merging.__main__ import main

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_good_merges_pass(
    method: str, recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They read prose as their parents do, within a hundredth."""
    assert main(["run", str(recipes[method]), str(tmp_path / "out"), "--sanity"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("green: It works: perplexity 2."), last


def test_a_step_too_long(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The models differ by a hundredth of their length: it takes a long step to break them."""
    far = yaml.safe_load(recipes["ties"].read_text())
    far["parameters"] = {"density": 0.5, "lambda": 90}
    path = tmp_path / "far.yaml"
    path.write_text(yaml.safe_dump(far))
    assert main(["run", str(path), str(tmp_path / "out"), "--sanity"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("red: ") and "step is too long" in last, last
