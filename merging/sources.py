"""Where a model's tensors come from: names, shapes and dtypes at once, values when asked.

It knows safetensors, and models of two parts: a base and a LoRA adapter on it. It does not know how
models are found, methods, or model classes.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from merging import adapters, hub
from merging.errors import MergeError
from merging.headers import TensorInfo
from merging.names import EMBEDDING, head


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


def on_base(base: Checkpoint | Remote, own: Checkpoint | Remote) -> Adapter:
    """An adapter on its base. Raises MergeError unless the result is exactly PEFT's."""
    if is_adapter(base):
        raise MergeError(
            f"{own.name} is to go on {base.name}, which is an adapter itself: merge that one into "
            "its base with PEFT, and name the result."
        )
    if not is_adapter(own):
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


def is_adapter(part: Checkpoint | Remote) -> bool:
    """Whether it is to go on a base, and no model by itself."""
    return "peft_type" in part.config
