"""What several models would have said next, at each place of an answer that one of them gave.

It knows models and tokenizers that somebody lends it; not who asks, nor how its numbers are shown.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from merging.chat import MAX_NEW_TOKENS, Question
from merging.conversation import MAX_CHARACTERS, Message, context, prompt
from merging.errors import MergeError
from merging.loading import Loaded
from merging.reading import Pasts, Reader

CHOICES = 5
"""Tokens that are shown of a distribution."""
MOST_MISSING = 0.1
"""Probability that a model gives to tokens that the other lacks: above it, two are not compared."""
PIECE = 64
"""Places whose scores are held at once: with 256,000 tokens 65 MB a model."""


@dataclass(frozen=True)
class Inspection:
    """Which answer is looked into: `answer` is what `column` said to its conversation.

    `conversations` are those of the Question. `position` counts the answer's tokens: the choices
    are those for the token of that number, counted from 0; at their count, for what would follow.
    """

    conversations: Mapping[str, Sequence[Message]]
    answer: str
    column: str
    position: int = 0

    def check(self) -> None:
        """Raises MergeError for what cannot be looked into."""
        Question(self.conversations).capped()
        if not isinstance(self.answer, str):
            raise MergeError("The answer must be text: ask again.")
        if not isinstance(self.position, int) or self.position < 0:
            raise MergeError(f"Position {self.position} is none in an answer: choose 0 or above.")

    def characters(self) -> int:
        """Of all that is read, column by column."""
        return sum(
            len(self.answer) + sum(len(message["content"]) for message in talk)
            for talk in self.conversations.values()
        )


@dataclass(frozen=True)
class Choice:
    """A token by its tokenizer's own name, as text, and how likely it is at temperature 1."""

    token: str
    text: str
    probability: float


@dataclass(frozen=True)
class Distance:
    """How far a model is from the one that answered: KL(answering || other), in nats.

    It is over the tokens that both know by name, each model's probabilities on these taken as a
    whole. `missing` is the larger share that one of them gives to tokens that the other lacks;
    `nats` is None where it is above MOST_MISSING, and where the other has no token that begins
    here: not comparable.
    """

    nats: float | None
    missing: float


@dataclass(frozen=True)
class NextTokens:
    """What was seen: `tokens` are the answer's in pieces of its text, `said` the one at `position`
    by its name in the vocabulary (None after the last), `choices` by column.

    `distances` has one for each of the tokens, by column, without the answering one's. A column
    in `failed` could not read the answer, for the reason given.
    """

    column: str
    position: int
    tokens: tuple[str, ...]
    said: str | None
    choices: Mapping[str, tuple[Choice, ...]]
    distances: Mapping[str, tuple[Distance, ...]]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Read:
    """A column's model has read `tokens` of the `of` that it has to."""

    column: str
    tokens: int
    of: int


@torch.inference_mode()
def next_tokens(
    asked: Inspection, models: Mapping[str, Loaded], pasts: Pasts | None = None
) -> Iterator[Read | NextTokens]:
    """Have every model read the answer once, after its own prompt; what was seen comes last.

    Each reads the text in its own tokens. What `pasts` knows of the prompts is not read again.
    Closing it stops after the piece that is read. Raises MergeError if the one that answered
    cannot read.
    """
    asked.check()
    pasts = pasts or Pasts(0)
    own = _Track.of(asked.column, models[asked.column], asked, pasts)
    position = min(asked.position, len(own.answer))
    others, failed = dict[str, _Paired](), dict[str, str]()
    for name, loaded in models.items():
        if name == asked.column:
            continue
        try:
            track = _Track.of(name, loaded, asked, pasts)
        except MergeError as error:
            failed[name] = str(error)
        else:
            others[name] = _Paired(own, track, _places(own, track), position)
    choices = {asked.column: (yield from _along(own, list(others.values()), position))}
    for name, other in others.items():
        choices[name] = other.choices or (yield from _apart(other, asked, pasts))
    distances = {n: tuple(other.distances[: len(own.answer)]) for n, other in others.items()}
    tokens = tuple(asked.answer[a:b] for a, b in pairwise(own.starts))
    said = own.names()[position] if position < len(own.answer) else None
    yield NextTokens(asked.column, position, tokens, said, choices, distances, failed)


def _along(
    own: "_Track", others: Sequence["_Paired"], position: int
) -> Generator[Read, None, tuple[Choice, ...]]:
    """Read the answer piece by piece, compare; what the model that answered had to choose from."""
    found: tuple[Choice, ...] = ()
    for first in range(0, len(own.starts), PIECE):
        scores = own.rows(min(PIECE, len(own.starts) - first))
        if first <= position < own.at:
            found = own.choices(scores[position - first])
        yield own.so_far()
        for other in others:
            other.compare(first, scores)
            yield other.track.so_far()
    return found


@dataclass
class _Track:
    """A model on its way along the answer; `starts` says at which character each token begins.

    Place n is where n tokens of the answer have been read, and `at` the next one to be read.
    """

    name: str
    loaded: Loaded
    prompt: list[int]
    answer: list[int]
    starts: list[int]
    reader: Reader
    at: int = 0
    read: Tensor | None = None

    @classmethod
    def of(cls, name: str, loaded: Loaded, asked: Inspection, pasts: Pasts) -> "_Track":
        ids, _ = prompt(name, loaded, asked.conversations[name])
        room = context(loaded.model) - len(ids)
        if room < 1:
            raise MergeError(
                f"The question has {len(ids)} tokens for {name}, which reads "
                f"{context(loaded.model)}: shorten it."
            )
        answer, starts = _encoded(name, loaded.tokenizer, asked.answer[:MAX_CHARACTERS])
        count = min(room, MAX_NEW_TOKENS, len(answer))
        reader = pasts.reader(loaded.model, ids)
        return cls(name, loaded, ids, answer[:count], starts[: count + 1], reader)

    def so_far(self) -> Read:
        return Read(self.name, self.at, len(self.starts))

    def rows(self, count: int) -> Tensor:
        """The scores of what may come at the next `count` places."""
        if self.read is None and self.reader.goes_on():
            found = self._reads(self.at + count, count)
        else:  # by a model that must read all at once
            if self.read is None:
                self.read = self._reads(len(self.starts), len(self.starts))
            found = self.read[self.at : self.at + count]
        self.at += count
        return found

    def _reads(self, places: int, keep: int) -> Tensor:
        ids = [*self.prompt, *self.answer][self.reader.count : len(self.prompt) + places - 1]
        return self.reader.read(torch.tensor([ids], device=self.loaded.model.device), keep)[0]

    def names(self) -> list[str]:
        found: list[str] = self.loaded.tokenizer.convert_ids_to_tokens(self.answer)
        return found

    def choices(self, scores: Tensor) -> tuple[Choice, ...]:
        likely, ids = scores.softmax(-1).topk(min(CHOICES, len(scores)))
        tokenizer = self.loaded.tokenizer
        return tuple(
            Choice(tokenizer.convert_ids_to_tokens(i) or "", tokenizer.decode([i]), p)
            for i, p in zip(ids.tolist(), likely.tolist(), strict=True)
        )


def _encoded(name: str, tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token numbers of a text, and where each begins; the text's end is the last."""
    if not tokenizer.is_fast:
        raise MergeError(f"The tokenizer of {name} cannot say where its tokens begin.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [*(a for a, _ in encoded["offset_mapping"]), len(text)]


@dataclass
class _Paired:
    """Another model beside the one that answered; `places` has its place for each of that one's."""

    own: _Track
    track: _Track
    places: Sequence[int | None]
    position: int
    distances: list[Distance] = field(default_factory=list)
    choices: tuple[Choice, ...] = ()
    shared: tuple[Tensor, Tensor] | None = None

    def compare(self, first: int, scores: Tensor) -> None:
        """Read on as far as the model that answered, whose scores from its place `first` on these
        are."""
        places = self.places[first : first + len(scores)]
        read = self._read([place for place in places if place is not None])
        for here, place in zip(scores, places, strict=True):
            there = read.get(place)
            if there is not None and len(self.distances) == self.position:
                self.choices = self.track.choices(there)
            self.distances.append(self._distance(here, there))

    def _read(self, places: Sequence[int]) -> dict[int | None, Tensor]:
        found: dict[int | None, Tensor] = {}
        while places and self.track.at <= places[-1]:
            first = self.track.at
            scores = self.track.rows(min(PIECE, places[-1] + 1 - first))
            found |= {n: scores[n - first] for n in places if first <= n < self.track.at}
        return found

    def _distance(self, here: Tensor, there: Tensor | None) -> Distance:
        if there is None:
            return Distance(None, 1.0)
        if self.shared is None:
            tokenizers = (self.own.loaded.tokenizer, self.track.loaded.tokenizer)
            self.shared = _shared(*tokenizers, len(here), len(there), here.device)
        both = (here[self.shared[0]], there[self.shared[1]])
        known = min(
            float((part.logsumexp(-1) - whole.logsumexp(-1)).exp())
            for part, whole in zip(both, (here, there), strict=True)
        )
        missing = max(0.0, 1 - known)
        if missing > MOST_MISSING:
            return Distance(None, missing)
        p, q = (part.log_softmax(-1) for part in both)
        return Distance(max(0.0, float((p.exp() * (p - q)).sum())), missing)


def _shared(
    own: Any, other: Any, rows: int, others: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row numbers of the tokens that both know, by name."""
    theirs = other.get_vocab()
    pairs = [(n, theirs.get(token, others)) for token, n in own.get_vocab().items() if n < rows]
    found = torch.tensor([(n, m) for n, m in pairs if m < others], device=device).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _places(own: _Track, other: _Track) -> list[int | None]:
    """Where the other has read the same text: all along if the tokens are the same, else where
    both begin a character."""
    count, most = len(own.starts), len(other.starts)
    if own.names()[:most] == other.names()[:count]:
        return [n if n < most else None for n in range(count)]
    theirs = {start: n for n, start in reversed([*enumerate(other.starts)])}
    before = [-1, *own.starts[:-1]]
    return [
        theirs.get(start) if start != last else None
        for last, start in zip(before, own.starts, strict=True)
    ]


def _apart(
    other: _Paired, asked: Inspection, pasts: Pasts
) -> Generator[Read, None, tuple[Choice, ...]]:
    """The choices after the text up to the position, where none of the other's tokens begins; none
    where its context ends before."""
    text = asked.answer[: other.own.starts[other.position]]
    track = _Track.of(other.track.name, other.track.loaded, replace(asked, answer=text), pasts)
    if track.starts[-1] < len(text):  # its context ends before
        return ()
    for _ in range(0, len(track.starts) - 1, PIECE):
        track.rows(min(PIECE, len(track.starts) - 1 - track.at))
        yield track.so_far()
    return track.choices(track.rows(1)[-1])
