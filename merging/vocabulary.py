"""Which row of which parent each token comes from, matched by the token's string, never its number.

It knows tokenizer.json through the library `tokenizers`; it holds row numbers, not weights.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer

from merging.errors import MergeError

ROWS = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|embed_out|word_embeddings|lm_head|tok_embeddings|output)"
    r"\.(weight|bias)$"
)
"""Tensors with one row a token, by the names that decoders give them."""

TEMPLATE_CAP = 65_536
"""Characters of a chat template."""


@dataclass(frozen=True)
class Vocabulary:
    """The merged model's tokens, in the numbers of the model `donor`.

    `rows[model]` is int64 (size,): that model's row, or -1. `added` are the tokens the donor lacks
    and who has them; `tokenizer` is tokenizer.json's text.
    """

    donor: str
    size: int
    rows: Mapping[str, torch.Tensor]
    added: Mapping[str, tuple[str, ...]]
    tokenizer: str


def load(folder: Path, name: str) -> Tokenizer | None:
    """The fast tokenizer of a model's folder, or None where it has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise MergeError(f"{name}: its tokenizer.json cannot be read ({error}).") from error


def template(folder: Path, name: str) -> str | None:
    """A model's own chat template, wherever its tokenizer keeps it. Raises MergeError if broken."""
    separate = folder / "chat_template.jinja"
    if separate.is_file() and separate.stat().st_size <= TEMPLATE_CAP:
        return separate.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(f"{name}: its tokenizer_config.json is broken ({error}).") from error
    return found if isinstance(found, str) and len(found) <= TEMPLATE_CAP else None


def same(tokenizers: Sequence[Tokenizer]) -> bool:
    """Whether all give the same numbers to the same tokens."""
    first, *rest = (t.get_vocab(with_added_tokens=True) for t in tokenizers)
    return all(other == first for other in rest)


def align(
    tokenizers: Mapping[str, Tokenizer], sizes: Mapping[str, int], donor: str, union: bool
) -> Vocabulary:
    """Find every token's row in every model.

    `sizes` are the models' embedding rows, `donor` the model whose numbers hold. With `union` the
    others' tokens are added after the donor's; without, tokens that the donor lacks are dropped.
    Padding rows, which no token uses, stay.
    """
    merged = Tokenizer.from_str(tokenizers[donor].to_str())
    vocabularies = {m: t.get_vocab(with_added_tokens=True) for m, t in tokenizers.items()}
    own = vocabularies[donor]
    owners = {
        token: tuple(m for m, v in vocabularies.items() if token in v)
        for m, v in vocabularies.items()
        if union
        for token in sorted(v.keys() - own.keys(), key=v.__getitem__)
    }
    for token, (first, *_) in owners.items():
        merged.add_tokens([_as_added(tokenizers[first], token)])
    numbers = merged.get_vocab(with_added_tokens=True)
    size = max(sizes[donor], max(numbers.values(), default=-1) + 1)
    rows = {m: _rows(numbers, vocabularies[m], size, sizes[m], m == donor) for m in tokenizers}
    return Vocabulary(donor, size, rows, owners, merged.to_str())


def _as_added(tokenizer: Tokenizer, token: str) -> AddedToken:
    for added in tokenizer.get_added_tokens_decoder().values():
        if added.content == token:
            return added
    return AddedToken(token, normalized=False)


def _rows(
    numbers: Mapping[str, int], own: Mapping[str, int], size: int, limit: int, donor: bool
) -> torch.Tensor:
    rows = torch.full((size,), -1, dtype=torch.int64)
    if donor:
        rows[:limit] = torch.arange(limit)  # padding rows have no token and keep their place
    shared = [(i, own[token]) for token, i in numbers.items() if own.get(token, limit) < limit]
    if shared:
        to, at = torch.tensor(shared).T
        rows[to] = at
    if donor:
        absent = [i for token, i in numbers.items() if token not in own]
        rows[torch.tensor(absent, dtype=torch.int64)] = -1
    return rows


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
