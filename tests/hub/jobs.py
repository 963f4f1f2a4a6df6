"""The jobs of the test Hub: each really runs its command here, in an empty folder of its own.

    hub.jobs.where = tmp_path                      # nothing runs before this is said
    hub.jobs.pip = "exit 1"                        # what `pip` does there, as a shell script

A job has `python`, `hf` and whatever else the tests' own environment has, nothing of this process's
environment, and no path to the sources: what its command needs, it must fetch. It knows no images,
limits of time or prices; a job runs as soon as it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .access import hub_of, refuse, signed_in
from .users import User

OVER = ("COMPLETED", "CANCELED", "ERROR")
HARDWARE = [
    {
        "name": name, "prettyName": name.title(), "cpu": cpu, "ram": ram, "accelerator": gpu,
        "ephemeralStorage": disk, "unitCostMicroUSD": 167, "unitCostUSD": 0.000167,
        "unitLabel": "minute",
    }
    for name, cpu, ram, disk, gpu in (
        ("cpu-basic", "2 vCPU", "16 GB", "50 GB", None),
        ("cpu-tiny", "1 vCPU", "1 GB", "1 GB", None),
        ("t4-small", "4 vCPU", "15 GB", "50 GB", {
            "type": "gpu", "model": "T4", "quantity": "1", "vram": "16 GB",
            "manufacturer": "Nvidia",
        }),
    )
]  # fmt: skip


@dataclass
class Ran:
    """A job: what was asked for, its log and stage; `secrets` are told to nobody but the job."""

    id: str
    owner: User
    asked: dict[str, Any]
    secrets: dict[str, str]
    stage: str = "SCHEDULING"
    message: str | None = None
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def told(self) -> dict[str, Any]:
        """What the Hub says of it."""
        return {
            "id": self.id,
            "createdAt": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}",
            "dockerImage": self.asked["dockerImage"],
            "command": self.asked["command"],
            "arguments": self.asked["arguments"],
            "environment": self.asked["environment"],
            "secrets": dict.fromkeys(self.secrets),
            "flavor": self.asked["flavor"],
            "labels": self.asked.get("labels"),
            "status": {"stage": self.stage, "message": self.message},
            "owner": {"id": self.owner.name, "name": self.owner.name, "type": "user"},
        }

    def run(self, where: Path, settings: dict[str, str], pip: str) -> None:
        """Start its command, with `pip` standing in for the one that needs a network."""
        tools = where / "tools"
        tools.mkdir(parents=True)
        (tools / "pip").write_text(f'#!/bin/sh\nset -e\necho "pip $@"\n{pip}\n')
        (tools / "pip").chmod(0o755)
        path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"
        own = {"PATH": path, "HOME": str(where), "TMPDIR": str(where), "OMP_NUM_THREADS": "1"}
        env = settings | own | self.asked["environment"] | self.secrets
        self.process = subprocess.Popen(
            self.asked["command"], cwd=where, env=env,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.stage = "RUNNING"
        threading.Thread(target=self._wait, args=(self.process,)).start()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        with process.stdout as out:
            self.lines.extend(line.decode().rstrip("\n") for line in out)
        code = process.wait()
        if self.stage == "RUNNING":
            self.stage = "ERROR" if code else "COMPLETED"
            self.message = f"Job failed with exit code: {code}" if code else None

    def end(self, stage: str) -> None:
        if self.stage not in OVER:
            self.stage = stage
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Jobs:
    """All jobs by their ids, and how the next ones are run."""

    ran: dict[str, Ran] = field(default_factory=dict)
    where: Path | None = None
    pip: str = 'test -n "$1"'

    def close(self) -> None:
        for job in self.ran.values():
            job.end("DELETED")


async def hardware(_: Request) -> Response:
    return JSONResponse(HARDWARE)


async def create(request: Request) -> Response:
    hub, user, asked = hub_of(request), signed_in(request), await request.json()
    if request.path_params["owner"] != user.name or not user.writes:
        raise refuse(403, "You don't have the rights to run jobs here.")
    if asked["flavor"] not in [one["name"] for one in HARDWARE]:
        raise refuse(400, f"Invalid flavor: {asked['flavor']}")
    if hub.jobs.where is None:
        raise refuse(503, "No place to run jobs: set hub.jobs.where.")
    job = Ran(f"{len(hub.jobs.ran):024x}", user, asked, asked.pop("secrets", {}))
    hub.jobs.ran[job.id] = job
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    job.run(hub.jobs.where / job.id, settings, hub.jobs.pip)
    return JSONResponse(job.told())


async def listing(request: Request) -> Response:
    """The user's jobs that have all the labels asked for."""
    labels = dict(asked.split("=", 1) for asked in request.query_params.getlist("label"))
    found = [
        job.told() for job in hub_of(request).jobs.ran.values()
        if job.owner is signed_in(request)
        and labels.items() <= job.asked.get("labels", {}).items()
    ]  # fmt: skip
    return JSONResponse(found)


def job_of(request: Request) -> Ran:
    user, job = signed_in(request), hub_of(request).jobs.ran.get(request.path_params["id"])
    if job is None or job.owner.name != user.name or request.path_params["owner"] != user.name:
        raise refuse(404, "Job not found")
    return job


async def inspect(request: Request) -> Response:
    return JSONResponse(job_of(request).told())


async def cancel(request: Request) -> Response:
    job = job_of(request)
    job.end("CANCELED")
    return JSONResponse(job.told())


async def logs(request: Request) -> Response:
    return StreamingResponse(events(job_of(request)), media_type="text/event-stream")


async def events(job: Ran) -> AsyncIterator[str]:
    """Every line from the first, as it comes, until the job is over."""
    yield event("===== Job started at 2026-01-01 00:00:00 =====")
    told = 0
    while True:
        over = job.stage in OVER
        for line in job.lines[told:]:
            told += 1
            yield event(line)
        if over:
            return
        yield ": keep-alive\n\n"
        await asyncio.sleep(0.05)


def event(line: str) -> str:
    when = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}"
    return f"data: {json.dumps({'data': line, 'timestamp': when})}\n\n"


ROUTES = [
    Route("/api/jobs/hardware", hardware),
    Route("/api/jobs/{owner}", create, methods=["POST"]),
    Route("/api/jobs/{owner}", listing),
    Route("/api/jobs/{owner}/{id}", inspect),
    Route("/api/jobs/{owner}/{id}/logs", logs),
    Route("/api/jobs/{owner}/{id}/cancel", cancel, methods=["POST"]),
]
