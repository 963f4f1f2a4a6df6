"""The repos of the test Hub: files, commits, branches, and the JSON that tells of them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".model")


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


@dataclass
class Stored:
    """One repo: commits (sha to files by path) and refs (branch to sha)."""

    id: str
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, folder: Path, branch: str) -> str:
        tree = {
            path.relative_to(folder).as_posix(): entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        told = f"{self.id} {len(self.commits)} {[(p, e.oid) for p, e in tree.items()]}"
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha], self.refs[branch] = tree, sha
        return sha


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def entry(path: Path) -> Entry:
    data = path.read_bytes()
    sha256, lfs = hashlib.sha256(data).hexdigest(), path.name.endswith(LFS)
    oid = git_oid(pointer(sha256, len(data)) if lfs else data)
    return Entry(path, len(data), sha256, oid, lfs)


def card(tree: dict[str, Entry]) -> dict[str, Any]:
    """The flat keys of the model card's front matter."""
    text = tree["README.md"].file.read_text() if "README.md" in tree else ""
    front = re.match(r"---\n(.*?)\n---", text, re.S)
    lines = front[1].splitlines() if front else []
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def info(repo: Stored, sha: str, blobs: bool) -> dict[str, Any]:
    """What /api/models/{id} answers, with sizes and checksums if `blobs`."""
    tree = repo.commits[sha]
    data = card(tree)
    return {
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "sha": sha,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "tags": [f"license:{data['license']}"] if "license" in data else [],
        "cardData": data,
        "siblings": [sibling(path, it, blobs) for path, it in tree.items()],
    }


def sibling(path: str, it: Entry, blobs: bool) -> dict[str, Any]:
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
