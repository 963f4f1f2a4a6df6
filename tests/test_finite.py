"""No tensor is written that is not finite, and the error names the first: the loop's promise for
every method. Knows nothing of formulas.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merging import merge, methods, plan
from merging.errors import MergeError
from merging.methods import Method, variants
from merging.plan import Plan
from merging.sinks import Folder, Live
from tests.conftest import WEIGHTS, changed, recipe

LOOP, THREADS = sys.modules["merging.blocks"], sys.modules["merging.threads"]
ALL = [m for name in methods() for m in variants(name).values()]
EVERY = pytest.mark.parametrize("method", ALL, ids=[f"{m.name}-{m.variant}" for m in ALL])
VALUES = {"density": 0.5, "t": 0.3, "scale": 0.5}
Pico = dict[str, Path]
Tensors = dict[str, torch.Tensor]


def spoilt(folder: Path, to: Path, values: dict[str, Any]) -> Path:
    """A copy of a model, with these values at the end of these tensors."""
    kept = load_file(folder / WEIGHTS)
    for name, value in values.items():
        kept[name].view(-1)[-1] = value
    return changed(folder, to, tensors={name: kept[name] for name in values})


def decide(method: Method, pico: Pico, **keys: Any) -> Plan:
    """The method over as many of `a` and `c` as it takes, and over `base` if it has one."""
    own = {k: v for k, v in VALUES.items() if any(p.name == k for p in method.parameters)}
    keys = {"parameters": own} | keys if own else keys
    if method.base == "required":
        keys["base_model"] = pico["base"]
    if len(variants(method.name)) > 1:
        keys["variant"] = method.variant
    return plan(recipe(method.name, [pico["a"], pico["c"]][: method.models[1]], **keys))


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that end in any order."""
    monkeypatch.setattr(LOOP, "BLOCK", 500)
    monkeypatch.setattr(THREADS, "cores", lambda: 4)


@EVERY
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_in_the_order_of_the_merge_is_named(
    method: Method, value: float, pico: Pico, tmp_path: Path
) -> None:
    """Of several damaged tensors, in a fine-tune and in the base, by model and name; nothing of
    the merge is left, nor published in memory.
    """
    names = [step.name for step in decide(method, pico).steps]
    late, first, between = names[-1], names[5], names[9]
    moved = pico | {"a": spoilt(pico["a"], tmp_path / "a", dict.fromkeys((late, first), value))}
    moved["base"] = spoilt(pico["base"], tmp_path / "base", {between: value})
    for sink in (Folder(tmp_path / "out", shard=20_000), Live()):
        with pytest.raises(MergeError, match=rf"/a holds .* not finite in `{first}`: "):
            list(merge(decide(method, moved), sink))
        assert not list(tmp_path.glob("out*"))
    assert isinstance(sink, Live) and sink.model is None and not sink.filled
    if method.base == "required":
        only = pico | {"base": moved["base"]}
        with pytest.raises(MergeError, match=rf"/base holds .* not finite in `{between}`: "):
            list(merge(decide(method, only), Folder(tmp_path / "out")))


@EVERY
def test_the_first_that_does_not_fit_is_named(method: Method, pico: Pico, tmp_path: Path) -> None:
    """Finite parents and a result beyond float16: told by the merged tensor and its type, whether
    it is written or kept in memory.
    """
    names = [step.name for step in decide(method, pico).steps]
    parents = {
        n: spoilt(pico[n], tmp_path / n, dict.fromkeys((names[-1], names[4]), 3e5)) for n in "ac"
    }
    decided = decide(method, pico | parents, out_dtype="float16")
    for sink in (Folder(tmp_path / "out"), Live(dtype=torch.float32)):
        with pytest.raises(MergeError, match=rf"^`{names[4]}` does not fit float16: "):
            list(merge(decided, sink))
    assert not list(tmp_path.glob("out*"))
    wide = decide(method, pico | parents, out_dtype="float32")
    list(merge(wide, Folder(tmp_path / "wide")))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=str)
def test_single_values_are_checked(
    shape: tuple[int, ...], value: float, pico: Pico, tmp_path: Path
) -> None:
    """A scalar that is not finite, or leaves float16, is named; the empty tensor beside it not."""
    more = {"model.a_none": torch.zeros(0, 3), "model.b_single": torch.full(shape, value)}
    parents = [changed(pico[n], tmp_path / n, tensors=more) for n in "ac"]
    wanted = "does not fit float16" if value == 1e30 else "holds values that are not finite"
    with pytest.raises(MergeError, match=rf"{wanted}") as caught:
        list(merge(plan(recipe("linear", parents, out_dtype="float16")), Folder(tmp_path / "out")))
    assert "`model.b_single`" in str(caught.value)
    more["model.b_single"].fill_(2.0)
    parents = [changed(pico[n], tmp_path / f"good-{n}", tensors=more) for n in "ac"]
    list(merge(plan(recipe("linear", parents, out_dtype="float16")), Folder(tmp_path / "out")))


def test_what_is_copied_may_hold_anything_whole(pico: Pico, tmp_path: Path) -> None:
    """The largest whole numbers are no damage, and a weight that is a whole number elsewhere
    cannot bring NaN in.
    """
    most = torch.tensor([torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min])
    parents = [changed(pico[n], tmp_path / n, tensors={"model.ids": most}) for n in "ac"]
    list(merge(plan(recipe("linear", parents)), Folder(tmp_path / "out")))
    bad = changed(
        pico["a"], tmp_path / "bad", tensors={"model.ids": torch.tensor([float("nan"), 1.0])}
    )
    for order in ([bad, parents[1]], [parents[1], bad]):
        with pytest.raises(MergeError, match=r"`model\.ids` is no weight, and differs"):
            list(merge(plan(recipe("linear", order)), Folder(tmp_path / "other")))
    assert not list(tmp_path.glob("other*"))
