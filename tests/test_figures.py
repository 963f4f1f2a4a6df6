"""Figures that a merge takes on its way: against direct sums, and against what they say of their
own error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import merge, plan
from merging.figures import estimated as figures_of
from merging.gpu import Merged
from merging.inside import Inside
from merging.merge import Samples
from merging.methods import methods
from merging.samples import LENGTH, ROWS, Sample, sampled, summed
from merging.sinks import Live
from merging.ui.asking import _told
from tests.conftest import changed, loaded, recipe

Pico = dict[str, Path]
BLOCKS = sys.modules["merging.blocks"]


def estimated(samples: list[Sample], models: list[str]) -> dict[str, Any]:
    return figures_of([*summed(dict(enumerate(samples))).values()], models)


def taken(method: str, pico: Pico, **keys: Any) -> tuple[Samples, Live]:
    samples: Samples = {}
    live = Live(dtype=torch.float32)
    entries = [pico["a"], pico["c"]]
    decided = plan(recipe(method, entries, out_dtype="float32", **keys))
    for _ in merge(decided, live, samples=samples):
        pass
    return samples, live


def direct(deltas: list[Tensor], merged: Tensor, kept: list[Tensor]) -> dict[str, Any]:
    """The same figures by their definitions, in float64."""
    d, k, m = [x.double().flatten() for x in deltas], kept, merged.double().flatten()
    moved = (d[0] != 0) & (d[1] != 0)
    drawn = [float((x[moved] > 0).double().mean()) for x in d]
    return {
        "norm": [float(x.norm()) for x in d],
        "cosine": float(d[0] @ d[1] / d[0].norm() / d[1].norm()),
        "kept": [float(x.double().norm() ** 2 / y.norm() ** 2) for x, y in zip(k, d, strict=True)],
        "merged": [float(m.norm()), *(float(m @ x / m.norm() / x.norm()) for x in d)],
        "conflict": float((d[0].sign() != d[1].sign())[moved].double().mean()),
        "chance": drawn[0] * (1 - drawn[1]) + drawn[1] * (1 - drawn[0]),
    }


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """`estimated`'s figures in the same form."""
    return {
        "norm": list(found["norm"].values()),
        "cosine": found["cosine"][0]["value"],
        "kept": list(found["kept"].values()),
        "merged": [found["merged"]["norm"], *found["merged"]["cosine"].values()],
        "conflict": found["conflict"],
        "chance": found["chance"],
    }


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest entries, the first of equals."""
    size = delta.abs().flatten()
    order = sorted(range(len(size)), key=lambda i: (-float(size[i]), i))
    mask = torch.zeros(len(size), dtype=torch.bool)
    mask[order[: max(1, int(density * len(size)))]] = True
    return delta.flatten() * mask


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-5) -> None:
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


def test_small_tensors_are_taken_whole(pico: Pico) -> None:
    """Every figure is that of all elements, by definition, and its error is 0."""
    samples, live = taken(
        "ties", pico, base_model=pico["base"], parameters={"density": 0.4, "lambda": 0.7}
    )
    base, a, c = (loaded(pico[name]) for name in ("base", "a", "c"))
    weights = live.model.state_dict()
    assert samples.keys() == base.keys()
    whole: list[list[Tensor]] = [[], [], [], [], []]
    for name, sample in samples.items():
        deltas = [x[name].float() - base[name].float() for x in (a, c)]
        kept = [trimmed(d, 0.4) for d in deltas]
        merged = weights[name] - base[name].float()
        found = estimated([sample], ["a", "c"])
        assert sample.slices.shape == (1, 6, base[name].numel())
        assert_close(flat(found), direct(deltas, merged, kept), 1e-4)
        assert not any(flat(found["error"])["norm"]) and flat(found["error"])["cosine"] == 0
        for parts, x in zip(whole, [*deltas, merged, *kept], strict=True):
            parts.append(x.flatten())
    d, e, m, k, j = (torch.cat(parts) for parts in whole)
    assert_close(flat(estimated([*samples.values()], ["a", "c"])), direct([d, e], m, [k, j]), 1e-4)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_methods_that_trim_nothing_keep_all(method: str, pico: Pico) -> None:
    """Without a base the figures are of the models themselves, and all of each is kept."""
    samples, live = taken(method, pico)
    name = "model.layers.0.mlp.up_proj.weight"
    models = [loaded(pico[n])[name].float() for n in ("a", "c")]
    merged = live.model.state_dict()[name]
    found = estimated([samples[name]], ["a", "c"])
    assert_close(flat(found), direct(models, merged, [m.flatten() for m in models]))


def test_a_sample_says_how_far_it_is_off() -> None:
    """Of many samples of one tensor, most are within their own error of what all elements say."""
    random = torch.Generator().manual_seed(5)
    size = 1 << 20
    common, *own = (torch.randn(size, generator=random) for _ in range(3))
    scale = torch.linspace(0.5, 2, size)  # neighbours are alike, as in real tensors
    vectors = [(common + x) * scale for x in own]
    vectors.append(vectors[0] + vectors[1])
    truth = direct(vectors[:2], vectors[2], vectors[:2])
    off: dict[str, list[float]] = {"norm": [], "cosine": [], "conflict": []}
    for _ in range(60):
        starts = torch.randint(0, size - LENGTH, (ROWS,), generator=random)
        rows = [torch.stack([v[s : s + LENGTH] for v in vectors]) for s in starts.tolist()]
        found = estimated([Sample(torch.stack(rows), size, 2, False)], ["a", "c"])
        for name, errors in off.items():
            value, error, true = (flat(x)[name] if x is not truth else truth[name]
                                  for x in (found, found["error"], truth))  # fmt: skip
            pick = (lambda x: x[0]) if name == "norm" else (lambda x: x)
            errors.append(abs(pick(value) - pick(true)) / pick(error))
    for name, errors in off.items():
        within = sum(e < 1 for e in errors) / len(errors)
        assert 0.5 < within < 0.85, (name, within)  # 0.68 of a normal one
        assert max(errors) < 4.5, name


def sample_of(
    models: list[Tensor], base: Tensor, density: float, name: str = ""
) -> tuple[Sample, Tensor]:
    """What TIES takes of one tensor on its way, and what that becomes."""
    size, block, out, found = base.numel(), BLOCKS.BLOCK, torch.empty(base.numel()), list[Tensor]()
    values = {"weight": (1, 1), "density": (density,) * 2, "lambda": 1, "normalize": True,
              "rescale": False}  # fmt: skip
    work = BLOCKS.Work(methods()["ties"], values, True, size, block, (size,))

    def read(start: int, stop: int) -> list[Tensor]:
        return BLOCKS.slices([*models, base], start, stop)

    with sys.modules["merging.threads"].pooled("cpu") as pool:  # type: ignore[attr-defined]
        (numbers,) = BLOCKS.returned(BLOCKS.measure([[(work, read)]], pool))
        filling = BLOCKS.Filling(work, read, numbers, out, torch.float32, name)
        for _ in BLOCKS.combine([filling], pool, [found]):
            pass
    return Sample(torch.cat(found), size, 2, True), out


def test_larger_tensors_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of several blocks, each with its own share of the entries that equal the threshold."""
    monkeypatch.setattr(BLOCKS, "BLOCK", 6000)
    random = torch.Generator().manual_seed(3)
    size = 60_000
    models = [(torch.randn(size, generator=random) * 8).round() / 8 for _ in range(2)]
    sample, out = sample_of(models, torch.zeros(size), 0.5)
    assert len(sample.slices) == 4 * 10
    told = estimated([sample], ["a", "c"])
    truth = direct(models, out, [trimmed(m, 0.5) for m in models])
    for name in ("cosine", "conflict"):
        assert abs(flat(told)[name] - truth[name]) < 4 * flat(told["error"])[name], name
    for name in ("norm", "kept", "merged"):
        for value, error, true in zip(flat(told)[name], flat(told["error"])[name], truth[name],
                                      strict=True):  # fmt: skip
            assert abs(value - true) < 4 * error, name


@pytest.mark.parametrize("rows", [512, 1024, 2048])
def test_what_the_trim_keeps_of_equals(rows: int) -> None:
    """Most of a bf16 delta's entries equal a few magnitudes: a sample keeps no more of those at the
    threshold than all of the tensor does."""
    random = torch.Generator().manual_seed(0)
    base = (torch.randn(rows * 512, generator=random) * 0.02).bfloat16().float()
    models = [
        (base + 5e-5 * torch.randn(len(base), generator=random)).bfloat16().float()
        for _ in range(2)
    ]
    told = estimated([sample_of(models, base, 0.02)[0]], ["a", "c"])
    for name, model in zip("ac", models, strict=True):
        squares = (model - base).double().square().sort(descending=True).values
        true = float(squares[: int(0.02 * len(base))].sum() / squares.sum())
        assert abs(told["kept"][name] - true) < 3 * told["error"]["kept"][name], (told, true)
        assert told["error"]["kept"][name] < true / 2


@pytest.mark.parametrize("width", [2000, 2048, 4096])
def test_columns_that_are_unlike(width: int) -> None:
    """Channels with a scale of their own, the same in each layer: what is told of six tensors is
    within its error, whatever their width, and is that of no other model's place."""
    random = torch.Generator().manual_seed(1)
    scale = (torch.rand(width // 16, generator=random) * 4).exp().repeat_interleave(16)
    samples, whole = [], []
    for layer in range(6):
        common, *own = torch.randn(3, 512, width, generator=random)
        deltas = [(common * scale + 20 * x).flatten() for x in own]
        sample, out = sample_of(deltas, torch.zeros(512 * width), 1, f"layers.{layer}.weight")
        samples.append(sample)
        whole.append([*deltas, out])
    a, c, merged = map(torch.cat, zip(*whole, strict=True))
    told, truth = flat(found := estimated(samples, ["a", "c"])), direct([a, c], merged, [a, c])
    error = flat(found["error"])
    assert abs(told["cosine"] - truth["cosine"]) < 3 * error["cosine"] < 0.3
    assert abs(told["conflict"] - truth["conflict"]) < 3 * error["conflict"] < 0.1
    for value, off, true in zip(told["norm"], error["norm"], truth["norm"], strict=True):
        assert abs(value - true) < 3 * off < true / 2


def test_taking_them_changes_no_byte(pico: Pico) -> None:
    """The merge is the same with and without."""
    _, live = taken("ties", pico, base_model=pico["base"])
    other = Live()
    entries = [pico["a"], pico["c"]]
    for _ in merge(
        plan(recipe("ties", entries, base_model=pico["base"], out_dtype="float32")), other
    ):
        pass
    weights = other.model.state_dict()
    assert all(torch.equal(v, weights[n]) for n, v in live.model.state_dict().items())


def test_what_is_sampled() -> None:
    """Sixteen blocks at most, never a last one that is short; of a short tensor all."""
    assert sampled([]) == {}
    assert sampled([3]) == {0: ROWS}
    assert sampled([1 << 18] * 2 + [5]) == {0: 16, 1: 16}
    assert sampled([1 << 18] * 400) == {25 * i: 2 for i in range(16)}


def test_no_angle_is_none(pico: Pico, tmp_path: Path) -> None:
    """A model that is as the base has a delta of length 0: no cosine, and no chance."""
    entries = [pico["a"], changed(pico["base"], tmp_path / "same")]
    samples: Samples = {}
    decided = plan(recipe("task_arithmetic", entries, base_model=pico["base"]))
    for _ in merge(decided, Live(), samples=samples):
        pass
    found = estimated([*samples.values()], ["a", "same"])
    assert found["norm"]["same"] == 0 and found["norm"]["a"] > 0
    assert found["cosine"][0]["value"] is None and found["chance"] is None
    assert found["conflict"] is None
    assert found["merged"]["cosine"]["a"] == pytest.approx(1)


def test_a_difference_in_one_slice_alone_has_no_error() -> None:
    """Left out, it leaves no angle: the error is unknown, and the page says nothing of it."""
    slices = torch.zeros(ROWS, 3, LENGTH)
    slices[0] = torch.randn(3, LENGTH, generator=torch.Generator().manual_seed(1))
    found = estimated([Sample(slices, 1 << 20, 2, False)], ["a", "c"])
    assert found["cosine"][0]["value"] is not None and found["conflict"] is not None
    assert found["error"]["cosine"][0]["value"] is None
    told = _told(Merged("0" * 16, 1.0, {}, Inside(("a", "c"), True, False, found, {}, {})))
    assert told == "Merged in 1.00 s"
