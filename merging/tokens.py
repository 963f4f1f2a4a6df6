"""What a tokenizer.json holds, and one tokenizer out of several: tokens and their numbers.

It reads JSON and has the library `tokenizers` check what it makes; it knows no rows and no weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from merging.errors import MergeError

LARGEST = 1 << 22
"""No token has this number, so that a broken file cannot ask for all memory there is."""


@dataclass(frozen=True, eq=False)
class Words:
    """A fast tokenizer as its tokenizer.json says it, never changed.

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


def load(folder: Path, name: str) -> Words | None:
    """The fast tokenizer of a model's folder, or None where it has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    facts = path.stat()
    try:
        return _read(path, facts.st_mtime_ns, facts.st_size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(
            f"{name}: its tokenizer.json cannot be read ({error!r}): "
            "fetch the model again, or choose another."
        ) from error


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> Words:  # noqa: ARG001  # a new file is another
    """One file, kept: the next plan is most often of the same models."""
    return words(path.read_text(encoding="utf-8"))


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


def same(tokenizers: Sequence[Words]) -> bool:
    """Whether all give the same numbers to the same tokens."""
    first, *rest = (t.numbers for t in tokenizers)
    return all(other == first for other in rest)


def lacking(tokenizers: Mapping[str, Words], donor: str) -> dict[str, tuple[str, ...]]:
    """The tokens that the donor lacks and who has them, in the models' and their numbers' order."""
    own = tokenizers[donor]
    found: dict[str, tuple[str, ...]] = {}
    for model, other in tokenizers.items():
        foreign = other.numbers.keys() - own.numbers.keys()
        for token in sorted(foreign, key=other.numbers.__getitem__):
            found[token] = (*found.get(token, ()), model)
    return found


def united(
    tokenizers: Mapping[str, Words], donor: str, owners: Mapping[str, Sequence[str]]
) -> Words:
    """The donor's tokenizer with the tokens of others, which are what `lacking` found.

    Added tokens work as they did. Ordinary pieces only get a number: as added tokens they would be
    found inside words, and a model that was not trained on the donor's cuts keeps its rows. Still,
    a donor that looks words up (WordPiece, WordLevel, BPE with `ignore_merges`) can choose them,
    and any donor one that has a character which it does not know.
    Raises MergeError for kinds that do not mix, and for what the library cannot load.
    """
    own = tokenizers[donor]
    merged = _with(tokenizers, own, owners) if owners else own
    _check_kinds(tokenizers, donor, owners)
    _check_loads(merged, donor)
    return merged


def _with(
    tokenizers: Mapping[str, Words], own: Words, owners: Mapping[str, Sequence[str]]
) -> Words:
    start = max(own.numbers.values(), default=-1) + 1
    numbers = dict(own.numbers) | {token: start + i for i, token in enumerate(owners)}
    found = _settings(tokenizers)
    entries = own.added | {token: found[token] for token in owners if token in found}
    added = [{**entry, "id": numbers[t]} for t, entry in entries.items() if t]
    pieces = [token for token in owners if token not in found]
    content = {**own.content, "added_tokens": added}
    if pieces or _numbers(content) != numbers:  # what the model has, the library does not renumber
        more = {token: numbers[token] for token in [*pieces, *entries]}
        content["model"] = _grown(own.content["model"], more)
    return Words(content, numbers)


def _settings(tokenizers: Mapping[str, Words]) -> dict[str, Mapping[str, Any]]:
    """Every added token, as the first model that has it describes it."""
    found: dict[str, Mapping[str, Any]] = {}
    for other in reversed([*tokenizers.values()]):
        found |= other.added
    return found


def _check_kinds(
    tokenizers: Mapping[str, Words], donor: str, owners: Mapping[str, Sequence[str]]
) -> None:
    """Refuse models of another kind than the donor that would bring ordinary pieces."""
    wanted, special = tokenizers[donor].kind, _settings(tokenizers).keys()
    first = {owners[token][0]: token for token in reversed([*owners]) if token not in special}
    for other, token in first.items():
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
