"""Jobs that get no GPU, or lose it, in each way that `spaces` knows; `start.py` runs it over the
fake device. Prints the seconds that each was said to ask for, and what was said in the end.
"""

import base64
import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gradio.context import LocalContext
from spaces.config import Config
from spaces.zero import wrappers
from starlette.datastructures import Headers

from merging import gpu
from merging.errors import MergeError
from merging.loading import prepare
from tests.zero.device import NEXT, Answer

SOMEONE = base64.urlsafe_b64encode(json.dumps({"user": "someone"}).encode()).decode().rstrip("=")
PING, FAILED = "event: ping\n\n", "event: failed\n\n"


def quota(left: int = 0, auth: str = "", result: str = "", **wait: int) -> Answer:
    headers = {"x-authenticated": auth, "x-approve-result": result}
    body = json.dumps({"left": left, "wait": timedelta(**wait).total_seconds()})
    return Answer(429, body, headers={name: value for name, value in headers.items() if value})


def queue(events: str, *, whole: bool = True) -> Answer:
    return Answer(200, events, "text/event-stream", whole=whole)


REFUSED: Mapping[str, tuple[Answer, ...]] = {
    "pending": (quota(auth="regular", result="pending-overquota-exceeded"),),
    "illegal": (quota(90, seconds=-1),),
    "runs": (quota(90),),
    "anonymous": (quota(20, hours=5),),
    "free": (quota(-3, "regular", days=1, hours=2, minutes=3),),
    "pro": (quota(4, "pro", minutes=9, seconds=30),),
    "queued": (queue(FAILED),),
    "ended": (queue(PING),),
    "broken": (queue(PING, whole=False), queue(PING, whole=False)),
    "none free": (Answer(503),),
    "expired": (Answer(401),),
    "server": (Answer(500),),
}  # fmt: skip
"""What the service answers to somebody whom it knows."""


def known(token: str | None) -> None:
    """Whether requests come with the visitor's token, as they do from within huggingface.co."""
    headers = Headers({"x-ip-token": f"e30.{token}.signed"} if token else {})
    LocalContext.request.set(SimpleNamespace(headers=headers))  # type: ignore[arg-type]


def said(job: gpu.Job) -> str:
    TOLD.append(gpu.seconds(job))
    try:
        list(gpu.run(job))
    except MergeError as error:
        return str(error)
    return "nothing"


TOLD: list[int] = []


def main() -> dict[str, Any]:
    found: dict[str, str] = {}
    job = gpu.Job()
    known(SOMEONE)
    for name, answers in REFUSED.items():
        NEXT.extend(answers)
        found[name] = said(job)
    known(None)
    for name, answer in (("unknown", quota(20, hours=5)), ("unknown queued", queue(FAILED))):
        NEXT.append(answer)
        found[name] = said(job)
    for kind in (KeyError, type("OutOfMemoryError", (RuntimeError,), {})):
        gpu.work = failing(kind)  # type: ignore[assignment]  # which the next worker has
        found[kind.__name__] = said(job)
    wrappers.GENERATOR_GLOBAL_TIMEOUT = 0  # no worker is as fast
    found["silent"] = said(job)
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "model.safetensors").open("wb") as file:
            file.truncate(45 * 10**9)
        NEXT.append(Answer(503))
        found["large"] = said(gpu.Job((gpu.Place("a", folder, "s"),)))
    Config.zero_device_api_url = "http://127.0.0.1:9"
    found["away"] = said(job)
    return {"said": found, "told": TOLD}


def failing(kind: type[Exception]) -> Any:
    def work(*_: Any) -> Any:
        raise kind("in the worker")
        yield

    return work


if __name__ == "__main__":
    prepare()
    sys.stdout.write("\n" + json.dumps(main()))
