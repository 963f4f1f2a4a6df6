"""Which tensors of the parents make which tensor of the merged model, by name and shape alone.

It reads headers, not weights, and keeps no list of architectures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merging import vocabulary
from merging.errors import MergeError
from merging.parameters import LAYER, Settings
from merging.recipe import Recipe
from merging.sources import Source, TensorInfo
from merging.vocabulary import Vocabulary

HEADS = {"lm_head.weight": "model.embed_tokens.weight", "embed_out.weight": "embed_in.weight"}
"""Output heads that a tied model leaves out, and the embeddings that stand in for them."""
BUFFERS = ("rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")
"""Old checkpoints carry these, though the model computes them itself."""


@dataclass(frozen=True)
class Step:
    """One tensor of the merged model.

    `reads` is its name in each of the plan's sources, in their order; `values` the method's
    parameters by YAML name. `by_token`: one row a token, to be aligned. `copied`: not merged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    reads: tuple[str, ...]
    values: Mapping[str, Any]
    by_token: bool
    copied: bool

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


def pair(
    recipe: Recipe, chosen: Settings, parents: Sequence[Source], aligned: Vocabulary | None
) -> tuple[Step, ...]:
    """The merged model's tensors. Raises MergeError where names or shapes do not pair."""
    names = _names(parents)
    layers = 1 + max((int(m[1]) for n in names if (m := LAYER.search(n))), default=0)
    steps = []
    for name, reads in names.items():
        infos = [p.tensors[read] for p, read in zip(parents, reads, strict=True)]
        by_token = _by_token(name, infos, parents, aligned)
        _check_shapes(name, infos, parents, by_token)
        shape = (aligned.size, *infos[0].shape[1:]) if by_token and aligned else infos[0].shape
        copied = not all(info.dtype.is_floating_point for info in infos)
        dtype = infos[0].dtype if copied else _dtype(recipe, infos)
        values = {} if copied else chosen.at(name, layers)
        steps.append(Step(name, shape, dtype, reads, values, by_token, copied))
    return tuple(steps)


def _names(parents: Sequence[Source]) -> dict[str, tuple[str, ...]]:
    """Every tensor of the merged model, and what it is called in each parent."""
    have = [{n for n in p.tensors if not n.endswith(BUFFERS)} for p in parents]
    names: dict[str, tuple[str, ...]] = {}
    for name in sorted(set().union(*have), key=_by_layer):
        reads = []
        for parent, own in zip(parents, have, strict=True):
            read = name if name in own else HEADS.get(name, "")
            if read not in own:
                there = next(p for p, o in zip(parents, have, strict=True) if name in o)
                count = len(set().union(*have) - own)
                raise MergeError(
                    f"`{name}` is in {there.name} and not in {parent.name}"
                    f"{f', as are {count - 1} more tensors' if count > 1 else ''}: "
                    "choose models with the same layers, or fetch the model again."
                )
            reads.append(read)
        names[name] = tuple(reads)
    return names


def _by_layer(name: str) -> tuple[int, str]:
    match = LAYER.search(name)
    return (int(match[1]) if match else -1, name)


def _by_token(
    name: str, infos: Sequence[TensorInfo], parents: Sequence[Source], aligned: Vocabulary | None
) -> bool:
    if aligned is None or not vocabulary.ROWS.search(name) or not infos[0].shape:
        return False
    return all(info.shape[0] == rows(p) for info, p in zip(infos, parents, strict=True))


def _check_shapes(
    name: str, infos: Sequence[TensorInfo], parents: Sequence[Source], by_token: bool
) -> None:
    skip = 1 if by_token else 0
    for info, parent in zip(infos, parents, strict=True):
        if info.shape[skip:] != infos[0].shape[skip:]:
            shapes = [" × ".join(map(str, i.shape)) or "a scalar" for i in (infos[0], info)]
            raise MergeError(
                f"`{name}` is {shapes[0]} in {parents[0].name} and {shapes[1]} in {parent.name}: "
                "choose models of the same size."
            )


def _dtype(recipe: Recipe, infos: Sequence[TensorInfo]) -> torch.dtype:
    if written := recipe.out_dtype or recipe.dtype:
        chosen: torch.dtype = getattr(torch, written)
        return chosen
    promoted = infos[0].dtype
    for info in infos[1:]:
        promoted = torch.promote_types(promoted, info.dtype)
    return promoted


def rows(source: Source) -> int:
    """How many rows the model's embeddings have."""
    found = [i.shape[0] for n, i in source.tensors.items() if vocabulary.ROWS.search(n) and i.shape]
    return max(found, default=0)
