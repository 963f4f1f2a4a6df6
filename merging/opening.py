"""What a model's name stands for: an embedded model, a folder, or a repo of the Hub, with a base.

It finds models and brings them here; it knows config and header files, and reads no weights.
"""

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merging import hub
from merging.errors import AccessError, MergeError
from merging.headers import (
    SMALL_CAP,
    TensorInfo,
    joined,
    read_header,
    read_json,
    weight_files,
)
from merging.hub.repo import ADAPTER, INDEX, SINGLE
from merging.recipe import ModelRef
from merging.sources import Checkpoint, Local, Remote, Source, is_adapter, on_base

APP = Path(__file__).resolve().parent.parent
RESERVED = ("assets/demo/base", "assets/demo/a", "assets/demo/b")
"""The embedded models: found beside the app, whatever the working directory."""


def open_source(name: str, *, folders: bool = True, token: hub.Token = False) -> Source:
    """Find a model by its name in a recipe. Reads config and headers, never weights.

    `folders`: whether names may be local folders other than the embedded models.
    Raises MergeError where there is no such model, or none that can be merged.
    """
    ref = ModelRef.parse(name)
    found = _open(ModelRef(ref.path, ref.revision), folders, token)
    if ref.adapter:
        return on_base(found, _open(ModelRef.parse(ref.adapter), folders, token))
    if not is_adapter(found):
        return found
    local = folders and _folder(ref.path) is not None
    return on_base(_base_of(found, local, token), found)


def _base_of(own: Checkpoint | Remote, local: bool, token: hub.Token) -> Checkpoint | Remote:
    """The base that an adapter names; a folder only if the adapter is one: strangers write it."""
    named, revision = (own.config.get(key) for key in ("base_model_name_or_path", "revision"))
    other = f"write `base+{own.name}`, with the base on which it was trained"
    if not isinstance(named, str) or not named.strip():
        raise MergeError(f"{own.name} is an adapter that names no base: {other}.")
    try:
        ref = ModelRef.parse(named)
        if ref.adapter:
            raise MergeError("that is an adapter itself.")
        if isinstance(revision, str) and not (local and _folder(ref.path)):
            ref = replace(ref, revision=revision)
        base = _open(ref, local, token)
        if base.config.get("quantization_config"):
            raise MergeError(f"{base.name} is quantised.")
    except AccessError:
        raise
    except MergeError as error:
        raise MergeError(
            f"{own.name} is an adapter on `{named[:80]}`, which cannot be used: {error} Or {other}."
        ) from error
    return base


def _open(ref: ModelRef, folders: bool, token: hub.Token) -> Checkpoint | Remote:
    """A model, or an adapter's own part."""
    name = str(ref)
    if ref.path in RESERVED:
        own = APP / ref.path  # the same on every machine, licensed as this repository
        return open_folder(own, name, stamp=_digest(own), license="apache-2.0")
    if folders and (folder := _folder(ref.path)):
        return open_folder(folder, name)
    if ref.path.startswith(("/", ".", "~", "\\")) or ref.path.count("/") > 1:
        raise MergeError(
            f"{name}: there is no such folder; check the path."
            if folders
            else f"{name}: folders can only be named where the app runs on your own machine; "
            "choose a model of the Hub, as `org/name`."
        )
    repo = hub.pin(ref.path, ref.revision, token=token)
    pinned = f"{ref.path}@{repo.revision}"
    if cached := hub.cached(repo):
        return open_folder(
            cached, pinned, stamp=repo.revision, license=repo.license, gated=repo.gated
        )
    return _open_remote(repo, pinned, token)


def _folder(path: str) -> Path | None:
    try:
        folder = Path(path).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for a file, or `~` of nobody
        return None


def open_folder(
    folder: Path,
    name: str,
    stamp: str | None = None,
    license: str | None = None,
    gated: bool = False,
) -> Checkpoint:
    """A local checkpoint. Raises MergeError for missing, unsafe or truncated files."""
    listed = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    adapter = "adapter_config.json" in listed and not {SINGLE, INDEX} & listed
    config = _config(folder, adapter, name)
    files = weight_files(folder, name)
    headers: dict[str, dict[str, TensorInfo]] = {}
    for file in files:
        path = folder / file
        size = path.stat().st_size

        def read(start: int, stop: int, path: Path = path) -> bytes:
            with path.open("rb") as stream:
                stream.seek(start)
                return stream.read(stop - start)

        headers[file] = read_header(read, size, file, name)
    tensors = joined(headers, folder, name)
    license = license or _license(folder)
    return Checkpoint(name, folder, config, tensors, stamp or _stamp(folder), 0, license, gated)


def fetch(
    part: Checkpoint | Remote, *, token: hub.Token = False
) -> Generator[hub.Fetched, None, Checkpoint]:
    """Bring a source's part onto this machine; yields bytes as they come, returns it as it is."""
    if isinstance(part, Checkpoint):
        return part
    folder = yield from hub.download(part.repo, token=token)
    return open_folder(folder, part.name, part.stamp, part.license, part.gated)


def arrived(source: Source, here: Mapping[str, Checkpoint]) -> Local:
    """The source over its parts as they are on this machine, by their names."""
    first, *own = (here[part.name] for part in source.parts)
    return on_base(first, own[0]) if own else first


def _open_remote(repo: hub.Repo, name: str, token: hub.Token) -> Remote:
    files = hub.weights(repo, token=token)
    folder = hub.small_files(repo, token=token)
    headers: dict[str, dict[str, TensorInfo]] = {}
    for file in files:

        def read(start: int, stop: int, file: str = file) -> bytes:
            return hub.read_range(repo, file, start, stop, token=token)

        try:
            headers[file] = read_header(read, repo.files[file].size, file, name)
        except MergeError:  # nothing vouches for a part of a file: it may have come damaged
            headers[file] = read_header(read, repo.files[file].size, file, name)
    tensors = joined(headers, folder, name)
    config = _config(folder, files == (ADAPTER,), name)
    missing = hub.missing(repo, token=token)  # none, where another tool has fetched it
    return Remote(
        name, repo, folder, config, tensors, repo.revision, missing, repo.license, repo.gated
    )


def _config(folder: Path, adapter: bool, name: str) -> dict[str, Any]:
    if not adapter:
        return read_json(folder / "config.json", name)
    config = read_json(folder / "adapter_config.json", name)
    if "peft_type" not in config:
        raise MergeError(f"{name}: its adapter_config.json has no `peft_type`: fetch it again.")
    return config


def _license(folder: Path) -> str | None:
    """What the front matter of a folder's card says, read as a line and not as YAML."""
    card = folder / "README.md"
    if not card.is_file() or card.stat().st_size > SMALL_CAP:
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license: *([\w.+-]{1,64}) *$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def _digest(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    facts = [[p.name, hashlib.sha256(p.read_bytes()).hexdigest()] for p in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _stamp(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    facts = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
