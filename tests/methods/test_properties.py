"""What must hold of every merge method, and a little more of some; knows no method's formula.

The first part runs over `methods()`: a new file in `merging/methods/` is covered by being there.
What it needs to know it reads off the declaration (deltas or weights, which parameters, how many
models). A method for which a property is false by design is named in one of the sets below, with
the reason.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.blocks import merge_tensor
from merging.methods import Method, Number, methods

NOT_SCALE_FREE: frozenset[str] = frozenset()
"""Methods with an absolute epsilon in their definition."""

RANDOM: frozenset[str] = frozenset()
"""Methods with a random mask: their result is neither an average nor symmetric in the models."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((), (0,), (1,), (7,), (4, 0), (1, 1), (5, 3), (2, 3, 4), (130, 17))
BLOCKS = (7, 32, 1 << 20)
ROUNDING = 2.0**-21
THREADS = sys.modules["merging.threads"]

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("fixed")

EVERY_METHOD = pytest.mark.parametrize("method", methods().values(), ids=list(methods()))
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, 3)


def only(test: Any) -> list[Method]:
    """The methods that pass a test."""
    return [method for method in methods().values() if test(method)]


def has(method: Method, name: str) -> bool:
    """Whether a method has this parameter."""
    return any(p.name == name for p in method.parameters)


def on_deltas(method: Method) -> bool:
    """Whether a method works on differences to a base."""
    return method.space == "deltas"


def where(test: Any) -> Any:
    """Parametrise over the methods that pass a test."""
    chosen = only(test)
    return pytest.mark.parametrize("method", chosen, ids=[m.name for m in chosen])


def allowed(method: Method, count: int) -> int:
    """The number of models nearest to `count` that a method takes."""
    return min(max(count, method.models[0]), method.models[1])


def defaults(method: Method, count: int, **changed: Any) -> dict[str, Any]:
    """A recipe's parameters where it is silent, but for what is changed."""
    values = {
        p.name: [p.control.default] * count if p.per_model else p.control.default
        for p in method.parameters
    }
    return {**values, **{key: value for key, value in changed.items() if key in values}}


def drawn(method: Method, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters from anywhere on the sliders; normalised where that is a choice."""
    values: dict[str, Any] = {}
    for p in method.parameters:
        if not isinstance(p.control, Number):
            values[p.name] = True
            continue
        some = [float(x) for x in rng.uniform(p.control.low, p.control.high, count)]
        values[p.name] = some if p.per_model else some[0]
    return values


def tensors_from(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, count: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and models near it: ordinary, mostly unchanged, or with many equal magnitudes."""
    kind = rng.integers(3)
    base = rng.normal(0, 1, shape) if kind < 2 else rng.integers(-4, 5, shape) / 4
    models = []
    for _ in range(count):
        step = rng.standard_t(4, shape) / 16 if kind < 2 else rng.integers(-3, 4, shape) / 4
        models.append(base + step * (rng.random(shape) < 0.3) if kind == 1 else base + step)
    made = [torch.from_numpy(np.asarray(x)).to(dtype) for x in (base, *models)]
    return made[0], made[1:]


def merged(
    method: Method,
    models: list[torch.Tensor],
    base: torch.Tensor,
    values: dict[str, Any],
    **options: Any,
) -> torch.Tensor:
    """One merge, the base given where the method asks for one."""
    needed = base if method.base == "required" else None
    return merge_tensor(method, models, needed, values, **options)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = torch.int32 if one.dtype == torch.float32 else torch.int16
    return torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


def furthest(models: list[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """The largest magnitude at each element: what rounding errors are relative to."""
    return torch.stack([x.double().abs() for x in (base, *models)]).amax(0)


# --- of every method


@EVERY_METHOD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_and_dtype_are_kept(
    method: Method, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Scalars, empty tensors, vectors and matrices come back as they were, and finite."""
    rng = np.random.default_rng(len(shape))
    for count in {allowed(method, n) for n in (1, 2, 3)}:
        base, models = tensors_from(rng, shape, dtype, count)
        got = merged(method, models, base, drawn(method, count, rng))
        assert got.dtype == dtype
        assert got.shape == shape
        assert bool(torch.isfinite(got).all())


@EVERY_METHOD
@pytest.mark.parametrize("mixed", [(torch.bfloat16, torch.float16), (torch.float32, torch.float16)])
def test_mixed_dtypes_are_promoted(method: Method, mixed: tuple[torch.dtype, torch.dtype]) -> None:
    """Parents of different dtypes give the dtype that holds both."""
    rng = np.random.default_rng(1)
    base, models = tensors_from(rng, (5, 3), torch.float32, allowed(method, 2))
    models = [x.to(mixed[i % 2]) for i, x in enumerate(models)]
    got = merged(method, models, base.to(mixed[1]), defaults(method, len(models)))
    read = [*models, base.to(mixed[1])] if on_deltas(method) else models
    assert got.dtype == reduce(torch.promote_types, [x.dtype for x in read])


@EVERY_METHOD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=SEEDS)
def test_output_is_float32_rounded_once(method: Method, dtype: torch.dtype, seed: int) -> None:
    """The arithmetic is float32 whatever the parents hold; only the result is rounded."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (9, 7), dtype, allowed(method, 3))
    values = drawn(method, len(models), rng)
    exact = merged(method, models, base, values, out_dtype=torch.float32)
    assert exact.dtype == torch.float32
    assert same(merged(method, models, base, values), exact.to(dtype))
    wide = [x.float() for x in models]
    assert same(merged(method, wide, base.float(), values), exact)


@EVERY_METHOD
@given(seed=SEEDS, count=COUNTS)
def test_inputs_are_untouched(method: Method, seed: int, count: int) -> None:
    """Merging leaves its parents and its parameters as they were."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (11, 5), torch.float32, allowed(method, count))
    values = drawn(method, len(models), rng)
    before = [x.clone() for x in (base, *models)]
    said = repr(values)
    merged(method, models, base, values)
    assert all(same(x, y) for x, y in zip((base, *models), before, strict=True))
    assert repr(values) == said


@EVERY_METHOD
@given(seed=SEEDS)
def test_result_owns_its_memory(method: Method, seed: int) -> None:
    """Writing into a merge never writes into a parent, even where the merge is a parent."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (5, 3), torch.float32, allowed(method, 1))
    before = [x.clone() for x in (base, *models)]
    for t in (0.0, 1.0):
        values = defaults(method, len(models), t=t)
        merged(method, models, base, values).fill_(77)
        assert all(same(x, y) for x, y in zip((base, *models), before, strict=True))


@EVERY_METHOD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=SEEDS, count=COUNTS)
def test_blocks_do_not_show(method: Method, dtype: torch.dtype, seed: int, count: int) -> None:
    """The bytes of the result do not depend on the size of the blocks it was made in."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (11, 9), dtype, allowed(method, count))
    values = drawn(method, len(models), rng)
    results = [merged(method, models, base, values, block=size) for size in BLOCKS]
    assert all(same(result, results[0]) for result in results[1:])


@EVERY_METHOD
def test_blocks_of_one_element_do_not_show(method: Method) -> None:
    """Even blocks of a single element give the bytes of one block."""
    rng = np.random.default_rng(4)
    base, models = tensors_from(rng, (5, 3), torch.float32, allowed(method, 3))
    values = drawn(method, len(models), rng)
    one, whole = (merged(method, models, base, values, block=size) for size in (1, 15))
    assert same(one, whole)


@EVERY_METHOD
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_show(
    method: Method, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of the result do not depend on how many cores made it."""
    rng = np.random.default_rng(11)
    base, models = tensors_from(rng, (701, 999), dtype, allowed(method, 3))
    values = drawn(method, len(models), rng)
    results = []
    for count in (1, 2, 5):
        monkeypatch.setattr(THREADS, "cores", lambda count=count: count)
        results.append(merged(method, models, base, values, block=1 << 16))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@EVERY_METHOD
def test_merging_leaves_torch_as_it_was(method: Method) -> None:
    """Threads started after a merge compute on as many cores as before it."""
    rng = np.random.default_rng(5)
    base, models = tensors_from(rng, (5, 3), torch.float32, allowed(method, 2))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        merged(method, models, base, defaults(method, len(models)))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@EVERY_METHOD
def test_parameters_of_a_model_leave_no_graph(method: Method) -> None:
    """Parents taken from a model in memory, gradients and all, merge to a plain tensor."""
    rng = np.random.default_rng(6)
    base, models = tensors_from(rng, (5, 3), torch.float32, allowed(method, 2))
    values = defaults(method, len(models))
    live = [torch.nn.Parameter(x) for x in models]
    got = merged(method, live, torch.nn.Parameter(base), values)
    assert not got.requires_grad
    assert same(got, merged(method, models, base, values))


@EVERY_METHOD
@given(seed=SEEDS)
def test_memory_layout_does_not_show(method: Method, seed: int) -> None:
    """Transposed and sliced tensors merge as their contiguous copies do."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (12, 10), torch.float32, allowed(method, 2))
    values = drawn(method, len(models), rng)
    for view in (lambda x: x.t(), lambda x: x[1::2, ::3]):
        copies = [view(x).contiguous() for x in models]
        wanted = merged(method, copies, view(base).contiguous(), values)
        assert same(merged(method, [view(x) for x in models], view(base), values), wanted)


@EVERY_METHOD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_merge_to_zeros(method: Method, dtype: torch.dtype) -> None:
    """All-zero tensors give zeros, and never NaN."""
    for count in {allowed(method, n) for n in (1, 2, 3)}:
        zeros = [torch.zeros(6, 5, dtype=dtype) for _ in range(count + 1)]
        for values in (defaults(method, count), drawn(method, count, np.random.default_rng(2))):
            assert torch.equal(merged(method, zeros[1:], zeros[0], values), zeros[0])


@EVERY_METHOD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=SEEDS, count=COUNTS)
def test_equal_models_merge_to_themselves(
    method: Method, dtype: torch.dtype, seed: int, count: int
) -> None:
    """Merging a model with itself gives it back, by default parameters and normalised."""
    rng = np.random.default_rng(seed)
    base, (model,) = tensors_from(rng, (9, 7), dtype, 1)
    models = [model] * allowed(method, count)
    values = defaults(method, len(models), normalize=True)
    got = merged(method, models, base, values, out_dtype=torch.float32)
    error = (got.double() - model.double()).abs()
    assert bool((error <= ROUNDING * furthest(models, base)).all())


@where(lambda m: m.base != "first" and m.name not in RANDOM)
@given(seed=SEEDS)
def test_order_of_models_is_irrelevant(method: Method, seed: int) -> None:
    """Models and their own parameters may be listed in any order."""
    rng = np.random.default_rng(seed)
    count = allowed(method, 3)
    base, models = tensors_from(rng, (9, 7), torch.float32, count)
    values = drawn(method, count, rng)
    order = rng.permutation(count)
    moved = {
        p.name: [values[p.name][i] for i in order] if p.per_model else values[p.name]
        for p in method.parameters
    }
    one = merged(method, models, base, values).double()
    other = merged(method, [models[i] for i in order], base, moved).double()
    longest = 1 + max((x for x in values.values() if isinstance(x, float)), default=0.0)
    assert bool(((one - other).abs() <= longest * ROUNDING * furthest(models, base)).all())


@where(lambda m: m.name not in NOT_SCALE_FREE)
@pytest.mark.parametrize("power", [-9, 7])
@given(seed=SEEDS, count=COUNTS)
def test_powers_of_two_pass_through(method: Method, power: int, seed: int, count: int) -> None:
    """Scaling base and models by a power of two scales the merge by it, to the bit."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (9, 7), torch.float32, allowed(method, count))
    values = drawn(method, len(models), rng)
    scaled = merged(method, [x * 2.0**power for x in models], base * 2.0**power, values)
    assert same(scaled, merged(method, models, base, values) * 2.0**power)


@where(lambda m: m.base != "first" and m.name not in RANDOM)
@given(seed=SEEDS, count=COUNTS)
def test_merge_stays_between_its_parents(method: Method, seed: int, count: int) -> None:
    """Normalised and no longer than its parents, a merge leaves the range of base and models
    nowhere."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (9, 7), torch.float32, allowed(method, count))
    values = {
        **drawn(method, len(models), rng),
        **({"lambda": 0.9} if has(method, "lambda") else {}),
        **({"scale": [1.0] * len(models)} if has(method, "scale") else {}),
        **({"rescale": False} if has(method, "rescale") else {}),
    }
    got = merged(method, models, base, values)
    among = torch.stack([*models, base] if on_deltas(method) else models)
    room = ROUNDING * furthest(models, base)
    assert bool((got >= among.amin(0) - room).all())
    assert bool((got <= among.amax(0) + room).all())


@where(lambda m: m.models[0] == 1 and m.name not in RANDOM)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@given(seed=SEEDS)
def test_one_model_is_given_back_exactly(method: Method, dtype: torch.dtype, seed: int) -> None:
    """One model at default parameters comes back to the bit: base + (model - base) is exact."""
    rng = np.random.default_rng(seed)
    base = torch.from_numpy(rng.normal(0, 0.05, (64,))).to(dtype)
    model = (base.float() + torch.from_numpy(rng.normal(0, 0.003, (64,))).float()).to(dtype)
    got = merged(method, [model], base, defaults(method, 1))
    assert torch.equal(got, model)


def test_a_method_on_matrices_gets_them_whole() -> None:
    """`whole` hands over shaped tensors, and takes a result of any memory layout."""

    def turned(tensors: list[torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        return tensors[0].t().contiguous().t() + tensors[1].flip(1)

    method = replace(methods()["linear"], combine=turned, whole=True)
    base, models = tensors_from(np.random.default_rng(7), (5, 3), torch.float32, 2)
    got = merged(method, models, base, defaults(method, 2), block=4)
    assert torch.equal(got, models[0] + models[1].flip(1))


# --- of all methods on deltas


@where(on_deltas)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=SEEDS, count=COUNTS)
def test_unchanged_models_give_the_base(
    method: Method, dtype: torch.dtype, seed: int, count: int
) -> None:
    """Where no model differs from the base, the merge is the base exactly."""
    rng = np.random.default_rng(seed)
    base, _ = tensors_from(rng, (9, 7), dtype, 1)
    models = [base.clone() for _ in range(allowed(method, count))]
    assert torch.equal(merged(method, models, base, drawn(method, len(models), rng)), base)


@where(lambda m: has(m, "lambda"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=SEEDS, count=COUNTS)
def test_lambda_zero_is_the_base(method: Method, dtype: torch.dtype, seed: int, count: int) -> None:
    """A step of length 0 leaves the base exactly."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (9, 7), dtype, allowed(method, count))
    values = {**drawn(method, len(models), rng), "lambda": 0.0}
    assert torch.equal(merged(method, models, base, values), base)


@where(lambda m: has(m, "lambda"))
@given(seed=SEEDS, count=COUNTS)
def test_lambda_is_the_length_of_the_step(method: Method, seed: int, count: int) -> None:
    """From a base of zeros, doubling lambda doubles the merge and -1 mirrors it."""
    rng = np.random.default_rng(seed)
    _, models = tensors_from(rng, (9, 7), torch.float32, allowed(method, count))
    base, values = torch.zeros(9, 7), drawn(method, len(models), rng)
    step = merged(method, models, base, {**values, "lambda": 1.0})
    for length in (2.0, -1.0, 0.25):
        got = merged(method, models, base, {**values, "lambda": length})
        assert torch.equal(got, step * length)


@where(lambda m: has(m, "density"))
@given(seed=SEEDS, count=COUNTS)
def test_density_zero_is_the_base(method: Method, seed: int, count: int) -> None:
    """Keeping nothing of any delta leaves the base exactly."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (9, 7), torch.float32, allowed(method, count))
    values = {**drawn(method, len(models), rng), "density": [0.0] * len(models)}
    assert torch.equal(merged(method, models, base, values), base)


@where(lambda m: has(m, "weight"))
@given(seed=SEEDS)
def test_a_model_of_weight_zero_has_no_say(method: Method, seed: int) -> None:
    """A second model of weight 0 changes nothing, to the bit."""
    rng = np.random.default_rng(seed)
    count = allowed(method, 2)
    base, models = tensors_from(rng, (9, 7), torch.float32, count)
    other = [models[0], *(x * 3 + 1 for x in models[1:])]
    values = {**drawn(method, count, rng), "weight": [1.0] + [0.0] * (count - 1)}
    one, two = (merged(method, them, base, values) for them in (models, other))
    assert torch.equal(one, two)


# --- of TIES


def ties(models: list[torch.Tensor], base: torch.Tensor, **values: Any) -> torch.Tensor:
    """TIES by weights of 1 unless said otherwise, float32."""
    method = methods()["ties"]
    given_values = defaults(method, len(models), **values)
    return merge_tensor(method, models, base, given_values, out_dtype=torch.float32)


def random_steps(seed: int, size: int, *, equal: bool) -> torch.Tensor:
    """Non-zero deltas from a base of 0; with `equal`, of only a few different magnitudes."""
    rng = np.random.default_rng(seed)
    if equal:
        return torch.from_numpy(rng.integers(1, 4, size) * rng.choice([-1, 1], size)).float()
    return torch.from_numpy(rng.standard_t(4, size)).float()


DENSITIES = st.floats(0.001, 1.0)


@given(seed=SEEDS, size=st.integers(1, 700), density=DENSITIES, equal=st.booleans())
def test_trim_keeps_exactly_k_of_the_largest(
    seed: int, size: int, density: float, equal: bool
) -> None:
    """max(1, int(density * n)) entries survive, none smaller than one that does not."""
    step = random_steps(seed, size, equal=equal)
    got = ties([step], torch.zeros(size), density=[density])
    stays = got != 0
    assert int(stays.sum()) == max(1, int(density * size))
    assert torch.equal(got[stays], step[stays])
    dropped = step[~stays].abs()
    assert not len(dropped) or float(step[stays].abs().min()) >= float(dropped.max())


@given(seed=SEEDS, size=st.integers(1, 700), density=DENSITIES)
def test_trim_keeps_the_first_of_equals(seed: int, size: int, density: float) -> None:
    """Of equal magnitudes the lowest indices survive, whatever the block."""
    rng = np.random.default_rng(seed)
    step = torch.from_numpy(rng.choice([-2.0, 2.0], size)).float()
    count = max(1, int(density * size))
    for block in BLOCKS:
        got = merge_tensor(
            methods()["ties"],
            [step],
            torch.zeros(size),
            defaults(methods()["ties"], 1, density=[density]),
            block=block,
        )
        assert (got != 0).tolist() == [True] * count + [False] * (size - count)


@given(seed=SEEDS, size=st.integers(1, 700), low=DENSITIES, high=DENSITIES, equal=st.booleans())
def test_support_grows_with_density(
    seed: int, size: int, low: float, high: float, equal: bool
) -> None:
    """What a low density keeps a higher one keeps too."""
    step, base = random_steps(seed, size, equal=equal), torch.zeros(size)
    small, large = (ties([step], base, density=[d]) != 0 for d in sorted((low, high)))
    assert not bool((small & ~large).any())


@given(seed=SEEDS, density=DENSITIES)
def test_ties_moves_only_where_a_model_was_kept(seed: int, density: float) -> None:
    """A merge has steps only where a trimmed delta has one, and of the elected sign."""
    base = torch.zeros(400)
    models = [random_steps(seed + i, 400, equal=False) for i in range(3)]
    kept = [ties([x], base, density=[density]) for x in models]
    got = ties(models, base, density=[density] * 3)
    support = torch.stack([k != 0 for k in kept]).any(0)
    assert not bool(((got != 0) & ~support).any())
    votes = torch.stack(kept).double().sum(0)
    assert bool((got.double() * votes >= 0).all())


@given(seed=SEEDS, density=DENSITIES)
def test_ties_mirrors(seed: int, density: float) -> None:
    """Mirrored deltas give the mirrored step, where no vote is a draw."""
    base = torch.zeros(300)
    models = [random_steps(seed + i, 300, equal=False) for i in range(3)]
    got = ties(models, base, density=[density] * 3)
    assert torch.equal(ties([-x for x in models], base, density=[density] * 3), -got)


def test_a_draw_is_positive() -> None:
    """Two models that pull equally in opposite directions: the positive one is followed."""
    step = torch.tensor([2.0, -2.0, 0.5])
    assert ties([step, -step], torch.zeros(3)).tolist() == [2.0, 2.0, 0.5]


@given(seed=SEEDS, density=DENSITIES)
def test_an_unchanged_model_does_not_dilute_ties(seed: int, density: float) -> None:
    """A model equal to the base adds nothing to the vote and nothing to the divisor."""
    base = torch.zeros(300)
    models = [random_steps(seed + i, 300, equal=True) for i in range(2)]
    alone = ties(models, base, density=[density] * 2)
    assert torch.equal(ties([*models, base.clone()], base, density=[density] * 3), alone)


@given(seed=SEEDS, density=DENSITIES)
def test_only_ratios_of_weights_matter_when_normalised(seed: int, density: float) -> None:
    """Weights four times as large give the same bytes."""
    rng = np.random.default_rng(seed)
    base, models = tensors_from(rng, (40, 7), torch.float32, 3)
    weight = [float(w) for w in rng.uniform(0.1, 2, 3)]
    one, four = (
        ties(models, base, density=[density] * 3, weight=[w * f for w in weight]) for f in (1, 4)
    )
    assert same(one, four)


@given(seed=SEEDS, density=DENSITIES)
def test_unnormalised_ties_may_leave_the_range(seed: int, density: float) -> None:
    """Without normalising, three equal models add up: the bound is not vacuous."""
    base, step = torch.zeros(50), random_steps(seed, 50, equal=True)
    once = ties([step], base, density=[density])
    got = ties([step] * 3, base, density=[density] * 3, normalize=False)
    assert torch.equal(got, 3 * once)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.97])
def test_trim_of_mostly_zero_deltas(share: float) -> None:
    """With fewer non-zero entries than are to be kept, all of them are kept."""
    step = torch.where(torch.rand(1000, generator=torch.Generator().manual_seed(3)) < share, 1.0, 0)
    assert torch.equal(ties([step], torch.zeros(1000), density=[0.98]), step)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_trim_of_extreme_magnitudes(density: float) -> None:
    """Subnormal and huge float32 magnitudes are ranked like any other."""
    powers = torch.tensor([float(p) for p in range(-148, 127)])
    step = torch.exp2(powers.double()).float()[torch.randperm(275)]
    got = ties([step], torch.zeros(275), density=[density])
    count = int(density * 275)
    assert torch.equal(got.sort().values[-count:], step.sort().values[-count:])
    assert int((got != 0).sum()) == count


# --- of SLERP


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """SLERP in float32."""
    return merge_tensor(methods()["slerp"], [a, b], None, {"t": t}, out_dtype=torch.float32)


def vector(seed: int, size: int) -> torch.Tensor:
    """A random float32 vector."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, size)).float()


TIMES = st.floats(0.0, 1.0)
NEARNESS = st.sampled_from([1e-4, 0.03, 0.5, 3.0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=SEEDS, near=NEARNESS)
def test_the_ends_are_the_parents(dtype: torch.dtype, seed: int, near: float) -> None:
    """t = 0 is the first parent and t = 1 the second, to the bit."""
    a = vector(seed, 99).to(dtype)
    b = (a.float() + near * vector(seed + 1, 99)).to(dtype)
    a[0] = b[1] = -0.0
    method = methods()["slerp"]
    assert same(merge_tensor(method, [a, b], None, {"t": 0.0}), a)
    assert same(merge_tensor(method, [a, b], None, {"t": 1.0}), b)


@given(seed=SEEDS, near=NEARNESS, t=TIMES)
def test_slerp_is_symmetric(seed: int, near: float, t: float) -> None:
    """Walking t from A to B is walking 1 - t from B to A."""
    a = vector(seed, 99)
    b = a + near * vector(seed + 1, 99)
    error = (slerp(a, b, t) - slerp(b, a, 1 - t)).abs()
    assert bool((error <= ROUNDING * (a.abs() + b.abs())).all())


@given(seed=SEEDS, near=st.sampled_from([0.1, 0.5, 3.0]), t=TIMES)
def test_slerp_keeps_length_and_turns_evenly(seed: int, near: float, t: float) -> None:
    """Between vectors of equal length the length stays, and the angle to A is t of the whole."""
    a = vector(seed, 99).double()
    b = a + near * vector(seed + 1, 99).double()
    b *= a.norm() / b.norm()
    got = slerp(a.float(), b.float(), t).double()
    angle = torch.acos((a @ b) / (a.norm() * b.norm()))
    assert float(got.norm() / a.norm()) == pytest.approx(1, abs=1e-5)
    turned = torch.atan2((got - (got @ a) / (a @ a) * a).norm(), (got @ a) / a.norm())
    assert float(turned) == pytest.approx(float(t * angle), abs=1e-5)


@given(seed=SEEDS, near=st.sampled_from([0.1, 0.5, 3.0]))
def test_half_way_is_the_mean_by_the_half_angle(seed: int, near: float) -> None:
    """At t = 1/2, SLERP times 2 cos(angle / 2) is A + B, whatever their lengths."""
    a = vector(seed, 99)
    b = 1.7 * (a + near * vector(seed + 1, 99))
    angle = torch.acos((a.double() @ b.double()) / (a.double().norm() * b.double().norm()))
    got = slerp(a, b, 0.5).double() * 2 * torch.cos(angle / 2)
    assert bool(((got - (a + b).double()).abs() <= 4e-6 * (a.abs() + b.abs())).all())


@given(seed=SEEDS, t=TIMES)
def test_slerp_turns_with_its_parents(seed: int, t: float) -> None:
    """Rotating both parents rotates the merge."""
    a, b = vector(seed, 24), vector(seed + 1, 24)
    turn = torch.linalg.qr(vector(seed + 2, 24 * 24).reshape(24, 24)).Q
    error = slerp(turn @ a, turn @ b, t) - turn @ slerp(a, b, t)
    assert float(error.abs().max()) <= 2e-5


@given(seed=SEEDS, t=TIMES, scale=st.sampled_from([1.0, 1e-6, 3.0]))
def test_slerp_of_one_direction_is_the_chord(seed: int, t: float, scale: float) -> None:
    """Nearly parallel, opposite or zero parents are averaged plainly, and stay finite."""
    a = vector(seed, 99)
    for b in (a * scale, a + 1e-3 * vector(seed + 1, 99), -a, torch.zeros(99)):
        chord = (1 - t) * a.double() + t * b.double()
        error = (slerp(a, b, t).double() - chord).abs()
        assert bool((error <= ROUNDING * (a.abs() + b.abs())).all())


# --- of linear


@given(seed=SEEDS)
def test_linear_stays_between_the_models(seed: int) -> None:
    """A weighted mean lies between the smallest and the largest of the models."""
    rng = np.random.default_rng(seed)
    _, models = tensors_from(rng, (9, 7), torch.float32, 3)
    values = drawn(methods()["linear"], 3, rng)
    got = merge_tensor(methods()["linear"], models, None, values)
    among = torch.stack(models)
    room = ROUNDING * among.abs().amax(0)
    assert bool(((got >= among.amin(0) - room) & (got <= among.amax(0) + room)).all())
