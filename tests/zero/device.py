"""A stand-in for ZeroGPU's device service: grants every request, by a worker that is cold, or by
the last one if it lives, where ZERO_WORKERS says `warm`; now and then where it says `random`. What
is put into NEXT is answered instead, once each.

Import it before `spaces`, whose own wrappers then run as on a Space. It has no GPU, and puts
nothing in the place of the wrappers but their layer over CUDA. Requests are appended to the file
that ZERO_LOG names, one JSON a line.
"""

import json
import os
import random
import sys
import tempfile
import threading
import types
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

GRANT = {"nvidiaIndex": 0, "nvidiaUUID": "GPU-none", "allowToken": "granted"}
WARM = {"cold": 0.0, "random": 0.5, "warm": 1.0}
"""How often the last worker may be used again."""
LUCK = random.Random(0)
CARD = "Model: NVIDIA RTX PRO 6000 Blackwell Server Edition"
"""As its driver says it on a Space, half of which is lent."""
LAYER = "spaces.zero.torch"
"""What emulates CUDA in the app's own process, and needs a build of torch that has CUDA."""


@dataclass(frozen=True)
class Answer:
    """To /schedule; of one that is not `whole` the end is missing when the connection breaks."""

    status: int = 200
    body: str = "{}"
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    whole: bool = True


NEXT: deque[Answer] = deque()


class Service(BaseHTTPRequestHandler):
    """Answers /schedule with a grant, or what is next, and all else with an empty object."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        _note({"path": url.path, **dict(parse_qsl(url.query))})
        asked = url.path == "/schedule"
        answer = NEXT.popleft() if asked and NEXT else Answer(body=_grant() if asked else "{}")
        body = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("content-type", answer.kind)
        self.send_header("content-length", str(len(body) + (not answer.whole)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection |= not answer.whole

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing on the terminal."""


def _grant() -> str:
    warm = WARM[os.environ.get("ZERO_WORKERS", "cold")]
    return json.dumps(GRANT | {"idle": LUCK.random() < warm})


def _note(request: dict[str, Any]) -> None:
    if path := os.environ.get("ZERO_LOG"):
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(json.dumps(request) + "\n")


def requests(log: Path, *paths: str) -> list[dict[str, Any]]:
    """What was sent, as it was written to a log."""
    every = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [request for request in every if request["path"] in paths]


def _layer() -> types.ModuleType:
    """A layer over CUDA that does nothing, by the names that `spaces` calls."""
    layer = types.ModuleType(LAYER)
    for name in ("enter_mode", "patch", "unpatch", "init", "move"):
        setattr(layer, name, lambda *_, **__: None)
    for name in ("pack", "size"):
        setattr(layer, name, lambda *_, **__: 0)
    layer.is_in_bad_fork = lambda: False  # type: ignore[attr-defined]
    return layer


def start() -> None:
    """Serve, and tell `spaces` by its environment that this is a ZeroGPU Space."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    group = Path(tempfile.mkdtemp()) / "cgroup"
    group.write_text("0::/zero\n")
    os.environ["SPACES_ZERO_GPU"] = "true"
    os.environ["SPACES_ZERO_DEVICE_API_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["ZEROGPU_PROC_SELF_CGROUP_PATH"] = str(group)
    sys.modules[LAYER] = _layer()
    from spaces.zero import config

    config._read_gpu_information = lambda: CARD
