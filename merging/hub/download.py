"""Brings files of the Hub into the cache: streamed, resumed, checked, stoppable.

Files are streamed here, for the client's own download neither checks what arrives, nor resumes
after a reset, nor can be stopped.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from merging.errors import MergeError
from merging.hub.cache import blob, free_disk, link, not_cached, remember, snapshot, there
from merging.hub.client import Token, get, patiently
from merging.hub.repo import ADAPTER, INDEX, SINGLE, Repo, listed, small

WORKERS = 4  # files at a time: one connection seldom fills a line


@dataclass(frozen=True)
class Fetched:
    """How far a download is: the file under way, bytes over all files."""

    file: str
    done: int
    total: int


def read_range(repo: Repo, filename: str, start: int, stop: int, *, token: Token = False) -> bytes:
    """Bytes `start` to `stop` (exclusive), from the cache if the file is there. MergeError."""
    size = listed(repo, filename).size
    if not 0 <= start <= stop <= size:
        what = f"{filename} of {repo.id} has {size} bytes, and bytes {start} to {stop} are needed"
        raise MergeError(f"{what}: it is cut short or damaged, choose another revision.")
    if start == stop:
        return b""
    if there(repo, filename):
        with (snapshot(repo) / filename).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def read() -> bytes:
        with _file(repo, filename, token, f"bytes={start}-{stop - 1}") as response:
            if response.status_code != 206:
                raise MergeError(f"The Hub sends no parts of {repo.id}: download it whole first.")
            return bytes(response.read())

    data = patiently(read)
    if len(data) != stop - start:
        raise MergeError(f"The Hub sent {len(data)} bytes for {stop - start}: try again later.")
    return data


def small_files(repo: Repo, *, token: Token = False) -> Path:
    """Folder with config, tokenizer, template and index files, fetched if need be. MergeError."""
    for _ in _fetch(repo, small(repo), token):
        pass
    return snapshot(repo)


def weights(repo: Repo, *, token: Token = False) -> tuple[str, ...]:
    """The safetensors files a merge needs; fetches the index if need be. Raises MergeError."""
    if SINGLE in repo.files:
        return (SINGLE,)
    if INDEX in repo.files:
        for _ in _fetch(repo, [INDEX], token):
            pass
        return _shards(repo)
    if ADAPTER in repo.files:
        return (ADAPTER,)
    pickles = [name for name in repo.files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    why = f"only pickles ({min(pickles)}), which can run code" if pickles else f"no {SINGLE}"
    raise MergeError(f"{repo.id} has {why}: choose a model or revision with safetensors files.")


def cached(repo: Repo) -> Path | None:
    """The snapshot folder if every file that `download` fetches is there complete."""
    if INDEX in repo.files and not there(repo, INDEX):
        return None
    try:
        names = (*small(repo), *weights(repo))
    except MergeError:
        return None
    return snapshot(repo) if all(there(repo, name) for name in names) else None


def download(repo: Repo, *, token: Token = False) -> Generator[Fetched, None, Path]:
    """Fetches weights, config, tokenizer and template files; returns their folder.

    Yields ten times a second, `done` never falling. Closing it stops all and removes what is
    half-written; whole files stay. Raises MergeError, for lack of disk before it starts.
    """
    yield from _fetch(repo, [*small(repo), *weights(repo, token=token)], token)
    return snapshot(repo)


def _shards(repo: Repo) -> tuple[str, ...]:
    try:
        index = json.loads((snapshot(repo) / INDEX).read_text("utf-8"))
        names = sorted(set(index["weight_map"].values()))
        if not names or not all(name.endswith(".safetensors") for name in names):
            raise ValueError("no safetensors files")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(f"{INDEX} of {repo.id} is damaged: choose another revision.") from error
    for name in names:
        listed(repo, name)
    return tuple(names)


@contextmanager
def _file(repo: Repo, name: str, token: Token, span: str) -> Iterator[Any]:
    if constants.is_offline_mode():
        not_cached(f"{name} of {repo.id}")
    path = f"{repo.id}/resolve/{repo.revision}/{name}"
    # a public file is anybody's: what need not be known is not sent
    with get(repo.id, repo.revision, path, repo.gated and token, span) as response:
        yield response


@dataclass(frozen=True)
class _Flow:
    """What the threads of one download share."""

    token: Token
    arrived: dict[str, int]
    stop: threading.Event


def _fetch(repo: Repo, names: Sequence[str], token: Token) -> Iterator[Fetched]:
    """Brings files into the cache, in threads that end when this is closed."""
    partials = {
        name: blob(repo, name).with_suffix(f".{secrets.token_hex(4)}.incomplete")
        for name in names
        if not there(repo, name)
    }
    here = {name: 0 if name in partials else repo.files[name].size for name in names}
    need = sum(repo.files[name].size for name in partials)
    flow, pool = _Flow(token, here, threading.Event()), ThreadPoolExecutor(WORKERS)
    tasks: list[Future[None]] = []
    try:
        if partials:
            remember(repo)
            _check_disk(repo, need)
        tasks += [pool.submit(_bring, repo, name, path, flow) for name, path in partials.items()]
        yield from _progress(repo, tasks, here)
    except OSError as error:
        raise _no_room(repo, need, str(error.strerror)) from error
    finally:
        flow.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([task for task in tasks if not task.done()], timeout=1)
        for partial in partials.values():  # of a thread that a silent server still holds
            with suppress(OSError):
                partial.unlink()


def _check_disk(repo: Repo, need: int) -> None:
    if need > free_disk():
        raise _no_room(repo, need, "too few")


def _no_room(repo: Repo, need: int, why: str) -> MergeError:
    what = f"{repo.id} needs {need / 1e9:.1f} GB of disk, {free_disk() / 1e9:.1f} GB are free"
    how = "free some, or point HF_HOME to a larger disk that can be written"
    return MergeError(f"{what} ({why}): {how}.")


def _progress(
    repo: Repo, tasks: Sequence[Future[None]], arrived: Mapping[str, int]
) -> Iterator[Fetched]:
    total, most, running = sum(repo.files[name].size for name in arrived), 0, set(tasks)
    while True:
        finished, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        for task in finished:
            task.result()
        most = max(most, sum(arrived.values()))  # a damaged file starts anew, the bar does not
        unfinished = (name for name, size in arrived.items() if size < repo.files[name].size)
        yield Fetched(next(unfinished, ""), most, total)
        if not running:
            return


def _bring(repo: Repo, name: str, partial: Path, flow: _Flow) -> None:
    """One file, from the Hub to its place in the cache."""
    whole, size = blob(repo, name), repo.files[name].size
    if not whole.is_file() or whole.stat().st_size != size:
        if not any(_save(repo, name, partial, flow) for _ in range(2)):
            what = f"{name} of {repo.id} came damaged twice (its checksum is not the Hub's)"
            raise MergeError(f"{what}: try again later.")
        partial.replace(whole)
    link(repo, name)
    flow.arrived[name] = size


def _save(repo: Repo, name: str, partial: Path, flow: _Flow) -> bool:
    """Streams a file to `partial`; whether its checksum is the Hub's."""
    file = repo.files[name]
    git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    digest = hashlib.sha256() if file.sha256 else git
    with partial.open("wb") as out:

        def resume() -> None:
            at = out.tell()
            with _file(repo, name, flow.token, f"bytes={at}-" if at else "") as response:
                skip = 0 if response.status_code == 206 else at
                for chunk in response.iter_bytes():
                    if flow.stop.is_set():
                        raise CancelledError
                    out.write(chunk[skip:])
                    digest.update(chunk[skip:])
                    skip = max(0, skip - len(chunk))
                    flow.arrived[name] = out.tell()

        patiently(resume, flow.stop)
    return digest.hexdigest() == blob(repo, name).name
