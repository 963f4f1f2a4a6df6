"""Broken answers of the test Hub, made on purpose, and the bodies of files, whole or broken.

503, 429 …  that status instead of an answer
reset       a TCP reset; truncate: a clean close; both after `after` bytes of the body
hang        silence, for `after` None before any answer, else after that many bytes
slow        pieces of `piece` bytes, `delay` seconds apart
corrupt     zeros of the right length
no_range    the whole file where a part was asked for
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse


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

    def refusal(self) -> Response | None:
        if not self.kind.isdigit():
            return None
        limit = {"RateLimit": f'"api";r=0;t={self.wait}', "RateLimit-Policy": '"api";q=500;w=300'}
        headers = limit if self.kind == "429" else {}
        return Response("injected", int(self.kind), headers)


def send(request: Request, file: Path, headers: dict[str, str]) -> Response:
    """A file or the part asked for, spoilt by the request's fault."""
    fault, size = request.state.fault, file.stat().st_size
    kind = fault.kind if fault else ""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    start, stop, status = 0, size, 200
    if asked and kind != "no_range":
        start, stop, status = int(asked[1]), min(int(asked[2] or size - 1) + 1, size), 206
        headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    headers |= {"Content-Length": str(stop - start), "Accept-Ranges": "bytes"}
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    data = file.read_bytes()[start:stop]
    data = bytes(len(data)) if kind == "corrupt" else data
    return StreamingResponse(body(data, fault, request.state.transport), status, headers)


async def body(data: bytes, fault: Fault | None, transport: Any) -> AsyncIterator[bytes]:
    after = fault.after if fault else None
    piece = fault.piece if fault and fault.kind == "slow" else 1 << 16
    cut = data if after is None else data[:after]
    for at in range(0, len(cut), piece):
        if transport.is_closing():
            return
        yield cut[at : at + piece]
        if fault and fault.kind == "slow":
            await asyncio.sleep(fault.delay)
    if fault and len(cut) < len(data):
        await asyncio.sleep(0.05)  # lets what was sent leave the machine's buffers
        await breaking(fault.kind, transport)


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
