"""Merges again and again as one number moves, and scores each merge beside the parents.

It knows plans, exams and the library that holds models; not who watches, nor what is drawn of it.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from merging.exam import Exam, Result, Texts, parents, sit, worth
from merging.knobs import parents_of
from merging.library import Library
from merging.loading import Loaded
from merging.making import made, size_of
from merging.merge import Progress
from merging.plan import plan
from merging.recipe import Recipe
from merging.sources import Local
from merging.waiting import in_turn, patiently


@dataclass(frozen=True)
class Scored:
    """How a parent has done, by its name, or the merge with the number at `value`."""

    who: str
    result: Result
    value: float | None = None


def sweep(
    recipes: Mapping[float, Recipe], sources: Mapping[str, Local], given: Exam, library: Library
) -> Generator[Progress | Scored, None, None]:
    """Score the parents, once, and then the merge at each value.

    `recipes` differ in one number, and `sources` are all that they name. No merge is put on the
    library's shelf: one model's memory is filled again and again. Closing the generator stops it
    within a token or a group of tensors, and gives the memory back. Raises MergeError.
    """
    own = [sources[name] for name in parents_of(next(iter(recipes.values())))]
    results, texts = yield from told("the parents", parents(given, own, library))
    for name, result in results.items():
        yield Scored(name, result)
    yield from patiently(partial(_points, recipes, sources, given, texts, library))


def whole(recipes: Mapping[float, Recipe], sources: Mapping[str, Local], library: Library) -> int:
    """Bytes of each merge of a sweep: all are of one size."""
    return size_of(plan(next(iter(recipes.values())), sources), library)


def _points(
    recipes: Mapping[float, Recipe], sources: Mapping[str, Local], given: Exam, texts: Texts,
    library: Library,
) -> Generator[Progress | Scored, None, None]:  # fmt: skip
    with library.room(whole(recipes, sources, library)):
        spare: Loaded | None = None
        for value, recipe in recipes.items():
            making = made(plan(recipe, sources), library, spare=spare)
            spare = None  # its memory is the next one's
            spare, _ = yield from in_turn(library, making)
            result = yield from told(f"{value:g}", sit(given, spare, texts, library))
            yield Scored("merged", result, value)


def best(points: Mapping[float, Result]) -> float:
    """The value with the best result; of several, the middle one, or the lower of two."""
    top = max(map(worth, points.values()))
    among = sorted(value for value, result in points.items() if worth(result) == top)
    return among[(len(among) - 1) // 2]


def told(what: str, steps: Generator[Progress | None, None, Any]) -> Generator[Progress, None, Any]:
    """Steps as progress, those that say nothing too."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield step or Progress(what, stage="score")
