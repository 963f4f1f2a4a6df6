"""Holds models within a memory budget and lends them; the only owner of models in a process, and
of what is kept for their next use.

It knows how a parent is loaded, and not what a model was merged from or is asked.
"""

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merging.building import build
from merging.companions import copy_companions
from merging.errors import MergeError
from merging.merge import Numbers
from merging.reading import Pasts
from merging.sources import Local, Source
from merging.threads import cores
from merging.turns import Turns

SHARE = 0.7
"""Of the free memory; the rest is for keys and values, the merge's blocks, and other programs."""
FINDINGS = 256
"""That are kept about models: a few hundred bytes each, or tens of kB about what a merge did."""
READ = 1 / 8
"""Of the budget, and beside it: what keys and values of ended answers may take."""


@dataclass(frozen=True)
class Loaded:
    """A model that can chat, with its tokenizer. Never changed once it is in a library.

    Those of one `mould` differ in nothing but the values of their weights.
    """

    model: Any
    tokenizer: Any
    size: int
    mould: str = ""

    @classmethod
    def of(cls, model: Any, tokenizer: Any, mould: str = "") -> "Loaded":
        size = sum(p.numel() * p.itemsize for p in model.parameters())
        return cls(model, tokenizer, size, mould)


def prepare() -> None:
    """Import what the first merge and the first answer need, seconds of it, before anyone waits.

    It touches no device, so that a ZeroGPU worker, forked later, finds it all imported.
    """
    import accelerate  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )


def chat_dtype(device: str, own: torch.dtype) -> torch.dtype:
    """What weights of a checkpoint's `own` type are kept in.

    On a CPU bf16 stays too: it says as many tokens a second as float32, in half the memory (see
    `reading.Upcast` for prompts). Float16 has too small a range for layers that sum in it there.
    """
    return own if device != "cpu" or own is torch.bfloat16 else torch.float32


def load_parent(source: Local, device: str) -> Loaded:
    """A parent as a model, its tensors read one by one: an adapter's are in no file as they are.

    Raises MergeError if its files and its config do not fit.
    """
    from transformers import AutoTokenizer

    dtype = chat_dtype(device, own_dtype(source))
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy_companions(source, Path(folder))
            tensors = {name: _read(source, name, dtype, device) for name in source.tensors}
            model, report = build(folder, tensors, dtype, device)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise MergeError(f"{source.name} cannot be loaded ({first}): choose another.") from error
    if report["missing_keys"]:
        name = sorted(report["missing_keys"])[0]
        raise MergeError(f"{source.name} lacks `{name}`: fetch it again, or choose another.")
    return Loaded.of(model, tokenizer)


def _read(source: Local, name: str, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A copy: what is read may be the file itself, which others may change or cut."""
    values = source.read(name)
    return values.to(device, dtype if values.is_floating_point() else None, copy=True)


def size_of(source: Source, device: str) -> int:
    """Bytes that a parent's weights take once they are loaded."""
    dtype = chat_dtype(device, own_dtype(source))
    return dtype.itemsize * sum(info.size for info in source.tensors.values())


def own_dtype(source: Source) -> torch.dtype:
    """What the config says, as for transformers, else the type of the first weight."""
    named = getattr(torch, str(source.config.get("dtype") or source.config.get("torch_dtype")), "")
    first = (i.dtype for i in source.tensors.values() if i.dtype.is_floating_point)
    return named if isinstance(named, torch.dtype) else next(first)


def budget(device: str) -> int:
    """Bytes that models may take on `device`, from what is free now."""
    from accelerate.utils import get_max_memory

    free = get_max_memory()
    return int(SHARE * float(free["cpu"] if device == "cpu" else free[0]))


@dataclass
class Library:
    """Lends models by key. Least recently used ones leave when room is needed, lent ones never.

    `merging` is held by whoever merges, one at a time; `lock` guards the shelf alone. `pasts` has
    what its models have read, so that a follow-up question is not read from the beginning; all
    questions to them are answered in `turns`, on a GPU by one thread that drives it. `known` are
    small findings about models, which may have gone.
    """

    device: str
    budget: int
    shelf: OrderedDict[str, Loaded] = field(default_factory=OrderedDict)
    lent: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Numbers] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    merging: threading.Lock = field(default_factory=threading.Lock)
    pasts: Pasts = field(init=False)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.pasts = Pasts(int(READ * self.budget))
        self.turns = Turns(cores() if self.device == "cpu" else 1)

    def has(self, key: str) -> bool:
        return key in self.shelf

    @contextmanager
    def borrow(self, key: str, size: int, load: Callable[[], Loaded]) -> Iterator[Loaded]:
        """The model under `key`, loaded first if it is not here (about `size` bytes)."""
        with self.lock:
            if key not in self.shelf:
                self.make_room(size)
                self.shelf[key] = load()
            self.shelf.move_to_end(key)
            self.lent[key] = self.lent.get(key, 0) + 1
            loaded = self.shelf[key]
        try:
            yield loaded
        finally:
            with self.lock:
                self.lent[key] -= 1

    def parent(self, source: Local) -> AbstractContextManager[Loaded]:
        """A parent as a model, loaded first if it is not here."""
        key = f"{source.name} {source.stamp}"
        return self.borrow(
            key, size_of(source, self.device), partial(load_parent, source, self.device)
        )

    def fits(self, sources: Iterable[Local]) -> bool:
        """Whether these parents have room at the same time, beside what is lent to others."""
        sizes = {f"{s.name} {s.stamp}": size_of(s, self.device) for s in sources}
        with self.lock:
            lent = {key: self.shelf[key].size for key, count in self.lent.items() if count}
            return sum((lent | sizes).values()) <= self.budget

    @contextmanager
    def beside(self, source: Local) -> Iterator[Loaded | None]:
        """A parent that is here, or fits without another model leaving for it; None if neither."""
        with self.lock:
            fits = self._used() + size_of(source, self.device) <= self.budget
            here = fits or self.has(f"{source.name} {source.stamp}")
        if not here:
            yield None
            return
        with self.parent(source) as loaded:
            yield loaded

    def note(self, key: str, finding: Any) -> None:
        """Keep a small finding under `known`; the oldest go."""
        with self.lock:
            self.known[key] = finding
            while len(self.known) > FINDINGS:
                del self.known[next(iter(self.known))]

    def publish(self, key: str, loaded: Loaded) -> None:
        """Put a finished merge on the shelf, under its identity."""
        with self.lock:
            self.shelf[key] = loaded
            self.shelf.move_to_end(key)

    def like(self, mould: str) -> Loaded | None:
        """A model of that mould, if there is one."""
        with self.lock:
            return next((m for m in self.shelf.values() if m.mould == mould), None)

    def numbers(self, parents: str) -> Numbers:
        """What merges measured on the same parents, so that the next one need not."""
        with self.lock:
            if parents not in self.kept:
                self.kept.clear()  # one set of parents at a time: theirs are the next re-merge's
                self.kept[parents] = {}
            return self.kept[parents]

    def make_room(self, size: int) -> None:
        """Let models go until `size` bytes fit. Raises MergeError if the lent ones are too many."""
        with self.lock:
            for key in list(self.shelf):
                if self._used() + size <= self.budget:
                    return
                if not self.lent.get(key):
                    del self.shelf[key]
            if self._used() + size > self.budget:
                raise MergeError(
                    f"This needs {size / 1e9:.1f} GB more memory, and {self._used() / 1e9:.1f} of "
                    f"the {self.budget / 1e9:.1f} GB for models are in use: choose smaller "
                    "models, or fewer at once."
                )

    def _used(self) -> int:
        return sum(loaded.size for loaded in self.shelf.values())
