"""The trim on tensors longer than a block: what a sample says, and what where it misleads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.blocks import BLOCK, SLICE, SLICES, merge_tensor
from merging.methods import _trim, methods

SIZE = 3 * BLOCK + 12_345
pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def with_ties(seed: int) -> Tensor:
    """Few magnitudes, each of very many entries, as bf16 models have."""
    return (noise(seed) * 4).round() / 4


def hidden(seed: int) -> Tensor:
    """Large only where no sampled slice begins: every sample says that all entries are small."""
    values = noise(seed) * 1e-3
    step = max(SLICE, BLOCK // -(-SLICES // (SIZE // BLOCK + 1)))
    far = (torch.arange(SIZE) % BLOCK) % step >= SLICE
    return torch.where(far, values * 1e6, values)


def mostly_zero(seed: int) -> Tensor:
    return noise(seed) * (torch.arange(SIZE) % 50 == 0)


def all_equal(seed: int) -> Tensor:
    return torch.full((SIZE,), 0.5) * noise(seed).sign()


def by_sorting(delta: Tensor, density: float) -> Tensor:
    """The k largest, the first of equals, by a stable sort of the whole."""
    order = np.argsort(-delta.abs().numpy(), kind="stable")
    kept = torch.zeros(SIZE)
    where = order[: max(1, int(density * SIZE))]
    kept[where] = delta[where]
    return kept


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", [noise, with_ties, hidden, mostly_zero, all_equal])
def test_the_trim_of_long_tensors_is_a_sort(kind: Callable[[int], Tensor], density: float) -> None:
    """Whatever path it takes, exactly the k largest stay, and of equals the first."""
    delta = kind(1)
    merged = merge_tensor(
        methods()["ties"], [delta], torch.zeros(SIZE),
        {"weight": (1.0,), "density": (density,), "lambda": 1.0},
    )  # fmt: skip
    assert torch.equal(merged, by_sorting(delta, density))


def test_a_sample_that_misleads_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The histograms are for what a sample cannot tell, and only for that."""
    asked: list[str] = []
    known = _trim._by_histograms
    monkeypatch.setattr(_trim, "_by_histograms", lambda *a: (asked.append("yes"), known(*a))[1])
    for kind, wanted in ((noise, 0), (with_ties, 0), (mostly_zero, 0), (hidden, 1)):
        asked.clear()
        values = {"weight": (1.0,), "density": (0.5,)}
        merge_tensor(methods()["ties"], [kind(2)], torch.zeros(SIZE), values)
        assert len(asked) == wanted, kind


def test_both_ways_to_choose_agree() -> None:
    """What a GPU would do, on a CPU, beside what a CPU does."""
    bits = _trim.magnitude(noise(3))
    low, high = (int(x) for x in bits.float().quantile(torch.tensor([0.4, 0.6])))
    for bounds in ((low, high), (0, high), (low, _trim.NONE - 1), (low, low), (low, low + 1)):
        one, other = _trim._chosen(bits, *bounds), _trim._chosen_on_cpu(bits, *bounds)
        for found, same in zip(one, other, strict=True):
            assert np.array_equal(found, same)
