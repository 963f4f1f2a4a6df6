"""Where a merge goes: a folder that transformers loads, or a model in memory that chats at once.

Folder knows files and writes with json and tokenizers alone; Live builds the model's class.
"""

import errno
import json
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from merging.companions import write_companions
from merging.errors import MergeError, StalledError
from merging.headers import DTYPES

try:
    import fcntl
except ImportError:  # Windows: two runs at once are the user's own care
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merging.pairing import Step
    from merging.plan import Plan

SHARD = 5 * 10**9
"""Bytes in one file at most, as transformers and the Hub like them."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
IDENTITY = "[0-9a-f]" * 16
"""As a glob: a folder that ends otherwise is somebody's own."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCK = -1
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""In which the official writer lays types out: the widest first, so that all stay aligned."""


class Folder:
    """Safetensors and all that stands beside them, written once.

    Tensors are filled in place in files of their final size, mapped into memory, inside
    `OUT_DIR.partial-<identity>`; the folder gets its name when it is complete. A run that was
    killed is continued from its complete files. All files are there from the start, so that nobody
    takes their room; `at_once` is how many of them, where somebody takes them away as they come.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        replace: bool = False,
        shard: int = SHARD,
        at_once: int | None = None,
    ) -> None:
        self.path, self.replace, self.shard = Path(path).resolve(), replace, shard
        self.at_once = at_once
        self.hold: int | None = None

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
        if self.path.exists():  # else the former result is all that there is
            self._clear_old()
        self.files = _shards(plan.steps, self.shard)
        self.file_of = {s.name: file for file, steps in self.files.items() for s in steps}
        self.shards: dict[str, _Shard] = {}
        try:
            self._take_room()
        except BaseException as error:
            with suppress(OSError):
                self.abandon(keep=True)
            if not isinstance(error, OSError):
                raise
            raise MergeError(
                f"{self.path} cannot be written ({error.strerror}): choose another folder."
            ) from error

    def _take_room(self) -> None:
        """For all files that are not written, once what a killed run had taken is given back."""
        if self.partial.is_dir():
            self.hold = _alone(self.partial)
        written = [f for f, steps in self.files.items() if _holds(self.partial / f, steps)]
        self.complete = {step.name for file in written for step in self.files[file]}
        for stray in set(self.partial.glob("*")) - {self.partial / f for f in written}:
            stray.unlink()  # or of a run with another shard size
        missing = {file: steps for file, steps in self.files.items() if file not in written}
        self._check_disk(sum(sorted(map(_bytes, missing.values()), reverse=True)[: self.at_once]))
        self.partial.mkdir(parents=True, exist_ok=True)
        if self.hold is None:
            self.hold = _alone(self.partial)
        if self.at_once is None:
            for file, steps in missing.items():
                self.shards[file] = _Shard(self.partial / file, steps)

    def _check_place(self) -> None:
        """OUT_DIR must be free, or a former result that may go."""
        if not self.path.exists():
            return
        if not self.replace:
            raise MergeError(f"{self.path} exists: choose another folder, or add --replace.")
        if not self.path.is_dir():
            raise MergeError(f"{self.path} is no folder: choose another name.")
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
        """Raises StalledError where the disk has filled up, or OUT_DIR has come up, meanwhile."""
        with told_if_full(self.path):
            self.write_index()
            write_companions(self.plan, self.partial)
        try:
            self._check_place()
        except MergeError as error:
            raise StalledError(str(error)) from error
        if self.path.exists():
            self._clear_old()
            self.path.rename(self.path.with_name(f"{self.path.name}.old-{self.plan.identity}"))
        self.partial.rename(self.path)
        self.let_go()
        self._clear_old()

    def _clear_old(self) -> None:
        """Former results that were replaced: a killed run may have left one beside its own."""
        for old in self.path.parent.glob(f"{escape(self.path.name)}.old-{IDENTITY}"):
            shutil.rmtree(old, ignore_errors=True)

    def abandon(self, *, keep: bool) -> None:
        """`keep` complete shards, by which the same merge can go on; else leave nothing."""
        if self.hold is None:
            return  # another run's, or nobody's
        for shard in self.shards.values():
            shard.drop()
        if self.partial.is_dir() and not (keep and any(self.partial.glob("*.safetensors"))):
            shutil.rmtree(self.partial)
        self.let_go()

    def let_go(self) -> None:
        """Nothing is written any more: another run may have the folder."""
        if self.hold not in (None, NO_LOCK):
            fcntl.flock(self.hold, fcntl.LOCK_UN)  # closing is not enough where a child has it too
            os.close(self.hold)
        self.hold = None

    def write_index(self) -> None:
        """Writes which tensor is in which file, if they are several."""
        if len(self.files) == 1:
            return
        index = {"metadata": {"total_size": self.plan.size}, "weight_map": self.file_of}
        text = json.dumps(index, indent=2)
        (self.partial / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _alone(folder: Path) -> int:
    """A handle by which this run alone has a folder, until it lets go or is killed.

    Raises MergeError if another run has it: both would fill the same files.
    """
    if fcntl is None:
        return NO_LOCK
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise MergeError(
            f"{folder} is being written by another run of this merge: wait for its end."
        ) from error
    except OSError:  # a file system without locks
        os.close(handle)
        return NO_LOCK
    return handle


@contextmanager
def told_if_full(path: Path) -> Iterator[None]:
    """Raises StalledError where a disk has no room for the files beside the weights."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StalledError(
            f"{path} has its weights, and the disk no room for the small files beside them "
            f"({error.strerror}): free some space and run the same merge again."
        ) from error


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


BUILDING = threading.Lock()
"""Held while a model's class is built: transformers changes torch's own functions, and its default
dtype, for the whole process meanwhile."""


class Live:
    """A model in memory, ready to chat when the merge ends. `dtype` None keeps the plan's.

    Its class takes the merged tensors over as they are.
    """

    def __init__(self, *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.device, self.dtype = device, dtype
        self.model: Any = None
        self.tokenizer: Any = None

    def begin(self, plan: "Plan") -> None:
        self.plan = plan
        self.filled: dict[str, Tensor] = {}

    def has(self, name: str) -> bool:
        return name in self.filled

    def place(self, step: "Step") -> Tensor:
        dtype = self.dtype if self.dtype and not step.copied else step.dtype
        self.filled[step.name] = torch.empty(step.shape, dtype=dtype, device=self.device)
        return self.filled[step.name].view(-1)

    def done(self, name: str) -> None:
        pass

    def finish(self) -> None:
        """Raises MergeError unless the tensors are exactly those that the model's class has."""
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            write_companions(self.plan, Path(folder))
            dtype = self.dtype or getattr(torch, self.plan.config["dtype"])
            model, report = build(folder, self.filled, dtype, self.device)
            self._check(type(model).__name__, report)
            self.model, self.tokenizer = model, AutoTokenizer.from_pretrained(folder)
        self.filled = {}

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


def build(
    folder: str, tensors: "Mapping[str, Tensor]", dtype: torch.dtype, device: str
) -> tuple[Any, "Mapping[str, Any]"]:
    """A model that can chat, of a folder's config and these tensors, and what the loader says of
    their names. By transformers' own loader, which knows how files and classes differ; nothing is
    copied where the types are equal. Raises MergeError for a config of no language model.
    """
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise MergeError(
            f"transformers has no language model for {type(config).__name__}: choose other parents."
        )
    with BUILDING:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), output_loading_info=True, dtype=dtype,
            device_map={"": device} if device != "cpu" else None,
        )  # fmt: skip
    if (Path(folder) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.requires_grad_(False).eval(), report
