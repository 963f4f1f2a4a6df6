"""How models share a device's memory, and what it looks like when memory runs out.

It knows sizes and errors; no models, and not who holds them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from merging.names import before_layers, layer

SHARE = 0.7
"""Share of the free memory for weights. The rest is for keys and values, the merge's blocks, and
other programs: a column of a 7 B model takes 0.5 GB (8 heads of keys and values) to 2.1 GB (32) at
the 4096 tokens that are read at most, in bf16."""
RAN_OUT = ("out of memory", "can't allocate memory")
"""What torch's errors say that have no class of their own: of CUDA's libraries, and on a CPU."""
ALONE = ("in turn", "in parts")
"""The ways in which no model needs another beside it."""


TOLD = {
    "all at once": "all answer at the same time",
    "one by one": "the merge stays, and parents are loaded one after the other",
    "in turn": "each model is loaded in its turn, and the merge made anew",
    "in parts": "each model answers in its turn, slowly, a part of it in the machine's memory",
    "nothing": "no model has room",
}
"""What each way means for who asks."""


@dataclass(frozen=True)
class Size:
    """Bytes of a model's weights: all, and what a device must hold of them at least.

    That is its embeddings, and one block at a time: the rest can wait in the machine's memory.
    """

    whole: int
    least: int


def size(tensors: Mapping[str, int]) -> Size:
    """The size of a model by its tensors' bytes.

    >>> size({"model.embed_tokens.weight": 5, "model.layers.0.mlp.up_proj.weight": 2,
    ...       "model.layers.0.mlp.down_proj.weight": 2, "lm_head.weight": 3})
    Size(whole=12, least=9)
    """
    blocks: Counter[int | str] = Counter()
    first = 0
    for name, count in tensors.items():
        number = layer(name)
        if number is None and before_layers(name):
            first += count
        else:
            blocks[name if number is None else number] += count
    return Size(first + blocks.total(), first + max(blocks.values(), default=0))


def ways(merges: Sequence[Size], parents: Sequence[Size], room: int, spare: int) -> tuple[str, ...]:
    """How all these can answer a question on a device, the best way first; empty if they cannot.

    `room` is for weights on the device, `spare` in the machine's memory beside it.

    They are those of TOLD, but for "nothing". A model that has no room alone is there in parts.
    """
    whole = [each.whole for each in merges], [each.whole for each in parents]
    together, largest = sum(map(sum, whole)), max(map(max, filter(None, whole)), default=0)
    fits = {
        "all at once": together <= room,
        "one by one": sum(whole[0]) + max(whole[1], default=0) <= room,
        "in turn": largest <= room,
        "in parts": largest <= spare and all(e.least <= room for e in (*merges, *parents)),
    }
    return tuple(way for way, fit in fits.items() if fit)


def ran_out(error: BaseException) -> bool:
    """Whether it is memory that an error tells of."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in RAN_OUT)
