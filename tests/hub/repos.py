"""The repos of the test Hub: files, commits and branches; not what is told of them (cards.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LFS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".model", ".zip")
LARGE = 10 * 2**20
"""Files from this size on are in LFS whatever their name."""
PIECE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file of a commit; its content stays where it is on disk."""

    file: Path
    size: int
    sha256: str
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


Tree = dict[str, Entry]


@dataclass
class Stored:
    """One repo: commits (sha to files by path), their dates, and refs (branch to sha).

    `gated` is False, True (as "manual"), "auto" or "manual".
    """

    id: str
    gated: bool | str = False
    private: bool = False
    downloads: int = 0
    commits: dict[str, Tree] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: Tree, branch: str) -> str:
        """Makes these files the branch's content; returns the commit's sha."""
        told = f"{self.id} {len(self.commits)} {[(p, e.oid) for p, e in tree.items()]}"
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.dates[sha] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}"
        self.commits[sha], self.refs[branch] = dict(sorted(tree.items())), sha
        return sha


def tree_of(folder: Path) -> Tree:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): entry(path) for path in files}


def in_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS) or size >= LARGE


def entry(path: Path) -> Entry:
    """A file on disk, which is read once, in pieces."""
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for piece in pieces(path):
        sha256.update(piece)
        git.update(piece)
    if in_lfs(path.name, size):
        return large(path, size, sha256.hexdigest())
    return Entry(path, size, sha256.hexdigest(), git.hexdigest(), lfs=False)


def large(path: Path, size: int, sha256: str) -> Entry:
    """A file in LFS: git has only a pointer to it."""
    return Entry(path, size, sha256, git_oid(pointer(sha256, size)), lfs=True)


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def sibling(path: str, it: Entry, blobs: bool) -> dict[str, Any]:
    """What a model's own page says of a file, with sizes and checksums if `blobs`."""
    if not blobs:
        return {"rfilename": path}
    lfs = {"size": it.size, "sha256": it.sha256, "pointerSize": len(pointer(it.sha256, it.size))}
    told = {"rfilename": path, "size": it.size, "blobId": it.oid}
    return told | ({"lfs": lfs} if it.lfs else {})


def node(path: str, it: Entry) -> dict[str, Any]:
    """What the tree and paths-info calls say of a file."""
    told = {"type": "file", "oid": it.oid, "size": it.size, "path": path}
    lfs = {"oid": it.sha256, "size": it.size, "pointerSize": len(pointer(it.sha256, it.size))}
    return told | ({"lfs": lfs} if it.lfs else {})


def listing(tree: Tree, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders in a folder ("" is the root); empty where there is no such folder."""
    start = folder.rstrip("/") + "/" if folder else ""
    inside = {path: it for path, it in tree.items() if path.startswith(start)}
    folders: dict[str, None] = {}
    for path in inside:
        parts = path[len(start) :].split("/")[:-1]
        deep = len(parts) if recursive else min(len(parts), 1)
        folders |= dict.fromkeys(start + "/".join(parts[: i + 1]) for i in range(deep))
    files = [node(p, it) for p, it in inside.items() if recursive or "/" not in p[len(start) :]]
    dirs = [
        {"type": "directory", "oid": git_oid(d.encode()), "size": 0, "path": d} for d in folders
    ]
    return dirs + files
