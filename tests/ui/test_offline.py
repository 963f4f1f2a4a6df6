"""The app on a machine with no network: it does the whole main job and contacts nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client.exceptions import AppError

from tests.ui.models import TIES
from tests.ui.running import connected, environment, running

CUT_OFF = Path(__file__).parent / "offline"


def _cut_off(log: Path) -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(CUT_OFF), os.environ.get("PYTHONPATH")) if p)
    return {"PYTHONPATH": path, "OFFLINE_LOG": str(log)}


def test_the_cut_is_real(tmp_path: Path) -> None:
    """Whoever asks for a name or an address is written down, as the next test relies on."""
    log = tmp_path / "wanted"
    tries = """
import socket
for reach in (lambda: socket.getaddrinfo("example.org", 80),
              lambda: socket.create_connection(("192.0.2.1", 80), 1)):
    try: reach()
    except OSError: pass
"""
    settings = environment(tmp_path, **_cut_off(log))
    subprocess.run([sys.executable, "-c", tries], env=settings, check=True, timeout=60)
    assert {"example.org", "192.0.2.1"} <= set(log.read_text().split())


def test_main_job_without_network(tmp_path: Path) -> None:
    """Merge, ask all, move a value, merge again, fail on a Hub model: only the last reaches out."""
    log = tmp_path / "wanted"
    with running(tmp_path, **_cut_off(log)) as app, connected(app) as client:
        assert client.predict(TIES, api_name="/check")["ok"] is True
        made = client.predict(TIES, api_name="/merge")["merge"]
        said = client.predict(made, "What is 38 + 27?", api_name="/chat")
        assert said["assets/demo/a"] == said["merged"] == "65"
        none = client.predict(TIES.replace("lambda: 1.0", "lambda: 0.0"), api_name="/merge")
        assert client.predict(none["merge"], "What is 38 + 27?", api_name="/chat")["merged"] != "65"
        assert not log.exists() or log.read_text() == ""
        with pytest.raises(AppError, match="org/model"):
            client.predict(TIES.replace("assets/demo/a", "org/model"), api_name="/merge")
        assert client.predict(made, "What is 21 + 34?", api_name="/chat")["merged"] == "55"
    assert set(log.read_text().split()) == {"huggingface.co"}
