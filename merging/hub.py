"""What the Hugging Face Hub holds: pins a model at a commit, reads byte ranges, downloads it.

Knows names, files, access and the shared cache; nothing of tensors, recipes or pages. The only
file that imports huggingface_hub. Files are streamed here, for the client's own download neither
checks what arrives, nor resumes after a reset, nor can be stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import huggingface_hub
from huggingface_hub import constants

from merging.errors import MergeError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
Token = str | Literal[False]  # False: anonymous; never None, the client's word for its own login

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
SMALL = (
    "config.json generation_config.json adapter_config.json added_tokens.json merges.txt "
    "special_tokens_map.json tekken.json tokenizer*.json tokenizer*.model* chat_template*.json "
    f"*.jinja vocab*.json vocab*.txt spiece.model sentencepiece*.model {INDEX}"
).split()
COMMIT = re.compile(r"[0-9a-f]{40}")
WORKERS = 4  # files at a time: one connection seldom fills a line
ATTEMPTS = 6  # connections for a file, each taking up where the last broke off
PAUSE = 0.25  # seconds before the second, doubled before each further one


@dataclass(frozen=True)
class File:
    """One file of a repo: `size` in bytes, `sha256` if in LFS, `oid` the git blob id if not."""

    size: int
    sha256: str | None
    oid: str | None = None


@dataclass(frozen=True)
class Repo:
    """One model repo at one commit, nothing of it downloaded yet; `gated` if not open to all."""

    id: str
    revision: str
    files: Mapping[str, File]
    gated: bool
    license: str | None = None
    parameters: int | None = None
    ref: str = "main"  # the branch, tag or commit that was asked for


@dataclass(frozen=True)
class Fetched:
    """How far a download is: the file under way, bytes over all files."""

    file: str
    done: int
    total: int


class _UnreachableError(MergeError):
    """The Hub gave no answer of its own: the cache, or asking again, may help."""


def own_login() -> Token:
    """The machine's own login, for the CLI and a page that only this machine can open."""
    return huggingface_hub.get_token() or False


def pin(id: str, revision: str | None = None, *, token: Token = False) -> Repo:
    """The repo `org/name` at the commit that `revision` (branch, tag or commit) means now.

    Access is checked here, for the holder of `token`. Without a network the cache answers, save for
    gated models, as access cannot be checked; with HF_HUB_OFFLINE=1, for all. Raises MergeError.
    """
    ref = revision or "main"
    _check_names(id, ref)
    copy = _cached_repo(id, ref)
    if constants.is_offline_mode():
        return copy or _not_cached(f"{id} at {ref}")
    try:
        return _ask(id, ref, token)
    except _UnreachableError as lost:
        if copy and copy.gated:
            raise MergeError(f"{lost} {id} is cached but gated: access must be checked.") from lost
        if copy:
            return copy
        raise


def read_range(repo: Repo, filename: str, start: int, stop: int, *, token: Token = False) -> bytes:
    """Bytes `start` to `stop` (exclusive), from the cache if the file is there. MergeError."""
    size = _listed(repo, filename).size
    if not 0 <= start <= stop <= size:
        what = f"{filename} of {repo.id} has {size} bytes, and bytes {start} to {stop} are needed"
        raise MergeError(f"{what}: it is cut short or damaged, choose another revision.")
    if start == stop:
        return b""
    if _there(repo, filename):
        with (_snapshot(repo) / filename).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def read() -> bytes:
        with _file(repo, filename, token, f"bytes={start}-{stop - 1}") as response:
            if response.status_code != 206:
                raise MergeError(f"The Hub sends no parts of {repo.id}: download it whole first.")
            return bytes(response.read())

    data = _patiently(read, threading.Event())
    if len(data) != stop - start:
        raise MergeError(f"The Hub sent {len(data)} bytes for {stop - start}: try again later.")
    return data


def small_files(repo: Repo, *, token: Token = False) -> Path:
    """Folder with config, tokenizer, template and index files, fetched if need be. MergeError."""
    for _ in _fetch(repo, _small(repo), token):
        pass
    return _snapshot(repo)


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
    if INDEX in repo.files and not _there(repo, INDEX):
        return None
    try:
        names = (*_small(repo), *weights(repo))
    except MergeError:
        return None
    return _snapshot(repo) if all(_there(repo, name) for name in names) else None


def download(repo: Repo, *, token: Token = False) -> Generator[Fetched, None, Path]:
    """Fetches weights, config, tokenizer and template files; returns their folder.

    Yields ten times a second, `done` never falling. Closing it stops all and removes what is
    half-written; whole files stay. Raises MergeError, for lack of disk before it starts.
    """
    yield from _fetch(repo, [*_small(repo), *weights(repo, token=token)], token)
    return _snapshot(repo)


# Names come from strangers, and become parts of paths and URLs.


def _check_names(id: str, ref: str) -> None:
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
    if not re.fullmatch(f"{part}/{part}", id, re.ASCII) or "--" in id or ".." in id:
        raise MergeError(f"{id!r} is not the name of a model on the Hub: write it as org/name.")
    if not re.fullmatch(r"\w[\w./-]{0,98}", ref, re.ASCII) or ".." in ref or "//" in ref:
        raise MergeError(f"{ref!r} is not a branch, tag or commit of {id}: try main.")


def _listed(repo: Repo, name: str) -> File:
    if name in repo.files and re.fullmatch(r"\w[\w.+-]*", name, re.ASCII):
        return repo.files[name]
    what = f"{repo.id} at {repo.revision[:8]} lacks {name!r}: its upload or copy is incomplete"
    raise MergeError(f"{what}; choose another revision, or download it again.")


def _small(repo: Repo) -> list[str]:
    plain = (name for name in repo.files if "/" not in name)
    return sorted(n for n in plain if any(fnmatchcase(n, pattern) for pattern in SMALL))


def _shards(repo: Repo) -> tuple[str, ...]:
    try:
        index = json.loads((_snapshot(repo) / INDEX).read_text("utf-8"))
        names = sorted(set(index["weight_map"].values()))
        if not names or not all(name.endswith(".safetensors") for name in names):
            raise ValueError("no safetensors files")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(f"{INDEX} of {repo.id} is damaged: choose another revision.") from error
    for name in names:
        _listed(repo, name)
    return tuple(names)


# The Hub's answers


def _ask(id: str, ref: str, token: Token) -> Repo:
    timeout = constants.HF_HUB_ETAG_TIMEOUT  # the client itself would wait for ever
    with _plainly(id, ref):
        info = huggingface_hub.HfApi().model_info(
            id, revision=ref, files_metadata=True, timeout=timeout, token=token or False
        )
    if info.gated:  # its listing is open to all, its files are not
        with _get(id, ref, f"api/models/{id}/auth-check", token):
            pass
    files = {
        s.rfilename: File(s.lfs.size, s.lfs.sha256) if s.lfs else File(s.size or 0, None, s.blob_id)
        for s in info.siblings or ()
    }
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise MergeError(f"The Hub names no commit of {id} at {ref}: choose another revision.")
    license = (info.card_data.get("license") if info.card_data else None) or None
    parameters = info.safetensors.total if info.safetensors else None
    return Repo(id, commit, files, bool(info.gated or info.private), license, parameters, ref)


@contextmanager
def _get(id: str, ref: str, path: str, token: Token, span: str = "") -> Iterator[Any]:
    """The open answer, an httpx Response; `span` is a Range header."""
    headers = {"Accept-Encoding": "identity"}  # packed bytes can be neither counted nor resumed
    headers |= {"Range": span} if span else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    url, timeout = f"{constants.ENDPOINT}/{path}", constants.HF_HUB_DOWNLOAD_TIMEOUT
    client = huggingface_hub.get_session()
    with (
        _plainly(id, ref),
        client.stream("GET", url, headers=headers, timeout=timeout) as response,
    ):
        if response.is_error:
            response.read()
        huggingface_hub.hf_raise_for_status(response)
        yield response


@contextmanager
def _file(repo: Repo, name: str, token: Token, span: str) -> Iterator[Any]:
    if constants.is_offline_mode():
        _not_cached(f"{name} of {repo.id}")
    path = f"{repo.id}/resolve/{repo.revision}/{name}"
    with _get(repo.id, repo.revision, path, token, span) as response:
        yield response


def _patiently(attempt: Callable[[], T], stop: threading.Event) -> T:
    for failures in range(1, ATTEMPTS):
        try:
            return attempt()
        except _UnreachableError:
            if stop.wait(PAUSE * 2 ** (failures - 1)):
                raise CancelledError from None
    return attempt()


@contextmanager
def _plainly(id: str, ref: str) -> Iterator[None]:
    """Turns every error of the client into one sentence."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # lazily there

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refusal(error, id, ref) from error
    except (httpx.RequestError, json.JSONDecodeError) as error:
        what = f"The connection to the Hub failed on {id} ({type(error).__name__})"
        raise _UnreachableError(f"{what}: check the network, then try again.") from error


def _refusal(error: HfHubHTTPError, id: str, ref: str) -> MergeError:
    status, seconds = error.response.status_code, re.search(r"Retry after (\d+)", str(error))
    when = f"in {seconds[1]} s" if seconds else "in a few minutes"
    login = "log in with a token that may read it"
    if status >= 500:
        return _UnreachableError(f"The Hub fails on {id} (error {status}): try again in a minute.")
    said: dict[str | int, str] = {
        "GatedRepoError": f"{id} is gated: accept its terms on huggingface.co/{id}, then {login}.",
        "RepositoryNotFoundError": f"{id} is not on the Hub, or is private: check it, or {login}.",
        "RevisionNotFoundError": f"{id} has no branch, tag or commit {ref}: try main.",
        "DisabledRepoError": f"{id} is disabled on the Hub: choose another model.",
        401: f"The Hub refuses this login on {id}, it may have expired: log in again.",
        403: f"This login may not read {id}: {login}.",
        429: f"The Hub's rate limit is reached: try again {when}, or log in.",
    }
    other = f"The Hub answers {status} on {id} ({error.server_message}): choose another revision."
    return MergeError(said.get(type(error).__name__) or said.get(status) or other)


# The cache, in the client's own layout, so that every other tool finds the files


def _storage(id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{id.replace('/', '--')}"


def _snapshot(repo: Repo) -> Path:
    return _storage(repo.id) / "snapshots" / repo.revision


def _blob(repo: Repo, name: str) -> Path:
    etag = _listed(repo, name).sha256 or repo.files[name].oid or ""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
        raise MergeError(f"The Hub has no checksum of {name} of {repo.id}: choose another model.")
    return _storage(repo.id) / "blobs" / etag


def _there(repo: Repo, name: str) -> bool:
    path = _snapshot(repo) / name
    return path.is_file() and path.stat().st_size == _listed(repo, name).size


def _not_cached(what: str) -> NoReturn:
    how = "fetch it once with a network, or unset HF_HUB_OFFLINE"
    raise MergeError(f"{what} is not in the cache and HF_HUB_OFFLINE is set: {how}.")


def _cached_repo(id: str, ref: str) -> Repo | None:
    branch = _storage(id) / "refs" / ref
    commit = branch.read_text().strip() if branch.is_file() else ref
    folder = _storage(id) / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    paths = [path for path in folder.iterdir() if path.is_file()]
    etags = {path.name: path.readlink().name if path.is_symlink() else "" for path in paths}
    files = {
        path.name: File(path.stat().st_size, etag if len(etag) == 64 else None, etag or None)
        for path, etag in zip(paths, etags.values(), strict=True)
    }
    return Repo(id, commit, files, (_storage(id) / ".gated").exists(), ref=ref)


def _remember(repo: Repo) -> None:
    """Keeps what `_cached_repo` cannot see in the files: the branch, and that they are gated."""
    for folder in (_storage(repo.id) / "blobs", _snapshot(repo)):
        folder.mkdir(parents=True, exist_ok=True)
    if repo.gated:
        (_storage(repo.id) / ".gated").touch()
    branch = _storage(repo.id) / "refs" / repo.ref
    if not COMMIT.fullmatch(repo.ref):
        branch.parent.mkdir(parents=True, exist_ok=True)
        branch.write_text(repo.revision)


# Downloads


@dataclass(frozen=True)
class _Flow:
    """What the threads of one download share."""

    token: Token
    arrived: dict[str, int]
    stop: threading.Event


def _fetch(repo: Repo, names: Sequence[str], token: Token) -> Iterator[Fetched]:
    """Brings files into the cache, in threads that end when this is closed."""
    partials = {
        name: _blob(repo, name).with_suffix(f".{secrets.token_hex(4)}.incomplete")
        for name in names
        if not _there(repo, name)
    }
    here = {name: 0 if name in partials else repo.files[name].size for name in names}
    need = sum(repo.files[name].size for name in partials)
    flow, pool = _Flow(token, here, threading.Event()), ThreadPoolExecutor(WORKERS)
    tasks: list[Future[None]] = []
    try:
        if partials:
            _remember(repo)
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
    if need > shutil.disk_usage(constants.HF_HUB_CACHE).free:
        raise _no_room(repo, need, "too few")


def _no_room(repo: Repo, need: int, why: str) -> MergeError:
    free = shutil.disk_usage(constants.HF_HUB_CACHE).free
    what = f"{repo.id} needs {need / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free ({why})"
    return MergeError(f"{what}: free some, or point HF_HOME to a larger disk that can be written.")


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
    blob, pointer, size = _blob(repo, name), _snapshot(repo) / name, repo.files[name].size
    if not blob.is_file() or blob.stat().st_size != size:
        if not any(_save(repo, name, partial, flow) for _ in range(2)):
            what = f"{name} of {repo.id} came damaged twice (its checksum is not the Hub's)"
            raise MergeError(f"{what}: try again later.")
        partial.replace(blob)
    link = pointer.with_name(f".{name}.{secrets.token_hex(4)}")
    try:
        link.symlink_to(Path("..", "..", "blobs", blob.name))
    except OSError:  # a file system, or a Windows user, without symbolic links
        os.link(blob, link)
    link.replace(pointer)
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

        _patiently(resume, flow.stop)
    return digest.hexdigest() == _blob(repo, name).name
