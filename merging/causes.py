"""Why a merge does not work, by its samples and its rows: the likeliest cause, and what to try.

That it does not work, `sanity` says; how models read and what they say is not known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from merging.figures import distances
from merging.loading import Loaded
from merging.plan import Plan
from merging.samples import Sums
from merging.vocabulary import ROWS

APART = 0.8
"""Distance as a part of the weights' length: of fine-tunes up to 0.2, of strangers 1.1 to 1.4."""
MIXED = 0.4
"""Distance of the rows as a part of their length, at least, and twice that of all other weights: no
training moves rows so far."""
ENOUGH = 2048
"""Rows that are compared at most."""
ALIKE = 0.5
"""Cosine of the rows of the same tokens: a merged row has at least 0.7 with one of two parents."""
LONG = 2.0
"""Length of the merged step, as a part of the longest model's: two that have nothing in common add
up to 1.4, three to 1.7."""
AROUND = (0.7, 1.3)
"""Length of the merged weights, as a part of a model's, where there is no base: an average of alike
models keeps it."""
KEPT = 0.05
"""Share of a change's energy that is kept: with less its step is a fifth as long, hardly seen."""


class Cause(NamedTuple):
    """A cause in a word, and the end of a sentence: why it is likely, and what to try."""

    name: str
    why: str


OVERFLOW = Cause(
    "dtype",
    "its dtype cannot hold them: merge with `dtype: float32` and `out_dtype: bfloat16`",
)
UNFIT = Cause(
    "vocabulary",
    "tokens and rows do not fit each other: choose `tokenizer_source: union`, or models with their "
    "own tokenizer files",
)


@dataclass(frozen=True)
class Signs:
    """What tells the causes apart, of a merge's samples.

    `apart` is how far the two models lie from each other (or from the base) that lie farthest, as a
    part of the base's length, or of theirs, `rows` the same in the tensors with one row a token;
    `step` the length of the merged step as a part of the longest model's, or of the weights' where
    there is no base (`based`); `kept` the energy that the trim leaves to each model. None for what
    the samples do not say.
    """

    apart: float | None = None
    rows: float | None = None
    based: bool = False
    step: float | None = None
    kept: Mapping[str, float] | None = None


def signs(plan: Plan, sums: Mapping[str, Sums], figures: Mapping[str, Any] | None) -> Signs:
    """The signs of a merge; `figures` are the whole model's, as `figures.estimated` has them."""
    far, own = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for name, (distance, length) in distances(sums).items():
        far[bool(ROWS.search(name))] += distance
        own[bool(ROWS.search(name))] += length
    apart, rows = ((far[k] / own[k]) ** 0.5 if own[k] else None for k in (False, True))
    if not figures:
        return Signs(apart, rows, plan.based)
    longest = max(figures["norm"].values())
    step = figures["merged"]["norm"] / longest if longest else None
    kept = {name: share for name, share in figures["kept"].items() if share is not None}
    return Signs(apart, rows, plan.based, step, kept)


def cause(found: Signs, merged: Loaded, lent: Sequence[Loaded], *, finite: bool) -> Cause:
    """The likeliest cause; `lent` are the models of the merge that are in memory."""
    if not finite:
        return OVERFLOW
    if strange := strangers(found):
        return strange
    if (found.rows and found.rows > max(MIXED, 2 * (found.apart or 0.0))) or _mixed(merged, lent):
        return Cause(
            "vocabulary",
            "the rows of the same tokens are not alike in the models, though all else is: choose "
            "models with their own tokenizer files",
        )
    if long := lengthy(found):
        return long
    if faint := thin(found):
        return faint[1]
    return Cause(
        "unknown",
        "the models differ in what no figure shows: try a smaller `lambda`, or two models at a "
        "time",
    )


def strangers(found: Signs) -> Cause | None:
    """The cause where the models have no ancestor in common."""
    if not found.apart or found.apart <= APART:
        return None
    return Cause(
        "ancestors",
        f"the models have different ancestors (their weights differ by {found.apart:.0%} of their "
        "length): choose fine-tunes of one and the same base",
    )


def lengthy(found: Signs) -> Cause | None:
    """The cause where the merge's step, or its weights, are too long or too short."""
    step = found.step or 1.0
    if found.based and step > LONG:
        return Cause(
            "step",
            f"the step is too long ({step:.1f} times the longest model's): lower `lambda` or the "
            "weights",
        )
    if not found.based and not AROUND[0] < step < AROUND[1]:
        return Cause(
            "step",
            f"the weights do not add up to 1 (the merged model is {step:.1f} times as long as its "
            "parents): set `normalize: true`",
        )
    return None


def thin(found: Signs) -> tuple[str, Cause] | None:
    """The model of which the trim leaves hardly anything, and that as a cause."""
    model, share = min((found.kept or {"": 1.0}).items(), key=lambda pair: pair[1])
    if share >= KEPT:
        return None
    why = f"the trim leaves {share:.1%} of what that model changes: raise `density`"
    return model, Cause("density", why)


def _mixed(merged: Loaded, parents: Sequence[Loaded]) -> bool:
    """Whether the rows of the merge's tokens are like those of the same tokens in no parent, as far
    as they are on the device."""
    tokens, own = merged.tokenizer.get_vocab(), merged.model.get_input_embeddings().weight
    some = [*tokens.items()][:: 1 + len(tokens) // ENOUGH]
    cosines = []
    for parent in parents:
        numbers, rows = parent.tokenizer.get_vocab(), parent.model.get_input_embeddings().weight
        pairs = [(number, numbers.get(token, len(rows))) for token, number in some]
        known = [(ours, theirs) for ours, theirs in pairs if ours < len(own) and theirs < len(rows)]
        if known and not (own.is_meta or rows.is_meta):
            ours, theirs = (list(each) for each in zip(*known, strict=True))
            both = own[ours].float().flatten(), rows[theirs].float().flatten()
            cosines.append(float(torch.cosine_similarity(*both, dim=0)))
    return bool(cosines) and max(cosines) < ALIKE
