"""One question, several models, all answering at once, a token each in turn.

It knows models and tokenizers that somebody lends it; not where they come from, nor who watches.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch

from merging import sampling
from merging.conversation import Message, check, context, prompt
from merging.errors import MergeError
from merging.loading import Loaded
from merging.reading import Pasts, Reader
from merging.threads import cores
from merging.turns import Turns

MAX_NEW_TOKENS = 1024
TICK = 0.08
"""Seconds between two looks at what the columns have said."""
HEARTBEAT = 1.0
"""Seconds without a token after which the last reply comes again: who has gone is noticed then."""
PIECE = 512
"""Tokens of a prompt that are read in one go: others wait so long, and so does Stop."""


@dataclass(frozen=True)
class Question:
    """What each column is asked: its own history, and the same sampling for all.

    `conversations` maps a column to messages with `role` and `content`, the last one the user's.
    """

    conversations: Mapping[str, Sequence[Message]]
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def capped(self) -> "Question":
        """The same within the server's limits. Raises MergeError for what cannot be cut."""
        given = (self.max_new_tokens, self.temperature, self.seed)
        if not all(isinstance(value, int | float) and isfinite(value) for value in given):
            raise MergeError("Length, temperature and seed must be numbers: correct them.")
        if not 0 <= self.temperature <= 5:
            raise MergeError(f"Temperature {self.temperature} is out of range: choose 0 to 5.")
        if not 0 <= self.seed < 2**63:
            raise MergeError(f"Seed {self.seed} is out of range: choose 0 to {2**63 - 1}.")
        for messages in self.conversations.values():
            check(messages)
        return replace(
            self,
            seed=int(self.seed),
            max_new_tokens=min(max(1, int(self.max_new_tokens)), MAX_NEW_TOKENS),
        )


@dataclass(frozen=True)
class Reply:
    """What a column has said so far. `first` is seconds to its first token, `speed` tokens/s.

    `ended` says why it stopped, None while it goes on; `notice` what the reader should know. A
    column that `failed` could not answer at all, and `ended` is the sentence that says why.
    """

    column: str
    text: str
    tokens: int
    first: float | None
    speed: float
    ended: str | None = None
    notice: str | None = None
    failed: bool = False


def answer(
    question: Question,
    models: Mapping[str, Loaded],
    pasts: Pasts | None = None,
    turns: Turns | None = None,
    stops: Collection[str] = (),
) -> Iterator[Reply]:
    """Ask all models at once. Ends when all have; closing it stops them within a token.

    Every column has its own cache, sampler and seed: its answer depends on no other column. One
    that cannot answer fails alone. Raises MergeError where none can. What a model has read is
    kept in `pasts`, and what is there of a conversation is not read again. `turns` are shared by
    all who ask, in turn; a column whose name comes to be in `stops` ends within a token.
    """
    asked, pasts = question.capped(), pasts or Pasts(0)
    columns = [_Column(name, loaded, asked, pasts, stops) for name, loaded in models.items()]
    turns = turns or Turns(cores() if _on_cpu(models) else 1)
    try:
        with turns.going([column.go for column in columns]) as gone:
            yield from _watch(columns, gone)
    finally:
        for column in columns:
            column.keep()


def _watch(columns: Sequence["_Column"], gone: threading.Event) -> Iterator[Reply]:
    shown: dict[str, tuple[int, str | None]] = {column.name: (0, None) for column in columns}
    while going := [column for column in columns if not shown[column.name][1]]:
        if not gone.wait(HEARTBEAT):
            yield going[0].reply(*shown[going[0].name])
        gone.clear()
        for column in columns:
            if column.error:
                raise column.error
            state = (len(column.said), column.ended)
            if shown[column.name] != state:
                shown[column.name] = state
                yield column.reply(*state)
        time.sleep(TICK)
    if columns and all(column.failed for column in columns):
        raise MergeError(columns[0].ended)


def _on_cpu(models: Mapping[str, Loaded]) -> bool:
    return all(loaded.model.device.type == "cpu" for loaded in models.values())


@dataclass
class _Column:
    """One model at work: its prompt, its cache, and what it has said."""

    name: str
    loaded: Loaded
    question: Question
    pasts: Pasts
    stops: Collection[str] = ()
    said: list[int] = field(default_factory=list)
    ended: str | None = None
    notice: str | None = None
    failed: bool = False
    error: Exception | None = None
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0
    prompt: list[int] = field(default_factory=list)
    reader: Reader | None = None
    ids: torch.Tensor = field(init=False)
    new: torch.Tensor = field(init=False)

    def go(self) -> bool:
        """Read a piece of the prompt, or say a token; False when there is nothing more to do."""
        try:
            with torch.inference_mode():
                self._go()
        except MergeError as error:
            self.failed, self.ended = True, str(error)
        except Exception as error:  # noqa: BLE001  # handed to the reader's thread, which raises it
            self.error = error
        return not (self.ended or self.error)

    def _go(self) -> None:
        if self.name in self.stops:
            self.ended = "stopped"
            return
        reader = self.reader or self._begin()
        if reader is None:
            return
        if self.new.shape[1] > PIECE and reader.goes_on():
            reader.read(self.new[:, :PIECE])
            self.new = self.new[:, PIECE:]
            return
        token = self._next(reader)
        self.last = time.monotonic() - self.started
        self.first = self.first if self.first is not None else self.last
        if token in self.ends:
            self.ended = "end of text"
            return
        self.said.append(token)
        if len(self.said) >= self.budget:
            self.ended = "length limit"

    def reply(self, tokens: int, ended: str | None) -> Reply:
        text = self.loaded.tokenizer.decode(self.said[:tokens], skip_special_tokens=True)
        if not ended:
            text = text.rstrip("\ufffd")  # a character whose last bytes are still to come
        spent = self.last - (self.first or 0.0)
        speed = (tokens - 1) / spent if tokens > 1 and spent > 0 else 0.0
        return Reply(self.name, text, tokens, self.first, speed, ended, self.notice, self.failed)

    def keep(self) -> None:
        """Let the next question begin where this one ended; no thread may be at work on it."""
        if self.reader and not self.error:
            self.pasts.keep(self.reader, [*self.prompt, *self.said])

    def _begin(self) -> Reader | None:
        """Read the prompt's beginning where it is known; None where the prompt does not fit."""
        model, settings = self.loaded.model, self.loaded.model.generation_config
        self.prompt, whole = prompt(self.name, self.loaded, self.question.conversations[self.name])
        if not whole:
            self.notice = "The oldest questions no longer fit and are left out."
        self.budget = min(self.question.max_new_tokens, context(model) - len(self.prompt))
        if self.budget < 1:
            self.ended = (
                f"too long: {len(self.prompt)} tokens, and this model reads {context(model)}"
            )
            return None
        self.ids = torch.tensor([self.prompt], device=model.device)
        self.ends = _end_tokens(settings, self.loaded.tokenizer)
        self.warp = self._steps(settings)
        self.random = torch.Generator(model.device).manual_seed(self.question.seed)
        self.reader = self.pasts.reader(model, self.prompt)
        self.new = self.ids[:, self.reader.count :]
        return self.reader

    def _steps(self, settings: Any) -> Any:
        ends = torch.tensor(sorted(self.ends), dtype=torch.long, device=self.ids.device)
        try:
            return sampling.steps(settings, self.question.temperature, self.ids, ends)
        except (TypeError, ValueError) as error:
            raise MergeError(
                f"The generation settings of {self.name} cannot be followed ({error}): choose "
                "another model."
            ) from error

    def _next(self, reader: Reader) -> int:
        scores = self.warp(self.ids, reader.read(self.new)[:, -1])
        if self.question.temperature > 0:
            self.new = torch.multinomial(scores.softmax(-1), 1, generator=self.random)
        else:
            self.new = scores.argmax(-1, keepdim=True)
        self.ids = torch.cat([self.ids, self.new], dim=1)
        return int(self.new)


def _end_tokens(settings: Any, tokenizer: Any) -> frozenset[int]:
    ends = settings.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(n for n in [*listed, tokenizer.eos_token_id] if n is not None)
