"""What a model does when it is tried: how it reads a text, what it says, whether tokens come back.

It measures, and judges nothing; what the figures mean for a merge is `sanity`'s.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merging.chat import Question, Reply, answer
from merging.conversation import Message, context, prompt
from merging.errors import MergeError
from merging.library import Library
from merging.loading import Loaded
from merging.reading import Pasts, Reader
from merging.turns import Turns

PROSE = (
    "On Saturday morning the market fills the square before the church. Farmers bring apples, eggs "
    "and fresh bread, and the fishmonger calls out his prices until everybody laughs. An old woman "
    "sells honey from her own bees; she says that the summer was too dry for a good year. Children "
    "run between the stalls and look for the dog that stole a sausage. At noon the clock strikes "
    "twelve, and the first carts are already empty. Whoever comes late pays less, but has little "
    "to choose from. By three o'clock the square is clean again, the pigeons have eaten the last "
    "crumbs, and a few men sit in the sun and talk about the weather. Next week it will be just "
    "the same, they say, and nobody would have it otherwise."
)
LINES = {
    "What is the capital of Norway?": "Oslo.",
    "What is the opposite of hot?": "Cold.",
    "What colour is snow?": "White.",
    "What is the opposite of up?": "Down.",
}
"""Questions for small models that know no prose, and answers: only the answers are judged."""
PROMPTS = (
    "What is the capital of France?",
    "What is the opposite of black?",
    "Tell me a short story about a dog.",
)
NEW = 20
"""Tokens of each answer: enough for a loop to show, and for a short answer to end."""
PIECE = 64
"""Tokens whose scores are held at once: with 256,000 in the vocabulary 65 MB a model."""
EVERY = 0.1
"""Seconds between two signs of life."""


@dataclass(frozen=True)
class Saying:
    """What a model's answers are like: the part of them that repeats, and how many end."""

    repeated: float
    ended: int


@dataclass(frozen=True)
class Passage:
    """Token numbers of a text, which of them are judged, and how many bytes these are.

    The bytes are 0 where the tokenizer does not know the text.
    """

    ids: Sequence[int]
    judged: Sequence[bool]
    size: int


def not_finite(model: Any) -> str | None:
    """The name of a weight with a NaN or an infinite value, of those that are on the device."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and not weight.is_meta:
            low, high = weight.aminmax()  # NaN where there is one; nothing is allocated
            if not (low.isfinite() and high.isfinite()):
                return str(name)
    return None


def lost_token(merged: Loaded, parents: Sequence[Loaded]) -> str | None:
    """What is wrong with the vocabulary: tokens that worked in a parent must work in the merge."""
    rows = merged.model.get_input_embeddings().weight.shape[0]
    ids = _ids(merged.tokenizer, PROSE)
    if max(ids, default=0) >= rows:
        return f"Token {max(ids)} of the test text has no row among {rows:,}"
    vocabulary = merged.tokenizer.get_vocab()
    for parent in parents or [merged]:
        there = parent.model.get_input_embeddings().weight.shape[0]
        if _comes_back(parent.tokenizer) and not _comes_back(merged.tokenizer):
            return "Text does not come back out of its tokens, as it does in a parent"
        for token in _special(parent.tokenizer):
            own = _ids(parent.tokenizer, token)
            if token not in vocabulary or len(own) != 1 or own[0] >= there:
                continue
            got = _ids(merged.tokenizer, token)
            if len(got) != 1 or got[0] >= rows:
                return f"The token `{token}` of a parent has no row of its own among {rows:,}"
            if merged.tokenizer.decode(got).strip() != parent.tokenizer.decode(own).strip():
                return f"The token `{token}` of a parent comes back as another"
    return None


def _special(tokenizer: Any) -> list[str]:
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return [*dict.fromkeys([*tokenizer.all_special_tokens, *added])]


def _comes_back(tokenizer: Any) -> bool:
    return bool(tokenizer.decode(_ids(tokenizer, PROSE)).strip() == PROSE)


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def read(
    models: Sequence[Loaded], kind: str, turns: Turns
) -> Generator[None, None, list[float | None]]:
    """Have models read a text once, all at the same time: nats a byte of each, None where its
    tokenizer does not know the text."""
    texts = [(loaded, passage(loaded, kind)) for loaded in models]
    found = yield from nats(texts, turns)
    return [n / text.size if text.size else None for (_, text), n in zip(texts, found, strict=True)]


def nats(
    texts: Sequence[tuple[Loaded, Passage]], turns: Turns
) -> Generator[None, None, list[float]]:
    """Have each model read its text, all at the same time: nats of all that is judged in it."""
    found = [_Read.of(loaded, text) for loaded, text in texts]
    todo = [each for each in found if each.size]
    with turns.going([each.go for each in todo]) as gone:
        while any(each.going and not each.error for each in todo):
            gone.wait(EVERY)
            gone.clear()
            yield
    for each in todo:
        if each.error:
            raise each.error
    return [each.nats for each in found]


@dataclass
class _Read:
    """A model on its way along a text, of which the tokens that are `judged` have `size` bytes."""

    model: Any
    ids: Tensor
    judged: Tensor
    size: int
    nats: float = 0.0
    at: int = 0
    reader: Reader | None = None
    error: Exception | None = None

    @classmethod
    def of(cls, loaded: Loaded, text: Passage) -> "_Read":
        model, on = loaded.model, loaded.model.device
        ids, judged = torch.tensor([text.ids], device=on), torch.tensor(text.judged, device=on)
        return cls(model, ids, judged, text.size)

    @property
    def going(self) -> bool:
        return self.at < self.ids.shape[1] - 1

    def go(self) -> bool:
        """Read a piece, of which the scores are held; whether there is another."""
        try:
            with torch.inference_mode():
                self._go()
        except Exception as error:  # noqa: BLE001  # handed to the thread that waits, which raises it
            self.error = error
        return self.going and not self.error

    def _go(self) -> None:
        reader = self.reader = self.reader or Reader.of(self.model)
        stop = self.at + PIECE if reader.goes_on() else self.ids.shape[1]  # or all at once
        piece = self.ids[:, self.at : stop]
        wanted = self.ids[0, self.at + 1 : stop + 1]
        scores = reader.read(piece, piece.shape[1])[0, : len(wanted)]
        each = torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
        self.nats += float(each[self.judged[self.at + 1 : stop + 1]].sum())
        self.at += piece.shape[1]


def passage(loaded: Loaded, kind: str) -> Passage:
    """A text of this file. Of "prose" all is judged but the first token, which nothing foretells,
    as much as the context has room for; of "lines" the answers, each to its question.
    """
    if kind == "lines":
        talks = [(({"role": "user", "content": q},), said) for q, said in LINES.items()]
        return dialogue(loaded, talks)
    tokenizer = loaded.tokenizer
    ids = list(tokenizer(PROSE)["input_ids"])[: context(loaded.model)]
    judged = [False, *[True] * (len(ids) - 1)]
    size = len(tokenizer.decode(ids, skip_special_tokens=True).encode())
    return _known(loaded, Passage(ids, judged, size))


def dialogue(loaded: Loaded, talks: Iterable[tuple[Sequence[Message], str]]) -> Passage:
    """Conversations in the model's own format, each with an answer; only the answers are judged. As
    many as the context has room for, up to one that its template refuses.
    """
    room, ids, judged, size = context(loaded.model), list[int](), list[bool](), 0
    for messages, said in talks:
        try:
            asked, _ = prompt("the merge", loaded, messages)
        except MergeError:
            break
        answered = _ids(loaded.tokenizer, said)
        if len(ids) + len(asked) + len(answered) > room:
            break
        ids += [*asked, *answered]
        judged += [*[False] * len(asked), *[True] * len(answered)]
        size += len(said.encode())
    return _known(loaded, Passage(ids, judged, size))


def _known(loaded: Loaded, text: Passage) -> Passage:
    unknown = loaded.tokenizer.unk_token_id
    lost = 0 if unknown is None else list(text.ids).count(unknown)
    return replace(text, size=0) if len(text.ids) < 2 or lost > len(text.ids) / 10 else text


def say(loaded: Loaded, library: Library) -> Generator[None, None, Saying]:
    """Have a model answer PROMPTS, the likeliest token each time."""
    asked = {words: ({"role": "user", "content": words},) for words in PROMPTS}
    try:
        replies = yield from said(Question(asked, NEW), loaded, library.turns, library.pasts)
    except MergeError:  # its template refuses a plain question
        return Saying(0.0, 0)
    ids = [_ids(loaded.tokenizer, reply.text) for reply in replies]
    return Saying(repeated(ids), sum(r.ended == "end of text" for r in replies))


def said(
    question: Question, loaded: Loaded, turns: Turns, pasts: Pasts | None = None
) -> Generator[None, None, list[Reply]]:
    """What one model answers to all conversations of a question, at the same time.

    Raises MergeError where it can answer none.
    """
    last: dict[str, Reply] = {}
    models = dict.fromkeys(question.conversations, loaded)
    for reply in answer(question, models, pasts, turns):
        last[reply.column] = reply
        yield
    return [last[column] for column in models]


def repeated(answers: Sequence[Sequence[int]]) -> float:
    """Of all three tokens in a row, the part that stood in the same answer before.

    >>> repeated([[1, 2, 1, 2, 1, 2], [5]])
    0.5
    """
    threes = [[*zip(ids, ids[1:], ids[2:], strict=False)] for ids in answers]
    total = sum(map(len, threes))
    return (total - sum(len(set(own)) for own in threes)) / total if total else 0.0
