"""Starts the app as a user does, in a process with its own folders; knows nothing of its page."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gradio_client import Client

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Seconds for the app to answer; its imports take ten on a busy machine."""
PRIVATE = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "SPACE_ID", "GRADIO_SERVER_NAME")
"""Variables of whoever runs the tests that must not reach the app."""


@dataclass(frozen=True)
class App:
    """An app that is up."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def processor_seconds(self) -> float:
        """What it has used of the processor so far, all threads together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(home: Path, **changes: str) -> dict[str, str]:
    """This process's environment with its own homes, and the changes."""
    kept = {name: value for name, value in os.environ.items() if name not in PRIVATE}
    homes = {"MERGING_HOME": str(home / "merging"), "HF_HOME": str(home / "hf")}
    return kept | homes | changes


@contextmanager
def running(home: Path, start: Sequence[str] = ("app.py",), **changes: str) -> Iterator[App]:
    """`python app.py` on a free port, until the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    port, log = _free_port(), home / "app.log"
    settings = environment(home, GRADIO_SERVER_PORT=str(port), **changes)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *start], cwd=ROOT, env=settings, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    app = App(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait(app)
        yield app
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):  # a ZeroGPU worker outlives the app that forked it
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def connected(app: App) -> Iterator[Client]:
    """A client of an app's named endpoints."""
    client = Client(app.url, verbose=False)
    try:
        yield client
    finally:
        client.close()


def _wait(app: App) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if app.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(app.url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"The app did not start:\n{app.log.read_text(errors='replace')[-4000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
