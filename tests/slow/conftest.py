"""A real model in three variants, and merges of them by the command line; tests are elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import written
from tests.slow import smol
from tests.slow.memory import ROOT


@pytest.fixture(scope="session")
def variants(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> (
    dict[str, Path]
):  # fmt: skip
    """Folders of the `original` and of its fine-tunes `a` and `b`; kept for the next run."""
    if reason := smol.lacking():
        pytest.skip(reason)
    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    return smol.build(cache.mkdir("smollm2") if cache else tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def recipes(variants: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recipe file by method."""
    root = tmp_path_factory.mktemp("recipes")
    original, a, b = variants.values()
    texts = {
        "linear": written("linear", [a, b], parameters={"weight": 0.5}),
        "slerp": written("slerp", [a, b], base_model=a, parameters={"t": 0.25}),
        "ties": written("ties", [a, b], base_model=original, parameters={"density": 0.5}),
    }
    for method, text in texts.items():
        (root / f"{method}.yaml").write_text(text)
    return {method: root / f"{method}.yaml" for method in texts}


@pytest.fixture(scope="session")
def merges(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each recipe carried out by `python -m merging run`, in files of 100 MB at most."""
    root = tmp_path_factory.mktemp("merges")
    for method, recipe in recipes.items():
        command = [sys.executable, "-m", "merging", "run", recipe, root / method]
        done = subprocess.run(
            [*command, "--max-shard-size", "100MB"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return {method: root / method for method in recipes}
