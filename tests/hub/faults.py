"""Broken answers of the test Hub, made on purpose, whatever the request; knows no repos.

    hub.fault("GET /cdn/", "reset", times=2, after=1000)

503, 403 …  that status instead of an answer; 429 asks to come back after `wait` seconds
reset       a TCP reset; truncate: a clean close; hang: silence; all three after `after` bytes of
            the answer's body, or of what a PUT or POST sends; before any answer where it is None
lost        the request is carried out, then the connection is reset without an answer
slow        pieces of `piece` bytes, `delay` seconds apart; what a PUT sends is read as slowly
corrupt     zeros of the right length, in the answer or in what a PUT sends
no_range    the whole file where a part was asked for
short       half the file, with a Content-Length that says so
wrong_etag  another checksum than the content's, on downloads and in listings
no_commit   a download without the commit's hash
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

BREAKS = ("reset", "truncate", "hang")
KINDS = (*BREAKS, "lost", "slow", "corrupt", "no_range", "short", "wrong_etag", "no_commit")
LIMIT = '"fixed window";"api";q=500;w=300'


@dataclass
class Fault:
    """What goes wrong with the next `left` requests whose "METHOD /path" matches `pattern`."""

    pattern: re.Pattern[str]
    kind: str
    left: int
    after: int | None = None
    piece: int = 1000
    delay: float = 0.1
    wait: int = 7

    def __post_init__(self) -> None:
        if not (self.kind in KINDS or self.kind.isdigit()):
            raise ValueError(f"No fault is called {self.kind}; choose one of {KINDS} or a status.")

    def refusal(self) -> Response | None:
        if not self.kind.isdigit():
            return None
        limit = {"RateLimit": f'"api";r=0;t={self.wait}', "RateLimit-Policy": LIMIT}
        limit["Retry-After"] = str(self.wait)
        return Response("injected", int(self.kind), limit if self.kind == "429" else {})


def kind_of(request: Request) -> str:
    """The kind of the request's fault; "" for none."""
    fault: Fault | None = request.state.fault
    return fault.kind if fault else ""


@dataclass
class Spoilt:
    """An ASGI app, one of whose requests a fault spoils."""

    app: Any
    fault: Fault
    transport: Any
    passed: int = 0
    """Bytes of the body that went through: of the answer, or of what is uploaded."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        fault = self.fault
        if fault.kind in BREAKS and fault.after is None:
            await breaking(fault.kind, self.transport)
        elif refusal := fault.refusal():
            await refusal(scope, receive, send)
        elif fault.kind == "lost":
            await self.app(scope, receive, _nowhere)
            await breaking("reset", self.transport)
        elif scope["method"] in ("PUT", "POST"):
            await self.app(scope, lambda: self._read(receive), send)
        else:
            await self.app(scope, receive, lambda message: self._write(message, send))

    async def _read(self, receive: Any) -> Any:
        """The next piece of an upload."""
        message = await receive()
        data, fault = message.get("body", b""), self.fault
        self.passed += len(data)
        if fault.kind == "slow":
            await asyncio.sleep(fault.delay * len(data) / fault.piece)
        if fault.kind in BREAKS and self.passed > (fault.after or 0):
            await breaking(fault.kind, self.transport)
            return {"type": "http.disconnect"}
        return message | ({"body": bytes(len(data))} if data and fault.kind == "corrupt" else {})

    async def _write(self, message: Any, send: Any) -> None:
        """The next piece of an answer."""
        fault, data = self.fault, message.get("body", b"")
        if not data:
            await send(message)
            return
        room = max(0, (fault.after or 0) - self.passed) if fault.kind in BREAKS else len(data)
        self.passed += len(data)
        kept = bytes(len(data)) if fault.kind == "corrupt" else data[:room]
        size = fault.piece if fault.kind == "slow" else len(data)
        for at in range(0, len(kept), size):
            if self.transport.is_closing():
                return
            last = at + size >= len(data)
            more = message.get("more_body", False) or not last
            await send(message | {"body": kept[at : at + size], "more_body": more})
            if fault.kind == "slow":
                await asyncio.sleep(fault.delay)
        if len(kept) < len(data):
            await asyncio.sleep(0.05)  # lets what was sent leave the machine's buffers
            await breaking(fault.kind, self.transport)


async def _nowhere(_: Any) -> None:
    """Sends nothing."""


async def breaking(kind: str, transport: Any) -> None:
    """Ends a connection badly; "hang" ends when the client has left."""
    if kind == "reset":
        linger = struct.pack("ii", 1, 0)  # close with RST instead of FIN
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    if kind == "truncate":
        transport.close()
    while kind == "hang" and not transport.is_closing():
        await asyncio.sleep(0.05)
