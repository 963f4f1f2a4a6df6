"""Loads a source as a model that can chat: whole on a device, or in parts beside it.

It knows dtypes and model classes; who holds the models, and what they are asked, it does not.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merging.building import build, spread
from merging.companions import copy_companions
from merging.errors import MergeError
from merging.memory import Size, ran_out, size
from merging.sources import Local, Source


@dataclass(frozen=True)
class Loaded:
    """A model that can chat, with its tokenizer. Never changed once it is in a library.

    Those of one `mould` differ in nothing but the values of their weights. `size` is bytes on the
    device.
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


def load_parent(source: Local, device: str, room: int | None = None) -> Loaded:
    """A parent as a model, its tensors read one by one: an adapter's are in no file as they are.

    Of one that is given less `room` than it needs on the device, a part stays in the machine's
    memory. Raises MergeError if its files and its config do not fit.
    """
    from transformers import AutoTokenizer

    dtype, at = chat_dtype(device, own_dtype(source)), device if room is None else "cpu"
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy_companions(source, Path(folder))
            tensors = {name: _read(source, name, dtype, at) for name in source.tensors}
            model, report = build(folder, tensors, dtype, at)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        if ran_out(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise MergeError(f"{source.name} cannot be loaded ({first}): choose another.") from error
    if report["missing_keys"]:
        name = sorted(report["missing_keys"])[0]
        raise MergeError(f"{source.name} lacks `{name}`: fetch it again, or choose another.")
    del tensors
    return Loaded.of(model, tokenizer) if room is None else in_parts(model, tokenizer, device, room)


def in_parts(model: Any, tokenizer: Any, device: str, room: int) -> Loaded:
    """A model of the machine's memory with as much of it on the device as has room there.

    It counts as all of the room, where the rest of it comes and goes. It is no mould for others.
    """
    return Loaded(spread(model, device, room), tokenizer, room)


def _read(source: Local, name: str, dtype: torch.dtype, device: str) -> torch.Tensor:
    """A copy: what is read may be the file itself, which others may change or cut."""
    values = source.read(name)
    return values.to(device, dtype if values.is_floating_point() else None, copy=True)


def size_of(source: Source, device: str) -> Size:
    """Bytes that a parent's weights take once they are loaded."""
    width = chat_dtype(device, own_dtype(source)).itemsize
    return size({name: width * info.size for name, info in source.tensors.items()})


def own_dtype(source: Source) -> torch.dtype:
    """What the config says, as for transformers, else the type of the first weight."""
    named = getattr(torch, str(source.config.get("dtype") or source.config.get("torch_dtype")), "")
    first = (i.dtype for i in source.tensors.values() if i.dtype.is_floating_point)
    return named if isinstance(named, torch.dtype) else next(first)
