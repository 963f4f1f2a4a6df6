"""The comparison of methods: steps of one length to the last digits, and an honest placebo."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merging import Recipe, fair, merge, methods, plan
from merging.errors import MergeError
from merging.exam import exam
from merging.fair import BASE, METHOD, PARENT, PLACEBO, Row, compare, shuffled
from merging.library import Library
from merging.loading import Loaded
from merging.methods import variants
from merging.opening import open_source
from merging.ratings import compared, compared_table
from merging.sinks import Live
from merging.sources import Local
from tests.conftest import WEIGHTS, changed, recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Pico = dict[str, Path]
GIVEN = exam([("w1 w2 w3", "w4"), ("w5 w6", "")], texts=True, max_new_tokens=4)


def rows(made: Recipe, library: Library | None = None) -> Iterator[Row]:
    sources = {name: open_source(name) for name in made.names()}
    local = {name: source for name, source in sources.items() if isinstance(source, Local)}
    for event in compare(made, local, GIVEN, library or Library("cpu", 10**9)):
        if isinstance(event, Row):
            yield event


def deltas(pico: Pico, name: str) -> dict[str, Tensor]:
    base, own = (load_file(pico[model] / WEIGHTS) for model in ("base", name))
    return {key: own[key].double() - old.double() for key, old in base.items()}


def norm(found: dict[str, Tensor]) -> float:
    return sqrt(sum(float((delta**2).sum()) for delta in found.values()))


def weights(loaded: Loaded) -> dict[str, Tensor]:
    return {name: p.detach().double() for name, p in loaded.model.named_parameters()}


def test_all_at_one_length(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method that takes two models is there, with its step's own length, and is scored again
    at the mean of the parents', right to five digits by norms taken from the files."""
    mean = (norm(deltas(pico, "a")) + norm(deltas(pico, "c"))) / 2
    base = {name: t.double() for name, t in load_file(pico["base"] / WEIGHTS).items()}
    seen: list[tuple[float, float]] = []
    ends: list[dict[str, Tensor]] = []

    def measured(model: Loaded, old: Loaded, factor: float) -> None:
        before = norm({k: w - base[k] for k, w in weights(model).items()})
        lengthen(model, old, factor)
        ends.append({k: w - base[k] for k, w in weights(model).items()})
        seen.append((before, norm(ends[-1])))

    lengthen = fair.lengthen
    monkeypatch.setattr(fair, "lengthen", measured)
    library = Library("cpu", 10**9)
    found = [*rows(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"]), library)]
    assert not library.aside.total()
    assert [r.kind for r in found[:3]] == [BASE, PARENT, PARENT] and found[0].length == 0
    assert [r.length for r in found[1:3]] == pytest.approx(
        [norm(deltas(pico, name)) / mean for name in "ac"], rel=1e-5
    )
    known = [
        m
        for name in methods()
        for m in variants(name).values()
        if 2 in range(m.models[0], m.models[1] + 1)
    ]
    tried = [row for row in found if row.kind == METHOD]
    assert len(tried) == len(known) > 5 and not any(row.problem for row in tried)
    both = [row for row in found if row.kind in (METHOD, PLACEBO)]
    assert [row.length for row in both] == pytest.approx([own / mean for own, _ in seen], rel=1e-5)
    assert [after for _, after in seen] == pytest.approx([mean] * len(both), rel=1e-5)
    steps = dict(zip([row.title for row in both], ends, strict=True))
    summed, average = steps["Task arithmetic"], steps["Linear"]  # one direction: one model
    assert all(torch.allclose(summed[k], average[k], atol=1e-5) for k in summed)
    assert not all(torch.allclose(summed[k], steps["TIES"][k], atol=1e-3) for k in summed)
    called = {name: name[-1] for name in map(str, pico.values())}
    assert compared_table(found, called).count("\n") == len(found) + 1
    assert compared(found, called)["rows"][0]["own"] is not None


def test_the_placebo(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base and the first parent's delta as they are, and of the last one's every tensor's
    entries in another order: the same histogram, so the same length."""
    base = {name: t.double() for name, t in load_file(pico["base"] / WEIGHTS).items()}
    a, c = deltas(pico, "a"), deltas(pico, "c")
    seen: list[dict[str, Tensor]] = []

    def spy(model: Loaded, old: Loaded, factor: float) -> None:
        seen.append({k: w - base[k] for k, w in weights(model).items()})
        lengthen(model, old, factor)

    lengthen = fair.lengthen
    monkeypatch.setattr(fair, "lengthen", spy)
    found = [*rows(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"]))]
    assert [row.kind for row in found[-2:]] == [PLACEBO, PLACEBO]
    both, alone = seen[-2:]
    for name, delta in c.items():
        for mixed in (both[name] - a[name], alone[name]):
            torch.testing.assert_close(
                mixed.flatten().sort().values, delta.flatten().sort().values, atol=1e-6, rtol=0
            )
            if delta.numel() > 32:
                assert float((mixed - delta).norm()) > 0.5 * float(delta.norm())
    assert norm(alone) == pytest.approx(norm(c), rel=1e-5)


def test_shuffled_by_its_seed() -> None:
    delta = torch.arange(60.0).view(3, 20)
    one, same, other = (shuffled(delta, torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    assert one.shape == delta.shape and torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(one.flatten().sort().values, delta.flatten())


def test_lengthened_by_a_factor(pico: Pico) -> None:
    made, old = (
        recipe(method, [pico["a"], pico["c"]], base_model=pico["base"], dtype="float32", **keys)
        for method, keys in (("ties", {}), ("task_arithmetic", {"parameters": {"lambda": 0}}))
    )
    models = []
    for each in (made, old):
        live = Live()
        for _ in merge(plan(each), live):
            pass
        models.append(Loaded.of(live.model, live.tokenizer))
    model, base = models
    before = {k: w - weights(base)[k] for k, w in weights(model).items()}
    own = fair.length(model, base)
    assert own == pytest.approx(norm(before), rel=1e-6)
    fair.lengthen(model, base, 0.3)
    for name, weight in weights(model).items():
        torch.testing.assert_close(
            weight - weights(base)[name], 0.3 * before[name], atol=1e-6, rtol=1e-4
        )


def test_what_cannot_be_compared(pico: Pico, tmp_path: Path) -> None:
    """Without a base there is no step; models that are their base have none; and a method that
    would have another vocabulary than the base says so in its row."""
    for method, keys in (("linear", {}), ("slerp", {"base_model": pico["a"]})):
        with pytest.raises(MergeError, match="with `base_model"):
            [*rows(recipe(method, [pico["a"], pico["c"]], **keys))]
    same = [changed(pico["base"], tmp_path / name) for name in ("one", "two")]
    with pytest.raises(MergeError, match="equal to their base"):
        [*rows(recipe("ties", same, base_model=pico["base"]))]
    source = str(pico["base"])
    mixed = recipe("ties", [pico["a"], pico["b"]], base_model=source, tokenizer_source=source)
    found = {row.title: row for row in rows(mixed)}
    assert found["Linear"].problem and "tokenizer_source" in found["Linear"].problem
    assert found["TIES"].matched and not found["TIES"].problem
    assert "Linear | `tokenizer_source" in compared_table([*found.values()], {source: "base"} | {
        str(pico[n]): n for n in "ab"
    })  # fmt: skip
