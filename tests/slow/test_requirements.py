"""What a ZeroGPU Space would install of this app: Python 3.12, its torch, the README's gradio.

A package index is asked, as the Space would; nothing is installed, and only metadata is fetched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from tests.test_space import ZEROGPU_TORCH, required
from tests.ui.running import ROOT

TIME = 600


@pytest.fixture(scope="module")
def pip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a pip that reads metadata alone, as those before 2024 do not."""
    folder = tmp_path_factory.mktemp("pip")
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), "pip>=24.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip failed"]
        pytest.skip(f"no package index can be reached: {said[-1]}")
    cache = str(folder / "cache")  # of what the versions have in common
    return os.environ | {"PYTHONPATH": str(folder), "PIP_CACHE_DIR": cache}


@pytest.mark.slow
@pytest.mark.parametrize("torch", ZEROGPU_TORCH)
def test_requirements_resolve(torch: str, pip: dict[str, str], tmp_path: Path) -> None:
    """All of them together, by wheels for the system that the test runs on."""
    sdk = SpaceCard.load(ROOT / "README.md").data.sdk_version
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed",
            "--python-version", "3.12", "--only-binary=:all:",
            "--target", str(tmp_path / "none"), "--report", str(report),
            f"torch=={torch}", f"gradio[oauth]=={sdk}", "-r", "requirements.txt",
        ],
        cwd=ROOT, env=pip, capture_output=True, text=True, timeout=TIME, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = {
        each["metadata"]["name"].lower().replace("-", "_"): each["metadata"]["version"]
        for each in json.loads(report.read_text())["install"]
    }
    assert found["torch"].partition("+")[0] == torch and found["gradio"] == sdk
    for name, allowed in required().items():
        assert found[name.lower().replace("-", "_")].partition("+")[0] in allowed, name
