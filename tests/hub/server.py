"""The running test Hub: a uvicorn server in a thread, its repos, users, faults and log."""

from __future__ import annotations

import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn

from .faults import Fault, Spoilt
from .jobs import Jobs
from .login import Login
from .repos import Stored, tree_of
from .routes import build
from .users import User


@dataclass
class Seen:
    """One request as it came: "METHOD /path", its query, Range and token if any.

    `received` and `sent` count the bytes of both bodies.
    """

    line: str
    range: str | None
    token: str | None
    query: str = ""
    received: int = 0
    sent: int = 0


class LocalHub:
    """Files behind 127.0.0.1; those in LFS behind localhost, which the client takes for a CDN.

    `url` is its address, `cdn` and `lfs` where large files come from and go to; `log` has every
    request; `repos` and `users` may be changed at any time, for what no method does.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Stored] = {}
        self.users: dict[str, User] = {}
        self.blobs: dict[str, Path] = {}
        self.faults: list[Fault] = []
        self.log: list[Seen] = []
        self.login = Login()
        self.jobs = Jobs()
        self.page = 1000
        self.app = build(self)

    def add(self, id: str, folder: Path, *, branch: str = "main", **about: Any) -> str:
        """Commits a folder's files to a new or known repo; returns the commit's sha.

        A new repo may be `gated` (True, "auto" or "manual") or `private`, and has `downloads`.
        """
        repo, tree = self.repos.setdefault(id, Stored(id, **about)), tree_of(folder)
        self.blobs |= {entry.sha256: entry.file for entry in tree.values() if entry.lfs}
        return repo.commit(tree, branch)

    def files(self, id: str, branch: str = "main") -> dict[str, Path]:
        """Where the files of a repo's branch are on disk, by their paths in it."""
        repo = self.repos[id]
        return {path: entry.file for path, entry in repo.commits[repo.refs[branch]].items()}

    def user(
        self, token: str, reads: Iterable[str] = (), name: str | None = None, writes: bool = True
    ) -> None:
        """Makes a token known: the gated and private repos it may read, besides its user's own.

        A name may have several tokens; without one it is user-1, user-2 … in order. `writes` is
        whether it may create and change repos of that name.
        """
        known = self.users.get(token)
        name = name or (known.name if known else f"user-{len(self.users) + 1}")
        self.users[token] = User(token, name, set(reads), writes)

    def revoke(self, token: str, id: str) -> None:
        """Takes back a token's access to a repo."""
        self.users[token].reads.discard(id)

    def expire(self, token: str) -> None:
        """Makes a token be refused by every call, also for what is public."""
        self.users[token].expired = True

    def login_as(self, token: str | None) -> None:
        """Chooses who signs in from a browser without a cookie `who=NAME`; None says no."""
        self.login.default = token

    def space(self, host: str | None = None) -> dict[str, str]:
        """The environment that makes an app a Space of this Hub; see login.py.

        `host`, "127.0.0.1:PORT", becomes SPACE_HOST.
        """
        return self.login.environment(self.url, host)

    def fault(self, pattern: str, kind: str, times: int = 1, **how: Any) -> None:
        """Spoils the next `times` requests whose "METHOD /path" matches; kinds are in faults.py."""
        self.faults.append(Fault(re.compile(pattern), kind, times, **how))

    def requests(self, pattern: str = "") -> list[Seen]:
        return [seen for seen in self.log if re.search(pattern, seen.line)]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Logs a request and lets the routes answer, spoilt if a fault says so."""
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        line, query = f"{scope['method']} {scope['path']}", scope["query_string"].decode()
        seen = Seen(line, headers.get("range"), token, query)
        self.log.append(seen)

        async def take() -> Any:
            message = await receive()
            seen.received += len(message.get("body", b""))
            return message

        async def give(message: Any) -> None:
            seen.sent += len(message.get("body", b""))
            await send(message)

        fault = self._due(line)
        scope["state"] = {"fault": fault}
        app = Spoilt(self.app, fault, receive.__self__.transport) if fault else self.app
        await app(scope, take, give)

    def _due(self, line: str) -> Fault | None:
        due = (f for f in self.faults if f.left > 0 and f.pattern.search(line))
        if fault := next(due, None):
            fault.left -= 1
        return fault

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._folder = tempfile.TemporaryDirectory()
        self.storage = Path(self._folder.name)
        port = self._socket.getsockname()[1]
        self.url, other = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.cdn, self.lfs = f"{other}/cdn", f"{other}/lfs"
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
        self.jobs.close()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()
        self._folder.cleanup()
