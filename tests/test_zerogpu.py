"""The main job over the real `spaces` wrappers; the device is fake, and its workers are cold where
nothing else is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ui.running import ROOT, environment
from tests.zero.device import requests

ZERO = Path(__file__).parent / "zero"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero") / "requests"


def over_zero(program: str, home: Path, **changes: str) -> dict[str, Any]:
    """What a program prints that ran over the fake device."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ZERO / "start.py"), str(ZERO / program)],
        cwd=ROOT, env=environment(home, **changes), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def came(log: Path) -> dict[str, Any]:
    """What a process saw that ran jobs through `gpu.run`."""
    return over_zero("jobs.py", log.parent, ZERO_LOG=str(log))


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
    assert "Press again" in came["killed"]["said"]
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
    assert max(asked) <= 120


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was said of jobs that got no GPU, and told and asked of their seconds."""
    home = tmp_path_factory.mktemp("refused")
    found = over_zero("refused.py", home, ZERO_LOG=str(home / "requests"))
    asked = requests(home / "requests", "/schedule")
    return found | {"asked": [int(request["durationSeconds"]) for request in asked]}


def test_the_seconds_told_are_those_that_the_service_is_asked_for(refused: dict[str, Any]) -> None:
    """By the factor of the card, and at most what a visitor without an account has in a day."""
    asked, told = refused["asked"], refused["told"]
    assert asked[0] == 8  # half as much again as five
    again = asked.pop([*refused["said"]].index("broken"))  # it was tried twice
    assert again == 8
    assert told[:-1] == asked  # nobody heard of the last one
    assert max(asked) == told[-2] == 120


LOGIN = "log in at huggingface.co and open this page there"
SMALLER = "choose smaller models, shorter answers or fewer questions"
SAID = {
    "pending": "still running hold your GPU time: wait for them, then press again",
    "illegal": f"8 s of GPU time at once, which is more than you may have: {SMALLER}; or {LOGIN}",
    "runs": "no more runs for now: wait a while, then press again",
    "anonymous": f"8 s of GPU time, and 20 s of yours are left: {LOGIN}; or {SMALLER}; or wait 5 h",
    "free": "8 s of GPU time, and 0 s of yours are left: wait 26 h 3 min",
    "pro": f"8 s of GPU time, and 4 s of yours are left: {SMALLER}; or wait 10 min",
    "queued": "No GPU was free: press again in a minute",
    "ended": "connection broke while this waited for a GPU: press again",
    "broken": "connection broke while this waited for a GPU: press again",
    "none free": "No GPU was free: press again in a minute",
    "expired": "open for too long for ZeroGPU to know you: reload it, then press again",
    "server": "failed to find a GPU (500): press again in a minute",
    "unknown": f"does not know who you are, and what such visitors share is used up: {LOGIN}",
    "unknown queued": "No GPU was free: press again in a minute",
    "KeyError": "the app failed there (KeyError), and its log says why. Press again, or choose",
    "OutOfMemoryError": f"The GPU's memory ran out: {SMALLER}",
    "silent": "nothing came of it for 20 minutes. Press again, or choose smaller models",
    "large": "No GPU was free: press again in a minute",
    "away": "could not be reached: press again in a minute",
}
"""What happened and what to do, of all that `spaces` raises."""


def test_every_refusal_is_a_sentence(refused: dict[str, Any]) -> None:
    assert refused["said"].keys() == SAID.keys()
    for name, told in refused["said"].items():
        assert SAID[name] in told and told.endswith(".")
        assert not any(part in told for part in ("Try again", "<a", "..", ". ."))


@pytest.mark.parametrize("workers", ["cold", "random", "warm"])
def test_whatever_workers_do_the_job_gets_done(tmp_path: Path, workers: str) -> None:
    """Cold or warm, and dead at any moment: a sentence says to try again, which helps. A worker has
    the merges that it made itself, and makes all others anew."""
    found = over_zero("rounds.py", tmp_path, ZERO_WORKERS=workers)
    assert len(found["deaths"]) == 6
    assert all("Press again" in said for said in found["deaths"])
    made: set[tuple[int, int]] = set()
    for run in found["runs"]:
        assert run["said"]["assets/demo/a"] == run["said"]["merged"] == "65"
        key = (run["worker"], run["merge"])
        assert (run["seconds"] == 0) == (key in made)
        made.add(key)
    seen = {run["worker"] for run in found["runs"]}
    assert len(found["runs"]) == 12
    if workers == "random":
        assert 6 < len(seen) < 12
    else:
        assert len(seen) == {"cold": 12, "warm": 6}[workers]


def test_same_code_without_zerogpu() -> None:
    """Elsewhere the decorator is none: this process runs the job itself."""
    from merging import gpu

    assert not os.environ.get("SPACES_ZERO_GPU")
    assert gpu._on_device.__module__ == "merging.gpu"
    assert not hasattr(gpu._on_device, "__wrapped__")
