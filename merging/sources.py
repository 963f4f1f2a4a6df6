"""Where a model's tensors come from: names, shapes and dtypes at once, values when asked.

It knows safetensors and folders; it does not know recipes' meaning, methods, or model classes.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open

from merging import hub
from merging.errors import MergeError
from merging.recipe import ModelRef

APP = Path(__file__).resolve().parent.parent
RESERVED = ("assets/demo/base", "assets/demo/a", "assets/demo/b")
"""The embedded models: found beside the app, whatever the working directory."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
PACKED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
"""Types that only quantised weights and their scales have."""
HEADER_CAP = 25_000_000
"""Bytes; the largest header that safetensors itself reads."""
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

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype and shape; do not write into it."""
        file = self.tensors[name].file
        if file not in self.handles:
            self.handles[file] = safe_open(self.folder / file, framework="pt")
        values: torch.Tensor = self.handles[file].get_tensor(name)
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


Source: TypeAlias = Checkpoint | Remote


def open_source(name: str, *, folders: bool = True, token: hub.Token = False) -> Source:
    """Find a model by its name in a recipe. Reads config and headers, never weights.

    `folders`: whether names may be local folders other than the embedded models.
    Raises MergeError where there is no such model, or none that can be merged.
    """
    ref = ModelRef.parse(name)
    if ref.adapter:
        raise MergeError(f"{name}: adapters (`+`) cannot be merged yet; name a full model.")
    if ref.path in RESERVED:
        return open_folder(APP / ref.path, name)
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
    config = _json(folder / "config.json", name)
    files = _weight_files(folder, name)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        path = folder / file
        size = path.stat().st_size

        def read(start: int, stop: int, path: Path = path) -> bytes:
            with path.open("rb") as stream:
                stream.seek(start)
                return stream.read(stop - start)

        tensors |= read_header(read, size, file, name)
    license = license or _license(folder)
    return Checkpoint(name, folder, config, tensors, stamp or _stamp(folder), 0, license, gated)


def fetch(source: Source, *, token: hub.Token = False) -> Generator[hub.Fetched, None, Checkpoint]:
    """Bring a source onto this machine; yields bytes as they come, returns the checkpoint."""
    if isinstance(source, Checkpoint):
        return source
    folder = yield from hub.download(source.repo, token=token)
    return open_folder(folder, source.name, source.stamp, source.license, source.gated)


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
        header = json.loads(read(8, 8 + length))
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


def _check_span(entry: Mapping[str, Any], first: int, last: int, end: int) -> None:
    if entry["dtype"] in PACKED:
        return
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} cannot be merged")
    if any(not isinstance(n, int) or n < 0 for n in entry["shape"]):
        raise ValueError(f"shape {entry['shape']}")
    wanted = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
    if first != end or last - first != wanted:
        raise ValueError("offsets do not fit the shapes")


def _open_remote(repo: hub.Repo, name: str, token: hub.Token) -> Remote:
    files = hub.weights(repo, token=token)
    folder = hub.small_files(repo, token=token)
    tensors: dict[str, TensorInfo] = {}
    for file in files:

        def read(start: int, stop: int, file: str = file) -> bytes:
            return hub.read_range(repo, file, start, stop, token=token)

        tensors |= read_header(read, repo.files[file].size, file, name)
    config = _json(folder / "config.json", name)
    missing = sum(repo.files[file].size for file in files)
    return Remote(
        name, repo, folder, config, tensors, repo.revision, missing, repo.license, repo.gated
    )


def _weight_files(folder: Path, name: str) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        found = _json(index, name).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise MergeError(f"{name}: its index names no files; fetch the model again.")
        files = sorted({str(file) for file in found.values()})
        for file in files:
            if Path(file).name != file:
                raise MergeError(f"{name}: its index names `{file}`, which is not a plain name.")
            if not (folder / file).is_file():
                raise MergeError(f"{name}: {file} is missing; fetch the model again.")
        return files
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        raise MergeError(
            f"{name} has only pickled weights ({pickles[0]}), which can run code when loaded: "
            "choose a model with safetensors."
        )
    raise MergeError(f"{name} has no model.safetensors: choose a folder that holds a model.")


def _json(path: Path, name: str) -> dict[str, Any]:
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


def _license(folder: Path) -> str | None:
    """What the front matter of a folder's card says, read as a line and not as YAML."""
    card = folder / "README.md"
    if not card.is_file() or card.stat().st_size > SMALL_CAP:
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license: *([\w.+-]{1,64}) *$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def _stamp(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    facts = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
