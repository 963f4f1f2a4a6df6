"""The fixture that points the real client, here and in child processes, at a LocalHub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http

from . import LocalHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A LocalHub that every call of the client reaches, with an empty cache and no login.

    The client reads its settings when it is imported, so that they are set twice: in its constants
    for this process, in the environment for child processes.
    """
    home = tmp_path / "hf_home"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with LocalHub() as local:
        settings = {"HF_ENDPOINT": local.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        inside = {
            "ENDPOINT": local.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": local.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": frozenset({urlsplit(local.url).hostname}),
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in inside.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", local.url)
        yield local
        huggingface_hub.set_client_factory(_http.default_client_factory)  # closes connections
