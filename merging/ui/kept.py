"""What this machine keeps of merges: recipes by id, so that an id survives a restart, and files
to be downloaded. It knows folders; who may have them is asked elsewhere.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from merging import hub, locks
from merging.container import home
from merging.errors import MergeError

if TYPE_CHECKING:
    from merging.ui.jobs import Made

COLUMNS = "# columns: "
RECIPES = 5000
"""That are kept, a thousand bytes each; the least recently used go first."""
AT_MOST = 4
"""Merges whose files are kept; the least recently used goes first."""
HALF = 600
"""Seconds after which a half-written recipe is nobody's that is being written now."""
PIECE = 1 << 20


def keep(made: "Made") -> None:
    """Store a merge's pinned recipe, with its models as they were written before they were pinned.

    For those who ask for the merge; asking it by its id later must not rename its columns.
    """
    folder = home() / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{made.identity}.{uuid4().hex}.draft"  # others may press Merge just now
    draft.write_text(f"{COLUMNS}{json.dumps(made.columns)}\n{made.recipe}", encoding="utf-8")
    draft.replace(folder / f"{made.identity}.yaml")
    for path in _oldest_first(folder)[:-RECIPES]:
        path.unlink(missing_ok=True)


def recipe(identity: str) -> tuple[str, tuple[str, ...]]:
    """A merge's pinned recipe and its columns. Raises MergeError if this machine knows none."""
    path = home() / "recipes" / f"{identity}.yaml"
    if not identity.isalnum() or not path.is_file():
        raise MergeError(f"No merge {identity} is known here: send its recipe to /merge again.")
    text = path.read_text(encoding="utf-8")
    with suppress(OSError):  # others may remove it just now
        os.utime(path)  # it is in use
    first = text.partition("\n")[0].removeprefix(COLUMNS)
    return text, tuple(json.loads(first))


def files(identity: str) -> Path:
    """The folder of a merge's files, whether it is there yet or not."""
    return home() / "merges" / identity


def at_hand(identity: str) -> str:
    """The folder of a merge's files, which are used now; empty if there are none."""
    folder = files(identity)
    try:
        os.utime(folder)
    except FileNotFoundError:
        return ""
    return str(folder)


def make_room(size: int) -> None:
    """Before so many bytes are written, remove files of merges beyond what is kept, and as many as
    the disk lacks room for. What killed runs left counts as well, and may yet be gone on with.

    Raises MergeError where that does not do: what is being written or downloaded now stays.
    """
    folder = home() / "merges"
    left = _remove(lambda left: left < AT_MOST and size <= hub.disk(folder)[1])
    if left >= AT_MOST:
        what = f"Files of {left} merges are being made or downloaded just now"
        raise MergeError(f"{what}, and no more are kept: try again in a few minutes.")
    if size > (free := hub.disk(folder)[1]):
        what = f"The files need {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free"
        raise MergeError(f"{what}: choose smaller models, or try again later.")


def give_way(size: int) -> None:
    """Before so many bytes of models are fetched, remove files of merges if the same disk lacks the
    room: whoever wants those again can have them made.
    """
    if hub.disk()[0] == hub.disk(home())[0]:
        _remove(lambda _: size <= hub.disk()[1])


def _remove(enough: Callable[[int], bool]) -> int:
    """Remove files of merges, least recently used first, until so many being left is `enough`, or
    all others are held; returns how many are left.
    """
    folder = home() / "merges"
    folder.mkdir(parents=True, exist_ok=True)
    paths = _oldest_first(folder)
    left = len(paths)
    for path in paths:
        if enough(left):
            break
        with suppress(BlockingIOError, FileNotFoundError), _had(path, alone=True):
            shutil.rmtree(path, ignore_errors=True)
            left -= 1
    return left


def clean() -> None:
    """Remove what a killed app left of recipes, at the start; another app may write some now."""
    for path in (home() / "recipes").glob("*.draft"):
        if time.time() - _used(path) > HALF:
            path.unlink(missing_ok=True)


def _oldest_first(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=_used)


def _used(path: Path) -> float:
    """When it was last used; others may remove it just now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _had(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold a folder as it is, with others or `alone`, as who writes it does.

    Raises BlockingIOError where others do not allow it, FileNotFoundError where it is gone.
    """
    if not locks.THERE:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        locks.lock(handle, alone=alone)
        yield
    finally:
        locks.let_go(handle)


def zipped(folder: Path) -> Iterator[bytes]:
    """A folder as one ZIP file while it is read: weights hardly compress, and nothing is copied.

    The files stay until that ends. Raises OSError at once if they are gone.
    """
    pieces = _zipped(folder)
    return chain([next(pieces)], pieces)


def _zipped(folder: Path) -> Iterator[bytes]:
    out = _Pipe()
    os.utime(folder)
    with _had(folder, alone=False), ZipFile(out, "w", ZIP_STORED) as archive:  # type: ignore[call-overload]  # it only writes
        for path in sorted(folder.iterdir()):
            info = ZipInfo.from_file(path, path.name)
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while piece := source.read(PIECE):
                    target.write(piece)
                    yield out.taken()
    yield out.taken()


class _Pipe:
    """A file that can only be written to, and emptied."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        whole = b"".join(self.pieces)
        self.pieces.clear()
        return whole
