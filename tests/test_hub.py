"""What hub.py does with a Hub that answers, refuses, breaks or is not there; no mocks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.hf_api import RepoFile
from safetensors.numpy import save_file

from merging import hub as ours
from merging.errors import MergeError
from merging.hub import client
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

WEIGHTS = 800_000
SMALL = ["chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"]
INDEX = "model.safetensors.index.json"


def write_weights(path: Path, seed: int, size: int = WEIGHTS) -> None:
    values = np.random.default_rng(seed).standard_normal(size // 4, dtype=np.float32)
    save_file({"w": values}, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as people publish them: what a merge needs, and much that it does not."""
    folder = tmp_path / "published"
    (folder / "onnx").mkdir(parents=True)
    for name in SMALL:
        (folder / name).write_text(json.dumps({"file": name, "text": "é" * 50}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    for name in ("pytorch_model.bin", "logo.png", "modeling_tiny.py", "onnx/model.onnx"):
        (folder / name).write_bytes(b"not wanted " * 100)
    write_weights(folder / "model.safetensors", 0)
    write_weights(folder / "consolidated.safetensors", 1)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model in three shards."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    for seed, name in enumerate(names):
        write_weights(folder / name, seed)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip("abc", names, strict=True))}))
    return folder


def drain(repo: ours.Repo, token: ours.Token = False) -> tuple[list[ours.Fetched], Path]:
    """All that a download yields, and the folder that it returns."""
    seen: list[ours.Fetched] = []

    def run() -> Iterator[ours.Fetched]:
        folders.append((yield from ours.download(repo, token=token)))

    folders: list[Path] = []
    seen.extend(run())
    return seen, folders[0]


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on this port."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def leftovers() -> list[Path]:
    return [p for p in Path(constants.HF_HUB_CACHE).rglob("*") if "incomplete" in p.name]


# Pinning


def test_a_branch_is_pinned_to_its_commit(hub: LocalHub, folder: Path) -> None:
    """A branch means its commit now; licence, sizes and checksums come with one request."""
    first = hub.add("org/tiny", folder)
    (folder / "config.json").write_text("{}")
    second = hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    assert (repo.revision, repo.ref, repo.license, repo.gated) == (
        second,
        "main",
        "apache-2.0",
        False,
    )
    assert first != second
    assert repo.files["model.safetensors"].size == (folder / "model.safetensors").stat().st_size
    assert len(repo.files["model.safetensors"].sha256 or "") == 64
    assert repo.files["config.json"] == ours.File(2, None, repo.files["config.json"].oid)
    assert len(hub.requests("org/tiny")) == 1


def test_a_commit_is_pinned_to_itself(hub: LocalHub, folder: Path) -> None:
    """An older commit stays readable under its hash."""
    first = hub.add("org/tiny", folder)
    (folder / "config.json").write_text("{}")
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny", first)
    assert repo.revision == first
    assert repo.files["config.json"].size > 2


def test_a_branch_with_a_slash_is_found(hub: LocalHub, folder: Path) -> None:
    """A pull request's branch, refs/pr/1, is pinned, fetched and found again offline."""
    sha = hub.add("org/tiny", folder, branch="refs/pr/1")
    repo = ours.pin("org/tiny", "refs/pr/1")
    ours.small_files(repo)
    assert repo.revision == sha
    assert (Path(constants.HF_HUB_CACHE) / "models--org--tiny/refs/refs/pr/1").read_text() == sha


def test_what_is_no_name_never_reaches_the_hub(hub: LocalHub) -> None:
    """Anything but org/name is refused before a request or a path is made of it."""
    for id in [
        "tiny",
        "../tiny",
        "org/../tiny",
        "org/t/more",
        "/etc/x",
        "org/.t",
        "a--b/c",
        "org/x\n",
    ]:
        with pytest.raises(MergeError, match=r"write it as org/name"):
            ours.pin(id)
    assert not hub.log


def test_what_is_no_revision_never_reaches_the_hub(hub: LocalHub) -> None:
    """A revision that could be a path elsewhere is refused before a request is made."""
    for revision in ("../main", "a/../../b", "/main", "a b", "-x", "a//b"):
        with pytest.raises(MergeError, match=r"not a branch, tag or commit"):
            ours.pin("org/tiny", revision)
    assert not hub.log


def test_a_missing_repo_is_said_in_one_sentence(hub: LocalHub) -> None:
    """Anonymous or with a token, a missing repo is said to be missing or private."""
    hub.user("hf_someone")
    for token in (False, "hf_someone"):
        with pytest.raises(MergeError, match=r"^org/none is not on the Hub, or is private: .*\.$"):
            ours.pin("org/none", token=token)


def test_a_missing_revision_is_said_in_one_sentence(hub: LocalHub, folder: Path) -> None:
    """A branch or commit that the repo lacks is named."""
    hub.add("org/tiny", folder)
    for revision in ("v9", "0" * 40):
        with pytest.raises(MergeError, match=rf"^org/tiny has no branch, tag or commit {revision}"):
            ours.pin("org/tiny", revision)


def test_a_gated_repo_is_open_to_those_who_may_read_it(hub: LocalHub, folder: Path) -> None:
    """Without access a gated repo is refused when it is pinned; with access it downloads."""
    hub.add("org/gated", folder, gated=True)
    hub.user("hf_alice", reads=["org/gated"])
    hub.user("hf_bob")
    for token in (False, "hf_bob"):
        with pytest.raises(
            MergeError, match=r"gated: accept its terms on huggingface.co/org/gated"
        ):
            ours.pin("org/gated", token=token)
    repo = ours.pin("org/gated", token="hf_alice")
    assert repo.gated
    drain(repo, "hf_alice")
    assert ours.cached(repo)


def test_a_warm_cache_opens_no_gated_repo(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one user fetched is not shown to another, not even when the Hub is out of reach."""
    hub.add("org/gated", folder, gated=True)
    hub.user("hf_alice", reads=["org/gated"])
    drain(ours.pin("org/gated", token="hf_alice"), "hf_alice")
    with pytest.raises(MergeError, match=r"is gated"):
        ours.pin("org/gated")
    unplug(monkeypatch)
    with pytest.raises(MergeError, match=r"cached but gated"):
        ours.pin("org/gated")


def test_a_private_repo_counts_as_gated(hub: LocalHub, folder: Path) -> None:
    """A private repo looks missing to others, and is gated to those who may read it."""
    hub.add("org/private", folder, private=True)
    hub.user("hf_alice", reads=["org/private"])
    with pytest.raises(MergeError, match=r"private"):
        ours.pin("org/private")
    assert ours.pin("org/private", token="hf_alice").gated


def test_a_wrong_token_is_refused(hub: LocalHub, folder: Path) -> None:
    """An expired or unknown token is told to log in again, where a login is needed."""
    hub.add("org/gated", folder, gated=True)
    with pytest.raises(MergeError, match=r"log in again"):
        ours.pin("org/gated", token="hf_expired")


def test_an_expired_login_keeps_nobody_from_public_models(hub: LocalHub, folder: Path) -> None:
    """The Hub answers 401 even for public repos: they are read anonymously instead."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny", token="hf_expired")
    assert drain(repo, "hf_expired")[1].is_dir()


def test_a_commits_listing_is_asked_for_once_but_access_each_time(
    hub: LocalHub, folder: Path
) -> None:
    """A class of thirty would use up the Hub's rate; who may read is never remembered."""
    sha = hub.add("org/gated", folder, gated=True)
    hub.user("hf_alice", reads=["org/gated"])
    for _ in range(3):
        ours.pin("org/gated", sha, token="hf_alice")
    assert len(hub.requests("revision")) == 1
    assert len(hub.requests("auth-check")) == 3
    hub.user("hf_alice")
    with pytest.raises(MergeError, match=r"is gated"):
        ours.pin("org/gated", sha, token="hf_alice")


def test_the_machines_token_is_never_sent_for_others(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a login on the machine, an anonymous call stays anonymous; a given token is sent."""
    hub.add("org/tiny", folder)
    hub.user("hf_machine")
    monkeypatch.setenv("HF_TOKEN", "hf_machine")
    Path(constants.HF_TOKEN_PATH).parent.mkdir()
    Path(constants.HF_TOKEN_PATH).write_text("hf_machine")
    repo = ours.pin("org/tiny")
    ours.read_range(repo, "model.safetensors", 0, 8)
    drain(repo)
    assert {seen.token for seen in hub.log} == {None}
    assert ours.own_login() == "hf_machine"
    ours.pin("org/tiny", token=ours.own_login())
    assert hub.log[-1].token == "hf_machine"


def test_a_token_never_follows_to_the_cdn(hub: LocalHub, folder: Path) -> None:
    """The user's token goes to the Hub alone."""
    hub.add("org/gated", folder, gated=True)
    hub.user("hf_alice", reads=["org/gated"])
    drain(ours.pin("org/gated", token="hf_alice"), "hf_alice")
    assert {seen.token for seen in hub.requests("/cdn/")} == {None}
    assert {seen.token for seen in hub.requests("/resolve/")} == {"hf_alice"}


def test_the_rate_limit_says_how_long(hub: LocalHub, folder: Path) -> None:
    """A 429 names the seconds to wait."""
    hub.add("org/tiny", folder)
    hub.fault("GET /api/models", "429", wait=55)
    with pytest.raises(MergeError, match=r"rate limit is reached: try again in 55 s"):
        ours.pin("org/tiny")


def test_a_short_rate_limit_is_waited_for(hub: LocalHub, folder: Path) -> None:
    """A second or two are no reason to bother anybody."""
    hub.add("org/tiny", folder)
    hub.fault("GET /api/models", "429", wait=1)
    start = time.monotonic()
    assert ours.pin("org/tiny")
    assert 1 <= time.monotonic() - start < 10


@pytest.mark.parametrize("call", ["whoami", "model_info"])
def test_no_call_of_the_client_waits_for_ever(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Even calls that have no time-out, and those that ask for none, end."""
    monkeypatch.setattr(client, "SILENCE", 0.3)
    hub.fault("GET /api/", "hang", times=9)
    api = client.api()
    with (
        pytest.raises(MergeError, match=r"connection to the Hub failed"),
        client.plainly("org/tiny", "main"),
    ):
        api.whoami(token="hf_x") if call == "whoami" else api.model_info("org/tiny")


def test_a_failing_hub_is_said_in_one_sentence(hub: LocalHub, folder: Path) -> None:
    """A server error names its number."""
    hub.add("org/tiny", folder)
    hub.fault("GET /api/models", "503", times=9)
    with pytest.raises(MergeError, match=r"error 503"):
        ours.pin("org/tiny")


def test_a_silent_hub_is_not_waited_for(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub that says nothing is given up after the client's time-out."""
    hub.add("org/tiny", folder)
    hub.fault("GET /api/models", "hang", times=9)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    start = time.monotonic()
    with pytest.raises(MergeError, match=r"connection to the Hub failed"):
        ours.pin("org/tiny")
    assert time.monotonic() - start < 10


# Without a network


def test_offline_the_cache_answers(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HF_HUB_OFFLINE a branch and a commit are read from the cache, with no request."""
    sha = hub.add("org/tiny", folder)
    online = ours.pin("org/tiny")
    _, path = drain(online)
    offline(monkeypatch)
    before = len(hub.log)
    for revision in (None, "main", sha):
        repo = ours.pin("org/tiny", revision)
        assert repo.revision == sha
        assert repo.files["model.safetensors"].size == online.files["model.safetensors"].size
        assert repo.files["model.safetensors"].sha256 == online.files["model.safetensors"].sha256
        assert ours.weights(repo) == ("model.safetensors",)
        assert ours.cached(repo) == ours.small_files(repo) == drain(repo)[1] == path
        assert len(ours.read_range(repo, "model.safetensors", 0, 8)) == 8
    assert len(hub.log) == before


def test_offline_a_gated_model_is_nobodys(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may read it cannot be asked, so that its copy in the cache is not used."""
    hub.add("org/gated", folder, gated=True)
    hub.user("hf_alice", reads=["org/gated"])
    drain(ours.pin("org/gated", token="hf_alice"), "hf_alice")
    offline(monkeypatch)
    with pytest.raises(MergeError, match=r"access cannot be checked"):
        ours.pin("org/gated")


def test_offline_a_model_that_is_not_there_is_said(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, what the cache lacks is refused with what to do: repo, file and shard."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    offline(monkeypatch)
    for ask in (
        lambda: ours.pin("org/tiny"),
        lambda: ours.small_files(repo),
        lambda: ours.read_range(repo, "model.safetensors", 0, 8),
        lambda: list(ours.download(repo)),
    ):
        with pytest.raises(MergeError, match=r"not in the cache .* unset HF_HUB_OFFLINE"):
            ask()


def test_offline_half_a_model_is_not_taken_for_whole(
    hub: LocalHub, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files alone do not make a model: the first missing shard is named."""
    hub.add("org/big", sharded)
    ours.small_files(ours.pin("org/big"))
    offline(monkeypatch)
    repo = ours.pin("org/big")
    assert ours.cached(repo) is None
    with pytest.raises(MergeError, match=r"lacks 'model-00001-of-00003.safetensors'"):
        ours.weights(repo)


@pytest.mark.parametrize("trouble", ["unplugged", "503"])
def test_without_a_network_the_cache_answers(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """No network, or a failing Hub: what was downloaded before is used, and the rest is refused."""
    hub.add("org/tiny", folder)
    drain(ours.pin("org/tiny"))
    if trouble == "unplugged":
        unplug(monkeypatch)
    else:
        hub.fault("GET /api/models", trouble, times=9)
    assert ours.cached(ours.pin("org/tiny"))
    with pytest.raises(MergeError, match=r"try again"):
        ours.pin("org/other")


# Which files


def test_a_repo_of_pickles_is_refused(hub: LocalHub, folder: Path) -> None:
    """Weights that are only pickles are refused, and named."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    hub.add("org/pickles", folder)
    repo = ours.pin("org/pickles")
    with pytest.raises(MergeError, match=r"only pickles \(pytorch_model.bin\)"):
        ours.weights(repo)
    with pytest.raises(MergeError, match=r"only pickles"):
        next(ours.download(repo))
    assert ours.cached(repo) is None


def test_a_repo_without_weights_is_refused(hub: LocalHub, folder: Path) -> None:
    """Weights under other names than model.safetensors are not guessed at."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).unlink()
    hub.add("org/odd", folder)
    with pytest.raises(MergeError, match=r"no model.safetensors"):
        ours.weights(ours.pin("org/odd"))


def test_the_index_names_the_shards(hub: LocalHub, sharded: Path) -> None:
    """Shards come from the index, once each and in order; the index is fetched once."""
    hub.add("org/big", sharded)
    repo = ours.pin("org/big")
    assert ours.weights(repo) == tuple(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3))
    ours.weights(repo)
    assert len(hub.requests(INDEX)) == 1


def test_an_adapter_is_its_own_weights(hub: LocalHub, tmp_path: Path) -> None:
    """A LoRA adapter's repo gives its adapter file and configuration."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    write_weights(adapter / "adapter_model.safetensors", 0)
    hub.add("org/lora", adapter)
    repo = ours.pin("org/lora")
    assert ours.weights(repo) == ("adapter_model.safetensors",)
    assert (ours.small_files(repo) / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../../../etc/passwd.safetensors"}}, "lacks '../../../etc"),
        ({"weight_map": {"a": "/etc/passwd.safetensors"}}, "lacks '/etc"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, "lacks '"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "damaged"),
        ({"weight_map": {"a": "gone.safetensors"}}, "lacks 'gone.safetensors'"),
        ({"weight_map": {"a": 1}}, "damaged"),
        ({"weight_map": {"a": []}}, "damaged"),
        ({"weight_map": {}}, "damaged"),
        ([], "damaged"),
        ("[" * 200_000, "damaged"),
    ],
)
def test_a_strange_index_is_refused(hub: LocalHub, sharded: Path, index: object, said: str) -> None:
    """An index that names no file, one elsewhere or a missing one is refused beforehand."""
    (sharded / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))
    hub.add("org/strange", sharded)
    repo = ours.pin("org/strange")
    with pytest.raises(MergeError) as error:
        ours.weights(repo)
    assert said in str(error.value)
    assert not hub.requests("/cdn/")


def test_a_listing_never_leads_out_of_the_cache(hub: LocalHub, folder: Path) -> None:
    """A file name or checksum from the Hub that could be a path is refused."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    evil = dataclasses.replace(repo, files={"../x": ours.File(9, "0" * 64)})
    with pytest.raises(MergeError, match=r"lacks '../x'"):
        ours.read_range(evil, "../x", 0, 8)
    evil = dataclasses.replace(repo, files={"config.json": ours.File(9, "../../../x")})
    with pytest.raises(MergeError, match=r"no checksum"):
        ours.small_files(evil)


# Parts of files


def test_a_header_costs_few_bytes(hub: LocalHub, folder: Path) -> None:
    """Reading a safetensors header moves its bytes and no more."""
    hub.add("org/tiny", folder)
    repo, data = ours.pin("org/tiny"), (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(ours.read_range(repo, "model.safetensors", 0, 8), "little")
    assert ours.read_range(repo, "model.safetensors", 8, 8 + size) == data[8 : 8 + size]
    assert sum(seen.sent for seen in hub.requests("/cdn/")) == 8 + size < 200
    assert ours.read_range(repo, "model.safetensors", len(data) - 5, len(data)) == data[-5:]
    assert ours.read_range(repo, "model.safetensors", 7, 7) == b""


def test_a_part_is_read_from_the_cache_once_it_is_there(hub: LocalHub, folder: Path) -> None:
    """After a download no request is made for a part."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    drain(repo)
    before = len(hub.log)
    data = (folder / "model.safetensors").read_bytes()
    assert ours.read_range(repo, "model.safetensors", 100, 200) == data[100:200]
    assert len(hub.log) == before


def test_a_part_beyond_the_end_is_refused(hub: LocalHub, folder: Path) -> None:
    """A header that claims more than the file holds is said to be damaged, with the numbers."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    size = repo.files["model.safetensors"].size
    with pytest.raises(MergeError, match=rf"has {size} bytes, and bytes 8 to {size + 1}"):
        ours.read_range(repo, "model.safetensors", 8, size + 1)
    with pytest.raises(MergeError, match=r"lacks 'none.safetensors'"):
        ours.read_range(repo, "none.safetensors", 0, 8)


def test_a_whole_file_is_not_taken_for_a_part(hub: LocalHub, folder: Path) -> None:
    """A Hub that ignores ranges is refused, and its answer not read."""
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "no_range", times=9)
    repo = ours.pin("org/tiny")
    for span in (
        (0, 8),
        (repo.files["model.safetensors"].size - 8, repo.files["model.safetensors"].size),
    ):
        with pytest.raises(MergeError, match=r"sends no parts"):
            ours.read_range(repo, "model.safetensors", *span)


@pytest.mark.parametrize("kind", ["reset", "503"])
def test_a_part_is_asked_for_again(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A broken connection or a server error while reading a part is tried again."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", kind, times=2)
    data = (folder / "model.safetensors").read_bytes()
    assert ours.read_range(ours.pin("org/tiny"), "model.safetensors", 0, 8) == data[:8]


# Downloads


def test_only_what_a_merge_needs_is_fetched(hub: LocalHub, folder: Path) -> None:
    """Pickles, code, pictures, other formats and other copies of the weights stay on the Hub."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    seen, path = drain(repo)
    wanted = sorted([*SMALL, "model.safetensors"])
    assert sorted(p.name for p in path.iterdir()) == wanted
    assert all((path / name).read_bytes() == (folder / name).read_bytes() for name in wanted)
    assert sorted(s.line.rpartition("/")[2] for s in hub.requests("/resolve/")) == wanted
    assert path == ours.cached(repo)
    assert seen[-1].total == sum((folder / name).stat().st_size for name in wanted)


def test_small_files_come_without_the_weights(hub: LocalHub, sharded: Path) -> None:
    """Configuration, tokenizer and index are fetched alone, and once."""
    hub.add("org/big", sharded)
    repo = ours.pin("org/big")
    path = ours.small_files(repo)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", INDEX]
    before = len(hub.log)
    assert ours.small_files(repo) == path
    assert len(hub.log) == before
    assert ours.cached(repo) is None


def test_progress_counts_all_bytes_and_never_falls(
    hub: LocalHub, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes over all files rise to the total, through a damaged file and a reset too."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    hub.add("org/big", sharded)
    hub.fault("GET /cdn/", "corrupt")
    hub.fault("GET /cdn/", "reset", after=WEIGHTS // 2)
    hub.fault("GET /cdn/", "slow", piece=100_000, delay=0.1)
    seen, _ = drain(ours.pin("org/big"))
    done = [fetched.done for fetched in seen]
    assert done == sorted(done)
    assert len({d for d in done if 0 < d < seen[-1].total}) > 2
    assert {fetched.total for fetched in seen} == {done[-1]}
    assert done[-1] == sum(p.stat().st_size for p in sharded.iterdir())
    assert any("safetensors" in fetched.file for fetched in seen)


def test_a_second_download_asks_for_nothing(hub: LocalHub, sharded: Path) -> None:
    """What is there is counted as done and not asked for."""
    hub.add("org/big", sharded)
    repo = ours.pin("org/big")
    drain(repo)
    before = len(hub.log)
    seen, _ = drain(repo)
    assert [fetched.done for fetched in seen] == [seen[0].total]
    assert len(hub.log) == before


def test_files_that_did_not_change_are_kept(hub: LocalHub, folder: Path) -> None:
    """A new commit with the same weights fetches only what differs."""
    hub.add("org/tiny", folder)
    drain(ours.pin("org/tiny"))
    (folder / "config.json").write_text("{}")
    hub.add("org/tiny", folder)
    before = len(hub.log)
    drain(ours.pin("org/tiny"))
    assert [s.line.rpartition("/")[2] for s in hub.log[before:] if "resolve" in s.line] == [
        "config.json"
    ]


@pytest.mark.parametrize("kind", ["slow", "hang"])
def test_closing_stops_a_download(hub: LocalHub, sharded: Path, kind: str) -> None:
    """On a slow or silent Hub, a stopped download ends soon and leaves nothing half-written."""
    hub.add("org/big", sharded)
    after = 9000 if kind == "hang" else None
    hub.fault("GET /cdn/", kind, times=9, piece=10_000, after=after)
    repo = ours.pin("org/big")
    under_way = ours.download(repo)
    while next(under_way).done < 9000:
        pass
    assert leftovers()
    start = time.monotonic()
    under_way.close()
    assert time.monotonic() - start < 1.5
    assert leftovers() == []
    assert ours.cached(repo) is None
    hub.faults.clear()
    assert drain(repo)[1] == ours.cached(repo)


def test_a_download_waits_with_signs_of_life(hub: LocalHub, folder: Path) -> None:
    """While the Hub is silent, progress is still yielded, so that a page can stop it."""
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "hang", after=1000)
    under_way = ours.download(ours.pin("org/tiny"))
    start = time.monotonic()
    for _ in range(8):
        next(under_way)
    assert time.monotonic() - start < 10
    under_way.close()


@pytest.mark.parametrize(
    ("kind", "after"), [("reset", 300_000), ("truncate", 300_000), ("reset", None), ("502", None)]
)
def test_a_broken_connection_is_taken_up_again(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, after: int | None
) -> None:
    """After a reset, a cut or a server error the file goes on where it stopped, and is right."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", kind, times=2, after=after)
    _, path = drain(ours.pin("org/tiny"))
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    ranges = [seen.range for seen in hub.requests("/cdn/")]
    assert ranges == ([None, "bytes=300000-", "bytes=600000-"] if after else [None] * 3)


def test_a_hub_that_cannot_resume_is_still_right(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the Hub sends the whole file again, what is already there is passed over."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "reset", after=300_000)
    hub.fault("GET /cdn/", "no_range")
    _, path = drain(ours.pin("org/tiny"))
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["hang", "short", "wrong_etag", "no_commit", "truncate"])
@pytest.mark.parametrize("where", ["GET /cdn/", "GET .*/resolve/.*config.json"])
def test_whatever_breaks_once_the_files_come_right(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    """Silence, a cut, half a file, a strange header: the bytes are those published."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.add("org/tiny", folder)
    hub.fault(where, kind, after=50)
    repo = ours.pin("org/tiny")
    _, path = drain(repo)
    for name in ("model.safetensors", "config.json"):
        assert (path / name).read_bytes() == (folder / name).read_bytes()
    assert leftovers() == []
    assert ours.cached(repo) == path


def test_an_expired_link_is_asked_for_anew(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the storage refuses, the Hub is asked for another link, and in the end says so."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "403")
    drain(ours.pin("org/tiny"))
    assert len(hub.requests("/resolve/.*/model.safetensors")) == 2
    write_weights(folder / "model.safetensors", 7)
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "403", times=99)
    with pytest.raises(MergeError, match=r"The Hub fails on org/tiny \(error 403\)"):
        drain(ours.pin("org/tiny"))
    assert len(hub.requests("/resolve/.*/model.safetensors")) == 2 + client.ATTEMPTS
    assert leftovers() == []


def test_attempts_count_anew_where_bytes_came(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file survives many resets, as long as each connection brings something."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    hub.add("org/tiny", folder)
    times = client.ATTEMPTS + 2
    hub.fault("GET /cdn/", "reset", times=times, after=WEIGHTS // (times + 1))
    _, path = drain(ours.pin("org/tiny"))
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len(hub.requests("/cdn/")) == times + 1


@pytest.mark.parametrize("where", ["GET /cdn/", "GET .*/resolve/.*/model.safetensors"])
def test_a_rate_limit_is_waited_for_and_shown(hub: LocalHub, folder: Path, where: str) -> None:
    """A download waits as long as the Hub says, says so itself, and can be stopped meanwhile."""
    hub.add("org/tiny", folder)
    hub.fault(where, "429", wait=2)
    start = time.monotonic()
    seen, path = drain(ours.pin("org/tiny"))
    assert 2 <= time.monotonic() - start < 10
    assert "model.safetensors (waiting 2 s: the Hub's rate limit)" in {f.file for f in seen}
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    hub.add("org/other", folder)
    hub.fault(where, "429", wait=55)
    under_way = ours.download(ours.pin("org/other"))
    while "rate limit" not in next(under_way).file:
        pass
    start = time.monotonic()
    under_way.close()
    assert time.monotonic() - start < 1


def test_a_limit_without_end_is_refused(hub: LocalHub, folder: Path) -> None:
    """Nobody sits through an hour."""
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "429", wait=3600)
    with pytest.raises(MergeError, match=r"try again in 3600 s"):
        drain(ours.pin("org/tiny"))
    assert leftovers() == []


def test_a_trickle_is_taken_up_elsewhere(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that hardly moves is left for another one; if none moves, that is said."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    monkeypatch.setattr(client, "WINDOW", 0.3)
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    hub.fault("GET /cdn/", "slow", piece=100, delay=0.05)
    with pytest.raises(MergeError, match=r"sends org/tiny too slowly"):
        hub.fault("GET /cdn/", "slow", piece=100, delay=0.05)
        drain(repo)
    assert leftovers() == []
    hub.fault("GET /cdn/", "slow", piece=100, delay=0.05)
    _, path = drain(repo)
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    first, second = hub.requests("/cdn/")[-2:]
    assert first.range is None
    assert second.range


def test_a_hub_that_keeps_breaking_is_given_up(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few attempts the failure is said, and nothing half-written is left."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "reset", times=99, after=1000)
    repo = ours.pin("org/tiny")
    with pytest.raises(MergeError, match=r"connection to the Hub failed on org/tiny"):
        drain(repo)
    assert len(hub.requests("/cdn/")) == client.ATTEMPTS
    assert leftovers() == []
    assert ours.cached(repo) is None


def test_damaged_bytes_are_fetched_again(hub: LocalHub, folder: Path) -> None:
    """Bytes of the right number and the wrong checksum are thrown away and fetched once more."""
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "corrupt")
    hub.fault("GET .*/config.json", "corrupt")
    _, path = drain(ours.pin("org/tiny"))
    for name in ("model.safetensors", "config.json"):
        assert (path / name).read_bytes() == (folder / name).read_bytes()


def test_bytes_damaged_twice_are_refused(hub: LocalHub, folder: Path) -> None:
    """A file that comes damaged twice is refused, and no copy of it stays."""
    hub.add("org/tiny", folder)
    hub.fault("GET /cdn/", "corrupt", times=2)
    repo = ours.pin("org/tiny")
    with pytest.raises(MergeError, match=r"model.safetensors of org/tiny came damaged twice"):
        drain(repo)
    assert ours.cached(repo) is None
    assert leftovers() == []
    assert not any(
        p.name == repo.files["model.safetensors"].sha256
        for p in Path(constants.HF_HUB_CACHE).rglob("*")
    )


def test_a_wrong_checksum_in_the_listing_is_refused(hub: LocalHub, folder: Path) -> None:
    """What does not match the Hub's own listing is not taken."""
    hub.add("org/tiny", folder)
    hub.fault("GET /api/models", "wrong_etag")
    with pytest.raises(MergeError, match=r"came damaged twice"):
        drain(ours.pin("org/tiny"))
    assert leftovers() == []


def test_a_file_longer_than_listed_is_not_swallowed(hub: LocalHub, folder: Path) -> None:
    """An endless answer ends at the size that the disk was asked for."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    less = dataclasses.replace(repo.files["model.safetensors"], size=1000)
    repo = dataclasses.replace(repo, files={**repo.files, "model.safetensors": less})
    with pytest.raises(MergeError, match=r"came damaged twice"):
        drain(repo)
    assert leftovers() == []


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_damaged_file_in_the_cache_is_fetched_again(
    hub: LocalHub, folder: Path, whose: str
) -> None:
    """Right in size and wrong in content: fetched by another tool, or changed since we did."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    if whose == "ours":
        drain(repo)
    else:
        huggingface_hub.snapshot_download("org/tiny", token=False)
    for name in ("model.safetensors", "config.json"):
        path = Path(constants.HF_HUB_CACHE) / f"models--org--tiny/snapshots/{repo.revision}" / name
        path.write_bytes(bytes(path.stat().st_size))
    assert ours.cached(repo) is None
    data = (folder / "model.safetensors").read_bytes()
    assert ours.read_range(repo, "model.safetensors", 0, 99) == data[:99], "not the damaged copy"
    _, path = drain(repo)
    assert ours.cached(repo) == path
    for name in ("model.safetensors", "config.json"):
        assert (path / name).read_bytes() == (folder / name).read_bytes()


def test_checking_is_shown(hub: LocalHub, folder: Path) -> None:
    """Reading gigabytes that another tool left takes a while: the page says why."""
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(200 << 20)
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    blobs = Path(constants.HF_HUB_CACHE) / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (folder / "model.safetensors").rename(blobs / str(repo.files["model.safetensors"].sha256))
    seen, _ = drain(repo)
    checked = [f.done for f in seen if f.file == "model.safetensors (checking)"]
    assert checked and 0 < checked[-1] < seen[-1].total
    assert not hub.requests("/cdn/")


def test_a_cut_file_in_the_cache_is_fetched_again(hub: LocalHub, folder: Path) -> None:
    """A file shorter than the Hub says, whatever cut it, is not complete."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    _, path = drain(repo)
    (path / "model.safetensors").resolve().write_bytes(b"short")
    assert ours.cached(repo) is None
    drain(repo)
    assert (path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_full_disk_is_seen_before_bytes_move(hub: LocalHub, folder: Path) -> None:
    """A model larger than the disk is refused with both numbers, and nothing is fetched."""
    hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    huge = dataclasses.replace(repo.files["model.safetensors"], size=10**18)
    repo = dataclasses.replace(repo, files={**repo.files, "model.safetensors": huge})
    with pytest.raises(MergeError, match=r"needs 1000000000.0 GB of disk, [\d.]+ GB are free"):
        next(ours.download(repo))
    assert not hub.requests("/resolve/")


def test_a_cache_that_cannot_be_written_is_said(hub: LocalHub, folder: Path) -> None:
    """What the disk refuses is said in one sentence too."""
    hub.add("org/tiny", folder)
    Path(constants.HF_HUB_CACHE).mkdir(parents=True)
    (Path(constants.HF_HUB_CACHE) / "models--org--tiny").write_text("a file in the way")
    with pytest.raises(MergeError, match=r"point HF_HOME to"):
        ours.small_files(ours.pin("org/tiny"))


# Beside others


def test_the_cache_is_shared_with_the_client(hub: LocalHub, folder: Path) -> None:
    """The client finds our files without a download, and we find its files."""
    sha = hub.add("org/tiny", folder)
    repo = ours.pin("org/tiny")
    _, path = drain(repo)
    bytes_sent = sum(seen.sent for seen in hub.requests("GET .*(resolve|cdn)"))
    found = huggingface_hub.hf_hub_download("org/tiny", "model.safetensors", token=False)
    assert Path(found) == path / "model.safetensors"
    assert sum(seen.sent for seen in hub.requests("GET .*(resolve|cdn)")) == bytes_sent
    cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert [str(w) for w in cache.warnings] == []
    assert {(r.repo_id, tuple(r.refs)) for r in cache.repos} == {("org/tiny", ("main",))}
    hub.add("org/theirs", folder)
    theirs = huggingface_hub.snapshot_download("org/theirs", token=False)
    repo, before = ours.pin("org/theirs"), len(hub.log)
    assert ours.missing(repo) == 0
    assert ours.cached(repo) is None, "nobody has checked it"
    drain(repo)
    assert ours.cached(repo) == Path(theirs)
    assert len(drain(repo)[0]) == 1, "once is enough"
    assert len(hub.log) == before
    assert sha in str(path)


def test_the_local_hub_answers_the_client_as_the_hub_does(hub: LocalHub, folder: Path) -> None:
    """Tree, paths, access and login calls of the real client work against the LocalHub."""
    hub.add("org/gated", folder, gated=True)
    hub.user("hf_alice", reads=["org/gated"])
    api = huggingface_hub.HfApi()
    nodes = api.list_repo_tree("org/gated", recursive=True, token="hf_alice")
    tree = {node.path: node.size for node in nodes if isinstance(node, RepoFile)}
    assert tree["config.json"] == (folder / "config.json").stat().st_size
    (node,) = api.get_paths_info("org/gated", ["model.safetensors"], token="hf_alice")
    assert node.lfs and node.lfs.size == node.size
    api.auth_check("org/gated", token="hf_alice")
    with pytest.raises(huggingface_hub.errors.GatedRepoError):
        api.auth_check("org/gated", token=False)
    assert api.whoami(token="hf_alice")["type"] == "user"
    found = huggingface_hub.hf_hub_download("org/gated", "config.json", token="hf_alice")
    assert Path(found).read_bytes() == (folder / "config.json").read_bytes()


def test_a_child_process_reaches_the_same_hub(hub: LocalHub, folder: Path) -> None:
    """The app and the CLI run as child processes of tests find the LocalHub and the cache."""
    hub.add("org/tiny", folder)
    code = (
        "from merging import hub; repo = hub.pin('org/tiny'); list(hub.download(repo)); "
        "print(hub.cached(repo))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(ours.cached(ours.pin("org/tiny")))


def test_importing_is_cheap() -> None:
    """Importing hub.py loads no HTTP stack: a recipe can be read without it."""
    code = "import merging.hub, sys; print([m for m in sys.modules if m[:5] == 'httpx'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
