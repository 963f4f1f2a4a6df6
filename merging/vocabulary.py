"""Which row of which parent each token comes from, matched by the token's string, never its number.

It holds row numbers and moves rows; it knows no files, and leaves tokenizers to `tokens`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from merging import tokens
from merging.tokens import Words

ROWS = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|embed_out|word_embeddings|lm_head|tok_embeddings|output)"
    r"\.(weight|bias)$"
)
"""Tensors with one row a token, by the names that decoders give them."""

PAD = -2
"""In place of a row's number: a row beyond all tokens, the mean of the model's gathered ones."""
CHUNK = 4096
"""Rows gathered at a time for that mean."""


@dataclass(frozen=True)
class Vocabulary:
    """The merged model's tokens, in the numbers of the model `donor`.

    `rows[model]` is int64 (size,): that model's row, -1 if it has none, or PAD. `added` are the
    tokens the donor lacks and who has them; `words` the merged tokenizer. Never changed.
    """

    donor: str
    size: int
    rows: Mapping[str, torch.Tensor]
    added: Mapping[str, tuple[str, ...]]
    words: Words

    @cached_property
    def tokenizer(self) -> str:
        """The text of tokenizer.json."""
        return json.dumps(self.words.content, ensure_ascii=False)


def align(
    tokenizers: Mapping[str, Words],
    sizes: Mapping[str, int],
    donor: str,
    union: bool,
    pad: int = 1,
) -> Vocabulary:
    """Find every token's row in every model.

    `sizes` are the models' embedding rows, `donor` the model whose numbers hold. With `union` the
    others' tokens are added after the donor's; without, tokens that the donor lacks are dropped.
    Padding rows, which no token uses, stay; further ones bring the size to a multiple of `pad`.
    Raises MergeError for tokenizers that cannot be united.
    """
    return _align(tuple(tokenizers.items()), tuple(sizes.items()), donor, union, pad)


@lru_cache(maxsize=2)
def _align(
    words: tuple[tuple[str, Words], ...],
    limits: tuple[tuple[str, int], ...],
    donor: str,
    union: bool,
    pad: int,
) -> Vocabulary:
    """Kept, since the next merge is most often of the same models: a large one takes seconds."""
    tokenizers, sizes = dict(words), dict(limits)
    owners = tokens.lacking(tokenizers, donor) if union else {}
    merged = tokens.united(tokenizers, donor, owners)
    size = max(sizes[donor], max(merged.numbers.values(), default=-1) + 1)
    rows = {m: _rows(merged, t, size, sizes[m], m == donor) for m, t in tokenizers.items()}
    extra = torch.full((-size % pad,), PAD, dtype=torch.int64)
    rows = {m: torch.cat([r, extra]) for m, r in rows.items()}
    return Vocabulary(donor, size + len(extra), rows, owners, merged)


def _rows(merged: Words, own: Words, size: int, limit: int, donor: bool) -> torch.Tensor:
    """Each number's row in a model of `limit` rows; the donor's padding keeps its place."""
    rows = torch.full((size,), -1, dtype=torch.int64)
    if donor:
        rows[:limit] = torch.arange(limit)
    find = own.numbers.get
    numbers = torch.tensor(list(merged.numbers.values()), dtype=torch.int64)
    found = torch.tensor([find(token, -1) for token in merged.numbers], dtype=torch.int64)
    rows[numbers] = found.where(found < limit, -1)
    return rows


@dataclass(frozen=True)
class Matched:
    """One tensor of several models, row by row in the merged order.

    `tensors` give each model's, `rows` are its numbers in the Vocabulary, `base` is the place of
    the model whose rows stand in where another has none.
    """

    tensors: Sequence[Callable[[], torch.Tensor]]
    rows: Sequence[torch.Tensor]
    base: int | None

    @property
    def width(self) -> int:
        """Elements of a row."""
        first = self.tensors[0]()
        return first[0].numel() if len(first) else 1

    def read(self, first: int, last: int) -> list[torch.Tensor]:
        """Each model's rows from one to another, float32 copies."""
        rows = [r[first:last] for r in self.rows]
        found = gather([t() for t in self.tensors], rows, self.base)
        beyond = rows[0] == PAD
        if bool(beyond.any()):
            for values, mean in zip(found, self.mean, strict=True):
                values[beyond] = mean
        return found

    @cached_property
    def mean(self) -> list[torch.Tensor]:
        """What stands in rows of PAD: once, since blocks and passes want it again."""
        return mean_row([t() for t in self.tensors], self.rows, self.base)


def gather(
    tensors: Sequence[torch.Tensor], rows: Sequence[torch.Tensor], base: int | None
) -> list[torch.Tensor]:
    """Each model's rows in the merged order, float32 (n, …) for `rows` of n numbers a model.

    A row that a model lacks is the base's (model number `base`), else the mean of its owners', so
    that it adds no delta of its own; a row that nobody has is zero.
    """
    found = [t[r.clamp(min=0)].float() for t, r in zip(tensors, rows, strict=True)]
    has = torch.stack([r >= 0 for r in rows])
    if bool(has.all()):
        return found
    masks = [h.view(-1, *[1] * (f.dim() - 1)) for h, f in zip(has, found, strict=True)]
    owned = [f * m for f, m in zip(found, masks, strict=True)]
    fill = sum(owned[1:], owned[0]) / sum(masks[1:], masks[0].float()).clamp(min=1)
    if base is not None:
        fill = torch.where(masks[base], found[base], fill)
    return [torch.where(m, f, fill) for m, f in zip(masks, found, strict=True)]


def mean_row(
    tensors: Sequence[torch.Tensor], rows: Sequence[torch.Tensor], base: int | None
) -> list[torch.Tensor]:
    """Each model's mean over all its gathered rows but those of PAD, float32, as in mergekit."""
    real = rows[0] != PAD
    parts = torch.split(torch.stack([r[real] for r in rows]), CHUNK, dim=1)
    sums = [torch.zeros(t.shape[1:], dtype=torch.float64) for t in tensors]
    for part in parts:
        for total, values in zip(sums, gather(tensors, list(part), base), strict=True):
            total += values.sum(0, dtype=torch.float64)
    return [(total / max(1, int(real.sum()))).float() for total in sums]
