"""The cache on disk, in the client's own layout, so that every other tool finds the files.

It knows what is there and where things go; it asks nobody.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

from huggingface_hub import constants

from merging import container
from merging.errors import MergeError
from merging.hub.repo import COMMIT, File, Repo, listed


def storage(id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{id.replace('/', '--')}"


def snapshot(repo: Repo) -> Path:
    """The folder in which a commit's files have their own names."""
    return storage(repo.id) / "snapshots" / repo.revision


def blob(repo: Repo, name: str) -> Path:
    """Where a file's bytes lie, under their checksum."""
    etag = listed(repo, name).sha256 or repo.files[name].oid or ""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
        raise MergeError(f"The Hub has no checksum of {name} of {repo.id}: choose another model.")
    return storage(repo.id) / "blobs" / etag


def there(repo: Repo, name: str) -> bool:
    path = snapshot(repo) / name
    return path.is_file() and path.stat().st_size == listed(repo, name).size


def sound(repo: Repo, name: str) -> bool:
    """Whether a file is there, and its checksum was once found to be the Hub's.

    The client checks none, so that files of other tools are believed only after a look. Where a
    copy of the cache kept no checksums, there is none to look at.
    """
    if not there(repo, name):
        return False
    file = repo.files[name]
    if not (file.sha256 or file.oid):
        return True
    when, record = (snapshot(repo) / name).stat().st_mtime_ns, _record(repo, name)
    if _seen().get(record) == when:
        return True
    return record.is_file() and record.stat().st_mtime_ns == when


def believe(repo: Repo, name: str, path: Path) -> None:
    """Remembers that `path` has the Hub's checksum, until it is written to again."""
    when, record = path.stat().st_mtime_ns, _record(repo, name)
    _seen()[record] = when
    with suppress(OSError):  # a cache that is only read: this process remembers
        record.parent.mkdir(exist_ok=True)
        record.touch()
        os.utime(record, ns=(when, when))


def _record(repo: Repo, name: str) -> Path:
    """An empty file with the time at which the checked one was written."""
    return storage(repo.id) / ".checked" / blob(repo, name).name


@cache
def _seen() -> dict[Path, int]:
    return {}


@contextmanager
def locked(folder: Path, etag: str, seconds: float) -> Iterator[None]:
    """Holds the client's own lock on a file of a repo's storage folder. TimeoutError if it can't.

    Whoever fetches the file, this app in any process or another tool, holds it meanwhile.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # lazily there

    path = Path(constants.HF_HUB_CACHE) / ".locks" / folder.name / f"{etag}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path, timeout=seconds):
        yield


def partials(path: Path) -> dict[Path, int]:
    """What this process, others and dead ones have of a file so far, in bytes."""
    found = {}
    for part in path.parent.glob(f"{path.name}.*.incomplete"):
        with suppress(OSError):  # gone meanwhile
            found[part] = part.stat().st_size
    return found


def allowed() -> int | None:
    """MERGING_CACHE_GB in bytes, if it is set. Raises MergeError if it is no number."""
    return container.told("MERGING_CACHE_GB")


def disk(folder: Path | None = None) -> tuple[int, int]:
    """Bytes of the disk where a folder, or else the cache, lies or will lie: all, and those free.

    A Space whose cache may take more than is known of its disk is believed to have that.
    """
    cache = Path(constants.HF_HUB_CACHE)
    least = allowed() if container.on_root(cache) else None
    return container.disk(folder or cache, (cache, container.home()), least or 0)


def not_cached(what: str) -> NoReturn:
    how = "fetch it once with a network, or unset HF_HUB_OFFLINE"
    raise MergeError(f"{what} is not in the cache and HF_HUB_OFFLINE is set: {how}.")


def cached_repo(id: str, ref: str) -> Repo | None:
    """What the cache knows of a repo at a branch, tag or commit."""
    branch = storage(id) / "refs" / ref
    commit = branch.read_text().strip() if branch.is_file() else ref
    folder = storage(id) / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    paths = [path for path in folder.iterdir() if path.is_file()]
    etags = {path.name: path.readlink().name if path.is_symlink() else "" for path in paths}
    files = {
        path.name: File(path.stat().st_size, etag if len(etag) == 64 else None, etag or None)
        for path, etag in zip(paths, etags.values(), strict=True)
    }
    return Repo(id, commit, files, (storage(id) / ".gated").exists(), ref=ref)


def remember(repo: Repo) -> None:
    """Keeps what `cached_repo` cannot see in the files: the branch, and that they are gated."""
    for folder in (storage(repo.id) / "blobs", snapshot(repo)):
        folder.mkdir(parents=True, exist_ok=True)
    if repo.gated:
        (storage(repo.id) / ".gated").touch()
    branch = storage(repo.id) / "refs" / repo.ref
    if not COMMIT.fullmatch(repo.ref):
        branch.parent.mkdir(parents=True, exist_ok=True)
        branch.write_text(repo.revision)


def link(repo: Repo, name: str) -> None:
    """Gives a file that came whole its name in the commit's folder."""
    target, pointer = blob(repo, name), snapshot(repo) / name
    fresh = pointer.with_name(f".{name}.{secrets.token_hex(4)}")
    try:
        fresh.symlink_to(Path("..", "..", "blobs", target.name))
    except OSError:  # a file system, or a Windows user, without symbolic links
        os.link(target, fresh)
    fresh.replace(pointer)
