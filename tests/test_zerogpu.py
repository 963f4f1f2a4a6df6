"""The main job over the real `spaces` wrappers; the device is fake, its workers always cold."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from tests.ui.models import TIES
from tests.ui.running import ROOT, environment, running

ZERO = Path(__file__).parent / "zero"
SUM = "What is 38 + 27?"


def requests(log: Path, path: str) -> list[dict[str, Any]]:
    """What the device service was sent, by kind."""
    every = [json.loads(line) for line in log.read_text().splitlines()]
    return [request for request in every if request["path"] == path]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero") / "requests"


@pytest.fixture(scope="module")
def came(log: Path) -> dict[str, Any]:
    """What a process saw that ran jobs through `gpu.run`."""
    settings = environment(log.parent, ZERO_LOG=str(log))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ZERO / "start.py"), str(ZERO / "jobs.py")],
        cwd=ROOT, env=settings, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_main_job_in_cold_workers(came: dict[str, Any]) -> None:
    """Merge, then ask: each call in a worker of its own that finds nothing of the last one's."""
    main = came["main"]
    assert main["kinds"][-1] == "Merged"
    assert main["first"]["assets/demo/a"] == main["first"]["merged"] == "65"
    assert sorted(main["second"]) == ["assets/demo/a", "assets/demo/b", "merged"]
    assert all(main["second"].values())
    assert main["pids"] == 3


def test_no_library_in_the_parent(came: dict[str, Any]) -> None:
    """The process that forks the workers holds no models."""
    assert came["main"]["made"] == 0


def test_killed_worker_is_a_sentence(came: dict[str, Any]) -> None:
    """A worker that dies is reported by a sentence, and the next call is answered."""
    assert came["killed"]["said"].startswith("The GPU did not finish")
    assert "Try again" in came["killed"]["said"]
    assert came["killed"]["after"]["merged"] == "65"


def test_errors_cross_as_they_are(came: dict[str, Any]) -> None:
    """What the user can mend comes out of the worker as its own sentence."""
    assert "config.json" in came["failed"]["said"]


def test_closing_stops_the_worker(came: dict[str, Any]) -> None:
    """Closing the generator comes back at once although a thousand tokens were asked for."""
    assert came["closed"]["seconds"] < 5


def test_little_time_is_asked_for(came: dict[str, Any], log: Path) -> None:
    """The demo's merges and short answers ask for seconds, long ones never for over two minutes."""
    assert came
    asked = [int(request["durationSeconds"]) for request in requests(log, "/schedule")]
    assert len(asked) == 7
    assert max(asked[:3]) <= 15
    assert max(asked) <= 180  # 120 seconds by the factor that `spaces` multiplies with


def test_app_on_zerogpu(tmp_path: Path) -> None:
    """The app's endpoints do the main job there, each call in another process, for its own user."""
    log = tmp_path / "requests"
    told = base64.urlsafe_b64encode(json.dumps({"user": "someone"}).encode()).decode().rstrip("=")
    token = f"e30.{told}.signed"
    start = (str(ZERO / "start.py"), "app.py")
    with running(tmp_path, start, ZERO_LOG=str(log), SPACE_ID="org/space") as app:
        client = Client(app.url, verbose=False, headers={"x-ip-token": token})
        made = client.predict(TIES, api_name="/merge")["merge"]
        said = client.predict(made, SUM, 16, api_name="/chat")
        again = client.predict(made, "What is 21 + 34?", 16, api_name="/chat")
        client.close()
    assert said["assets/demo/a"] == said["merged"] == "65"
    assert again["assets/demo/a"] == again["merged"] == "55"
    workers = [request["pid"] for request in requests(log, "/allow")]
    assert len(set(workers)) == len(workers) == 3
    assert str(app.process.pid) not in workers
    scheduled = requests(log, "/schedule")
    assert {request.get("token") for request in scheduled} == {token}
    assert max(int(request["durationSeconds"]) for request in scheduled) <= 15


def test_same_code_without_zerogpu() -> None:
    """Elsewhere the decorator is none: this process runs the job itself."""
    from merging import gpu

    assert not os.environ.get("SPACES_ZERO_GPU")
    assert gpu._on_device.__module__ == "merging.gpu"
    assert not hasattr(gpu._on_device, "__wrapped__")
