"""Keeps the cache within its bounds: what goes when room is needed, what killed downloads left.

Removes only files that this app fetched, never a repo into which another tool put one, nor one in
use. It fetches nothing, and knows neither commits nor access.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from merging import locks
from merging.errors import MergeError
from merging.hub.cache import allowed, disk, locked, storage
from merging.hub.repo import Repo

MARKER = ".merging"
"""File in a storage folder: the checksums of what this app fetched; its time is the last use."""
SHARE = 0.7  # of a Space's disk
PARTIAL = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\.[0-9a-f]{8}\.incomplete")  # never resumed


@dataclass(frozen=True)
class Kept:
    """What this app keeps: `bytes` of `count` repos, of a `budget` if there is one; `free` disk."""

    bytes: int
    count: int
    budget: int | None
    free: int


@dataclass(frozen=True)
class _Mine:
    """The storage folder of a repo of which this app fetched every file."""

    folder: Path
    bytes: int
    used: float


def kept_state() -> Kept:
    """What is kept now; reads folders and no files. MergeError for a budget that is no number."""
    sizes = [one.bytes for one in _mine() if one.bytes]
    return Kept(sum(sizes), len(sizes), budget(), disk()[1])


def budget() -> int | None:
    """Bytes that this app may keep: MERGING_CACHE_GB, a share of a Space's disk, or no bound."""
    return allowed() or (int(SHARE * disk()[0]) if os.environ.get("SPACE_ID") else None)


def room() -> int:
    """Bytes that could be fetched, if all that this app keeps and nobody uses made way."""
    kept, free, bound = sum(one.bytes for one in _mine()), disk()[1], budget()
    return free + kept if bound is None else min(free + kept, bound)


@contextmanager
def using(models: Iterable[str | Path]) -> Iterator[None]:
    """Nothing of these models is removed meanwhile, by any process.

    A model is a name as in a recipe, `org/name@revision` or `base+adapter`, or a folder. What is
    not of the Hub is passed over. What is not there yet is held from the moment it is fetched.
    """
    folders = sorted({folder for model in models for folder in _storages(model)})
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(_lease(folder))
        yield


def touch(repo: Repo) -> None:
    """Says that a repo is used now."""
    with suppress(OSError):
        os.utime(storage(repo.id) / MARKER)


def sign(repo: Repo, etag: str) -> None:
    """Says that this app fetched a file into a repo's storage folder."""
    with suppress(OSError), (storage(repo.id) / MARKER).open("a") as marker:
        marker.write(f"{etag}\n")


def signed(repo: Repo, etag: str) -> bool:
    """Whether this app fetched a file."""
    return etag in _fetched(storage(repo.id))


def make_room(id: str, need: int, coming: int) -> None:
    """Removes what was not used for longest, until a repo fits beside the bytes still `coming`.

    MergeError, and nothing is removed, if it cannot fit.
    """
    with ExitStack() as held:
        every, (_, free) = _mine(), disk()
        bound, kept = budget(), sum(one.bytes for one in every)
        over = kept + need + coming - bound if bound is not None else 0
        lack = max(over, need + coming - free)
        chosen: list[_Mine] = []
        for one in sorted(every, key=lambda one: one.used):
            if lack > 0 and held.enter_context(_taken(one.folder)):
                chosen.append(one)
                lack -= one.bytes
        if lack <= 0:
            for one in chosen:
                _remove(one.folder)
            return
    if bound is None or over <= 0 or need + coming > free:
        raise no_room(id, need, "too few")
    used = (kept + coming - sum(one.bytes for one in chosen)) / 1e9
    what = f"{id} needs {need / 1e9:.1f} GB, and the cache may take {bound / 1e9:.1f} GB"
    how = "try again when it is free, choose smaller models, or raise MERGING_CACHE_GB"
    raise MergeError(f"{what}, of which {used:.1f} GB are in use: {how}.")


def no_room(id: str, need: int, why: str) -> MergeError:
    what = f"{id} needs {need / 1e9:.1f} GB of disk, {disk()[1] / 1e9:.1f} GB are free"
    how = "free some, or point HF_HOME to a larger disk that can be written"
    return MergeError(f"{what} ({why}): {how}.")


def clean() -> int:
    """Removes what killed downloads left, and what exceeds the budget. Returns the bytes freed."""
    freed = sum(sweep(folder) for folder in _folders())
    before = sum(one.bytes for one in _mine())
    with ExitStack() as held:
        for one in _mine():
            if not one.bytes and held.enter_context(_taken(one.folder)):
                _remove(one.folder)
    over = before - bound if (bound := budget()) is not None else 0
    for one in sorted(_mine(), key=lambda one: one.used):
        with _taken(one.folder) as free:
            if over > 0 and free:
                _remove(one.folder)
                over, freed = over - one.bytes, freed + one.bytes
    return freed


def sweep(folder: Path) -> int:
    """Removes a storage folder's partial files that no live process holds; the bytes freed."""
    freed = 0
    for name, size in _sizes(folder / "blobs").items():
        if (partial := PARTIAL.fullmatch(name)) and not _held(folder, partial[1]):
            with suppress(OSError):
                (folder / "blobs" / name).unlink()
                freed += size
    return freed


def _held(folder: Path, etag: str) -> bool:
    """Whether a live process, this or another, is fetching a file."""
    try:
        with locked(folder, etag, 0.01):
            return False
    except (TimeoutError, OSError):
        return True


def _folders() -> list[Path]:
    with suppress(OSError), os.scandir(constants.HF_HUB_CACHE) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith("models--")]
    return []


def _mine() -> list[_Mine]:
    """The repos that may be removed, if nobody uses them."""
    found = []
    for folder in _folders():
        with suppress(OSError):
            used = (folder / MARKER).stat().st_mtime
            if not _strangers(folder):
                found.append(_Mine(folder, sum(_sizes(folder / "blobs").values()), used))
    return found


def _strangers(folder: Path) -> bool:
    """Whether another tool has files in a storage folder."""
    others = _sizes(folder / "blobs").keys() - _fetched(folder)
    if not all(PARTIAL.fullmatch(name) for name in others):
        return True
    # without symbolic links, the client keeps files in their commits' folders
    paths = (path for path in (folder / "snapshots").rglob("*") if not path.is_symlink())
    return any(path.is_file() and path.stat().st_nlink == 1 for path in paths)


def _fetched(folder: Path) -> set[str]:
    with suppress(OSError):
        return set((folder / MARKER).read_text().split())
    return set()


def _sizes(blobs: Path) -> dict[str, int]:
    """Bytes of each file in a folder; a link to the client's shared store takes none."""
    sizes = {}
    with suppress(OSError), os.scandir(blobs) as entries:
        for entry in entries:
            with suppress(OSError):  # gone meanwhile
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _storages(model: str | Path) -> list[Path]:
    """The storage folders of a model: none where it is not of the Hub, two with an adapter."""
    hub, path = Path(constants.HF_HUB_CACHE), Path(model)
    inside = path.resolve().is_relative_to(hub.resolve()) and path.resolve() != hub.resolve()
    first = path.resolve().relative_to(hub.resolve()).parts[0] if inside else ""
    if inside or path.exists() or isinstance(model, Path):
        return [hub / first] if first.startswith("models--") else []
    ids = (part.partition("@")[0] for part in model.split("+"))
    return [storage(id) for id in ids if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", id, re.ASCII)]


@contextmanager
def _lease(folder: Path) -> Iterator[None]:
    fresh, handle = not folder.exists(), _shared(folder)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                os.utime(handle)
            locks.let_go(handle)
            if fresh and not _sizes(folder / "blobs"):  # nothing was fetched after all
                with _taken(folder) as free:
                    if free:
                        _remove(folder)


def _shared(folder: Path) -> int | None:
    """The marker, made if need be, under a shared lock; None where there is no such thing."""
    while locks.THERE:
        try:
            (folder / "snapshots").mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / MARKER, os.O_RDWR | os.O_CREAT, 0o664)
        except FileNotFoundError:  # removed between the two
            continue
        except OSError:  # a cache that is only read
            return None
        if not locks.lock(handle, alone=False, wait=True):
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink:
            os.utime(handle)
            return handle
        os.close(handle)  # it was removed while this waited
    return None


@contextmanager
def _taken(folder: Path) -> Iterator[bool]:
    """Whether nobody uses a repo, and nobody begins to until this ends."""
    try:
        handle = os.open(folder / MARKER, os.O_RDWR)
    except OSError:
        yield False
        return
    try:
        alone = _locked(handle) and bool(os.fstat(handle).st_nlink)
        yield alone and not _strangers(folder) and not _busy(folder)
    finally:
        locks.let_go(handle)


def _locked(handle: int) -> bool:
    try:
        return locks.lock(handle, alone=True)
    except BlockingIOError:
        return False


def _busy(folder: Path) -> bool:
    """Whether another tool is fetching a file into a repo: it has no lease."""
    partials = map(PARTIAL.fullmatch, _sizes(folder / "blobs"))
    return any(_held(folder, partial[1]) for partial in partials if partial)


def _remove(folder: Path) -> None:
    """Removes a repo that is taken, its marker last: until then it counts as this app's."""
    for name in ("snapshots", "refs", "blobs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.iterdir():
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MARKER:
                path.unlink()
    with suppress(OSError):  # it cannot be removed, or somebody began anew
        (folder / MARKER).unlink()
        folder.rmdir()
