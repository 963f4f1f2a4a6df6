"""A step's inputs: how each tensor is read from its parents, from one flat index to another.

It knows plans and sources; not what is done with the values, nor where they go.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from merging import blocks
from merging.blocks import Part, Reader, Work, aligned, slices
from merging.pairing import Step
from merging.plan import Plan
from merging.sources import Adapter, Local, Remote
from merging.vocabulary import Matched


def part(plan: Plan, step: Step, device: str) -> Part:
    """The step's formula and its values, which are float32 on `device`."""
    work = Work(plan.method, step.values, plan.based, step.size, blocks.BLOCK, step.shape)
    return work, _reader(plan, step, device)


def parents(plan: Plan, step: Step) -> list[tuple[Local, str]]:
    """The step's sources, which are here by now, each with the tensor's name in it."""
    pairs = zip(step.sources, step.reads, strict=True)
    found = [(plan.sources[place], name) for place, name in pairs]
    return [(source, name) for source, name in found if not isinstance(source, Remote)]


def _reader(plan: Plan, step: Step, device: str) -> Reader:
    found = parents(plan, step)
    tensors = [_held(source, name) for source, name in found]
    if not (step.by_token and plan.vocabulary):
        return lambda start, stop: slices([t().reshape(-1) for t in tensors], start, stop, device)
    names = [source.name for source, _ in found]
    rows = [plan.vocabulary.rows[name] for name in names]
    other = names.index(plan.donor.name) if plan.donor.name in names else None
    base = len(found) - 1 if plan.based else other
    matched = Matched(tensors, rows, base)
    return lambda start, stop: aligned(matched, start, stop, device)


def computed(plan: Plan, step: Step) -> bool:
    """Whether a parent has to compute the tensor, and then keeps it while it is merged alone."""
    return any(_changes(source, name) for source, name in parents(plan, step))


def _changes(source: Local, name: str) -> bool:
    return isinstance(source, Adapter) and name in source.changes


def _held(source: Local, name: str) -> Callable[[], Tensor]:
    """Gives the tensor: a view of a mapped file costs nothing to hold, what an adapter changes is
    computed, and a reader for each tensor of a model must not hold it.
    """
    if _changes(source, name):
        return partial(source.read, name)
    values = source.read(name)
    return lambda: values
