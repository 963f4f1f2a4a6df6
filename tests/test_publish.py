"""Publishing: what arrives at the Hub, what it may say, and what is left when it breaks."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging import MergeError, Recipe, plan, pushing
from merging.__main__ import main
from tests.conftest import INDEX, changed, loaded, written
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "assets" / "recipes" / "01-demo-ties.yaml"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),  # the client's own
]
PUT, COMMIT = r"PUT /lfs/", r"POST .*/commit/"
Pico = dict[str, Path]


@pytest.fixture
def alice(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The Hub with the machine logged in as alice, and a home for what is under way."""
    hub.user("hf_alice", name="alice")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setenv("MERGING_HOME", str(tmp_path / "home"))
    return hub


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


def test_private_unless_asked(alice: LocalHub, ties: Path, capsys: Any) -> None:
    """A bare name is a private repo of the user's own; --public makes one for all."""
    assert run(ties, "--push-to", "mine") == 0
    assert run(ties, "--push-to", "alice/open", "--public") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{alice.url}/alice/open"
    assert alice.repos["alice/mine"].private and not alice.repos["alice/open"].private


def test_one_commit_with_the_users_token_alone(
    alice: LocalHub, ties: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files come in one commit, sent with the token given, which is in no file and no line.

    Over plain HTTP, whether Xet is installed or not.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    alice.user("hf_visitor", name="bob")
    decided = plan(Recipe.from_yaml(ties.read_text()))
    to = pushing.target(decided, "merged", token="hf_visitor")
    stages = {at.stage for at in pushing.push(decided, to, shard=16_000)}
    assert stages == {"push"} and "hf_visitor" not in repr(to)
    repo = alice.repos["bob/merged"]
    assert len(repo.commits) == 2 and repo.private
    names = set(alice.files("bob/merged"))
    assert names > {".gitattributes", "README.md", "config.json", "tokenizer.json", INDEX}
    assert {"mergekit_config.yml", "model-00001-of-00004.safetensors"} <= names
    assert {seen.token for seen in alice.requests()} == {"hf_visitor", None}
    assert {seen.line[:9] for seen in alice.requests() if seen.token is None} == {"PUT /lfs/"}
    assert not any(
        b"hf_visitor" in path.read_bytes() for path in alice.files("bob/merged").values()
    )


def test_progress_is_in_bytes_sent(alice: LocalHub, ties: Path) -> None:
    """`done` grows to `total`, never falls, and counts what the Hub received."""
    decided = plan(Recipe.from_yaml(ties.read_text()))
    to = pushing.target(decided, "merged", token="hf_alice")
    steps = list(pushing.push(decided, to, shard=16_000))
    done = [at.done for at in steps]
    assert done == sorted(done) and done[0] == 0 and len(set(done)) > 4
    assert steps[-1].done == steps[-1].total == decided.size and steps[-1].share == 1
    assert sum(seen.received for seen in alice.requests(PUT)) >= decided.size


def test_two_shards_on_disk_at_most(alice: LocalHub, ties: Path, tmp_path: Path) -> None:
    """While the Hub is slow, merging waits: no third shard is begun before the first is sent."""
    alice.fault(PUT, "slow", times=9, piece=16_000, delay=0.1)
    decided = plan(Recipe.from_yaml(ties.read_text()))
    to = pushing.target(decided, "merged", token="hf_alice")
    most = 0
    for _ in pushing.push(decided, to, shard=16_000):
        most = max(most, len([p for p in left(tmp_path) if p.endswith((".draft", "tensors"))]))
    assert most == 2 and left(tmp_path) == []
    assert len(alice.requests(PUT)) == 4


def test_a_card_that_the_hub_takes(alice: LocalHub, pico: Pico, tmp_path: Path) -> None:
    """Parents with commits, licences and recipe; no path of a local folder, in no file."""
    card = "---\nlicense: mit\n---\n"
    for name in ("a", "c"):
        folder = changed(pico[name], tmp_path / name)
        (folder / "README.md").write_text(card)
        alice.add(f"org/{name}", folder)
    secret = changed(pico["base"], tmp_path / "secret place" / "my base")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(written("ties", ["org/a", "org/c"], base_model=secret))
    assert run(recipe, "--push-to", "merged") == 0
    files = alice.files("alice/merged")
    told = ModelCard.load(files["README.md"], ignore_metadata_errors=False)
    shas = {name: alice.repos[f"org/{name}"].refs["main"] for name in ("a", "c")}
    assert told.data.base_model == ["org/a", "org/c"] and told.data.library_name == "transformers"
    assert told.data.to_dict()["base_model_relation"] == "merge"
    assert all(shas[name] in told.text for name in shas) and "licence mit" in told.text
    assert told.data.license is None  # the base states none
    assert "`my base`, a local folder" in told.text and "my base states no licence" in told.text
    pushed = yaml.safe_load(files["mergekit_config.yml"].read_text())
    assert pushed["base_model"] == "my base"
    assert [m["model"] for m in pushed["models"]] == [f"org/{n}@{shas[n]}" for n in shas]
    assert not any(b"secret place" in path.read_bytes() for path in files.values())


@pytest.mark.parametrize(
    ("licences", "own", "warned"),
    [
        (("mit", "mit"), "mit", ""),
        (("mit", "apache-2.0"), None, "licences differ"),
        (("cc-by-nc-4.0", "cc-by-nc-4.0"), "cc-by-nc-4.0", "allows no commercial use"),
        (("other", "other"), None, ""),
    ],
)
def test_licences_as_they_are(
    licences: tuple[str, str], own: str | None, warned: str, alice: LocalHub, pico: Pico,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The card has the licence that all parents have, or none; what may bind is said."""
    recipe = tmp_path / "recipe.yaml"
    for name, licence in zip("ac", licences, strict=True):
        folder = changed(pico[name], tmp_path / name)
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        alice.add(f"org/{name}", folder)
    recipe.write_text(written("linear", ["org/a", "org/c"]))
    assert run(recipe, "--push-to", "merged") == 0
    told = ModelCard.load(alice.files("alice/merged")["README.md"], ignore_metadata_errors=False)
    assert told.data.license == own
    assert ("Before you use or share it" in told.text) == bool(warned) and warned in told.text


def test_gated_parents_make_it_private(
    alice: LocalHub, pico: Pico, tmp_path: Path, capsys: Any
) -> None:
    """--public is refused before anything is fetched or made; privately it goes, with a warning."""
    alice.add("org/gated", pico["a"], gated=True)
    alice.user("hf_alice", reads=["org/gated"], name="alice")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(written("linear", ["org/gated", str(pico["base"])]))
    assert run(recipe, "--push-to", "merged", "--public") == 2
    err = capsys.readouterr().err
    assert "org/gated" in err and "without --public" in err and err.count("\n") == 1
    assert "alice/merged" not in alice.repos
    assert max(seen.sent for seen in alice.requests("GET /cdn/")) < 10_000  # headers alone
    assert run(recipe, "--push-to", "merged") == 0
    assert alice.repos["alice/merged"].private
    assert "org/gated is not open to all" in alice.files("alice/merged")["README.md"].read_text()


# What is refused


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (":merged", ("hf auth login", "HF_TOKEN")),
        ("hf_reader:merged", ("only read", "token that may write")),
        ("hf_expired:merged", ("refuses this login", "log in again")),
        ("hf_alice:bob/merged", ("alice's", "may not write to bob")),
        ("hf_alice:alice/other", ("holds something else", "another name")),
        ("hf_alice:alice/../x", ("not the name of a model",)),
        ("hf_alice:..", ("not the name of a model",)),
        ("hf_alice:a b", ("not the name of a model",)),
    ],
)
def test_what_may_not_be_written(
    case: str, says: tuple[str, ...], alice: LocalHub, ties: Path, pico: Pico, capsys: Any
) -> None:
    """One line, exit code 2, before anything is merged, sent or made."""
    login, _, name = case.partition(":")
    alice.user("hf_reader", name="alice", writes=False)
    alice.user("hf_expired", name="alice")
    alice.expire("hf_expired")
    alice.add("alice/other", pico["a"], private=True)
    os.environ["HF_TOKEN"] = login  # which the fixture sets back
    assert run(ties, "--push-to", name) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1 and all(word in err for word in says), err
    assert not (login and login in err)
    assert set(alice.repos) == {"alice/other"} and len(alice.repos["alice/other"].commits) == 1


@pytest.mark.parametrize(("open", "more"), [(True, ()), (False, ("--public",))])
def test_a_repo_of_other_privacy(
    open: bool, more: tuple[str, ...], alice: LocalHub, ties: Path, tmp_path: Path, capsys: Any
) -> None:
    """A public repo of the user's does not get a private merge, nor the other way round."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    alice.add("alice/there", tmp_path / "bare", private=not open)
    assert run(ties, "--push-to", "there", *more) == 2
    assert "repo" in capsys.readouterr().err and not alice.requests("POST")


@pytest.mark.parametrize(
    ("more", "says"), [((), "OUT_DIR is missing"), (("out", "--public"), "--public goes with")]
)
def test_flags_that_miss_another(more: tuple[str, ...], says: str, ties: Path, capsys: Any) -> None:
    """Without OUT_DIR there must be a repo; --public is of a repo."""
    assert run(ties, *more) == 2
    assert says in capsys.readouterr().err


def test_offline_nothing_is_pushed(
    alice: LocalHub, ties: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """HF_HUB_OFFLINE is honoured."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(ties, "--push-to", "merged") == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err and not alice.log


# What breaks on the way


STORMS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "resets": [
        ("GET /api/whoami-v2", "reset", {}),
        ("POST /api/repos/create", "lost", {}),
        ("POST .*/preupload/", "503", {}),
        (PUT, "reset", {"after": 5000}),
        ("POST /lfs/.*/verify", "reset", {}),
        (COMMIT, "lost", {}),
    ],
    "refusals": [
        ("POST /api/repos/create", "503", {}),
        (r"POST .*\.git/info/lfs/objects/batch", "reset", {}),
        (PUT, "corrupt", {}),
        (PUT, "lost", {}),
        (COMMIT, "503", {}),
        (COMMIT, "429", {"wait": 0}),
    ],
}


@pytest.mark.parametrize("storm", STORMS)
def test_what_breaks_once_is_tried_again(
    storm: str, alice: LocalHub, ties: Path, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    """Each call may fail once: the merge arrives whole, in one commit, and nobody is told."""
    client = logging.getLogger("huggingface_hub")
    client.setLevel(logging.WARNING)  # as it is at first
    client.addHandler(caplog.handler)
    for line, kind, how in STORMS[storm]:
        alice.fault(line, kind, **how)
    assert run(ties, "--push-to", "merged", "--max-shard-size", "40KB") == 0
    assert len(alice.repos["alice/merged"].commits) == 2
    assert all(fault.left == 0 for fault in alice.faults)
    assert run(ties, str(tmp_path / "local")) == 0
    theirs, ours = loaded(gathered(alice, tmp_path)), loaded(tmp_path / "local")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in ours)
    assert capfd.readouterr().err == "" and left(tmp_path) == []
    client.removeHandler(caplog.handler)
    assert not caplog.records  # they would name signed links


def gathered(hub: LocalHub, tmp_path: Path) -> Path:
    """The pushed repo as a folder."""
    folder = tmp_path / "gathered"
    folder.mkdir()
    for name, path in hub.files("alice/merged").items():
        (folder / name).symlink_to(path)
    return folder


def killed(recipe: Path, when: Any, tmp_path: Path) -> None:
    """Runs a push and ends it with kill -9 as soon as `when()`."""
    command = [sys.executable, "-m", "merging", "run", recipe, "--push-to", "merged"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    more = ["--max-shard-size", "16KB", "--device", "cpu"]
    process = subprocess.Popen([*command, *more], cwd=tmp_path, env=env)
    try:
        until(when)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def test_killed_and_run_again(alice: LocalHub, ties: Path, tmp_path: Path) -> None:
    """After kill -9 nothing is published; run again, only what was not sent goes over the line."""
    alice.fault(PUT, "slow", times=9, piece=16_000, delay=0.2)
    killed(ties, lambda: len(alice.blobs) >= 2, tmp_path)
    assert len(alice.repos["alice/merged"].commits) == 1 and left(tmp_path)
    time.sleep(1)  # what had arrived by then is still written down
    sent, kept = len(alice.requests(PUT)), len(alice.blobs)
    alice.faults.clear()
    assert run(ties, "--push-to", "merged", "--max-shard-size", "16KB") == 0
    assert len(alice.requests(PUT)) - sent == 4 - kept < 4
    assert len(alice.repos["alice/merged"].commits) == 2 and left(tmp_path) == []
    assert run(ties, str(tmp_path / "local")) == 0
    theirs, ours = loaded(gathered(alice, tmp_path)), loaded(tmp_path / "local")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in ours)


@pytest.mark.parametrize("at", ["the start", "the next push"])
def test_what_killed_pushes_left_goes(at: str, alice: LocalHub, ties: Path, tmp_path: Path) -> None:
    """As the page starts, and with the next push, wherever that goes to; not what is going."""
    decided = plan(Recipe.from_yaml(ties.read_text()))
    going = pushing.push(decided, pushing.target(decided, "going", token="hf_alice"), shard=16_000)
    next(going)
    room = tmp_path / "home" / "pushes" / "alice--killed"
    (room / "1000.partial-0123").mkdir(parents=True)
    (room / "1000.partial-0123" / "model.draft").write_bytes(b"0" * 1000)
    room.with_suffix(".lock").touch()
    if at == "the start":
        pushing.clean()
    else:
        assert run(ties, "--push-to", "other") == 0
    assert not room.exists() and not room.with_suffix(".lock").exists()
    assert len(list(going)) > 4 and left(tmp_path) == []
    assert len(alice.repos["alice/going"].commits) == 2


def test_stopped_half_way(alice: LocalHub, ties: Path, tmp_path: Path) -> None:
    """Closing the iterator stops within a second, while a file is being sent; nothing is left."""
    alice.fault(PUT, "hang", times=9, after=3000)
    decided = plan(Recipe.from_yaml(ties.read_text()))
    to = pushing.target(decided, "merged", token="hf_alice")
    steps = pushing.push(decided, to, shard=40_000)
    for _ in steps:
        if alice.requests(PUT):
            break
    started = time.monotonic()
    steps.close()
    assert time.monotonic() - started < 10 and left(tmp_path) == []
    assert len(alice.repos["alice/merged"].commits) == 1 and not alice.requests(COMMIT)


def test_a_hub_that_stays_away(
    alice: LocalHub, ties: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One line after several attempts; nothing is published, nothing left."""
    monkeypatch.setattr("merging.hub.client.PAUSE", 0.01)
    alice.fault(COMMIT, "503", times=99)
    assert run(ties, "--push-to", "merged") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "The Hub fails on alice/merged" in err
    assert len(alice.repos["alice/merged"].commits) == 1 and left(tmp_path) == []


def test_rights_lost_on_the_way(alice: LocalHub, ties: Path, tmp_path: Path, capsys: Any) -> None:
    """A 403 on a large file is said as it is, with what to do."""
    alice.fault(r"POST .*\.git/info/lfs/objects/batch", "403")
    assert run(ties, "--push-to", "merged") == 2
    err = capsys.readouterr().err
    assert "may not write to alice/merged" in err and "huggingface.co/settings/tokens" in err
    assert left(tmp_path) == []


def test_somebody_else_was_faster(alice: LocalHub, ties: Path, pico: Pico, tmp_path: Path) -> None:
    """A repo that changed meanwhile is not overwritten."""
    decided = plan(Recipe.from_yaml(ties.read_text()))
    to = pushing.target(decided, "merged", token="hf_alice")
    alice.add("alice/merged", pico["b"])
    with pytest.raises(MergeError, match="changed by somebody else meanwhile"):
        list(pushing.push(decided, to))
    assert "merge_identity" not in "".join(alice.files("alice/merged"))
    assert len(alice.repos["alice/merged"].commits) == 2 and left(tmp_path) == []


def test_two_pushes_to_one_name(alice: LocalHub, ties: Path, tmp_path: Path) -> None:
    """The second is told to wait; the first goes on untouched."""
    decided = plan(Recipe.from_yaml(ties.read_text()))
    to = pushing.target(decided, "merged", token="hf_alice")
    first = pushing.push(decided, to, shard=16_000)
    next(first)
    with pytest.raises(MergeError, match="being pushed to alice/merged just now"):
        next(pushing.push(decided, to))
    list(first)
    assert len(alice.repos["alice/merged"].commits) == 2 and left(tmp_path) == []


def test_the_same_merge_again(alice: LocalHub, ties: Path, capsys: Any) -> None:
    """A repo that holds this very merge is left as it is; another merge does not replace it."""
    assert run(ties, "--push-to", "merged") == 0
    before = len(alice.log)
    assert run(ties, "--push-to", "merged") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == ["alice/merged holds this merge already.", f"{alice.url}/alice/merged"]
    assert not [seen for seen in alice.log[before:] if seen.line.startswith(("PUT", "POST"))]
    assert run(ties, "--push-to", "merged", "--seed", "7") == 2
    assert "holds something else" in capsys.readouterr().err


def test_a_folder_and_a_repo(alice: LocalHub, ties: Path, tmp_path: Path, capsys: Any) -> None:
    """With OUT_DIR, too: the folder is whole and stays; broken off, the push goes on from it."""
    out = tmp_path / "merged"
    alice.fault(COMMIT, "403")
    assert run(ties, str(out), "--push-to", "merged", "--max-shard-size", "40KB") == 2
    assert "may not write" in capsys.readouterr().err and (out / INDEX).is_file()
    when, sent = (out / "config.json").stat().st_mtime_ns, len(alice.requests(PUT))
    assert run(ties, str(out), "--push-to", "merged", "--max-shard-size", "40KB") == 0
    assert (out / "config.json").stat().st_mtime_ns == when and len(alice.requests(PUT)) == sent
    files = alice.files("alice/merged")
    assert set(files) == {path.name for path in out.iterdir()} | {".gitattributes"}
    assert "pytest-of" in (out / "mergekit_config.yml").read_text()  # here it can run again
    pushed = [path for path in files.values() if b"pytest-of" in path.read_bytes()]
    assert not pushed and left(tmp_path) == []


@pytest.mark.usefixtures("alice")
def test_room_for_two_shards_is_enough(
    ties: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The disk need not hold the merge: what counts is what lies there at one time."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 40_000))
    assert run(ties, "--push-to", "merged", "--max-shard-size", "16KB") == 0
    assert run(ties, "--push-to", "other", "--max-shard-size", "40KB") == 2
    assert "free some space" in capsys.readouterr().err


def test_paths_in_config_files_stay_here(alice: LocalHub, pico: Pico, tmp_path: Path) -> None:
    """Libraries write into config files where a model lay: that is not published."""
    where = {"_name_or_path": "/home/me/secret"}
    parents = [changed(pico[n], tmp_path / n, config=where) for n in ("a", "c")]
    for parent in parents:
        settings = json.loads((parent / "tokenizer_config.json").read_text())
        settings |= {"name_or_path": "/home/me/secret", "tokenizer_file": "/home/me/secret/t.json"}
        (parent / "tokenizer_config.json").write_text(json.dumps(settings))
    path = tmp_path / "recipe.yaml"
    path.write_text(written("linear", parents))
    assert run(path, "--push-to", "merged") == 0
    files = alice.files("alice/merged")
    assert not any(b"secret" in path.read_bytes() for path in files.values())
    told = json.loads(files["tokenizer_config.json"].read_text())
    assert told["unk_token"] == "<unk>"
