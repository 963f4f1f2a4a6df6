"""Where a merge goes: a folder that transformers loads, or a model in memory that chats at once.

Folder knows files and writes with json and tokenizers alone; Live builds the model's class.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from merging import hub, locks
from merging.building import after, build, mould
from merging.companions import write_companions
from merging.errors import MergeError, StalledError
from merging.hub.repo import INDEX
from merging.inside import whole
from merging.samples import Sample, summed
from merging.shards import SHARD, Shard, cut, holds, size_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merging.pairing import Step
    from merging.plan import Plan

IDENTITY = "[0-9a-f]" * 16
"""An identity as a glob: a folder that ends otherwise is somebody's own."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCK = -1


class Folder:
    """Safetensors and all that stands beside them, written once.

    Tensors are filled in place in files of their final size, mapped into memory, inside
    `OUT_DIR.partial-<identity>`; the folder gets its name when it is complete. A run that was
    killed is continued from its complete files. All files are there from the start, so that nobody
    takes their room; `at_once` is how many of them, where somebody takes them away as they come.
    The card tells the figures of `samples`, which the loop is to fill, unless they lack tensors.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        replace: bool = False,
        shard: int = SHARD,
        at_once: int | None = None,
        samples: "Mapping[str, Sample] | None" = None,
    ) -> None:
        self.path, self.replace, self.shard = Path(path).resolve(), replace, shard
        self.at_once, self.samples = at_once, {} if samples is None else samples
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
        self.files = cut(plan.steps, self.shard)
        self.file_of = {s.name: file for file, steps in self.files.items() for s in steps}
        self.shards: dict[str, Shard] = {}
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
        written = [f for f, steps in self.files.items() if holds(self.partial / f, steps)]
        self.complete = {step.name for file in written for step in self.files[file]}
        for stray in set(self.partial.glob("*")) - {self.partial / f for f in written}:
            stray.unlink()  # or of a run with another shard size
        missing = {file: steps for file, steps in self.files.items() if file not in written}
        self._check_disk(sum(sorted(map(size_of, missing.values()), reverse=True)[: self.at_once]))
        self.partial.mkdir(parents=True, exist_ok=True)
        if self.hold is None:
            self.hold = _alone(self.partial)
        if self.at_once is None:
            for file, steps in missing.items():
                self.shards[file] = Shard(self.partial / file, steps)

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
        free = hub.disk(self.path)[1]
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
            self.shards[file] = Shard(self.partial / file, self.files[file])
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
            write_companions(self.plan, self.partial, whole(self.plan, summed(self.samples)))
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
            locks.let_go(self.hold)
        self.hold = None

    def write_index(self) -> None:
        """Writes which tensor is in which file, if they are several."""
        if len(self.files) == 1:
            return
        index = {"metadata": {"total_size": self.plan.size}, "weight_map": self.file_of}
        text = json.dumps(index, indent=2)
        (self.partial / INDEX).write_text(text, encoding="utf-8")


def _alone(folder: Path) -> int:
    """A handle by which this run alone has a folder, until it lets go or is killed.

    Raises MergeError if another run has it: both would fill the same files.
    """
    if not locks.THERE:
        return NO_LOCK
    handle = os.open(folder, os.O_RDONLY)
    try:
        locked = locks.lock(handle, alone=True)
    except BlockingIOError as error:
        os.close(handle)
        raise MergeError(
            f"{folder} is being written by another run of this merge: wait for its end."
        ) from error
    if locked:
        return handle
    os.close(handle)
    return NO_LOCK


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


class Likeness(Protocol):
    """A model in memory, and its tokenizer."""

    @property
    def model(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...


class Live:
    """A model in memory, ready to chat when the merge ends. `dtype` None keeps the plan's.

    Its class takes the merged tensors over as they are. `like` finds a model of the same mould, a
    former merge of the same parents: a copy of it takes a tenth of the time of a new one. `spare`
    is a model that nobody needs any more, whose memory is filled again where it fits.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        like: Callable[[str], Likeness | None] = lambda _: None,
        spare: Any = None,
    ) -> None:
        self.device, self.dtype, self.like = device, dtype, like
        self.spare = dict(spare.named_parameters(remove_duplicate=False)) if spare else {}
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
        held = self.spare.pop(step.name, None)
        if held is not None and (held.shape, held.dtype) == (step.shape, dtype):
            self.filled[step.name] = held.data
        else:
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
