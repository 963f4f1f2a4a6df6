"""Where a model's tensors come from: names, shapes and dtypes at once, values when asked.

It knows safetensors and folders, and models of two parts: a base and a LoRA adapter on it. It does
not know recipes' meaning, methods, or model classes.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from merging import adapters, hub
from merging.errors import AccessError, MergeError
from merging.headers import (
    ADAPTER,
    INDEX,
    SINGLE,
    SMALL_CAP,
    TensorInfo,
    joined,
    read_header,
    read_json,
    weight_files,
)
from merging.names import EMBEDDING, head
from merging.recipe import ModelRef

APP = Path(__file__).resolve().parent.parent
RESERVED = ("assets/demo/base", "assets/demo/a", "assets/demo/b")
"""The embedded models: found beside the app, whatever the working directory."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with safetensors. `read` gives views of mapped memory: nothing is copied.

    `stamp` tells versions apart: a Hub commit, or a digest of the files' names, sizes and times.
    `license` is what the model's own card says, if it says so; `gated` models are not for all.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    stamp: str
    missing: int = 0
    license: str | None = None
    gated: bool = False
    handles: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def parts(self) -> tuple["Checkpoint"]:
        """What lies in a folder each."""
        return (self,)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer's files and the chat template."""
        return self.folder

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype and shape; do not write into it.

        Raises MergeError for a file that is no longer what its header was.
        """
        file = self.tensors[name].file
        try:
            if file not in self.handles:
                self.handles[file] = safe_open(self.folder / file, framework="pt")
            values: torch.Tensor = self.handles[file].get_tensor(name)
        except SafetensorError as error:
            raise MergeError(
                f"{self.name}: {file} cannot be read ({error}): fetch it again."
            ) from error
        return values


@dataclass(frozen=True)
class Remote:
    """A model on the Hub at one commit, known by its headers; `missing` bytes are to be fetched."""

    name: str
    repo: hub.Repo
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    stamp: str
    missing: int
    license: str | None = None
    gated: bool = False

    @property
    def parts(self) -> tuple["Remote"]:
        return (self,)

    @property
    def tokenizer(self) -> Path:
        return self.folder


@dataclass
class _Last:
    """The last tensor computed: blocks of one tensor, on several threads, compute it once."""

    name: str = ""
    tensor: torch.Tensor | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        with self.lock:
            if self.tensor is None or self.name != name:
                self.tensor = None  # let it go before its successor needs the room
                self.name, self.tensor = name, compute()
            return self.tensor


@dataclass(frozen=True)
class Adapter:
    """A base with a LoRA adapter on it, as one model: tensors are those that the two make together.

    `config` is the base's, with what follows from the adapter's tensors; `changes` are by tensor.
    """

    name: str
    base: Checkpoint | Remote
    own: Checkpoint | Remote
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    changes: Mapping[str, adapters.Change]
    last: _Last = field(default_factory=_Last, repr=False, compare=False)

    @property
    def parts(self) -> tuple[Checkpoint | Remote, Checkpoint | Remote]:
        return self.base, self.own

    @property
    def folder(self) -> Path:
        """The base's: an adapter has no config of a model."""
        return self.base.folder

    @property
    def tokenizer(self) -> Path:
        """The adapter's own folder if a tokenizer was saved with it, else the base's."""
        own = (self.own.folder / "tokenizer.json").is_file()
        return self.own.folder if own else self.base.folder

    @property
    def stamp(self) -> str:
        return "+".join(part.stamp for part in self.parts)

    @property
    def missing(self) -> int:
        return sum(part.missing for part in self.parts)

    @property
    def license(self) -> str | None:
        found = dict.fromkeys(part.license for part in self.parts)
        return " / ".join(one or "none found" for one in found) if any(found) else None

    @property
    def gated(self) -> bool:
        return any(part.gated for part in self.parts)

    @property
    def quantised(self) -> str | None:
        """The quantised model on which the adapter was trained, if it says so."""
        return adapters.quantised(self.own.config)

    def read(self, name: str) -> torch.Tensor:
        """The tensor in the base's dtype; do not write into it. Both parts must be here.

        A changed tensor is computed whole, in float32, and kept until another one is asked for.
        """
        base, own = self.base, self.own
        if isinstance(base, Remote) or isinstance(own, Remote):
            raise MergeError(f"{self.name} is not on this machine: fetch it first.")
        if name not in self.changes:
            return base.read(name)
        change, dtype = self.changes[name], self.tensors[name].dtype
        return self.last.of(name, lambda: change.apply(dtype, base.read, own.read))


Local: TypeAlias = Checkpoint | Adapter
Source: TypeAlias = Checkpoint | Remote | Adapter


def open_source(name: str, *, folders: bool = True, token: hub.Token = False) -> Source:
    """Find a model by its name in a recipe. Reads config and headers, never weights.

    `folders`: whether names may be local folders other than the embedded models.
    Raises MergeError where there is no such model, or none that can be merged.
    """
    ref = ModelRef.parse(name)
    found = _open(ModelRef(ref.path, ref.revision), folders, token)
    if ref.adapter:
        return on_base(found, _open(ModelRef.parse(ref.adapter), folders, token))
    if not _is_adapter(found):
        return found
    local = folders and _folder(ref.path) is not None
    return on_base(_base_of(found, local, token), found)


def on_base(base: Checkpoint | Remote, own: Checkpoint | Remote) -> Adapter:
    """An adapter on its base. Raises MergeError unless the result is exactly PEFT's."""
    if _is_adapter(base):
        raise MergeError(
            f"{own.name} is to go on {base.name}, which is an adapter itself: merge that one into "
            "its base with PEFT, and name the result."
        )
    if not _is_adapter(own):
        raise MergeError(f"{own.name} is a whole model and no adapter: name it without a base.")
    ties = base.config.get("tie_word_embeddings") is True
    shapes = [{n: i.shape for n, i in part.tensors.items()} for part in (own, base)]
    changes = adapters.changes(own.name, own.config, *shapes, ties=ties)
    tensors = dict(base.tensors)
    for tensor, change in changes.items():
        tensors[tensor] = replace(base.tensors[change.start], shape=change.shape)
    config = _followed(base, changes)
    return Adapter(f"{base.name}+{own.name}", base, own, config, tensors, changes)


def _followed(base: Checkpoint | Remote, changes: Mapping[str, adapters.Change]) -> dict[str, Any]:
    """The base's config with what follows from embeddings that grew and heads that are new."""
    config = dict(base.config)
    for name, change in changes.items():
        if EMBEDDING.search(name) and change.shape != base.tensors[name].shape:
            config["vocab_size"] = change.shape[0]
        if head(name) and name not in base.tensors:
            config["tie_word_embeddings"] = False
    return config


def _is_adapter(part: Checkpoint | Remote) -> bool:
    return "peft_type" in part.config


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


def fetch(source: Source, *, token: hub.Token = False) -> Generator[hub.Fetched, None, Local]:
    """Bring a source onto this machine; yields bytes as they come, returns it as it is here."""
    here: dict[str, Checkpoint] = {}
    before, after = 0, source.missing
    for part in source.parts:
        after -= part.missing
        here[part.name] = yield from _fetch(part, token, before, after)
        before += part.missing
    return arrived(source, here)


def arrived(source: Source, here: Mapping[str, Checkpoint]) -> Local:
    """The source over its parts as they are on this machine, by their names."""
    first, *own = (here[part.name] for part in source.parts)
    return on_base(first, own[0]) if own else first


def _fetch(
    part: Checkpoint | Remote, token: hub.Token, before: int, after: int
) -> Generator[hub.Fetched, None, Checkpoint]:
    """One part, counted between the bytes of those that come before and after it."""
    if isinstance(part, Checkpoint):
        return part
    with closing(hub.download(part.repo, token=token)) as steps:
        try:
            while True:
                at = next(steps)
                yield replace(at, done=before + at.done, total=before + at.total + after)
        except StopIteration as end:
            folder = end.value
    return open_folder(folder, part.name, part.stamp, part.license, part.gated)


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
