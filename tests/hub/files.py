"""Answers that are files: whole or the part asked for, in pieces; spoilt by no_range and short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .faults import kind_of

PIECE = 1 << 18


@dataclass(frozen=True)
class Span:
    """The bytes from `start` to before `stop` of a file of `size` bytes; `asked` for, or all."""

    start: int
    stop: int
    size: int
    asked: bool = False


def span_of(header: str, size: int) -> Span | None:
    """What a Range header asks for; None where nothing of it is in the file."""
    read = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if not read or not (read[1] or read[2]):
        return Span(0, size, size)
    if not read[1]:
        return Span(max(0, size - int(read[2])), size, size, asked=True)
    start, stop = int(read[1]), min(int(read[2] or size - 1) + 1, size)
    return Span(start, stop, size, asked=True) if start < stop else None


def send(request: Request, file: Path, headers: dict[str, str]) -> Response:
    """A file or the part asked for."""
    kind, size = kind_of(request), file.stat().st_size
    asked = "" if kind == "no_range" else request.headers.get("range", "")
    span = span_of(asked, size)
    if span is None:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    if span.asked:
        headers |= {"Content-Range": f"bytes {span.start}-{span.stop - 1}/{size}"}
    length = (span.stop - span.start) // (2 if kind == "short" else 1)
    headers |= {"Content-Length": str(length), "Accept-Ranges": "bytes"}
    status = 206 if span.asked else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(body(file, span.start, span.start + length), status, headers)


def body(file: Path, start: int, stop: int) -> Iterator[bytes]:
    # Opened for each piece: a client that leaves would keep the file open.
    for at in range(start, stop, PIECE):
        with file.open("rb") as opened:
            opened.seek(at)
            yield opened.read(min(PIECE, stop - at))
