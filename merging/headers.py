"""What model files say of themselves: safetensors headers, the index over them, small JSON files.

It knows one folder or one file's first bytes at a time, and reads no weights.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merging.errors import MergeError
from merging.hub.repo import ADAPTER, INDEX, SINGLE

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
PACKED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
"""Types that only quantised weights and their scales have."""
HEADER_CAP = 25_000_000
"""Bytes of a header, at most: the largest that safetensors itself reads."""
SIZE_CAP, RANK_CAP = 2**63 - 1, 64
"""Elements of a tensor, zeros not counted, and dimensions: what torch can hold, if only empty."""
SPARE = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$|\.(inv_freq|masked_bias)$")
"""Tensors that an index may name and no file have."""
SMALL_CAP = 20_000_000
"""Bytes of a config or index file; a tokenizer may be larger and is not read here."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_header(
    read: Callable[[int, int], bytes], size: int, file: str, name: str
) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file of `size` bytes, by reading its header alone.

    Raises MergeError unless the offsets are contiguous, inside the file and fit the shapes.
    """
    where = f"{name}: {file}"
    start = read(0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= HEADER_CAP or 8 + length > size:
        raise MergeError(f"{where} is not a whole safetensors file ({size} bytes): fetch it again.")
    try:
        header = json.loads(read(8, 8 + length).decode("utf-8"), object_pairs_hook=_once)
        _check_metadata(header.get("__metadata__"))
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        packed = next((v["dtype"] for v in entries.values() if v["dtype"] in PACKED), None)
        spans = sorted((*v["data_offsets"], k) for k, v in entries.items())
        end = 0
        for first, last, key in spans:
            _check_span(entries[key], first, last, end)
            end = last
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{where} has a broken header ({error}): fetch it again.") from error
    if packed:
        raise MergeError(
            f"{where} holds weights in {packed}: the model is quantised, and its deltas would be "
            "noise. Choose the model in bf16 or fp16."
        )
    if 8 + length + end != size:
        raise MergeError(
            f"{where} is truncated: it has {size} bytes of {8 + length + end}. Fetch it again."
        )
    return {k: TensorInfo(DTYPES[v["dtype"]], tuple(v["shape"]), file) for k, v in entries.items()}


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Refuses duplicate keys, which readers resolve differently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key that is there twice")
    return found


def _check_metadata(written: Any) -> None:
    if written and not all(isinstance(v, str) for v in written.values()):
        raise ValueError("__metadata__ that is no text")


def _check_span(entry: Mapping[str, Any], first: int, last: int, end: int) -> None:
    if entry["dtype"] in PACKED:
        return
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} cannot be merged")
    if any(type(n) is not int or n < 0 for n in (*entry["shape"], first, last)):
        raise ValueError("sizes that are no whole numbers")
    if len(entry["shape"]) > RANK_CAP or math.prod(n for n in entry["shape"] if n) > SIZE_CAP:
        raise ValueError(f"shape {str(entry['shape'])[:40]}")
    wanted = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
    if first != end or last - first != wanted:
        raise ValueError("offsets do not fit the shapes")


def joined(
    headers: Mapping[str, Mapping[str, TensorInfo]], folder: Path, name: str
) -> dict[str, TensorInfo]:
    """The tensors of all files. MergeError unless each is where the index says, and only there.

    The index may name tied heads and buffers that no file has: conversions leave them out.
    """
    found = {k: info for header in headers.values() for k, info in header.items()}
    if headers.keys() in ({SINGLE}, {ADAPTER}):
        return found
    named = read_json(folder / INDEX, name)["weight_map"]
    there = {(k, file) for file, header in headers.items() for k in header}
    said = {(k, str(file)) for k, file in named.items() if k in found or not SPARE.search(k)}
    for key, file in sorted(said ^ there):
        what = "is in {} and its index does not say so" if (key, file) in there else (
            "is not in {}, where its index has it"
        )  # fmt: skip
        raise MergeError(
            f"{name}: `{key}` {what.format(file)}: the files do not belong together. "
            "Fetch the model again, or choose another revision."
        )
    return found


def weight_files(folder: Path, name: str) -> list[str]:
    index = folder / INDEX
    if index.exists():
        return _shards(index, name)
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if (folder / ADAPTER).is_file():
        return [ADAPTER]
    pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        raise MergeError(
            f"{name} has only pickled weights ({pickles[0]}), which can run code when loaded: "
            "choose a model with safetensors."
        )
    raise MergeError(f"{name} has no model.safetensors: choose a folder that holds a model.")


def _shards(index: Path, name: str) -> list[str]:
    found = read_json(index, name).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise MergeError(f"{name}: its index names no files; fetch the model again.")
    files = sorted({str(file) for file in found.values()})
    for file in files:
        if Path(file).name != file:
            raise MergeError(f"{name}: its index names `{file}`, which is not a plain name.")
        if not index.with_name(file).is_file():
            raise MergeError(f"{name}: {file} is missing; fetch the model again.")
    return files


def read_json(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        raise MergeError(f"{name} has no {path.name}: choose a folder that holds a model.")
    if path.stat().st_size > SMALL_CAP:
        raise MergeError(f"{name}: {path.name} is over {SMALL_CAP // 10**6} MB: that is no model.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MergeError(
            f"{name}: {path.name} is not valid JSON: fetch the model again."
        ) from error
    if not isinstance(content, dict):
        raise MergeError(f"{name}: {path.name} is not a JSON object: fetch the model again.")
    return content
