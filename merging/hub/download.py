"""Brings a model's files into the cache: those a merge needs, all at once, stoppable.

Knows which files; how one of them comes is the stream's, what must go for them is the keeping's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from merging.errors import MergeError
from merging.hub.cache import blob, link, partials, remember, snapshot, sound, storage, there
from merging.hub.client import ATTEMPTS, Token, UnreachableError, patiently, pieces
from merging.hub.keeping import make_room, no_room, sweep, touch, using
from merging.hub.repo import ADAPTER, INDEX, SINGLE, Repo, listed, small
from merging.hub.stream import Stream, follow, leave, open_file, outstanding, under_way

WORKERS = 4  # files at a time for each download: one connection seldom fills a line


@dataclass(frozen=True)
class Fetched:
    """How far a download is: the file under way, bytes over all files.

    `file` has in brackets what it waits for: "x.json (waiting 55 s: the Hub's rate limit)". Bytes
    that are there and only checked count as they are read.
    """

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
    local = there(repo, filename)
    if sound(repo, filename) or (local and constants.is_offline_mode()):
        return _read(repo, filename, start, stop)
    try:
        return _ask(repo, filename, start, stop, token)
    except UnreachableError:
        if not local:
            raise
        return _read(repo, filename, start, stop)


def _read(repo: Repo, filename: str, start: int, stop: int) -> bytes:
    with (snapshot(repo) / filename).open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _ask(repo: Repo, filename: str, start: int, stop: int, token: Token) -> bytes:
    def attempt() -> bytes:
        with open_file(repo, filename, token, f"bytes={start}-{stop - 1}") as response:
            if response.status_code != 206:
                raise MergeError(f"The Hub sends no parts of {repo.id}: download it whole first.")
            data = b"".join(pieces(response, repo.id))
        if len(data) != stop - start:
            what = f"The Hub sent {len(data)} bytes for {stop - start} of {repo.id}"
            raise UnreachableError(f"{what}: try again later.")
        return data

    return patiently(attempt, attempts=2 if there(repo, filename) else ATTEMPTS)


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
    """The snapshot folder if every file that `download` fetches is there, complete and checked.

    What another tool fetched is checked by `download`, once.
    """
    if INDEX in repo.files and not sound(repo, INDEX):
        return None
    try:
        names = (*small(repo), *weights(repo))
    except MergeError:
        return None
    return snapshot(repo) if all(sound(repo, name) for name in names) else None


def missing(repo: Repo, *, token: Token = False) -> int:
    """Bytes that `download` would move; files of other tools that it only checks are none."""
    names = (*small(repo), *weights(repo, token=token))
    return sum(repo.files[name].size for name in names if not there(repo, name))


def download(repo: Repo, *, token: Token = False) -> Generator[Fetched, None, Path]:
    """Fetches weights, config, tokenizer and template files; returns their folder.

    Yields ten times a second, `done` never falling. Who wants the same file at the same time
    shares its stream, which stops when the last of them closes this; what is half-written goes,
    whole files stay. Raises MergeError, for lack of disk before it starts.
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


def _fetch(repo: Repo, names: Sequence[str], token: Token) -> Iterator[Fetched]:
    """Brings files into the cache, with others who want them, until this is closed."""
    wanted = [name for name in names if not sound(repo, name)]
    if not wanted:
        touch(repo)
        total = sum(repo.files[name].size for name in names)
        yield Fetched("", total, total)
        return
    need = 0
    try:
        with using([repo.id]):
            if not all(there(repo, name) for name in wanted):
                remember(repo)
                sweep(storage(repo.id))
                need = sum(_to_come(repo, name) for name in wanted)
                make_room(repo.id, need, outstanding())
            yield from _together(repo, names, wanted, repo.gated and token)
    except OSError as error:
        raise no_room(repo.id, need, str(error.strerror)) from error


def _to_come(repo: Repo, name: str) -> int:
    """Bytes of a file that no process has, and nobody here is fetching."""
    path, size = blob(repo, name), repo.files[name].size
    whole = path.is_file() and path.stat().st_size == size
    if whole or there(repo, name) or under_way(repo, name):
        return 0
    return max(0, size - max(partials(path).values(), default=0))


def _together(
    repo: Repo, names: Sequence[str], wanted: Sequence[str], token: Token
) -> Iterator[Fetched]:
    total, most = sum(repo.files[name].size for name in names), 0
    waiting, streams = list(wanted), dict[str, Stream]()
    here = {name: 0 if name in wanted else repo.files[name].size for name in names}
    try:
        while waiting or streams:
            _take_up(repo, waiting, streams, token)
            running = [stream.ended for stream in streams.values()]
            wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            for name in [name for name, stream in streams.items() if stream.ended.done()]:
                if _finish(repo, name, streams.pop(name), token):
                    here[name] = repo.files[name].size
                else:
                    waiting.append(name)
            here |= {name: min(s.arrived, s.size) for name, s in streams.items()}
            most = max(most, sum(here.values()))  # a damaged file starts anew, the bar does not
            yield Fetched(_current(streams), most, total)
    finally:
        _leave(streams.values())


def _take_up(repo: Repo, waiting: list[str], streams: dict[str, Stream], token: Token) -> None:
    """Joins the files that others fetch; starts others as far as there are WORKERS."""
    for name in list(waiting):
        if len(streams) < WORKERS or under_way(repo, name):
            streams[name] = follow(repo, name, token)
            waiting.remove(name)


def _finish(repo: Repo, name: str, stream: Stream, token: Token) -> bool:
    """Names a file that came whole; False if somebody else's token could not fetch it."""
    leave(stream)
    try:
        stream.ended.result()
    except MergeError:
        if stream.token == token:
            raise
        return False
    if not sound(repo, name):
        link(repo, name)
    return True


def _current(streams: Mapping[str, Stream]) -> str:
    """The file under way and, in brackets, what it waits for."""
    name, note = next(((name, stream.note) for name, stream in streams.items()), ("", ""))
    return f"{name} ({note})" if note else name


def _leave(streams: Collection[Stream]) -> None:
    for stream in streams:
        leave(stream)
    left = [stream for stream in streams if stream.stop.is_set()]
    wait([stream.ended for stream in left], timeout=1)
    for stream in left:  # of a thread that a silent server still holds
        with suppress(OSError):
            stream.partial.unlink()
