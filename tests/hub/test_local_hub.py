"""The test Hub answers the real client as the real Hub does; what the app does with it is not here.

Where the real Hub was never reached, its documents and the client's source say what it does.
"""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCardData,
    get_safetensors_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import http_stream_backoff, httpx
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

# The client uploads by an argument that its HTTP library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = "model.safetensors"
Make = Callable[..., Path]


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.url)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a model's folder: `size` float32 parameters, a config, and a card with `meta`."""

    def made(name: str, size: int = 100, meta: str = "license: mit", **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        values = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
        save_file({"w": values}, folder / WEIGHTS)
        settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | config
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "README.md").write_text(f"---\n{meta}\n---\n# {name}\n")
        return folder

    return made


def status(error: Any) -> int:
    code: int = error.value.response.status_code
    return code


# Jobs, as far as the client goes


def test_a_job_runs_its_command(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    """In a folder of its own, with its environment and secrets; log and end are told."""
    hub.user("hf_alice", name="alice")
    hub.jobs.where = tmp_path
    with pytest.raises(HfHubHTTPError):
        api.run_job(image="x", command=["true"], flavor="none", token="hf_alice")
    job = api.run_job(
        image="python:3.12", command=["sh", "-c", "pwd; echo $A$B; exit 3"], env={"A": "1"},
        secrets={"B": "2"}, timeout=60, labels={"k": "v"}, token="hf_alice",
    )  # fmt: skip
    assert list(api.fetch_job_logs(job_id=job.id, follow=True, token="hf_alice")) == [
        str(tmp_path / job.id), "12",
    ]  # fmt: skip
    end = api.wait_for_job(job.id, token="hf_alice")
    assert end.status.stage == "ERROR" and "3" in (end.status.message or "")
    assert end.secrets == {"B": None} and end.url == f"{hub.url}/jobs/alice/{job.id}"
    assert [j.id for j in api.list_jobs(labels={"k": "v"}, namespace="alice", token="hf_alice")]
    assert not list(api.list_jobs(labels={"k": "w"}, namespace="alice", token="hf_alice"))
    assert "cpu-basic" in [machine.name for machine in api.list_jobs_hardware()]


def test_a_job_is_cancelled(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    """By its owner alone, with all that it has started."""
    hub.user("hf_alice", name="alice")
    hub.user("hf_bob", name="bob")
    hub.jobs.where = tmp_path
    job = api.run_job(image="x", command=["sh", "-c", "sleep 60 & wait"], token="hf_alice")
    with pytest.raises(HfHubHTTPError):
        api.cancel_job(job_id=job.id, namespace="alice", token="hf_bob")
    api.cancel_job(job_id=job.id, token="hf_alice")
    assert api.wait_for_job(job.id, token="hf_alice").status.stage == "CANCELED"
    process = hub.jobs.ran[job.id].process
    assert process and process.wait(5) < 0


def test_branches(hub: LocalHub, api: HfApi, make: Make) -> None:
    """A branch starts at main, takes commits of its own, and goes."""
    hub.user("hf_alice", name="alice")
    hub.add("alice/m", make("m"))
    main = hub.repos["alice/m"].refs["main"]
    api.create_branch("alice/m", branch="side", token="hf_alice")
    api.create_branch("alice/m", branch="side", exist_ok=True, token="hf_alice")
    with pytest.raises(HfHubHTTPError):
        api.create_branch("alice/m", branch="side", token="hf_alice")
    added = CommitOperationAdd("x.zip", b"zipped")
    api.create_commit("alice/m", [added], commit_message="x", revision="side", token="hf_alice")
    assert hub.repos["alice/m"].refs["main"] == main and "x.zip" in hub.files("alice/m", "side")
    path = hf_hub_download("alice/m", "x.zip", revision="side", token="hf_alice")
    assert Path(path).read_bytes() == b"zipped"
    api.delete_branch("alice/m", branch="side", token="hf_alice")
    assert list(hub.repos["alice/m"].refs) == ["main"]
    with pytest.raises(HfHubHTTPError):
        api.delete_branch("alice/m", branch="side", token="hf_alice")


# Users


def test_each_token_has_a_name(hub: LocalHub, api: HfApi) -> None:
    """whoami tells a token's user; tokens without a name are numbered."""
    hub.user("hf_1")
    hub.user("hf_alice", name="alice", writes=False)
    hub.user("hf_3")
    names = [api.whoami(token)["name"] for token in ("hf_1", "hf_alice", "hf_3")]
    assert names == ["user-1", "alice", "user-3"]
    roles = [api.whoami(t)["auth"]["accessToken"]["role"] for t in ("hf_1", "hf_alice")]
    assert roles == ["write", "read"]


def test_an_unknown_token_is_refused(hub: LocalHub, api: HfApi, make: Make) -> None:
    """A token that nobody has opens nothing, not even what is public."""
    hub.add("org/open", make("open"))
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
        api.model_info("org/open", token="hf_wrong")
    assert status(error) == 401


def test_access_can_be_taken_back(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Revoked access to a gated repo ends its downloads, not its listing."""
    hub.add("org/gated", make("gated"), gated=True)
    hub.user("hf_alice", reads=["org/gated"])
    api.auth_check("org/gated", token="hf_alice")
    hub.revoke("hf_alice", "org/gated")
    for call in (api.auth_check, lambda id, token: hf_hub_download(id, WEIGHTS, token=token)):
        with pytest.raises(GatedRepoError) as error:
            call("org/gated", token="hf_alice")
        assert status(error) == 403
    assert api.model_info("org/gated", token="hf_alice").gated == "manual"


def test_an_expired_token_is_refused_everywhere(hub: LocalHub, api: HfApi, make: Make) -> None:
    """An expired token gets 401 for a public repo and for itself, which without it is open."""
    hub.add("org/open", make("open"))
    hub.user("hf_old")
    hub.expire("hf_old")
    calls: list[Callable[[], Any]] = [
        lambda: api.model_info("org/open", token="hf_old"),
        lambda: api.whoami("hf_old"),
        lambda: hf_hub_download("org/open", WEIGHTS, token="hf_old"),
        lambda: list(api.list_models(token="hf_old")),
    ]
    for call in calls:
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status(error) == 401
        assert "is expired" in error.value.response.headers["x-error-message"]
    assert hf_hub_download("org/open", WEIGHTS, token=False)


def test_a_private_repo_is_its_owners(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Others are told that a private repo is not there, by 404 with a token, 401 without."""
    hub.add("alice/own", make("own"), private=True)
    hub.user("hf_alice", name="alice")
    hub.user("hf_bob", name="bob")
    assert api.model_info("alice/own", token="hf_alice").private
    for token, code in (("hf_bob", 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as error:
            api.model_info("alice/own", token=token)
        assert status(error) == code
    names = [[m.id for m in api.list_models(token=t)] for t in ("hf_alice", "hf_bob")]
    assert names == [["alice/own"], []]


# Reading


def test_a_tree_has_folders(hub: LocalHub, api: HfApi, make: Make) -> None:
    """A listing is of one folder, unless it is asked to be recursive; a missing one is named."""
    folder = make("deep")
    (folder / "onnx" / "small").mkdir(parents=True)
    (folder / "onnx" / "small" / "model.onnx").write_bytes(b"not one")
    hub.add("org/deep", folder)
    top = {node.path for node in api.list_repo_tree("org/deep")}
    assert top == {"onnx", "README.md", "config.json", WEIGHTS}
    assert [n.path for n in api.list_repo_tree("org/deep", "onnx")] == ["onnx/small"]
    every = {node.path for node in api.list_repo_tree("org/deep", recursive=True)}
    assert every == top | {"onnx/small", "onnx/small/model.onnx"}
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("org/deep", "additional_chat_templates"))


def test_paths_branches_and_headers(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Calls about some paths, about branches, and about all shards of an index."""
    folder = make("small", size=10)
    index = {"metadata": {"total_size": 40}, "weight_map": {"w": WEIGHTS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sha = hub.add("org/small", folder)
    other = hub.add("org/small", folder, branch="refs/pr/1")
    (node,) = api.get_paths_info("org/small", [WEIGHTS, "none"])
    assert node.lfs and node.lfs.size == node.size == (folder / WEIGHTS).stat().st_size
    assert [(b.name, b.target_commit) for b in api.list_repo_refs("org/small").branches] == [
        ("main", sha)
    ]
    assert get_safetensors_metadata("org/small").parameter_count == {"F32": 10}
    assert api.get_sharded_safetensors_metadata("org/small").weight_map == {"w": WEIGHTS}
    assert other in hf_hub_download("org/small", "config.json", revision="refs/pr/1")


def test_what_is_told_of_a_model(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Nested front matter, tags, parameters and downloads; some fields only if asked for."""
    meta = "license: other\nbase_model:\n- org/a\n- org/b\nextra: {deep: [1, 2]}\ntags: [merge]"
    hub.add("org/merged", make("merged", size=30, meta=meta), downloads=7, gated="auto")
    info = api.model_info("org/merged")
    assert (info.downloads, info.gated, info.pipeline_tag) == (7, "auto", "text-generation")
    assert info.safetensors == {"parameters": {"F32": 30}, "total": 30}
    assert info.card_data["extra"] == {"deep": [1, 2]}
    assert info.config["architectures"] == ["LlamaForCausalLM"]
    assert set(info.tags) == {
        *("transformers", "safetensors", "text-generation", "llama", "merge", "license:other"),
        *("base_model:org/a", "base_model:org/b"),
        *("base_model:merge:org/a", "base_model:merge:org/b"),
    }
    assert info.base_models is None
    few = api.model_info("org/merged", expand=["baseModels", "downloads"])
    assert [m["id"] for m in few.base_models["models"]] == ["org/a", "org/b"]
    assert (few.downloads, few.sha, few.siblings) == (7, None, None)
    sizes = {
        s.rfilename: s.size for s in api.model_info("org/merged", files_metadata=True).siblings
    }
    assert sizes[WEIGHTS] == hub.files("org/merged")[WEIGHTS].stat().st_size


# Searching


def test_search_as_a_picker_does(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Words in names, size, task and tags narrow a search; most downloads come first."""
    hub.add("org/Smol-1", make("1", size=100), downloads=5)
    hub.add("org/Smol-2", make("2", size=200), downloads=9, gated=True)
    hub.add("org/Smol-huge", make("3", size=5000), downloads=99)
    hub.add("org/Smol-bert", make("4", architectures=["BertModel"]), downloads=50)
    hub.add("org/other", make("5"), downloads=50)
    pickles = make("6")
    (pickles / WEIGHTS).rename(pickles / "pytorch_model.bin")
    hub.add("org/Smol-pickles", pickles, downloads=50)
    found = api.list_models(
        search="smol",
        pipeline_tag="text-generation",
        filter=["safetensors", "transformers"],
        num_parameters="max:0.001M",
        sort="downloads",
        limit=20,
        expand=["gated", "safetensors", "downloads"],
    )
    told = [(m.id, m.gated, m.safetensors["total"], m.downloads, m.tags) for m in found]
    assert told == [
        ("org/Smol-2", "manual", 200, 9, None),
        ("org/Smol-1", False, 100, 5, None),
    ]
    assert "filter=safetensors&filter=transformers" in hub.log[-1].query
    assert [m.id for m in api.list_models(search="smol", gated=True)] == ["org/Smol-2"]
    with pytest.raises(HfHubHTTPError, match="baseModels"):
        list(api.list_models(expand=["baseModels"]))


def test_search_finds_siblings(hub: LocalHub, api: HfApi, make: Make) -> None:
    """The fine-tunes of a base are found by its lineage tag; merges and adapters are not."""
    hub.add("org/x", make("x"))
    for name in ("one", "two"):
        hub.add(f"org/{name}", make(name, meta="base_model: org/x"))
    hub.add("org/merge", make("merge", meta="base_model: [org/x, org/one]"))
    adapter = make("adapter", meta="base_model: org/x")
    (adapter / "adapter_config.json").write_text("{}")
    hub.add("org/adapter", adapter)
    found = {
        kind: [m.id for m in api.list_models(filter=f"base_model:{kind}:org/x")]
        for kind in ("finetune", "merge", "adapter")
    }
    assert found == {
        "finetune": ["org/one", "org/two"],
        "merge": ["org/merge"],
        "adapter": ["org/adapter"],
    }
    assert len(list(api.list_models(filter="base_model:org/x"))) == 4


def test_search_comes_in_pages(hub: LocalHub, api: HfApi, make: Make) -> None:
    """A long list is fetched page by page; one with a limit stops there."""
    folder = make("same")
    for number in range(5):
        hub.add(f"org/m{number}", folder, downloads=number)
    hub.page = 2
    found = [m.id for m in api.list_models(author="org", sort="downloads")]
    assert found == ["org/m4", "org/m3", "org/m2", "org/m1", "org/m0"]
    assert len(hub.requests("GET /api/models$")) == 3
    assert len(list(api.list_models(limit=2))) == 2
    assert len(hub.requests("GET /api/models$")) == 4


# Uploading


def test_a_folder_is_published_and_loaded(hub: LocalHub, api: HfApi, pico: dict[str, Path]) -> None:
    """A private upload is its owner's alone, and is the model that was sent."""
    hub.user("hf_alice", name="alice")
    hub.user("hf_bob", name="bob")
    url = api.create_repo("alice/pico", private=True, token="hf_alice")
    assert url.repo_id == "alice/pico"
    api.upload_folder(repo_id="alice/pico", folder_path=pico["a"], token="hf_alice")
    for name, file in hub.files("alice/pico").items():
        assert name == ".gitattributes" or file.read_bytes() == (pico["a"] / name).read_bytes()
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("alice/pico", WEIGHTS, token="hf_bob")
    AutoTokenizer.from_pretrained("alice/pico", token="hf_alice")
    model = AutoModelForCausalLM.from_pretrained("alice/pico", token="hf_alice")
    sent = AutoModelForCausalLM.from_pretrained(pico["a"]).state_dict()
    assert all(tensor.equal(sent[key]) for key, tensor in model.state_dict().items())
    folder = snapshot_download("alice/pico", token="hf_alice")
    assert (Path(folder) / WEIGHTS).read_bytes() == (pico["a"] / WEIGHTS).read_bytes()


def test_shards_one_by_one_and_a_card(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Each shard is sent when it is there, then deleted; one commit names them all."""
    hub.user("hf_alice", name="alice")
    api.create_repo("alice/m", token="hf_alice")
    operations = []
    for number in (1, 2):
        file = make(f"shard{number}", size=1000 + number) / WEIGHTS
        add = CommitOperationAdd(f"model-{number}.safetensors", file)
        api.preupload_lfs_files("alice/m", [add], token="hf_alice")
        assert hub.requests("PUT /lfs/")[-1].received == file.stat().st_size
        file.unlink()
        operations.append(add)
    assert {seen.token for seen in hub.requests("PUT /lfs/")} == {None}
    assert [*hub.files("alice/m")] == [".gitattributes"]
    card = ModelCardData(base_model=["org/a", "org/b"], license="mit", library_name="transformers")
    text = f"---\n{card.to_yaml()}\n---\n# Merge\n"
    operations.append(CommitOperationAdd("README.md", text.encode()))
    made = api.create_commit("alice/m", operations, commit_message="Merge", token="hf_alice")
    info = api.model_info("alice/m", token=False)
    assert info.sha == made.oid and "base_model:merge:org/a" in info.tags
    assert [*hub.files("alice/m")][1:] == [
        "README.md",
        "model-1.safetensors",
        "model-2.safetensors",
    ]


def test_what_is_there_is_not_sent_again(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Content that the Hub has needs no upload; a commit without changes makes none."""
    hub.user("hf_alice", name="alice")
    folder = make("m", size=1000)
    for id in ("alice/m", "alice/again", "alice/m"):
        api.create_repo(id, exist_ok=True, token="hf_alice")
        sha = api.upload_folder(repo_id=id, folder_path=folder, token="hf_alice").oid
    assert len(hub.requests("PUT /lfs/")) == 1
    assert len(hub.requests("POST .*/commit/")) == 2
    assert sha == hub.repos["alice/m"].refs["main"]


def test_only_ones_own_name_can_be_written(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Creating, checking and writing in another's name, or with a reader's token, are refused."""
    hub.add("alice/m", make("m"))
    hub.user("hf_alice", name="alice")
    hub.user("hf_reader", name="alice", writes=False)
    hub.user("hf_bob", name="bob")
    api.auth_check("alice/m", write=True, token="hf_alice")
    for token in ("hf_bob", "hf_reader"):
        api.auth_check("alice/m", token=token)
        calls: list[Callable[..., Any]] = [
            lambda token: api.auth_check("alice/m", write=True, token=token),
            lambda token: api.create_repo("alice/new", token=token),
            lambda token: api.upload_file(
                path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/m", token=token
            ),
        ]
        for call in calls:
            with pytest.raises(HfHubHTTPError, match="rights to") as error:
                call(token)
            assert status(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("alice/m", token="hf_alice")
    assert status(error) == 409
    assert [*hub.repos] == ["alice/m"]


def test_a_commit_on_an_old_state_is_refused(hub: LocalHub, api: HfApi, make: Make) -> None:
    """A commit says on what it builds; files and folders can be deleted by one."""
    hub.user("hf_alice", name="alice")
    old = hub.add("alice/m", make("m"))
    api.upload_file(
        path_or_fileobj=b"x", path_in_repo="deep/x", repo_id="alice/m", token="hf_alice"
    )
    gone = [CommitOperationDelete("deep/"), CommitOperationDelete("README.md")]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(
            "alice/m", gone, commit_message="Late", parent_commit=old, token="hf_alice"
        )
    assert status(error) == 412
    assert "deep/x" in hub.files("alice/m")
    api.create_commit("alice/m", gone, commit_message="Now", token="hf_alice")
    assert [*hub.files("alice/m")] == ["config.json", WEIGHTS]
    api.delete_repo("alice/m", token="hf_alice")
    assert not hub.repos


@pytest.mark.parametrize(
    ("meta", "wrong"),
    [
        ("license: [", "not YAML"),
        ("license: my-own", '"license"'),
        ("base_model: ../folder/x", '"base_model"'),
        ("base_model: org/x\nbase_model_relation: child", '"base_model_relation"'),
    ],
)
def test_a_bad_card_is_refused(hub: LocalHub, api: HfApi, meta: str, wrong: str) -> None:
    """A card that the Hub would not take stops an upload before a byte of it is sent."""
    hub.user("hf_alice", name="alice")
    api.create_repo("alice/m", token="hf_alice")
    card = CommitOperationAdd("README.md", f"---\n{meta}\n---\n".encode())
    with pytest.raises(ValueError, match=wrong):
        api.create_commit("alice/m", [card], commit_message="Card", token="hf_alice")
    assert not hub.requests("preupload")


# Faults while uploading


def shards(make: Make) -> list[CommitOperationAdd]:
    """A small and a large file to be sent, as a process that starts again would name them."""
    files = [make("a", size=1000) / WEIGHTS, make("b", size=200_000) / WEIGHTS]
    names = ("a.safetensors", "b.safetensors")
    return [CommitOperationAdd(name, file) for name, file in zip(names, files, strict=True)]


@pytest.mark.parametrize("kind", ["corrupt", "403"])
def test_a_broken_upload_goes_on_where_it_stopped(
    hub: LocalHub, api: HfApi, make: Make, kind: str
) -> None:
    """What did not arrive as it was is not kept; what did is not sent again."""
    hub.user("hf_alice", name="alice")
    api.create_repo("alice/m", token="hf_alice")
    first, second = shards(make)
    api.preupload_lfs_files("alice/m", [first], free_memory=False, token="hf_alice")
    hub.fault("PUT /lfs/", kind)
    with pytest.raises(RuntimeError, match=r"uploading 'b\.safetensors'"):
        api.preupload_lfs_files("alice/m", [second], free_memory=False, token="hf_alice")
    assert [*hub.blobs] == [first.upload_info.sha256.hex()]
    again = [CommitOperationAdd(op.path_in_repo, op.path_or_fileobj) for op in (first, second)]
    api.create_commit("alice/m", again, commit_message="Again", token="hf_alice")
    assert len(hub.requests("PUT /lfs/")) == 3
    assert {"a.safetensors", "b.safetensors"} < set(hub.files("alice/m"))


@pytest.mark.parametrize(
    ("kind", "how"),
    [("503", {}), ("reset", {"after": 200_000}), ("truncate", {"after": 200_000})],
)
def test_an_upload_that_breaks_is_sent_again(
    hub: LocalHub, api: HfApi, make: Make, kind: str, how: dict[str, int]
) -> None:
    """The client sends a file again after 503 and after a lost connection, from its beginning."""
    hub.user("hf_alice", name="alice")
    api.create_repo("alice/m", token="hf_alice")
    hub.fault("PUT /lfs/", kind, **how)
    _, large = shards(make)
    api.create_commit("alice/m", [large], commit_message="Large", token="hf_alice")
    first, second = hub.requests("PUT /lfs/")
    assert first.received < second.received == large.upload_info.size
    assert not [*hub.storage.glob("*.part")]


def test_a_commit_whose_answer_is_lost_has_happened(hub: LocalHub, api: HfApi) -> None:
    """The connection breaks after the commit was made, so that the client cannot know."""
    hub.user("hf_alice", name="alice")
    api.create_repo("alice/m", token="hf_alice")
    hub.fault("POST .*/commit/", "lost")
    with pytest.raises(httpx.TransportError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/m", token="hf_alice")
    assert "x" in hub.files("alice/m")


# Faults while downloading


def test_a_wrong_checksum_is_told(hub: LocalHub, api: HfApi, make: Make) -> None:
    """The headers of a file, and a listing, may name other content than is sent."""
    hub.add("org/m", make("m"))
    hub.fault("HEAD .*resolve", "wrong_etag")
    hub.fault("GET /api/models/", "wrong_etag")
    path = Path(hf_hub_download("org/m", WEIGHTS))
    assert path.resolve().name == "0" * 64
    files = {s.rfilename: s.lfs for s in api.model_info("org/m", files_metadata=True).siblings}
    assert files[WEIGHTS]["sha256"] == "0" * 64
    assert path.read_bytes() == hub.files("org/m")[WEIGHTS].read_bytes()


def test_a_commit_may_be_missing(hub: LocalHub, make: Make) -> None:
    """A file without the header that names its commit is refused by the client."""
    hub.add("org/m", make("m"))
    hub.fault("HEAD .*resolve", "no_commit", times=9)
    with pytest.raises(LocalEntryNotFoundError, match="missing the 'X-Repo-Commit' header"):
        hf_hub_download("org/m", WEIGHTS)


def test_half_a_file_is_noticed(hub: LocalHub, make: Make) -> None:
    """A Content-Length that is too small for the file makes the client's check fail."""
    hub.add("org/m", make("m", size=1000))
    hub.fault("GET /cdn/", "short")
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download("org/m", WEIGHTS)


def test_a_link_may_be_too_old(hub: LocalHub, make: Make) -> None:
    """The CDN refuses what was signed too long ago; a new attempt gets a new link."""
    hub.add("org/m", make("m"))
    hub.fault("GET /cdn/", "403")
    with pytest.raises(HfHubHTTPError) as error:
        hf_hub_download("org/m", WEIGHTS)
    assert status(error) == 403
    assert hf_hub_download("org/m", WEIGHTS)


def test_a_limit_says_when_to_come_back(hub: LocalHub, api: HfApi, make: Make) -> None:
    """429 has the headers by which the client tells, and keeps, the time to wait."""
    hub.add("org/m", make("m"))
    hub.fault("GET /api/models/org/m", "429", wait=55)
    with pytest.raises(HfHubHTTPError, match="Retry after 55 seconds") as error:
        api.model_info("org/m")
    assert error.value.response.headers["retry-after"] == "55"
    hub.fault("GET /api/models$", "429", wait=0)
    started = time.monotonic()
    assert [m.id for m in api.list_models()] == ["org/m"]
    assert time.monotonic() - started < 5


def test_an_answer_may_trickle(hub: LocalHub, api: HfApi, make: Make) -> None:
    """Slow answers are whole in the end, be they files or JSON."""
    hub.add("org/m", make("m", size=1000))
    hub.fault("GET ", "slow", times=2, piece=500, delay=0.05)
    started = time.monotonic()
    assert api.model_info("org/m").id == "org/m"
    path = Path(hf_hub_download("org/m", WEIGHTS))
    assert time.monotonic() - started > 0.4
    assert path.read_bytes() == hub.files("org/m")[WEIGHTS].read_bytes()


def test_no_fault_has_another_name(hub: LocalHub) -> None:
    """A misspelt fault would be a test that tests nothing."""
    with pytest.raises(ValueError, match="No fault is called tuncate"):
        hub.fault("GET ", "tuncate")


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-7", 206, 0, 8),
        ("bytes=100-", 206, 100, 4080),
        ("bytes=-80", 206, 4000, 4080),
        ("bytes=4070-9999", 206, 4070, 4080),
        ("bytes=4080-", 416, 0, 0),
        ("lines=1-2", 200, 0, 4080),
    ],
)
def test_ranges(hub: LocalHub, make: Make, asked: str, status: int, start: int, stop: int) -> None:
    """The CDN answers with the part asked for, which it names."""
    folder = make("m")
    (folder / WEIGHTS).write_bytes(bytes(i % 251 for i in range(4080)))
    hub.add("org/m", folder)
    with httpx.Client(follow_redirects=True) as client:
        answer = client.get(hf_hub_url("org/m", WEIGHTS), headers={"Range": asked})
    assert answer.status_code == status
    assert answer.content == (folder / WEIGHTS).read_bytes()[start:stop]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/4080"


def test_a_large_file_passes_in_pieces(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    """Neither serving nor taking 64 MB needs them in memory at once."""
    folder, size = tmp_path / "large", 64 << 20
    folder.mkdir()
    with (folder / WEIGHTS).open("wb") as file:
        file.truncate(size)
    hub.user("hf_alice", name="alice")
    tracemalloc.start()
    hub.add("org/large", folder)
    with http_stream_backoff("GET", hf_hub_url("org/large", WEIGHTS)) as answer:
        assert sum(len(piece) for piece in answer.iter_raw(1 << 20)) == size
    hub.blobs.clear()
    api.create_repo("alice/large", token="hf_alice")
    api.upload_folder(repo_id="alice/large", folder_path=folder, token="hf_alice")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert hub.files("alice/large")[WEIGHTS].stat().st_size == size
    assert peak < 16 << 20
    shutil.rmtree(folder)
