"""The running test Hub: a uvicorn server in a thread, its repos, users, faults and log."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn

from .faults import Fault, breaking
from .repos import Stored
from .routes import build


@dataclass
class Seen:
    """One request as it came: "METHOD /path", its Range and token if any, body bytes sent back."""

    line: str
    range: str | None
    token: str | None
    sent: int = 0


class LocalHub:
    """Files behind 127.0.0.1; those in LFS behind localhost, which the client takes for a CDN."""

    def __init__(self) -> None:
        self.repos: dict[str, Stored] = {}
        self.users: dict[str, tuple[str, ...]] = {}
        self.faults: list[Fault] = []
        self.log: list[Seen] = []
        self.app = build(self)

    def add(
        self,
        id: str,
        folder: Path,
        *,
        branch: str = "main",
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Commits a folder's files to a new or known repo; returns the commit's sha."""
        repo = self.repos.setdefault(id, Stored(id, gated, private))
        return repo.commit(folder, branch)

    def user(self, token: str, reads: Iterable[str] = ()) -> None:
        """Makes a token known, with the gated and private repos that it may read."""
        self.users[token] = tuple(reads)

    def fault(self, pattern: str, kind: str, times: int = 1, **how: Any) -> None:
        """Spoils the next `times` requests whose "METHOD /path" matches; kinds are in faults.py."""
        self.faults.append(Fault(re.compile(pattern), kind, times, **how))

    def requests(self, pattern: str = "") -> list[Seen]:
        return [seen for seen in self.log if re.search(pattern, seen.line)]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Logs a request, spoils it if a fault says so, else lets the routes answer."""
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        seen = Seen(f"{scope['method']} {scope['path']}", headers.get("range"), token)
        self.log.append(seen)
        fault, transport = self._due(seen.line), receive.__self__.transport
        scope["state"] = {"fault": fault, "transport": transport}

        async def count(message: Any) -> None:
            seen.sent += len(message.get("body", b""))
            await send(message)

        if fault and fault.kind in ("hang", "reset") and fault.after is None:
            await breaking(fault.kind, transport)
            return
        await ((fault and fault.refusal()) or self.app)(scope, receive, count)

    def _due(self, line: str) -> Fault | None:
        due = (f for f in self.faults if f.left > 0 and f.pattern.search(line))
        if fault := next(due, None):
            fault.left -= 1
        return fault

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        port = self._socket.getsockname()[1]
        self.url, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}/cdn"
        config = uvicorn.Config(self, log_level="critical", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()
