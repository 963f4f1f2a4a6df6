"""Safetensors files under way: which tensors go into which, and their room on the disk.

It knows names, shapes and types, not what the tensors hold.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from merging.errors import MergeError
from merging.headers import DTYPES
from merging.hub.repo import SINGLE

if TYPE_CHECKING:
    from merging.pairing import Step

SHARD = 5 * 10**9
"""Bytes in one file at most, as transformers and the Hub like them."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""Types as the official writer lays them out: the widest first, so that all stay aligned."""


def cut(steps: Sequence[Step], limit: int) -> dict[str, list[Step]]:
    """Files and their tensors, in the order of the merge; a tensor over the limit is alone."""
    groups: list[list[Step]] = [[]]
    used = 0
    for step in steps:
        size = size_of([step])
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(step)
        used += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": g for i, g in enumerate(groups, 1)}


def holds(path: Path, steps: Sequence[Step]) -> bool:
    """Whether a file is there with these tensors: another shard size cuts elsewhere."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return set(file.keys()) == {step.name for step in steps}


def size_of(steps: Sequence[Step]) -> int:
    return sum(step.size * step.dtype.itemsize for step in steps)


class Shard:
    """One safetensors file under way: its header is written first, since all sizes are known."""

    def __init__(self, path: Path, steps: Sequence[Step]) -> None:
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
    with path.open("wb", buffering=0) as file:  # closing must not write, and fail, once more
        try:
            file.write(head)
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
