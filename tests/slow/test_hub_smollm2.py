"""SmolLM2-135M on the test Hub: fetched, merged and pushed by the command, and loaded again."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

from merging.__main__ import main
from tests.conftest import loaded, written
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),  # the client's own
]


def test_a_real_model_comes_from_the_hub_and_goes_back(
    hub: LocalHub,
    variants: dict[str, Path],
    merges: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three times 270 MB, a reset in between, pushed in shards: the same weights as from folders,
    and what anybody who may read the repo loads is them.
    """
    names = {"original": "HuggingFaceTB/SmolLM2-135M-Instruct", "a": "org/a", "b": "org/b"}
    for variant, name in names.items():
        hub.add(name, variants[variant])
    hub.user("hf_alice", name="alice")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        written(
            "ties", [names["a"], names["b"]], base_model=names["original"],
            parameters={"density": 0.5},
        )
    )  # fmt: skip
    hub.fault("GET /cdn/", "reset", after=100_000_000)
    hub.fault("PUT /lfs/", "reset", after=30_000_000)
    assert main(["run", str(recipe), "--push-to", "smol", "--max-shard-size", "100MB"]) == 0

    assert hub.repos["alice/smol"].private
    folder = Path(huggingface_hub.snapshot_download("alice/smol", token="hf_alice"))
    wanted = loaded(merges["ties"])
    found = loaded(folder)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
