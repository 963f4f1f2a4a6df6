"""Where a merge goes: a folder that transformers loads, or a model in memory that chats at once.

Folder knows files and writes with json and tokenizers alone; Live builds the model's class.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from merging.building import after, build, mould
from merging.companions import write_companions
from merging.errors import MergeError
from merging.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merging.pairing import Step
    from merging.plan import Plan

SHARD = 5 * 10**9
"""Bytes in one file at most, as transformers and the Hub like them."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""In which the official writer lays types out: the widest first, so that all stay aligned."""


class Folder:
    """Safetensors and all that stands beside them, written once.

    Tensors are filled in place in files of their final size, mapped into memory, inside
    `OUT_DIR.partial-<identity>`; the folder gets its name when it is complete. A run that was
    killed is continued from its complete files. `at_once` is how many files are there at one time,
    where somebody takes them away as they come.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        replace: bool = False,
        shard: int = SHARD,
        at_once: int | None = None,
    ) -> None:
        self.path, self.replace, self.shard = Path(path).absolute(), replace, shard
        self.at_once = at_once

    def begin(self, plan: "Plan") -> None:
        """Raises MergeError if OUT_DIR exists, for another merge half-done, and a full disk."""
        self.plan = plan
        self.partial = self.path.with_name(f"{self.path.name}.partial-{plan.identity}")
        self._check_place()
        for other in self.path.parent.glob(f"{escape(self.path.name)}.partial-*"):
            if other != self.partial:
                raise MergeError(
                    f"{other} is what is left of another merge: remove it, or continue that one."
                )
        self.files = _shards(plan.steps, self.shard)
        self.file_of = {s.name: file for file, steps in self.files.items() for s in steps}
        self.shards: dict[str, _Shard] = {}
        written = [f for f, steps in self.files.items() if _holds(self.partial / f, steps)]
        self.complete = {step.name for file in written for step in self.files[file]}
        sizes = [_bytes(s) for file, s in self.files.items() if file not in written]
        self._check_disk(sum(sorted(sizes, reverse=True)[: self.at_once]))
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            for stray in set(self.partial.iterdir()) - {self.partial / f for f in written}:
                stray.unlink()  # of a run with another shard size
        except OSError as error:
            raise MergeError(
                f"{self.path} cannot be written ({error.strerror}): choose another folder."
            ) from error

    def _check_place(self) -> None:
        """OUT_DIR must be free, or a former result that may go."""
        if not self.path.exists():
            return
        if not self.replace:
            raise MergeError(f"{self.path} exists: choose another folder, or add --replace.")
        folders = {part.folder for source in self.plan.sources for part in source.parts}
        if any(folder.resolve().is_relative_to(self.path.resolve()) for folder in folders):
            raise MergeError(f"{self.path} holds one of the parents: choose another folder.")

    def _check_disk(self, needed: int) -> None:
        there = next(p for p in self.path.parents if p.exists())
        free = shutil.disk_usage(there).free
        if needed > free:
            raise MergeError(
                f"{self.path} needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB "
                "free: free some space, or choose another disk."
            )

    def has(self, name: str) -> bool:
        return name in self.complete

    def part(self, name: str) -> str:
        return self.file_of[name]

    def place(self, step: "Step") -> Tensor:
        file = self.file_of[step.name]
        if file not in self.shards:
            self.shards[file] = _Shard(self.partial / file, self.files[file])
        return self.shards[file].tensor(step.name)

    def done(self, name: str) -> None:
        for file, shard in list(self.shards.items()):
            shard.left.discard(name)
            if not shard.left:
                shard.close()
                del self.shards[file]

    def finish(self) -> None:
        self.write_index()
        write_companions(self.plan, self.partial)
        old = self.path.with_name(f"{self.path.name}.old-{self.plan.identity}")
        if self.path.exists():
            self.path.rename(old)
        self.partial.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def abandon(self, *, keep: bool) -> None:
        """`keep` complete shards, by which the same merge can go on; else leave nothing."""
        for shard in getattr(self, "shards", {}).values():
            shard.drop()
        partial = getattr(self, "partial", None)
        if partial and partial.is_dir() and not (keep and any(partial.glob("*.safetensors"))):
            shutil.rmtree(partial)

    def write_index(self) -> None:
        """Writes which tensor is in which file, if they are several."""
        if len(self.files) == 1:
            return
        index = {"metadata": {"total_size": self.plan.size}, "weight_map": self.file_of}
        text = json.dumps(index, indent=2)
        (self.partial / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _shards(steps: "Sequence[Step]", limit: int) -> dict[str, list["Step"]]:
    """Files and their tensors, in the order of the merge; a tensor over the limit is alone."""
    groups: list[list[Step]] = [[]]
    used = 0
    for step in steps:
        size = _bytes([step])
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(step)
        used += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": g for i, g in enumerate(groups, 1)}


def _holds(path: Path, steps: "Sequence[Step]") -> bool:
    """Whether a file is there with these tensors: another shard size cuts elsewhere."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return set(file.keys()) == {step.name for step in steps}


def _bytes(steps: "Sequence[Step]") -> int:
    return sum(step.size * step.dtype.itemsize for step in steps)


class _Shard:
    """One safetensors file under way: its header is written first, since all sizes are known."""

    def __init__(self, path: Path, steps: "Sequence[Step]") -> None:
        self.path, self.draft = path, path.with_suffix(".draft")
        ordered = sorted(steps, key=lambda s: (ORDER.index(CODES[s.dtype]), s.name))
        self.steps, self.left = {s.name: s for s in steps}, {s.name for s in steps}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.offsets, end = {}, 0
        for step in ordered:
            self.offsets[step.name], start = end, end
            end += step.size * step.dtype.itemsize
            header[step.name] = {
                "dtype": CODES[step.dtype],
                "shape": list(step.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.start = 8 + len(text)
        _reserve(self.draft, struct.pack("<Q", len(text)) + text, self.start + end)

    def tensor(self, name: str) -> Tensor:
        step = self.steps[name]
        size = step.size * step.dtype.itemsize
        if not size:
            return torch.empty(0, dtype=step.dtype)
        at = self.start + self.offsets[name]
        room = np.memmap(self.draft, dtype=np.uint8, mode="r+", offset=at, shape=(size,))
        return torch.from_numpy(room).view(step.dtype)

    def close(self) -> None:
        with self.draft.open("rb") as file:
            os.fsync(file.fileno())
        self.draft.rename(self.path)

    def drop(self) -> None:
        self.draft.unlink(missing_ok=True)


def _reserve(path: Path, head: bytes, size: int) -> None:
    """A file of its final size: a full disk is found now, not after an hour."""
    with path.open("wb") as file:
        file.write(head)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            path.unlink()
            raise MergeError(
                f"{path.parent} has no room for {size / 1e9:.2f} GB ({error.strerror}): "
                "free some space."
            ) from error


class Likeness(Protocol):
    """A model in memory, and its tokenizer."""

    @property
    def model(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...


class Live:
    """A model in memory, ready to chat when the merge ends. `dtype` None keeps the plan's.

    Its class takes the merged tensors over as they are. `like` finds a model of the same mould, a
    former merge of the same parents: a copy of it takes a tenth of the time of a new one.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        like: Callable[[str], Likeness | None] = lambda _: None,
    ) -> None:
        self.device, self.dtype, self.like = device, dtype, like
        self.model: Any = None
        self.tokenizer: Any = None
        self.mould = ""

    def begin(self, plan: "Plan") -> None:
        self.plan = plan
        self.filled: dict[str, Tensor] = {}

    def has(self, name: str) -> bool:
        return name in self.filled

    def part(self, name: str) -> None:  # noqa: ARG002  # in memory it is all one
        return None

    def place(self, step: "Step") -> Tensor:
        dtype = self.dtype if self.dtype and not step.copied else step.dtype
        self.filled[step.name] = torch.empty(step.shape, dtype=dtype, device=self.device)
        return self.filled[step.name].view(-1)

    def done(self, name: str) -> None:
        pass

    def finish(self) -> None:
        """Raises MergeError unless the tensors are exactly those that the model's class has."""
        with tempfile.TemporaryDirectory() as folder:
            write_companions(self.plan, Path(folder))
            self.mould = mould(folder, self.filled)
            like = self.like(self.mould)
            if like and (model := after(like.model, self.filled)):
                self.model, self.tokenizer = model, like.tokenizer
            else:
                self._build(folder)
        self.filled = {}

    def _build(self, folder: str) -> None:
        from transformers import AutoTokenizer

        dtype = self.dtype or getattr(torch, self.plan.config["dtype"])
        model, report = build(folder, self.filled, dtype, self.device)
        self._check(type(model).__name__, report)
        self.model, self.tokenizer = model, AutoTokenizer.from_pretrained(folder)

    def abandon(self, *, keep: bool) -> None:  # noqa: ARG002  # memory is never kept
        self.filled = {}

    def _check(self, kind: str, found: "Mapping[str, Any]") -> None:
        copied = {step.name for step in self.plan.steps if step.copied}
        lacking, odd = found["missing_keys"], found["unexpected_keys"] - copied
        if lacking or odd or found["mismatched_keys"]:
            names = sorted(lacking or odd or {str(key) for key, *_ in found["mismatched_keys"]})[:3]
            raise MergeError(
                f"{kind} {'lacks' if lacking else 'has no'} {', '.join(names)}: "
                "the parents' files do not fit their config.json; choose other parents."
            )
