"""Whatever breaks between the Hub and a merge: the command ends right, or in one sentence, whole.

The rows are those that were observed with the real client; details are in test_hub.py.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from merging.__main__ import main
from merging.hub import client
from tests.conftest import WEIGHTS, written
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

Pico = dict[str, Path]
Run = Callable[[], tuple[int, str]]

pytestmark = pytest.mark.usefixtures("one_thread", "hasty")
CDN, API, SMALL = "GET /cdn/", "GET /api/models/org/b", "GET /org/b/resolve/.*/config.json"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and time-outs that a test can wait for."""
    for name, value in {"PAUSE": 0.01, "WINDOW": 0.5, "SILENCE": 1}.items():
        monkeypatch.setattr(client, name, value)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)


@pytest.fixture
def run(hub: LocalHub, pico: Pico, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Merges org/a and org/b by the command; its exit code and what it said on stderr."""
    hub.add("org/a", pico["a"])
    if "org/b" not in hub.repos:
        hub.add("org/b", pico["c"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(written("linear", ["org/a", "org/b"], parameters={"weight": 0.5}))

    def command() -> tuple[int, str]:
        capsys.readouterr()
        code = main(["run", str(recipe), str(tmp_path / "out")])
        return code, capsys.readouterr().err

    return command


def is_whole(tmp_path: Path, pico: Pico) -> bool:
    """The merge is there and right, and nothing else is."""
    out, a, b = (load_file(f / WEIGHTS) for f in (tmp_path / "out", pico["a"], pico["c"]))
    name = "model.layers.0.mlp.up_proj.weight"
    mean = (a[name].float() + b[name].float()) / 2
    return torch.equal(out[name], mean.bfloat16()) and not leftovers(tmp_path)


def leftovers(tmp_path: Path) -> list[Path]:
    """What a failure must not leave: half files, half folders."""
    found = [p for p in tmp_path.glob("out*") if p.name != "out"]
    return found + [p for p in tmp_path.rglob("*") if "incomplete" in p.name]


@pytest.mark.parametrize(
    "row",
    [
        (CDN, "reset", {"after": 20_000}),
        (CDN, "reset", {}),
        (CDN, "truncate", {"after": 20_000}),
        (CDN, "hang", {"after": 20_000}),
        (CDN, "short", {}),
        (CDN, "corrupt", {}),
        (CDN, "403", {}),
        (CDN, "503", {}),
        (CDN, "429", {"wait": 1}),
        (CDN, "slow", {"piece": 50, "delay": 0.05}),
        (SMALL, "503", {}),
        (SMALL, "corrupt", {}),
        (SMALL, "no_commit", {}),
        (API, "503", {}),
        (API, "reset", {}),
        (API, "429", {"wait": 1}),
    ],
    ids=str,
)
def test_what_breaks_once_is_mended(
    hub: LocalHub, pico: Pico, tmp_path: Path, run: Run, row: tuple[str, str, dict[str, float]]
) -> None:
    """The command retries, resumes, or fetches again, and the merge is right to the bit."""
    where, kind, how = row
    hub.fault(where, kind, **how)
    code, said = run()
    assert (code, said) == (0, "")
    assert is_whole(tmp_path, pico)
    assert hub.faults[0].left == 0


def test_a_server_without_parts_is_downloaded_from_the_start(
    hub: LocalHub, pico: Pico, tmp_path: Path, run: Run
) -> None:
    """The headers need parts; a download that must go on can do without."""
    hub.fault(CDN, "reset", after=20_000)
    hub.fault(CDN, "no_range", times=99)
    code, said = run()
    assert (code, "no parts" in said) == (2, True)
    hub.faults.clear()
    assert run()[0] == 0
    assert is_whole(tmp_path, pico)


@pytest.mark.parametrize(
    ("where", "kind", "said"),
    [
        (CDN, "reset", "connection to the Hub failed"),
        (CDN, "503", "error 503"),
        (CDN, "corrupt", "broken header|damaged twice|not a whole"),
        (API, "wrong_etag", "damaged twice|checksum"),
        (API, "503", "error 503"),
        (API, "hang", "connection to the Hub failed"),
        (API, "429", r"rate limit is reached: try again in 55 s"),
        (SMALL, "corrupt", "damaged twice"),
    ],
)
def test_what_stays_broken_is_one_sentence(
    hub: LocalHub, tmp_path: Path, run: Run,
    where: str, kind: str, said: str,
) -> None:  # fmt: skip  # the row, and what it needs
    """Exit code 2, one line, nothing half-kept; and it goes on once the Hub is well."""
    hub.fault(where, kind, times=999, wait=55)
    code, line = run()
    assert code == 2
    assert line.count("\n") == 1
    assert re.search(said, line), line
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)
    hub.faults.clear()
    assert run()[0] == 0


def broken_header(folder: Path, change: Callable[[dict[str, dict[str, list[int]]]], None]) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def tensor(header: dict[str, dict[str, list[int]]]) -> dict[str, list[int]]:
    return header["model.norm.weight"]


LIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 9) + b"x" * 99), "broken"),
    "too large": (lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 40)), "not a whole"),
    "overlap": (
        lambda f: broken_header(f, lambda h: tensor(h).update(data_offsets=[0, 64])), "offsets"
    ),
    "past the end": (
        lambda f: broken_header(f, lambda h: tensor(h).update(data_offsets=[1 << 40, 1 << 41])),
        "offsets",
    ),
    "shape": (lambda f: broken_header(f, lambda h: tensor(h).update(shape=[-32])), "whole numbers"),
    "pickles": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "only pickles"),
    "index": (
        lambda f: ((f / WEIGHTS).unlink(),
                   (f / "model.safetensors.index.json").write_text(
                       json.dumps({"weight_map": {"x": "../../x.safetensors"}}))),
        "lacks",
    ),
    "missing shard": (
        lambda f: ((f / WEIGHTS).unlink(),
                   (f / "model.safetensors.index.json").write_text(
                       json.dumps({"weight_map": {"x": "model-00001-of-00001.safetensors"}}))),
        "lacks",
    ),
    "code": (
        lambda f: (f / "config.json").write_text(
            json.dumps(json.loads((f / "config.json").read_text())
                       | {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "x.Y"}})),
        "code of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie_are_refused_before_weights_move(
    hub: LocalHub, pico: Pico, tmp_path: Path, run: Run, lie: str
) -> None:
    """The headers, the index and the config are enough to know."""
    change, said = LIES[lie]
    folder = Path(shutil.copytree(pico["c"], tmp_path / "lying"))
    change(folder)
    hub.add("org/b", folder)
    code, line = run()
    assert (code, line.count("\n"), said in line) == (2, 1, True), line
    assert not leftovers(tmp_path)
    full = [s for s in hub.requests(CDN) if s.sent > 100_000]
    assert not full


def test_access_that_ends_between_check_and_download(
    hub: LocalHub, pico: Pico, tmp_path: Path, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip  # the row, and what it needs
    """The machine's login may read a gated parent; taken back, its copy in the cache is no use."""
    hub.add("org/gated", pico["c"], gated=True)
    hub.user("hf_machine", reads=["org/gated"])
    monkeypatch.setenv("HF_TOKEN", "hf_machine")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("org/b", "org/gated"))
    assert run()[0] == 0
    shutil.rmtree(tmp_path / "out")
    hub.revoke("hf_machine", "org/gated")
    code, line = run()
    assert (code, "is gated" in line, line.count("\n")) == (2, True, 1)
    assert not (tmp_path / "out").exists()
    recipe.write_text(recipe.read_text().replace("org/gated", "org/b"))
    hub.expire("hf_machine")
    assert run()[0] == 0  # the others are public: an expired login keeps nobody from them
