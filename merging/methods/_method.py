"""`@method` reads a function's signature once: its parameters become fields, checks and controls.

It knows nothing of recipes, files or pages.

A method is `combine(tensors, parameter, …, *, number, …) -> Tensor`, element-wise on any slice of
the flattened tensors. Parameters are positional and annotated with `Number` or `Switch`; numbers of
the whole tensor are keyword-only and come from `measure`, a generator in which

    total = yield block_function        # run over fixed blocks of the tensor, results added up
    each = yield Ordered(block_function)  # the same, but the list of results, block by block
    some = yield Sampled(block_function)  # its result for short slices of the tensor, joined
    return {"number": …}                # one value for all blocks, or `PerBlock([…])`

A method whose steps are worth a look yields each as a `Stage`, the merged tensor last; `combine` is
then made of it.
"""

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin

from torch import Tensor

Space = Literal["weights", "deltas"]
Base = Literal["required", "unused", "first"]
Scope = Literal["tensor", "model"]
STANDARD = "mergekit"
"""The variant that a recipe means if it names none."""
BlockFunction = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Ordered:
    """A function whose results are wanted one by one, in the order of the blocks."""

    function: Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Sampled:
    """A function whose result is wanted of a few short slices, spread over the tensor and joined.

    Of a tensor that is not longer than all of them together it is wanted of the whole.
    """

    function: Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class PerBlock:
    """A number that differs from block to block."""

    values: Sequence[Any]


class Stage(NamedTuple):
    """A step on a method's way: a tensor for each model, or one for all, to be multiplied by `sign`
    if there is one. They hold until the next step is asked for, which may write into them.
    """

    name: str
    help: str
    tensors: Sequence[Tensor] | Tensor
    sign: Tensor | None = None


Asked = BlockFunction | Ordered | Sampled
"""What a method's `measure` wants to have run over the tensor."""
Asking = Generator[Asked, Any, dict[str, Any]]
"""A `measure` under way: it asks, is sent what was found, and returns its numbers."""
Measure = Callable[..., Asking]


@dataclass(frozen=True)
class Number:
    """A number's place in recipe and page.

    `default` holds where a recipe is silent (mergekit's, where it has one); `start`, `low`, `high`
    are the page's slider; `limits` are hard, set only where the formula breaks.
    """

    help: str
    default: float
    start: float
    low: float
    high: float
    limits: tuple[float, float] = (float("-inf"), float("inf"))


@dataclass(frozen=True)
class Switch:
    """A yes or no, with mergekit's default."""

    help: str
    default: bool


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: `name` as in YAML, `per_model` if each model has its own."""

    name: str
    control: Number | Switch
    per_model: bool


@dataclass(frozen=True)
class Method:
    """A merge method as declared. `models` is how many it takes, the base not counted.

    `variant` tells definitions of one name apart. `measure` runs over the blocks of one tensor, or,
    if `scope` is "model", once over those of all tensors, as if they were one vector.
    """

    name: str
    variant: str
    title: str
    help: str
    paper: str
    space: Space
    base: Base
    models: tuple[int, int]
    parameters: tuple[Parameter, ...]
    combine: Callable[..., Tensor]
    stages: Callable[..., Iterator[Stage]]
    measure: Measure | None
    measured: tuple[str, ...]
    scope: Scope
    whole: bool
    outcome: Callable[..., str] | None
    refuse: Callable[..., str | None] | None
    keep: Callable[..., Sequence[Tensor]] | None

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """YAML names to Python's: `lambda` is `lambda_`."""
        return {_python(p.name): values[p.name] for p in self.parameters}


registered: dict[tuple[str, str], Method] = {}
"""Methods by name and variant; filled while the sibling files are imported, read-only after."""


def method(  # noqa: PLR0913  # a declaration: each argument is one fact about the method
    title: str,
    *,
    help: str,
    paper: str,
    space: Space,
    base: Base,
    variant: str = STANDARD,
    models: tuple[int, int] = (2, 3),
    measure: Measure | None = None,
    scope: Scope = "tensor",
    whole: bool = False,
    outcome: Callable[..., str] | None = None,
    refuse: Callable[..., str | None] | None = None,
    keep: Callable[..., Sequence[Tensor]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Tensor]]:
    """Register a function, or a generator of stages, under its name and variant, as `combine`.

    `outcome(**numbers)` names what happened to a tensor, for tallies; `refuse(**parameters)` says
    what is wrong with a combination of values, or None. `whole` hands over shaped whole tensors.
    `keep(tensors, cut, **numbers)` is what a method that trims leaves of each, for the figures,
    which look at what `cut` takes of a tensor.
    """

    def register(written: Callable[..., Any]) -> Callable[..., Tensor]:
        _, *rest = inspect.signature(written, eval_str=True).parameters.values()
        positional = [p for p in rest if p.kind is p.POSITIONAL_OR_KEYWORD]
        stepwise = inspect.isgeneratorfunction(written)
        combine = _last(written) if stepwise else written
        registered[written.__name__, variant] = Method(
            written.__name__, variant, title, help, paper, space, base, models,
            tuple(_parameter(p) for p in positional), combine,
            written if stepwise else _only(written, help), measure,
            tuple(inspect.signature(measure).parameters) if measure else (),
            scope, whole, outcome, refuse, keep,
        )  # fmt: skip
        return combine

    return register


def _last(stages: Callable[..., Iterator[Stage]]) -> Callable[..., Tensor]:
    """What the last stage gives; no stage is kept beyond the next."""

    @wraps(stages)
    def combine(*arguments: Any, **named: Any) -> Tensor:
        for stage in stages(*arguments, **named):
            last = stage
        return cast(Tensor, last.tensors)

    return combine


def _only(combine: Callable[..., Tensor], help: str) -> Callable[..., Iterator[Stage]]:
    """A method of one step."""

    @wraps(combine)
    def stages(*arguments: Any, **named: Any) -> Iterator[Stage]:
        yield Stage("Merged", help, combine(*arguments, **named))

    return stages


def listed(values: Sequence[float]) -> str:
    """A parameter's values for the models, once where they are equal.

    >>> listed([0.5, 0.5]), listed([0.5, 1, 2])
    ('0.5', '0.5, 1 and 2')
    """
    *others, last = (f"{value:g}" for value in values)
    return f"{', '.join(others)} and {last}" if {*others} - {last} else last


def _parameter(p: inspect.Parameter) -> Parameter:
    if get_origin(p.annotation) is not Annotated:
        raise TypeError(f"{p.name} needs Annotated[float, Number(…)] or Annotated[bool, Switch(…)]")
    kind, control = get_args(p.annotation)
    return Parameter(p.name.rstrip("_"), control, per_model=get_origin(kind) is not None)


def _python(name: str) -> str:
    return f"{name}_" if name == "lambda" else name
