"""What models are scored on: a sheet's questions, or what the parents say; and how each has done.

It knows models that somebody lends it, one at a time; not whether, or how, they were merged.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import exp
from typing import TypeVar

from merging.chat import Question
from merging.conversation import Message, with_system
from merging.errors import MergeError
from merging.library import Library
from merging.loading import Loaded
from merging.merge import Progress
from merging.scoring import right
from merging.sources import Local
from merging.trials import dialogue, nats, said
from merging.waiting import patiently

AT_ONCE = 16
"""Questions that a model answers at the same time, each with keys and values of its own."""
TEXT = 48
"""Tokens of a parent's answer that is read, at most."""
HIGHEST = 50.0
"""Nats a byte, beyond which a perplexity is no more than a number."""

T = TypeVar("T")
Texts = Mapping[str, Sequence[str]]
"""What each parent says to each question, by its name."""


@dataclass(frozen=True)
class Exam:
    """Questions, each a conversation by itself, and how they are asked.

    With `expected` answers, one a question, a model is scored by how many of its own are right;
    without, by how well it foretells what each parent says to the same questions.
    """

    questions: tuple[tuple[Message, ...], ...]
    expected: tuple[str, ...] = ()
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that a model says at most, or reads of each parent."""
        return len(self.questions) * self.max_new_tokens


@dataclass(frozen=True)
class Result:
    """Which answers of a model are right, or its nats a byte of each parent's text, by name.

    None for a text that its tokenizer does not know.
    """

    marks: tuple[bool, ...] = ()
    nats: Mapping[str, float | None] = field(default_factory=dict)


def exam(
    asked: Sequence[tuple[str, str]], *, texts: bool = False, system: str = "",
    max_new_tokens: int = TEXT, temperature: float = 0.0, seed: int = 0,
) -> Exam:  # fmt: skip
    """An exam of questions with what is expected of the answers; of `texts`, that does not count.

    Raises MergeError where nothing is asked that could be scored.
    """
    rows = [(question, expected) for question, expected in asked if texts or expected]
    if not rows:
        raise MergeError(
            "No question says what is expected of its answer: write it, or score on what the "
            "parents say."
        )
    questions = tuple(with_system(system, [{"role": "user", "content": q}]) for q, _ in rows)
    if texts:  # the likeliest tokens, since they stand for the parent
        return Exam(questions, (), min(max_new_tokens, TEXT))
    return Exam(questions, tuple(e for _, e in rows), max_new_tokens, temperature, seed)


def parents(
    given: Exam, sources: Sequence[Local], library: Library
) -> Generator[Progress | None, None, tuple[Mapping[str, Result], Texts]]:
    """How the parents do, each by its name, and what they said that others are to read.

    They are lent one after the other, as where they have no room together, and waited for.
    """
    texts: dict[str, Sequence[str]] = {}
    says = partial(_answers, given, library=library)
    for source in () if given.expected else sources:
        texts[source.name] = yield from patiently(partial(_lent, source, library, says))
    results = {}
    does = partial(sit, given, texts=texts, library=library)
    for source in sources:
        results[source.name] = yield from patiently(partial(_lent, source, library, does))
    return results, texts


def _lent(
    source: Local, library: Library, use: Callable[[Loaded], Generator[None, None, T]]
) -> Generator[None, None, T]:
    with library.parent(source) as loaded:
        return (yield from use(loaded))


def sit(
    given: Exam, loaded: Loaded, texts: Texts, library: Library
) -> Generator[None, None, Result]:
    """How one model does. Yields now and then, and stops within a token when it is closed.

    Raises MergeError where it can answer nothing.
    """
    if given.expected:
        answers = yield from _answers(given, loaded, library)
        pairs = zip(given.expected, answers, strict=True)
        return Result(marks=tuple(bool(right(expected, answer)) for expected, answer in pairs))
    found = {}
    for name, own in texts.items():
        found[name] = yield from _reads(loaded, [*zip(given.questions, own, strict=True)], library)
    return Result(nats=found)


def _answers(given: Exam, loaded: Loaded, library: Library) -> Generator[None, None, list[str]]:
    found: list[str] = []
    for start in range(0, len(given.questions), AT_ONCE):
        talks = {str(n): q for n, q in enumerate(given.questions[start : start + AT_ONCE])}
        question = Question(talks, given.max_new_tokens, given.temperature, given.seed)
        replies = yield from said(question, loaded, library.turns)
        found += [reply.text for reply in replies]
    return found


def _reads(
    loaded: Loaded, talks: Sequence[tuple[Sequence[Message], str]], library: Library
) -> Generator[None, None, float | None]:
    """Nats a byte of answers, each after its question alone."""
    texts = [(loaded, dialogue(loaded, [talk])) for talk in talks if talk[1]]
    found = yield from nats(texts, library.turns)
    size = sum(text.size for _, text in texts)
    return sum(found) / size if size else None


@dataclass(frozen=True)
class Measure:
    """One number of a result: `of` gives it, None where there is none. `whose` is the parent whose
    text is read, or who alone is right; `unit` says whether more is better."""

    label: str
    whose: str | None
    unit: str
    of: Callable[[Result], float | None]


RIGHT, PERPLEXITY = "% right", "perplexity a byte"


def measures(known: Mapping[str, Result], called: Mapping[str, str]) -> list[Measure]:
    """What results are told by, given the parents', who are `called` something: all questions, and
    those to which one parent alone has the answer; or each parent's text."""
    names = list(known)
    if any(result.nats for result in known.values()):
        return [Measure(f"{called[n]}'s text", n, PERPLEXITY, _perplexity(n)) for n in names]
    marks = [known[name].marks for name in names]
    found = [Measure(f"all {len(marks[0])} questions", None, RIGHT, _share(range(len(marks[0]))))]
    for name, own in zip(names, marks, strict=True):
        alone = [n for n, is_right in enumerate(own) if is_right and sum(m[n] for m in marks) == 1]
        if alone:
            label = f"the {len(alone)} only {called[name]} has right"
            found.append(Measure(label, name, RIGHT, _share(alone)))
    return found


def _share(questions: Sequence[int]) -> Callable[[Result], float | None]:
    def share(result: Result) -> float | None:
        return 100 * sum(result.marks[n] for n in questions) / len(questions)

    return share


def _perplexity(name: str) -> Callable[[Result], float | None]:
    def perplexity(result: Result) -> float | None:
        nats = result.nats.get(name)
        return None if nats is None else exp(min(nats, HIGHEST))

    return perplexity


def worth(result: Result) -> float:
    """How good a result is beside others of the same exam: answers that are right, or, the fewer
    the better, nats a byte of all parents' texts."""
    if result.marks:
        return float(sum(result.marks))
    known = [HIGHEST if n is None else n for n in result.nats.values()]
    return -sum(known)
