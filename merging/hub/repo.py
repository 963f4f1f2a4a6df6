"""What a model repo is: its name, its commit and its files. It asks nobody and reads no disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from merging.errors import MergeError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
SMALL = (
    "config.json generation_config.json adapter_config.json added_tokens.json merges.txt "
    "special_tokens_map.json tekken.json tokenizer*.json tokenizer*.model* chat_template*.json "
    f"*.jinja vocab*.json vocab*.txt spiece.model sentencepiece*.model {INDEX}"
).split()
COMMIT = re.compile(r"[0-9a-f]{40}")


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


# Names come from strangers, and become parts of paths and URLs.


def check_names(id: str, ref: str) -> None:
    """Raises MergeError for what could not be a repo's name, or a branch, tag or commit."""
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
    if not re.fullmatch(f"{part}/{part}", id, re.ASCII) or "--" in id or ".." in id:
        raise MergeError(f"{id!r} is not the name of a model on the Hub: write it as org/name.")
    if not re.fullmatch(r"\w[\w./-]{0,98}", ref, re.ASCII) or ".." in ref or "//" in ref:
        raise MergeError(f"{ref!r} is not a branch, tag or commit of {id}: try main.")


def listed(repo: Repo, name: str) -> File:
    """A file of the repo. Raises MergeError if it has none of that name."""
    if name in repo.files and re.fullmatch(r"\w[\w.+-]*", name, re.ASCII):
        return repo.files[name]
    what = f"{repo.id} at {repo.revision[:8]} lacks {name!r}: its upload or copy is incomplete"
    raise MergeError(f"{what}; choose another revision, or download it again.")


def small(repo: Repo) -> list[str]:
    """The config, tokenizer, template and index files that the repo has; no index of one file."""
    unused = INDEX if SINGLE in repo.files else ""
    plain = (name for name in repo.files if "/" not in name and name != unused)
    return sorted(n for n in plain if any(fnmatchcase(n, pattern) for pattern in SMALL))
