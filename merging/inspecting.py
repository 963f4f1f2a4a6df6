"""Figures of a merge over all its elements, exactly: it is carried out, and nothing of it is kept.

It prints nothing; what is sampled while a merge is really made is `inside`'s.
"""

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merging.errors import MergeError
from merging.figures import angle, estimated, grouped
from merging.merge import AllSums, Numbers, Progress, merge, outcomes
from merging.plan import Plan

if TYPE_CHECKING:
    from merging.pairing import Step


class Nowhere:
    """A sink that lends memory for each tensor, and forgets what is put there."""

    def begin(self, plan: Plan) -> None:
        pass

    def has(self, name: str) -> bool:  # noqa: ARG002
        return False

    def part(self, name: str) -> None:  # noqa: ARG002
        return None

    def place(self, step: "Step") -> Tensor:
        return torch.empty(step.size, dtype=step.dtype)

    def done(self, name: str) -> None:
        pass

    def finish(self) -> None:
        pass

    def abandon(self, *, keep: bool) -> None:
        pass


def inspected(plan: Plan) -> Generator[Progress, None, Mapping[str, Any]]:
    """The figures of the whole model, and of each tensor, by the models' names as written.

    They are of deltas; of a method that walks from one model to another they are of weights, with
    `angle`, in degrees, and each tensor's `formula`. The parents must be here. Raises MergeError
    for a method that compares its models with nothing, and where the merge itself would fail.
    """
    _check(plan)
    sums: AllSums = {}
    numbers: Numbers = {}
    yield from merge(plan, Nowhere(), numbers, sums=sums)
    written = dict(zip(plan.recipe.listed(), plan.columns, strict=True))
    models = [written[s.name] for s in plan.sources[: len(plan.sources) - plan.based]]
    exact, formulas = [*sums.values()], outcomes(plan, numbers)
    each = grouped(exact, range(len(exact)), models)
    tensors = {n: _told(e, plan, formulas.get(n)) for n, e in zip(sums, each, strict=True)}
    return {"whole": _told(estimated(exact, models), plan), "tensors": tensors}


def _check(plan: Plan) -> None:
    if plan.recipe.slices:
        raise MergeError("Figures are taken of whole models: list them under `models`.")
    if plan.method.base == "unused":
        raise MergeError(
            f"{plan.method.title} has no base to take deltas from: "
            "name a method that has, such as task_arithmetic, with `base_model: …`."
        )


def _told(found: Mapping[str, Any], plan: Plan, formula: str | None = None) -> dict[str, Any]:
    """Without errors, since nothing was left out."""
    told = {name: value for name, value in found.items() if name != "error"}
    if not plan.based:
        told["of"] = "weights"
        told["angle"] = [{**pair, "value": angle(pair["value"])} for pair in told["cosine"]]
    return told | ({"formula": formula} if formula else {})
