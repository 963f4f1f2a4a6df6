"""Merges as jobs: what is sent, what the job does with it, how it is followed, what is left.

The test Hub runs each job's own command in an empty folder, against itself; its `pip` installs
nothing, and ends the job early where the merge is not what is tested.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merging import Recipe, elsewhere, plan
from merging.__main__ import main
from merging.hub import jobs as endpoints
from tests.conftest import loaded, written
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "assets" / "recipes" / "01-demo-ties.yaml"
POST, LOGS, STATE = r"POST /api/jobs/alice$", r"GET /api/jobs/.*/logs", r"GET /api/jobs/alice/\w+$"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),  # the client's own
]
Pico = dict[str, Path]


@pytest.fixture
def alice(hub: LocalHub, pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The Hub with three models, one of them gated, and the machine logged in as alice."""
    for name in ("base", "a", "c"):
        hub.add(f"org/{name}", pico[name], gated=name == "a")
    hub.user("hf_alice", reads=["org/a"], name="alice")
    hub.jobs.where = tmp_path / "jobs"
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setenv("MERGING_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(elsewhere, "POLL", 0.2)
    monkeypatch.setattr(endpoints, "AGAIN", 0.1)
    monkeypatch.setattr("merging.hub.client.PAUSE", 0.01)
    return hub


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my recipe.yaml"
    path.write_text(written("ties", ["org/a", "org/c"], base_model="org/base"))
    return path


def run(recipe: Path, *more: str, on: str = "cpu-basic", to: str = "merged") -> int:
    return main(["run", str(recipe), "--job", on, "--push-to", to, *more])


def sent(hub: LocalHub, id: str = "alice/merged") -> bytes:
    """The archive, from the history of the repo: its branch is gone."""
    tree = next(tree for tree in hub.repos[id].commits.values() if elsewhere.ARCHIVE in tree)
    return tree[elsewhere.ARCHIVE].file.read_bytes()


def left(hub: LocalHub, id: str = "alice/merged") -> list[str]:
    """The branches of a repo besides main."""
    return [name for name in hub.repos[id].refs if name != "main"]


def tracked(*paths: str) -> list[str]:
    """What git tracks; skips the test where it cannot tell."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    done = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, check=False)
    return done.stdout.decode().split() or pytest.skip("this is no git checkout")


# A job from start to end


def test_a_job_merges_and_pushes(
    alice: LocalHub, recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    """The archive is all that the job needs, and the result is a local run's to the bit."""
    assert run(recipe, "--max-shard-size", "40KB", "--seed", "7") == 0
    out, err = capsys.readouterr()
    (job,) = alice.jobs.ran.values()
    assert err == "" and out.splitlines()[-1] == f"{alice.url}/alice/merged"
    assert f"or on {alice.url}/jobs/alice/{job.id}\n" in out
    assert "A job on cpu-basic (2 vCPU, 16 GB, $0.01 an hour), 31 minutes at most." in out
    assert job.asked["timeoutSeconds"] == 31 * 60
    assert set(job.lines) <= set(out.splitlines()) and job.stage == "COMPLETED"
    assert "pip install -r requirements.txt" in job.lines
    assert left(alice) == [] and alice.repos["alice/merged"].private
    assert len(alice.files("alice/merged")) > 6
    assert main(["run", str(recipe), str(tmp_path / "local"), "--seed", "7"]) == 0
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, path in alice.files("alice/merged").items():
        (folder / name).symlink_to(path)
    theirs, ours = loaded(folder), loaded(tmp_path / "local")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in ours)
    assert len(list(folder.glob("*.safetensors"))) > 1
    pushed = yaml.safe_load((folder / "mergekit_config.yml").read_text())
    assert pushed["random_seed"] == 7 and pushed["models"][0]["model"].startswith("org/a@")


def test_the_token_is_a_secret(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """It is sent as one, and stands in no environment, command, label, log, output or archive."""
    alice.jobs.pip = 'test "$HF_TOKEN" = hf_alice && env && exit 1'
    run(recipe)
    (job,) = alice.jobs.ran.values()
    assert job.secrets == {"HF_TOKEN": "hf_alice"}
    assert "HF_TOKEN=hf_alice" in job.lines  # as this job's own `pip` told it to
    alice.jobs.pip, _ = "exit 1", capsys.readouterr()
    run(recipe)
    job = list(alice.jobs.ran.values())[-1]
    told = [*capsys.readouterr(), *job.lines, repr(job.asked), repr(job.told())]
    packed = zipfile.ZipFile(io.BytesIO(sent(alice)))
    told += [packed.read(name).decode() for name in packed.namelist()]
    assert not [text for text in told if "hf_alice" in text]
    assert "HF_TOKEN" not in job.asked["environment"]


@pytest.mark.parametrize(
    ("on", "index"), [("cpu-basic", "https://download.pytorch.org/whl/cpu"), ("t4-small", None)]
)
def test_cuda_only_where_there_is_a_gpu(
    on: str, index: str | None, alice: LocalHub, recipe: Path
) -> None:
    alice.jobs.pip = "exit 1"
    run(recipe, on=on)
    (job,) = alice.jobs.ran.values()
    assert job.asked["environment"].get("PIP_EXTRA_INDEX_URL") == index
    assert job.asked["dockerImage"] == "python:3.12" and job.asked["flavor"] == on


# What is sent


def test_the_archive_is_what_git_tracks(alice: LocalHub, recipe: Path) -> None:
    """The package, its requirements and the pinned recipe, and nothing else."""
    alice.jobs.pip = "exit 1"
    run(recipe)
    packed = zipfile.ZipFile(io.BytesIO(sent(alice)))
    names = sorted([*tracked("merging", "requirements.txt"), "recipe.yaml"])
    assert packed.namelist() == names
    assert packed.read("merging/merge.py") == (ROOT / "merging" / "merge.py").read_bytes()
    commit = alice.repos["org/a"].refs["main"]
    assert f"org/a@{commit}" in packed.read("recipe.yaml").decode()
    assert left(alice) == [] and elsewhere.ARCHIVE not in alice.files("alice/merged")


def test_the_same_bytes_each_time(alice: LocalHub, recipe: Path) -> None:  # noqa: ARG001
    """Whenever it is made: no times, and names in order."""
    decided = plan(Recipe.from_yaml(recipe.read_text()), find=opened)
    first, _ = elsewhere.archive(decided)
    time.sleep(2.1)  # as long as a date in a zip is
    assert elsewhere.archive(decided)[0] == first
    entries = zipfile.ZipFile(io.BytesIO(first)).infolist()
    assert {entry.date_time[:3] for entry in entries} == {(1980, 1, 1)}


def opened(name: str) -> Any:
    from merging.opening import open_source

    return open_source(name, token="hf_alice")


def test_the_embedded_models_go_along(alice: LocalHub, tmp_path: Path) -> None:
    """They are on no Hub: the archive has them, for a merge of the same identity."""
    assert run(DEMO, to="demo") == 0
    names = zipfile.ZipFile(io.BytesIO(sent(alice, "alice/demo"))).namelist()
    models = [f"assets/demo/{name}" for name in ("a", "b", "base")]
    assert sorted(n for n in names if n.startswith("assets")) == tracked(*models)
    assert main(["run", str(DEMO), str(tmp_path / "local")]) == 0
    card = (tmp_path / "local" / "README.md").read_text()
    assert alice.files("alice/demo")["README.md"].read_text() == card


def test_files_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git does not track stays here, and is named; without git, the package's code goes."""
    for name in ("merging/__main__.py", "merging/mine.py", "merging/notes.txt", "secret.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "requirements.txt").write_text("")
    monkeypatch.setattr(elsewhere, "APP", tmp_path)
    wanted = ["merging", "requirements.txt"]
    found, strange = elsewhere._files(wanted)
    assert sorted(found) == ["merging/__main__.py", "merging/mine.py", "requirements.txt"]
    assert strange == []
    if not shutil.which("git"):
        return
    for words in (["init", "-q"], ["add", "merging/__main__.py", "requirements.txt", "secret.py"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    found, strange = elsewhere._files(wanted)
    assert sorted(found) == ["merging/__main__.py", "requirements.txt"]
    assert strange == ["merging/mine.py"]


# What is refused, before anything is sent


def test_local_parents_are_refused(
    alice: LocalHub, pico: Pico, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(written("linear", ["org/a", pico["c"]]))
    assert run(path) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{pico['c']} is a folder on this machine" in err
    assert not alice.requests("POST|PUT|jobs") and "alice/merged" not in alice.repos


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--job", "cpu-basic"], "--job goes with --push-to"),
        (["out", "--job", "cpu-basic"], "--job goes with --push-to"),
        (["out", "--job", "cpu-basic", "--push-to", "x"], "OUT_DIR does not go with --job"),
        (["--public", "--job", "cpu-basic", "--push-to", "x"], "--public does not go with"),
        (["--replace", "--job", "cpu-basic", "--push-to", "x"], "--replace does not go with"),
        (["--sanity", "--job", "cpu-basic", "--push-to", "x"], "--sanity does not go with"),
    ],
)
def test_flags(more: list[str], says: str, alice: LocalHub, recipe: Path, capsys: Any) -> None:
    assert main(["run", str(recipe), *more]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err and not alice.log


def test_hardware_that_does_not_exist(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """The Hub's own list is given, or its own word where it gives none."""
    assert run(recipe, on="gpu-huge") == 2
    err = capsys.readouterr().err
    assert "no hardware `gpu-huge`: choose one of cpu-basic, cpu-tiny, t4-small." in err
    assert not alice.requests("POST|PUT")
    alice.fault("GET /api/jobs/hardware", "404")
    assert run(recipe, on="gpu-huge") == 2
    err = capsys.readouterr().err
    assert "does not take the job on `gpu-huge` (Invalid flavor: gpu-huge)" in err
    assert left(alice) == [] and not alice.jobs.ran


def test_a_disk_that_is_small(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """A note, as nobody knows exactly."""
    alice.jobs.pip = "exit 1"
    run(recipe, on="cpu-tiny")
    assert "needs up to 17 GB of disk, and cpu-tiny has 1 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("402", ("no credit for Jobs", "huggingface.co/settings/billing")),
        ("403", ("may not run Jobs", "huggingface.co/settings/tokens")),
        ("401", ("refuses this login", "log in again")),
        ("503", ("The Hub fails on Jobs", "try again")),
    ],
)
def test_what_the_hub_refuses(
    status: str, says: tuple[str, ...], alice: LocalHub, recipe: Path, capsys: Any
) -> None:
    """One sentence with the way out, and the archive is gone."""
    alice.fault(POST, status)
    assert run(recipe) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in says), err
    assert sent(alice) and left(alice) == [] and not alice.jobs.ran


def test_nobody_is_logged_in(
    alice: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    path = tmp_path / "recipe.yaml"
    path.write_text(written("linear", ["org/base", "org/c"]))
    assert run(path) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "hf auth login" in err and not alice.requests("POST|PUT")


# How it ends


def test_a_job_that_fails(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """Stage, message and address in one line; the log is told, and the archive gone."""
    alice.jobs.pip = "echo out of luck; exit 3"
    assert run(recipe) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "out of luck" in out.splitlines()
    assert "ended with ERROR (Job failed with exit code: 3)" in err
    assert f"{alice.url}/jobs/alice/" in err and left(alice) == []


def test_a_refusal_in_the_job(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """What our own command says there is read here: a parent may no longer be read."""
    alice.jobs.pip = "sleep 1"
    code = during(alice, lambda: run(recipe), lambda _: alice.revoke("hf_alice", "org/a"))
    out, err = capsys.readouterr()
    assert code == 2 and "org/a is gated" in out and "exit code: 2" in err


def test_a_job_that_pushed_nothing(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """COMPLETED is not enough: the repo must hold the merge."""
    python = '"$(dirname "$0")/python"'
    alice.jobs.pip = f"printf '#!/bin/sh\\n' > {python}; chmod +x {python}"
    assert run(recipe) == 2
    err = capsys.readouterr().err
    assert "alice/merged lacks the merge" in err and err.count("\n") == 1
    assert [job.stage for job in alice.jobs.ran.values()] == ["COMPLETED"] and left(alice) == []


def test_the_same_merge_again(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """No job is paid for what is there; what a killed run left goes."""
    assert main(["run", str(recipe), "--push-to", "merged"]) == 0
    decided = plan(Recipe.from_yaml(recipe.read_text()), find=opened)
    refs = alice.repos["alice/merged"].refs
    refs[f"merge-job-{decided.identity}"] = refs["main"]
    assert run(recipe) == 0
    assert "alice/merged holds this merge already." in capsys.readouterr().out
    assert not alice.jobs.ran and left(alice) == []


def test_cancelled_by_somebody_else(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    alice.jobs.pip = "kill -STOP $$"
    code = during(alice, lambda: run(recipe), lambda job: job.end("CANCELED"))
    assert code == 2 and "ended with CANCELED" in capsys.readouterr().err and left(alice) == []


def during(hub: LocalHub, call: Callable[[], int], do: Callable[[Any], None]) -> int:
    """What a call returns, while something is done to its job as soon as that runs."""
    import threading

    def later() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for job in list(hub.jobs.ran.values()):
                if job.lines:
                    do(job)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=later)
    thread.start()
    code = call()
    thread.join()
    return code


@pytest.mark.parametrize("piped", [False, True])
def test_ctrl_c_cancels(piped: bool, alice: LocalHub, recipe: Path, tmp_path: Path) -> None:
    """The job is cancelled, the archive removed, both said; also where a pipe's reader is gone."""
    alice.jobs.pip = "sleep 60"
    command = [sys.executable, "-m", "merging", "run", recipe, "--job", "cpu-basic"]
    process = subprocess.Popen(
        [*command, "--push-to", "merged"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not any(job.lines for job in alice.jobs.ran.values()) and time.monotonic() < end:
        time.sleep(0.02)
    if piped:
        process.stdout = process.stdout and process.stdout.close()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Stopped: the job is cancelled" in err
    assert piped or (process.returncode == 2 and err.count("\n") == 1), err
    assert piped or "Cancelling the job." in out
    assert [job.stage for job in alice.jobs.ran.values()] == ["CANCELED"] and left(alice) == []
    assert "hf_alice" not in f"{out}{err}"


def test_stopped_while_it_is_started(
    alice: LocalHub, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Ctrl-C before the Hub's answer has come: the job is found, and cancelled."""
    alice.jobs.pip = "sleep 60"
    start = endpoints.start

    def interrupted(*given: Any, **more: Any) -> Any:
        start(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(endpoints, "start", interrupted)
    assert run(recipe) == 2
    assert "Stopped: the job is cancelled" in capsys.readouterr().err
    assert [job.stage for job in alice.jobs.ran.values()] == ["CANCELED"] and left(alice) == []


def test_a_cancel_that_fails(
    alice: LocalHub, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Then the user is told that the job may go on, and where to cancel it."""
    alice.jobs.pip = "sleep 60"
    alice.fault("POST .*/cancel", "503", times=99)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(elsewhere, "_tell", interrupted)
    assert run(recipe) == 2
    err = capsys.readouterr().err
    assert f"may go on, and cost: cancel it on {alice.url}/jobs/alice/" in err
    assert err.count("\n") == 1 and left(alice) == []


def test_a_cancel_that_comes_too_late(
    alice: LocalHub, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A job that has ended is not said to be cancelled, nor to go on."""
    alice.jobs.pip = "exit 1"
    alice.fault("POST .*/cancel", "409")

    def interrupted(*_: Any) -> None:
        time.sleep(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(elsewhere, "_tell", interrupted)
    assert run(recipe) == 2
    err = capsys.readouterr().err
    assert "Stopped, but the job had ended before (ERROR)" in err and left(alice) == []


def test_an_archive_that_stays(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """If it cannot be removed, that is said, beside what became of the job."""
    alice.jobs.pip = "exit 1"
    alice.fault("DELETE .*/branch/", "403")
    assert run(recipe) == 2
    out, err = capsys.readouterr()
    assert f"still in the branch {left(alice)[0]} of alice/merged" in out
    assert "ended with ERROR" in err


# What breaks on the way


def test_lost_connections_are_made_again(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """The log comes whole, each line once and in order; nothing is cancelled."""
    alice.jobs.pip = "for n in 1 2 3 4 5 6 7 8; do echo line $n; sleep 0.2; done; exit 1"
    alice.fault(LOGS, "503")
    alice.fault(LOGS, "reset", after=400)
    alice.fault(STATE, "reset", times=3)
    alice.fault(STATE, "503", times=3)
    assert run(recipe) == 2
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("line")] == [f"line {n}" for n in range(1, 9)]
    assert [job.stage for job in alice.jobs.ran.values()] == ["ERROR"]
    assert all(fault.left == 0 for fault in alice.faults) and not alice.requests("cancel")


def test_a_log_that_cannot_be_read(alice: LocalHub, recipe: Path) -> None:
    """The job is followed by its stage alone."""
    alice.fault(LOGS, "404", times=99)
    assert run(recipe) == 0


def test_an_answer_that_is_lost(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """A job that was started is found, and none is started beside it."""
    alice.jobs.pip = "sleep 2; exit 1"
    alice.fault(POST, "lost")
    assert run(recipe) == 2
    assert "ended with ERROR" in capsys.readouterr().err and len(alice.jobs.ran) == 1


def test_a_job_that_may_have_started(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """Where neither the answer nor the list of jobs comes, that is said; then it is followed."""
    alice.jobs.pip = "sleep 10; exit 1"
    alice.fault(POST, "lost")
    alice.fault("DELETE", "403", times=99)
    alice.fault("GET /api/jobs/alice$", "slow", times=1)  # the one before the job is started
    alice.fault("GET /api/jobs/alice$", "401", times=99)
    assert run(recipe) == 2
    out, err = capsys.readouterr()
    assert "It may have started the job: run this again" in err and "still in the branch" in out
    alice.faults.clear()
    assert run(recipe) == 2
    assert "This merge has a job already." in capsys.readouterr().out
    assert len(alice.jobs.ran) == 1 and left(alice) == []


@pytest.mark.parametrize("status", ["503", "401"])
def test_a_hub_that_stays_away(
    status: str, alice: LocalHub, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The job goes on, so its code stays; all of it is said."""
    alice.jobs.pip = "sleep 60"
    monkeypatch.setattr(elsewhere, "LOST", 0.1)
    alice.fault(STATE, status, times=99)
    assert run(recipe) == 2
    err = capsys.readouterr().err
    assert f"The job goes on: follow it on {alice.url}/jobs/alice/" in err
    assert err.count("\n") == 1 and f"the branch {left(alice)[0]} of alice/merged" in err
    assert [job.stage for job in alice.jobs.ran.values()] == ["RUNNING"]


def test_run_again_goes_on(alice: LocalHub, recipe: Path, capsys: Any) -> None:
    """After a connection that was given up, the job is followed again, from the start of its log;
    one that is over is not.
    """
    alice.jobs.pip = "echo begun; sleep 10; exit 1"
    alice.fault(STATE, "401")
    assert run(recipe) == 2 and "The job goes on" in capsys.readouterr().err
    assert run(recipe) == 2
    out, err = capsys.readouterr()
    assert "This merge has a job already." in out and "begun" in out.splitlines()
    assert "ended with ERROR" in err and len(alice.jobs.ran) == 1 and left(alice) == []
    assert run(recipe) == 2 and len(alice.jobs.ran) == 2
