"""One file on its way from the Hub into the cache: resumed, checked, and shared by who wants it.

Knows one file at a time; which files a model needs, and who may read them, is known elsewhere.
Files are streamed here, for the client's own download neither checks what arrives, nor resumes
after a reset, nor can be stopped.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import constants

from merging.errors import MergeError
from merging.hub import client
from merging.hub.cache import believe, blob, locked, not_cached, partials, snapshot, sound
from merging.hub.client import LimitError, Token, UnreachableError, get, pause, pieces
from merging.hub.keeping import sign, signed
from merging.hub.repo import Repo

LONGEST = 600  # seconds that a download waits at the Hub's rate limit, which is counted over 300
POLL = 0.2  # seconds between looks at what another process fetches

_DOOR = threading.Lock()  # for joining, leaving and ending, among all threads of this process
_UNDER_WAY: dict[Path, Stream] = {}


@dataclass
class Stream:
    """A file under way: bytes so far, what it waits for, and how many want it."""

    repo: Repo
    name: str
    token: Token
    arrived: int = 0
    note: str = ""
    followers: int = 0
    partial: Path = field(init=False)
    response: Any = None
    stop: threading.Event = field(default_factory=threading.Event)
    ended: Future[None] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.partial = self.blob.with_suffix(f".{secrets.token_hex(4)}.incomplete")

    @property
    def blob(self) -> Path:
        return blob(self.repo, self.name)

    @property
    def size(self) -> int:
        return self.repo.files[self.name].size


def under_way(repo: Repo, name: str) -> bool:
    return blob(repo, name) in _UNDER_WAY


def outstanding() -> int:
    """Bytes that this process is still to receive."""
    with _DOOR:
        return sum(max(0, stream.size - stream.arrived) for stream in _UNDER_WAY.values())


def follow(repo: Repo, name: str, token: Token) -> Stream:
    """Joins the stream of a file, or starts it. To be left with `leave`, ended or not."""
    with _DOOR:
        stream = _UNDER_WAY.get(blob(repo, name))
        if stream is None:
            stream = _UNDER_WAY[blob(repo, name)] = Stream(repo, name, token)
            thread = ThreadPoolExecutor(1, "fetch")
            stream.ended = thread.submit(_run, stream)
            thread.shutdown(wait=False)
        stream.followers += 1
        return stream


def leave(stream: Stream) -> None:
    """The last to leave a stream stops it."""
    with _DOOR:
        stream.followers -= 1
        if stream.followers or stream.ended.done():
            return
        stream.stop.set()
        _forget(stream)
        if stream.response is not None:
            _hang_up(stream.response)


def _forget(stream: Stream) -> None:
    if _UNDER_WAY.get(stream.blob) is stream:
        del _UNDER_WAY[stream.blob]


def _hang_up(response: Any) -> None:
    """Wakes the thread that waits for the next bytes, which closing would not."""
    with suppress(OSError, KeyError):
        wire = response.extensions["network_stream"].get_extra_info("socket")
        socket.socket.shutdown(wire, socket.SHUT_RDWR)


def _run(stream: Stream) -> None:
    try:
        if not _usable(stream):
            with _alone(stream):
                if not _usable(stream):
                    _bring(stream)
    finally:
        stream.partial.unlink(missing_ok=True)
        with _DOOR:
            _forget(stream)


@contextmanager
def _alone(stream: Stream) -> Iterator[None]:
    """Under the client's own lock, so that no other process fetches the same file."""
    with ExitStack() as held:
        while True:
            if stream.stop.is_set():
                raise CancelledError
            try:
                held.enter_context(locked(stream.blob.parents[1], stream.blob.name, POLL))
                break
            except TimeoutError:
                stream.note = "another process fetches it"
                stream.arrived = max(partials(stream.blob).values(), default=0)
        stream.note = ""
        for left in partials(stream.blob):  # by a process that was killed: the lock is free
            left.unlink(missing_ok=True)
        yield


def _usable(stream: Stream) -> bool:
    """Whether the file is there and right; one that nobody checked yet is read once."""
    pointer = snapshot(stream.repo) / stream.name
    if sound(stream.repo, stream.name):
        return True
    for path in dict.fromkeys(path.resolve() for path in (pointer, stream.blob)):
        if path.is_file() and path.stat().st_size == stream.size and _matches(stream, path):
            believe(stream.repo, stream.name, path)
            return True
    return False


def _matches(stream: Stream, path: Path) -> bool:
    stream.note, stream.arrived = "checking", 0
    digest = _digest(stream)
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            if stream.stop.is_set():
                raise CancelledError
            digest.update(data)
            stream.arrived += len(data)
    stream.note = ""
    return bool(digest.hexdigest() == stream.blob.name)


def _digest(stream: Stream) -> Any:
    if stream.repo.files[stream.name].sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % stream.size, usedforsecurity=False)  # as git names files


def _bring(stream: Stream) -> None:
    """The file from the Hub to its place, fetched once more where it came damaged."""
    repo, whole = stream.repo, stream.blob
    if not any(_save(stream) for _ in range(2)):
        what = f"{stream.name} of {repo.id} came damaged twice (its checksum is not the Hub's)"
        raise MergeError(f"{what}: try again later.")
    if not whole.exists() and not signed(repo, whole.name):
        sign(repo, whole.name)
    stream.partial.replace(whole)
    believe(repo, stream.name, whole)


def _save(stream: Stream) -> bool:
    """Streams the file to `partial`; whether its checksum is the Hub's."""
    digest, failures = _digest(stream), 0
    with stream.partial.open("wb") as out:
        while True:
            before = out.tell()
            try:
                _resume(stream, out, digest)
                return bool(digest.hexdigest() == stream.blob.name)
            except (UnreachableError, LimitError) as error:
                failures = 1 if out.tell() - before >= client.LEAST else failures + 1
                seconds = pause(error, failures, client.ATTEMPTS, LONGEST)
                limit = isinstance(error, LimitError)
                _wait(stream, seconds, "the Hub's rate limit" if limit else "the connection broke")


def _wait(stream: Stream, seconds: float, why: str) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stream.note = f"waiting {math.ceil(left)} s: {why}" if seconds >= 1 else ""
        if stream.stop.wait(min(left, 0.5)):
            raise CancelledError
    stream.note = ""


def _resume(stream: Stream, out: BinaryIO, digest: Any) -> None:
    """Takes the file up where it stopped. One that is too long is left, and will not match."""
    at = out.tell()
    if at == stream.size:
        return
    with _open(stream, f"bytes={at}-" if at else "") as response:
        skip = 0 if response.status_code == 206 else at
        for piece in pieces(response, stream.repo.id):
            if stream.stop.is_set():
                raise CancelledError
            out.write(piece[skip:])
            digest.update(piece[skip:])
            skip = max(0, skip - len(piece))
            stream.arrived = out.tell()
            if stream.arrived > stream.size:
                return


@contextmanager
def _open(stream: Stream, span: str) -> Iterator[Any]:
    with open_file(stream.repo, stream.name, stream.token, span) as response:
        stream.response = response
        try:
            yield response
        finally:
            with _DOOR:  # the connection may serve another call next
                stream.response = None


@contextmanager
def open_file(repo: Repo, name: str, token: Token, span: str) -> Iterator[Any]:
    """The Hub's open answer for a file or, with the Range header `span`, a part of it."""
    if constants.is_offline_mode():
        not_cached(f"{name} of {repo.id}")
    path = f"{repo.id}/resolve/{repo.revision}/{name}"
    # a public file is anybody's: what need not be known is not sent
    with get(repo.id, repo.revision, path, repo.gated and token, span) as response:
        yield response
