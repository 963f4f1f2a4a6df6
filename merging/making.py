"""Merges into a model in memory.

It knows plans and the library that holds models; not who wants the merge, or for what.
"""

import time
from collections.abc import Generator, Mapping

import torch

from merging.library import Library
from merging.loading import Loaded, chat_dtype, in_parts
from merging.merge import Numbers, Progress, Samples, merge
from merging.plan import Plan
from merging.sinks import Live


def made(
    decided: Plan,
    library: Library,
    samples: Samples | None = None,
    *,
    spare: Loaded | None = None,
    room: int | None = None,
) -> Generator[Progress, None, tuple[Loaded, Mapping[str, int]]]:
    """The merge as a model that can chat, and what became of its tensors, counted by outcome.

    It is put on no shelf: the caller has made room for it.
    What earlier merges of the same parents measured is not measured again. A `spare` model's memory
    is filled anew, and it must not be used any more. Given less `room` than it needs on the device,
    a part of the merge stays in the machine's memory.
    """
    dtype, start = dtype_of(decided, library), time.monotonic()

    def like(mould: str) -> Loaded | None:
        return spare if spare and spare.mould == mould else library.like(mould)

    at = library.device if room is None else "cpu"
    live = Live(device=at, dtype=dtype, like=like, spare=spare.model if spare else None)
    tally = dict[str, int]()
    known = numbers(decided, library)
    for progress in merge(decided, live, known, samples=samples, device=library.device):
        tally = dict(progress.tally)
        yield progress
    library.merging.took = time.monotonic() - start
    if room is not None:
        return in_parts(live.model, live.tokenizer, library.device, room), tally
    return Loaded.of(live.model, live.tokenizer, live.mould), tally


def numbers(decided: Plan, library: Library) -> Numbers:
    """What is measured on the plan's parents, in this merge or one before."""
    parents = " ".join(f"{source.name} {source.stamp}" for source in decided.sources)
    rows = decided.recipe.tokenizer_source  # it says which rows meet
    return library.numbers(f"{parents} {rows}")


def dtype_of(decided: Plan, library: Library) -> torch.dtype:
    """What the merged model's weights are kept in."""
    return chat_dtype(library.device, getattr(torch, decided.config["dtype"]))


def size_of(decided: Plan, library: Library) -> int:
    """Bytes of the merged model in memory."""
    return dtype_of(decided, library).itemsize * sum(step.size for step in decided.steps)
