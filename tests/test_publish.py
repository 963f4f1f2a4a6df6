"""Publishing: what arrives at the Hub, what it may say, and what is left when it breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging import MergeError, Recipe, plan, pushing
from merging.__main__ import main
from merging.plan import Plan
from merging.sources import open_source
from tests.conftest import INDEX, WEIGHTS, changed, loaded, written
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "assets" / "recipes" / "01-demo-ties.yaml"
pytestmark = pytest.mark.filterwarnings(  # of the client, when it sends a file
    "ignore:Use .content=:DeprecationWarning"
)
PUT, COMMIT = r"PUT /lfs/", r"POST .*/commit/"
Pico = dict[str, Path]


@pytest.fixture
def alice(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> LocalHub:
    """The Hub with the machine logged in as alice, and a home for what is under way."""
    hub.user("hf_alice", name="alice")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setenv("MERGING_HOME", str(tmp_path / "home"))
    return hub


@pytest.fixture
def ties(tmp_path: Path, pico: Pico) -> Path:
    path = tmp_path / "ties.yaml"
    path.write_text(
        written("ties", [pico["a"], pico["c"]], base_model=pico["base"],
                parameters={"density": 0.5})
    )  # fmt: skip
    return path


def run(recipe: Path, *more: str) -> int:
    return main(["run", str(recipe), "--device", "cpu", *more])


def left(tmp_path: Path) -> list[str]:
    """What is on the disk of pushes that are over."""
    return sorted(str(path) for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_the_demo_merge_comes_back(alice: LocalHub, tmp_path: Path, capsys: Any) -> None:
    """Pushed by the CLI and loaded from the Hub: a local run's weights, and the same answer."""
    assert run(DEMO, "--push-to", "demo", "--max-shard-size", "1MB") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"{alice.url}/alice/demo" and err == ""
    assert alice.repos["alice/demo"].private and left(tmp_path) == []
    assert run(DEMO, str(tmp_path / "local")) == 0
    folder = Path(snapshot_download("alice/demo", token="hf_alice"))
    theirs, ours = loaded(folder), loaded(tmp_path / "local")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in ours)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert answer("alice/demo", token="hf_alice") == answer(str(tmp_path / "local"))


def answer(name: str, **how: Any) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(name, **how)
    tokenizer = AutoTokenizer.from_pretrained(name, **how)
    ids = tokenizer("What is 38 + 27?", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=ids != -1)
    return list(out[0].tolist())
