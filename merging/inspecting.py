"""Figures of a merge over all its elements, exactly: it is carried out, and nothing of it is kept.

It prints nothing; what is sampled while a merge is really made is `inside`'s.
"""

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merging.errors import MergeError
from merging.figures import angles, estimated, grouped
from merging.inside import merged_models
from merging.merge import AllSums, Progress, merge
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

    They are of deltas; of a method without a base they are of weights, with `angle`, in degrees.
    Of a method with several formulas each tensor has its `formula`. The parents must be here.
    Raises MergeError for slices of different models, and where the merge itself would fail.
    """
    pinned = merged_models(plan)
    if pinned is None:
        raise MergeError(
            "The slices have different models, and figures are of the same ones throughout: "
            "list them under `models`."
        )
    sums: AllSums = {}
    yield from merge(plan, Nowhere(), sums=sums)
    written = dict(zip(plan.recipe.listed(), plan.columns, strict=True))
    models = [written[name] for name in pinned]
    exact = [*sums.values()]
    each = grouped(exact, range(len(exact)), models)
    tensors = {n: _told(e, plan, sums[n].outcome) for n, e in zip(sums, each, strict=True)}
    return {"whole": _told(estimated(exact, models), plan), "tensors": tensors}


def _told(found: Mapping[str, Any], plan: Plan, formula: str | None = None) -> dict[str, Any]:
    """Without errors, since nothing was left out."""
    told = {name: value for name, value in found.items() if name != "error"}
    if not plan.based:
        told |= {"of": "weights", "angle": angles(told["cosine"])}
    return told | ({"formula": formula} if formula else {})
