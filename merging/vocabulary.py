"""Which row of which parent each token comes from, matched by the token's string, never its number.

It reads tokenizer.json as JSON and has the library `tokenizers` check what it writes; it holds row
numbers, not weights.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from merging.errors import MergeError

ROWS = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|embed_out|word_embeddings|lm_head|tok_embeddings|output)"
    r"\.(weight|bias)$"
)
"""Tensors with one row a token, by the names that decoders give them."""

TEMPLATE_CAP = 65_536
"""Characters of a chat template."""


PAD = -2
"""In place of a row's number: a row beyond all tokens, the mean of the model's gathered ones."""
CHUNK = 4096
"""Rows gathered at a time for that mean."""
LARGEST = 1 << 22
"""No token has this number, so that a broken file cannot ask for all memory there is."""


@dataclass(frozen=True)
class Words:
    """A fast tokenizer as its tokenizer.json says it.

    `numbers` are the ids of all its tokens as the library `tokenizers` gives them.
    """

    content: Mapping[str, Any]
    numbers: Mapping[str, int]

    @property
    def added(self) -> dict[str, Mapping[str, Any]]:
        """The tokens that are found in raw text, such as ChatML's, with their settings."""
        return {entry["content"]: entry for entry in self.content.get("added_tokens") or ()}

    @property
    def kind(self) -> str:
        """How it cuts text: pieces of different kinds cannot stand in one tokenizer."""
        steps = json.dumps([self.content.get("pre_tokenizer"), self.content.get("decoder")])
        model = self.content["model"]
        signs = {"merges": "BPE", "continuing_subword_prefix": "WordPiece"}
        guess = next((kind for sign, kind in signs.items() if sign in model), "WordLevel")
        name = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else guess)
        return f"byte-level {name}" if "ByteLevel" in steps else str(name)


@dataclass(frozen=True)
class Vocabulary:
    """The merged model's tokens, in the numbers of the model `donor`.

    `rows[model]` is int64 (size,): that model's row, -1 if it has none, or PAD. `added` are the
    tokens the donor lacks and who has them; `words` the merged tokenizer.
    """

    donor: str
    size: int
    rows: Mapping[str, torch.Tensor]
    added: Mapping[str, tuple[str, ...]]
    words: Words

    @property
    def tokenizer(self) -> str:
        """The text of tokenizer.json."""
        return json.dumps(self.words.content, ensure_ascii=False)


def load(folder: Path, name: str) -> Words | None:
    """The fast tokenizer of a model's folder, or None where it has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return words(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{name}: its tokenizer.json cannot be read ({error!r}).") from error


def words(text: str) -> Words:
    """Read tokenizer.json, several times faster than by building a tokenizer out of it.

    Raises ValueError, KeyError, TypeError or AttributeError for what is none.
    """
    content = json.loads(text)
    numbers = _numbers(content)
    if not set(map(type, numbers.values())) <= {int}:
        raise TypeError("its tokens' numbers are not whole")
    pieces = content["model"]["vocab"]
    if isinstance(pieces, list) and not all(isinstance(score, int | float) for _, score in pieces):
        raise TypeError("its pieces' scores are no numbers")
    if numbers and not 0 <= min(numbers.values()) <= max(numbers.values()) < LARGEST:
        raise ValueError(f"its tokens' numbers are not from 0 to {LARGEST - 1}")
    return Words(content, numbers)


def _numbers(content: Mapping[str, Any]) -> dict[str, int]:
    """All tokens' ids, as the library gives them.

    It does not read an added token's `id`: those that the model lacks follow the model's, counted.
    """
    pieces = content["model"]["vocab"]
    listed = isinstance(pieces, list)
    numbers = {p: i for i, (p, _) in enumerate(pieces)} if listed else dict(pieces)
    after = len(pieces)
    for entry in content.get("added_tokens") or ():
        if entry["content"] and entry["content"] not in numbers:
            numbers[entry["content"]] = after
            after += 1
    return numbers


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


def same(tokenizers: Sequence[Words]) -> bool:
    """Whether all give the same numbers to the same tokens."""
    first, *rest = (t.numbers for t in tokenizers)
    return all(other == first for other in rest)


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
    own = tokenizers[donor]
    owners = _owners(tokenizers, own) if union else {}
    merged = _united(tokenizers, donor, owners) if owners else own
    _check_loads(merged, donor)
    size = max(sizes[donor], max(merged.numbers.values(), default=-1) + 1)
    rows = {m: _rows(merged, t, size, sizes[m], m == donor) for m, t in tokenizers.items()}
    extra = torch.full((-size % pad,), PAD, dtype=torch.int64)
    rows = {m: torch.cat([r, extra]) for m, r in rows.items()}
    return Vocabulary(donor, size + len(extra), rows, owners, merged)


def _owners(tokenizers: Mapping[str, Words], own: Words) -> dict[str, tuple[str, ...]]:
    """The tokens that `own` lacks, in the order of the models and of their numbers."""
    found: dict[str, tuple[str, ...]] = {}
    for model, other in tokenizers.items():
        lacking = other.numbers.keys() - own.numbers.keys()
        for token in sorted(lacking, key=other.numbers.__getitem__):
            found[token] = (*found.get(token, ()), model)
    return found


def _united(
    tokenizers: Mapping[str, Words], donor: str, owners: Mapping[str, Sequence[str]]
) -> Words:
    """The donor's tokenizer with the tokens of others.

    Added tokens work as they did. Ordinary pieces only get a number: as added tokens they would be
    found inside words, and a model that was not trained on the donor's cuts keeps its rows. Still,
    a donor that looks words up (WordPiece, WordLevel, BPE with `ignore_merges`) can choose them,
    and any donor one that has a character which it does not know.
    """
    own = tokenizers[donor]
    start = max(own.numbers.values(), default=-1) + 1
    numbers = dict(own.numbers) | {token: start + i for i, token in enumerate(owners)}
    found: dict[str, Mapping[str, Any]] = {}
    for other in reversed([*tokenizers.values()]):
        found |= other.added
    entries = own.added | {token: found[token] for token in owners if token in found}
    added = [{**entry, "id": numbers[t]} for t, entry in entries.items() if t]
    pieces = [token for token in owners if token not in found]
    _check_kinds(tokenizers, donor, {owners[token][0]: token for token in reversed(pieces)})
    content = {**own.content, "added_tokens": added}
    if pieces or _numbers(content) != numbers:  # what the model has, the library does not renumber
        more = {token: numbers[token] for token in [*pieces, *entries]}
        content["model"] = _grown(own.content["model"], more)
    return Words(content, numbers)


def _check_kinds(tokenizers: Mapping[str, Words], donor: str, pieces: Mapping[str, str]) -> None:
    """Refuse models of another kind than the donor, each with a piece that only it would bring."""
    wanted = tokenizers[donor].kind
    for other, token in pieces.items():
        if (kind := tokenizers[other].kind) != wanted:
            raise MergeError(
                f"{other} cuts text by {kind} and {donor} by {wanted}, so tokens such as "
                f"`{token}` cannot be united: set `tokenizer_source: base`, or a model's name."
            )


def _grown(model: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer's model with more pieces, which no rule of it leads to."""
    vocab = model["vocab"]
    if not isinstance(vocab, list):
        return {**model, "vocab": {**vocab, **numbers}}
    names = {n: token for token, n in numbers.items() if n >= len(vocab)}
    last = max(names, default=len(vocab) - 1) + 1  # a piece's number is its place in the list
    lowest = max((abs(score) for _, score in vocab), default=0.0) + 1
    longest = max(map(len, names.values()), default=0) + 1
    never = -lowest * longest  # less likely than the donor's own pieces, a character each
    return {**model, "vocab": [
        *vocab, *([names.get(n, f"<unused row {n}>"), never] for n in range(len(vocab), last))
    ]}  # fmt: skip


def _check_loads(words: Words, donor: str) -> None:
    try:
        Tokenizer.from_str(json.dumps(words.content, ensure_ascii=False))
    except Exception as error:  # the Rust library raises bare Exception
        raise MergeError(
            f"The tokenizer of {donor} cannot be loaded in the merged model ({error}): "
            "set `tokenizer_source` to another model's name."
        ) from error


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
