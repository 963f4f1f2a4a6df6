"""Which tensors of the parents make which tensor of the merged model, by name and shape alone.

It reads headers, not weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merging import vocabulary
from merging.errors import MergeError
from merging.headers import TensorInfo
from merging.names import BUFFERS, EMBEDDING, at_layer, before_layers, head, layer, layers, prefix
from merging.parameters import Settings
from merging.roles import Part
from merging.sources import Source
from merging.vocabulary import Vocabulary


@dataclass(frozen=True)
class Step:
    """One tensor of the merged model.

    `reads` is its name in each of `sources`, which are places in the plan's sources, the base last
    if there is one; `values` the method's parameters by YAML name. `by_token`: one row a token, to
    be aligned. `copied`: not merged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[int, ...]
    reads: tuple[str, ...]
    values: Mapping[str, Any]
    by_token: bool
    copied: bool

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: `name` in the merged model, each input's layer, 0 to 1 in its part."""

    part: Part
    name: str
    layers: tuple[int | None, ...]
    where: float


def pair(
    chosen: Settings, parts: Sequence[Part], found: Mapping[str, Source], aligned: Vocabulary | None
) -> tuple[Step, ...]:
    """The merged model's tensors. Raises MergeError where names or shapes do not pair.

    `found` are the plan's sources in order, by their names in the recipe.
    """
    names = _Names(found)
    return tuple(
        _step(place, chosen, found, names, aligned) for place in _places(parts, found, names)
    )


def _step(
    place: Place,
    chosen: Settings,
    found: Mapping[str, Source],
    names: _Names,
    aligned: Vocabulary | None,
) -> Step:
    models = [m.model for m in place.part.inputs]
    parents = [found[model] for model in models]
    called = [at_layer(place.name, number) for number in place.layers]
    reads = tuple(names.read(model, name) for model, name in zip(models, called, strict=True))
    _check_there(place.name, reads, models, names)
    infos = [p.tensors[read] for p, read in zip(parents, reads, strict=True)]
    by_token = _by_token(place.name, infos, parents, aligned)
    _check_shapes(place.name, infos, parents, by_token)
    copied = not all(info.dtype.is_floating_point for info in infos)
    return Step(
        names.written(place.name),
        (aligned.size, *infos[0].shape[1:]) if by_token and aligned else infos[0].shape,
        infos[0].dtype if copied else _dtype(chosen, infos),
        tuple(list(found).index(model) for model in models),
        reads,
        {} if copied else _values(place, chosen, called),
        by_token,
        copied,
    )


def _values(place: Place, chosen: Settings, called: Sequence[str]) -> Mapping[str, Any]:
    """The method's parameters; filters look at the name that the tensor has in each model."""
    merged = place.part.merged
    own = called[: len(merged)]
    return chosen.at(place.name, place.part.piece, merged, own, place.where)


def rows(source: Source) -> int:
    """How many rows the model's embeddings have."""
    found = [i.shape[0] for n, i in source.tensors.items() if vocabulary.ROWS.search(n) and i.shape]
    return max(found, default=0)


class _Names:
    """What a tensor is called in each source: some are saved without the model's own prefix."""

    def __init__(self, found: Mapping[str, Source]) -> None:
        self.prefixes = {m: prefix(source.tensors) for m, source in found.items()}
        self.plain = len(set(self.prefixes.values())) == 1
        self.own = {
            m: {self._short(m, n): n for n in source.tensors if not n.endswith(BUFFERS)}
            for m, source in found.items()
        }

    def _short(self, model: str, name: str) -> str:
        return name if self.plain else name.removeprefix(self.prefixes[model])

    def union(self, part: Part, numbers: Sequence[int | None]) -> list[str]:
        """What any input has at its layer of `numbers`, written as if that were layer 0."""
        every = {
            at_layer(name, 0)
            for m, number in zip(part.inputs, numbers, strict=True)
            for name in self.own[m.model]
            if layer(name) == number
        }
        return sorted(every)

    def read(self, model: str, name: str) -> str:
        """The name in the model's own words, or "" if it has no such tensor."""
        own = self.own[model]
        if name not in own and head(name):
            name = next((n for n in own if EMBEDDING.search(n)), "")
        return own.get(name, "")

    def written(self, name: str) -> str:
        """The name in the merged model: as the first source says it."""
        outside = self.plain or name.startswith(("lm_head.", "embed_out."))
        return name if outside else next(iter(self.prefixes.values())) + name


def _places(parts: Sequence[Part], found: Mapping[str, Source], names: _Names) -> Iterator[Place]:
    """Every tensor of the merged model: before the layers, layer by layer, after them."""
    yield from _outside(parts[0], names, first=True)
    out = 0
    for part in parts:
        starts, count = _ranges(part, found)
        for offset in range(count):
            numbers = tuple(start + offset for start in starts)
            where = offset / (count - 1) if count > 1 else 1.0  # mergekit's rule for one layer
            for name in names.union(part, numbers):
                yield Place(part, at_layer(name, out), numbers, where)
            out += 1
    yield from _outside(parts[-1], names, first=False)


def _outside(part: Part, names: _Names, *, first: bool) -> Iterator[Place]:
    none = (None,) * len(part.inputs)
    for name in names.union(part, none):
        if first == before_layers(name):
            yield Place(part, name, none, 0.0)


def _ranges(part: Part, found: Mapping[str, Source]) -> tuple[list[int], int]:
    """The first layer of each input, and how many there are."""
    starts, counts = [], set()
    for m in part.inputs:
        there = layers(found[m.model].tensors)
        start, stop = m.layer_range or (0, there)
        if stop > there:
            raise MergeError(
                f"`layer_range: [{start}, {stop}]` goes beyond {m.model}, which has {there} "
                f"layers: end at {there} at most."
            )
        starts.append(start)
        counts.add(stop - start)
    return starts, max(counts, default=0)


def _check_there(name: str, reads: Sequence[str], models: Sequence[str], names: _Names) -> None:
    if all(reads):
        return
    lacking = models[reads.index("")]
    there = next(model for model, read in zip(models, reads, strict=True) if read)
    count = len(names.own[there].keys() - names.own[lacking].keys())
    raise MergeError(
        f"`{names.written(name)}` is in {there} and not in {lacking}"
        f"{f', as are {count - 1} more tensors' if count > 1 else ''}: "
        "choose models with the same layers, or fetch the model again."
    )


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


def _dtype(chosen: Settings, infos: Sequence[TensorInfo]) -> torch.dtype:
    if written := chosen.recipe.out_dtype or chosen.recipe.dtype:
        named: torch.dtype = getattr(torch, written)
        return named
    promoted = infos[0].dtype
    for info in infos[1:]:
        promoted = torch.promote_types(promoted, info.dtype)
    return promoted
