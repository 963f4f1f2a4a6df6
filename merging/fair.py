"""Compares merge methods at one length of the merged step, beside a placebo of the same length.

A longer step from the base does more, whatever it is made of: only what is better at the same
length is the method's own merit. It knows plans, exams and the library that holds models.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from merging.errors import MergeError
from merging.exam import Exam, Result, Texts, parents, sit
from merging.knobs import parents_of
from merging.library import Library
from merging.loading import Loaded
from merging.making import made, size_of
from merging.merge import Progress
from merging.methods import Method, Number, methods, variants
from merging.plan import plan
from merging.recipe import Input, Recipe
from merging.roles import method_of
from merging.sources import Local
from merging.sweep import told
from merging.waiting import in_turn

SUM = "task_arithmetic"
"""The method that adds deltas up: with 0 for all it gives the base, with 1 for one that parent."""
BASE, PARENT, METHOD, PLACEBO = "base", "parent", "method", "placebo"


@dataclass(frozen=True)
class Row:
    """A model of the comparison; the `length` of its step is a part of the mean parent's.

    `own` is how it does, `matched` how it does with its step at length 1; None where that was not
    asked. One that could not be compared has a `problem`, and no more.
    """

    kind: str
    title: str
    length: float = 0.0
    own: Result | None = None
    matched: Result | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class _Contest:
    """What all of a comparison share. `sources` are by the recipe's names."""

    recipe: Recipe
    sources: Mapping[str, Local]
    exam: Exam
    texts: Texts
    library: Library

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(parents_of(self.recipe))

    def sum(self, weights: Sequence[float]) -> Recipe:
        """The base and the models' deltas, each times its weight."""
        listed = zip(self.models, weights, strict=True)
        models = tuple(Input(name, {"weight": weight}) for name, weight in listed)
        return _common(self.recipe, SUM, models, {"lambda": 1.0, "normalize": False})

    def summed(self, weights: Sequence[float]) -> Generator[Progress, None, Loaded]:
        return (yield from self.merged(self.sum(weights)))

    def merged(self, recipe: Recipe) -> Generator[Progress, None, Loaded]:
        decided = plan(recipe, self.sources)
        loaded, _ = yield from in_turn(self.library, made(decided, self.library))
        return loaded

    def scored(self, what: str, loaded: Loaded) -> Generator[Progress, None, Result]:
        found: Result = yield from told(what, sit(self.exam, loaded, self.texts, self.library))
        return found


def compare(
    recipe: Recipe, sources: Mapping[str, Local], given: Exam, library: Library
) -> Generator[Progress | Row, None, None]:
    """Score the base, the parents, every method with the values at which the page starts it, and
    two placebos; `sources` are all models of the recipe, by its names.

    All is merged in float32: in bfloat16 the weights' rounding would be part of each step's length.
    Raises MergeError for a recipe without a base.
    """
    contest = _Contest(recipe, sources, given, {}, library)
    names = contest.models
    if recipe.slices or method_of(recipe).base != "required" or not recipe.base_model:
        raise MergeError(
            "A step has its length from a base: write a recipe with `models` and a method that has "
            "one, such as task_arithmetic, with `base_model: …`."
        )
    size = size_of(plan(contest.sum([0.0] * len(names)), sources), library)
    known, texts = yield from told(
        "the parents", parents(given, [sources[n] for n in names], library)
    )
    contest = replace(contest, texts=texts)
    with library.room(3 * size):
        base = yield from contest.summed([0.0] * len(names))
        yield Row(BASE, recipe.base_model, own=(yield from contest.scored("the base", base)))
        steps = []
        for number in range(len(names)):
            parent = yield from contest.summed([float(n == number) for n in range(len(names))])
            steps.append(length(parent, base))
            del parent
        mean = sum(steps) / len(steps)
        if not mean:
            raise MergeError("The models are equal to their base: choose others.")
        for name, step in zip(names, steps, strict=True):
            yield Row(PARENT, name, step / mean, known[name])
        yield from _methods(contest, base, mean)
        yield from _placebos(contest, base, mean)


def length(model: Loaded, base: Loaded) -> float:
    """‖θ − θ₀‖ over all weights, tied ones once, added up in float64."""
    squares = [float((own - old).double().square().sum()) for own, old in _pairs(model, base)]
    return sqrt(sum(squares))


def lengthen(model: Loaded, base: Loaded, factor: float) -> None:
    """θ₀ + factor·(θ − θ₀), in place."""
    for own, old in _pairs(model, base):
        own.sub_(old).mul_(factor).add_(old)


def shuffled(delta: Tensor, random: torch.Generator) -> Tensor:
    """The same entries in another order: as long a step, without what it knew."""
    order = torch.randperm(delta.numel(), generator=random)
    return delta.flatten()[order.to(delta.device)].view_as(delta)


def _methods(contest: _Contest, base: Loaded, mean: float) -> Generator[Progress | Row, None, None]:
    for method in (m for name in methods() for m in variants(name).values()):
        if not method.models[0] <= len(contest.models) <= method.models[1]:
            continue
        recipe, values = _started(contest.recipe, method, contest.models)
        title = method.title + (f" ({method.variant})" if recipe.variant != "mergekit" else "")
        try:
            model = yield from contest.merged(recipe)
            _check(model, base)
        except MergeError as error:
            yield Row(METHOD, title, parameters=values, problem=str(error))
            continue
        row = yield from _both(contest, Row(METHOD, title, parameters=values), model, base, mean)
        del model
        yield row


def _placebos(
    contest: _Contest, base: Loaded, mean: float
) -> Generator[Progress | Row, None, None]:
    """The sum of all models with the last one's delta shuffled, and that delta alone."""
    others = contest.models[:-1]
    random = torch.Generator().manual_seed(contest.recipe.random_seed)
    added = {"all added up, the last shuffled": 1.0, "the last alone, shuffled": 0.0}
    for title, weight in added.items():
        model = yield from contest.summed([*(weight for _ in others), 0.0])
        parent = yield from contest.summed([*(0.0 for _ in others), 1.0])
        for (own, old), (skilled, _) in zip(_pairs(model, base), _pairs(parent, base), strict=True):
            own.add_(shuffled(skilled - old, random))
        del parent
        row = yield from _both(contest, Row(PLACEBO, title), model, base, mean)
        del model
        yield row


def _both(
    contest: _Contest, row: Row, model: Loaded, base: Loaded, mean: float
) -> Generator[Progress, None, Row]:
    """The row with the model's scores at its own length and at the mean of the parents'."""
    step = length(model, base)
    own = yield from contest.scored(row.title, model)
    if not step:
        return replace(row, own=own)
    lengthen(model, base, mean / step)
    matched = yield from contest.scored(row.title, model)
    return replace(row, length=step / mean, own=own, matched=matched)


def _pairs(model: Loaded, base: Loaded) -> Iterator[tuple[Tensor, Tensor]]:
    own, old = model.model.parameters(), base.model.parameters()
    return ((p.data, q.data) for p, q in zip(own, old, strict=True))


def _check(model: Loaded, base: Loaded) -> None:
    """Raises MergeError unless entries of the two models mean the same."""
    shapes = [[p.shape for p in each.model.parameters()] for each in (model, base)]
    if shapes[0] != shapes[1] or model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise MergeError(
            "Its vocabulary is another than with the base: set `tokenizer_source: union`, or "
            "choose models with equal tokenizers."
        )


def _started(
    recipe: Recipe, method: Method, names: Sequence[str]
) -> tuple[Recipe, Mapping[str, Any]]:
    """A method's recipe with the values at which the page starts it, and these."""
    start = {
        p.name: p.control.start if isinstance(p.control, Number) else p.control.default
        for p in method.parameters
    }
    each = {p.name: start[p.name] for p in method.parameters if p.per_model}
    models = tuple(Input(name, each) for name in names)
    common = {name: value for name, value in start.items() if name not in each}
    found = _common(recipe, method.name, models, common)
    base = {"required": recipe.base_model, "first": names[0], "unused": None}[method.base]
    return replace(found, base_model=base, variant=method.variant), start


def _common(
    recipe: Recipe, method: str, models: tuple[Input, ...], parameters: Mapping[str, Any]
) -> Recipe:
    return replace(
        recipe, merge_method=method, models=models, parameters=parameters, variant="mergekit",
        dtype="float32", out_dtype="float32",
    )  # fmt: skip
