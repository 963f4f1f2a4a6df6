"""The loop: same bytes whatever runs it, nothing half-done, and what it does with methods it has
never seen. What a method computes is tested in tests/methods.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merging import merge, methods, plan
from merging.errors import MergeError
from merging.merge import Numbers
from merging.methods import Number
from merging.methods._method import BlockFunction, method, registered
from merging.plan import Plan
from merging.sinks import Folder, Live
from tests.conftest import WEIGHTS, changed, loaded, recipe, written

ROOT = Path(__file__).parents[1]
LOOP, MERGE, THREADS = (sys.modules[f"merging.{name}"] for name in ("blocks", "merge", "threads"))
Pico = dict[str, Path]


def run(decided: Plan, out: Path, numbers: Numbers | None = None, **how: Any) -> dict[str, Tensor]:
    for _ in merge(decided, Folder(out, **how), numbers):
        pass
    return loaded(out)


def ties(pico: Pico, **keys: Any) -> Plan:
    keys = {"parameters": {"density": 0.5}} | keys
    return plan(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"], **keys))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", sorted(methods()))
def test_any_number_of_threads_gives_the_same_bytes(
    name: str, pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1, 2 and 5 threads over blocks of 1,000 elements write equal files."""
    monkeypatch.setattr(LOOP, "BLOCK", 1000)
    base = {"base_model": pico["base"]} if methods()[name].base == "required" else {}
    parents = [pico["a"], pico["c"]][: methods()[name].models[1]]
    decided = plan(recipe(name, parents, **base))
    files = set()
    for count in (1, 2, 5):
        monkeypatch.setattr(THREADS, "cores", lambda count=count: count)
        run(decided, tmp_path / str(count))
        files.add((tmp_path / str(count) / WEIGHTS).read_bytes())
    assert len(files) == 1


def test_the_identity_is_of_recipe_and_parents(pico: Pico, tmp_path: Path) -> None:
    """Equal for the same recipe; another for another parameter, seed, or touched file of a parent;
    a name is a label and changes nothing.
    """
    moved = pico | {"c": changed(pico["c"], tmp_path / "c")}
    found = [ties(moved).identity, ties(moved, name="mine").identity]
    assert len(set(found)) == 1
    found += [
        ties(moved, parameters={"density": 0.4}).identity,
        ties(moved, random_seed=1).identity,
        ties(moved, out_dtype="float32").identity,
        ties(pico).identity,
    ]
    for file in ("tokenizer.json", "config.json", WEIGHTS):
        os.utime(moved["c"] / file, ns=(0, 0))
        found.append(ties(moved).identity)
    assert len(set(found)) == len(found) - 1
    assert all(len(identity) == 16 for identity in found)


def test_progress_is_monotone_and_ends_at_one(pico: Pico, tmp_path: Path) -> None:
    """Shares never fall, the last is 1, and the tally counts every tensor once."""
    decided = plan(recipe("slerp", [pico["a"], pico["c"]], parameters={"t": 0.3}))
    seen = list(merge(decided, Folder(tmp_path / "out")))
    shares = [p.share for p in seen]
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[0] < 1
    assert [p.tensor for p in seen if p.stage == "merge"][-1] == decided.steps[-1].name
    assert sum(seen[-1].tally.values()) == len(decided.steps)
    assert all(p.seconds_left >= 0 and p.gb_per_s >= 0 for p in seen)


@pytest.mark.parametrize("together", [1, 5_000, 1 << 24])
def test_what_is_merged_together_does_not_show(
    together: int, pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tensor after the other, some or all at once: the same bytes, and every tensor counted."""
    whole = run(ties(pico), tmp_path / "whole")
    monkeypatch.setattr(MERGE, "TOGETHER", together)
    *_, last = merge(ties(pico), Folder(tmp_path / "out", shard=16_000))
    found = loaded(tmp_path / "out")
    assert last.done == last.total and len(list((tmp_path / "out").glob("model-*"))) > 1
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("after", [1, 5, 20])
def test_stopping_leaves_nothing(
    after: int, pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the generator, early or late, leaves neither OUT_DIR nor a partial."""
    monkeypatch.setattr(MERGE, "TOGETHER", 1)  # so that one tensor is merged after the other
    steps = merge(ties(pico), Folder(tmp_path / "out"))
    for _ in range(after):
        next(steps)
    assert list(tmp_path.glob("out.partial-*"))
    steps.close()  # type: ignore[attr-defined]  # merge is a generator, as the page relies on
    assert list(tmp_path.iterdir()) == []


def test_stopping_live_publishes_nothing(pico: Pico) -> None:
    """A stopped merge into memory has no model and no memory."""
    sink = Live()
    steps = merge(ties(pico), sink)
    next(steps)
    steps.close()  # type: ignore[attr-defined]  # as above
    assert sink.model is None and not sink.filled


def test_threads_and_settings_are_given_back(pico: Pico, tmp_path: Path) -> None:
    """After a merge torch has as many threads as before, and gradients are as they were."""
    before = torch.get_num_threads(), torch.is_grad_enabled()
    run(ties(pico), tmp_path / "out")
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before


def test_a_killed_merge_goes_on(pico: Pico, tmp_path: Path) -> None:
    """Killed half-way, a run continues from its complete shards and writes the same bytes."""
    recipe_file, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe_file.write_text(written("ties", [pico["a"], pico["c"]], base_model=pico["base"]))
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from merging import Recipe, merge, plan
        from merging.sinks import Folder
        sys.modules["merging.merge"].TOGETHER = 1  # one tensor after the other
        decided = plan(Recipe.from_yaml(Path({str(recipe_file)!r}).read_text()))
        for count, _ in enumerate(merge(decided, Folder({str(out)!r}, shard=16_000))):
            if count == 14:
                print("half-way", flush=True)
                time.sleep(60)
    """)
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout and child.stdout.readline() == "half-way\n"
        child.send_signal(signal.SIGKILL)
    [partial] = tmp_path.glob("out.partial-*")
    kept = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.safetensors")}
    assert kept and list(partial.glob("*.draft")) and not out.exists()

    decided = plan(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"]))
    time.sleep(0.01)
    run(decided, out, shard=16_000)
    run(decided, tmp_path / "whole", shard=16_000)
    assert len(kept) < len(list(out.glob("*.safetensors")))
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    names = sorted(p.name for p in out.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "whole").iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list(tmp_path.glob("*.partial-*"))


def test_anothers_partial_is_refused(pico: Pico, tmp_path: Path) -> None:
    """What another merge left half-done is named, and neither continued nor removed."""
    other = tmp_path / "out.partial-0123456789abcdef"
    other.mkdir()
    with pytest.raises(MergeError, match=r"out\.partial-0123456789abcdef .*remove it"):
        run(ties(pico), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [other]


def test_one_merge_is_not_written_twice_at_once(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run of a merge that is under way is refused and disturbs nothing; what the first
    one leaves when it is stopped, or has ended, is free again.
    """
    monkeypatch.setattr(MERGE, "TOGETHER", 1)
    steps = merge(ties(pico), Folder(tmp_path / "out", shard=16_000))
    for _ in range(14):
        next(steps)
    [partial] = tmp_path.glob("out.partial-*")
    before = sorted(partial.iterdir())
    assert {path.suffix for path in before} == {".draft", ".safetensors"}
    with pytest.raises(MergeError, match=r"being written by another run .*: wait for its end"):
        run(ties(pico), tmp_path / "out")
    assert sorted(partial.iterdir()) == before
    steps.close()  # type: ignore[attr-defined]  # as above
    assert equal(run(ties(pico), tmp_path / "out"), run(ties(pico), tmp_path / "alone"))
    run(ties(pico), tmp_path / "out", replace=True)


def test_numbers_are_kept_and_used(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers another lambda is not measured again, and equals a fresh merge."""
    numbers: Numbers = {}
    run(ties(pico), tmp_path / "first", numbers)
    kept = dict(numbers)
    assert len(kept) == len(load_file(pico["a"] / WEIGHTS))
    stronger = ties(pico, parameters={"density": 0.5, "lambda": 1.7})
    fresh = run(stronger, tmp_path / "fresh")
    with monkeypatch.context() as patched:
        loop = sys.modules["merging.merge"]
        patched.setattr(loop, "measure", lambda *_: pytest.fail("measured again"))
        again = run(stronger, tmp_path / "again", numbers)
    assert equal(fresh, again) and numbers == kept
    run(ties(pico, parameters={"density": 0.2}), tmp_path / "other", numbers)
    assert len(numbers) == 2 * len(kept)


# Methods that the loop has never seen


@pytest.fixture
def own_methods() -> Iterator[None]:
    """Whatever a test registers is forgotten after it."""
    before = dict(registered)
    yield
    registered.clear()
    registered.update(before)


@pytest.mark.usefixtures("own_methods")
def test_a_method_on_matrices(pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`whole=True` gets every tensor in its shape and at once, however small the blocks."""
    monkeypatch.setattr(LOOP, "BLOCK", 7)
    shapes = []

    @method("Mirror", help="", paper="", space="weights", base="unused", whole=True)
    def mirror(
        tensors: Sequence[Tensor], weight: Annotated[Sequence[float], Number("", 1, 1, 0, 2)]
    ) -> Tensor:
        shapes.append(tuple(tensors[0].shape))
        return (tensors[0] * weight[0] + tensors[1] * weight[1]).flip(0)

    decided = plan(recipe("mirror", [pico["a"], pico["c"]], out_dtype="float32"))
    found = run(decided, tmp_path / "out")
    a, c = (load_file(pico[n] / WEIGHTS) for n in ("a", "c"))
    assert sorted(shapes) == sorted(tuple(t.shape) for t in a.values())
    assert equal(found, {k: (a[k].float() + c[k].float()).flip(0) for k in a})


@pytest.mark.usefixtures("own_methods")
def test_a_method_that_measures(
    pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over blocks reach `combine` as those of the whole tensor."""
    monkeypatch.setattr(LOOP, "BLOCK", 50)

    def total() -> Generator[BlockFunction, Tensor, dict[str, Any]]:
        mass = yield lambda deltas: torch.stack([d.double().abs().sum() for d in deltas])
        return {"mass": mass.tolist()}

    @method("Even", help="", paper="", space="deltas", base="required", measure=total)
    def even(deltas: Sequence[Tensor], *, mass: Sequence[float]) -> Tensor:
        return deltas[0] / mass[0] + deltas[1] / mass[1]

    keys = {"base_model": pico["base"], "out_dtype": "float32"}
    found = run(plan(recipe("even", [pico["a"], pico["c"]], **keys)), tmp_path / "out")
    base, a, c = (load_file(pico[n] / WEIGHTS) for n in ("base", "a", "c"))
    for name, value in found.items():
        b = base[name].double()
        deltas = [m[name].double() - b for m in (a, c)]
        wanted = b + sum(d / d.abs().sum() for d in deltas)
        assert torch.allclose(value.double(), wanted, rtol=1e-5, atol=1e-7), name


# What is no weight, and what does not fit


def test_whole_numbers_are_taken_over(pico: Pico, tmp_path: Path) -> None:
    """A tensor of integers is copied if the parents agree on it, else refused by name."""
    ids = {"model.position_ids": torch.arange(9)}
    a = changed(pico["a"], tmp_path / "a", tensors=ids)
    c = changed(pico["c"], tmp_path / "c", tensors=ids)
    found = run(plan(recipe("linear", [a, c], out_dtype="float32")), tmp_path / "out")
    assert torch.equal(found["model.position_ids"], torch.arange(9))
    other = changed(pico["c"], tmp_path / "d", tensors={"model.position_ids": torch.arange(9) + 1})
    with pytest.raises(MergeError, match=r"`model\.position_ids` is no weight, and differs"):
        run(plan(recipe("linear", [a, other])), tmp_path / "out2")
    assert not list(tmp_path.glob("out2*"))


def test_overflow_of_the_output_is_told(pico: Pico, tmp_path: Path) -> None:
    """Finite parents whose merge leaves float16 are not called damaged."""
    keys = {"base_model": pico["base"], "out_dtype": "float16", "parameters": {"lambda": 1e9}}
    with pytest.raises(MergeError, match=r"does not fit float16: choose a smaller step"):
        run(plan(recipe("ties", [pico["a"], pico["c"]], **keys)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_overflow_of_the_memory_it_goes_into_is_told(pico: Pico) -> None:
    """What fits the plan's type, and not the model's in memory, is not taken over as infinite."""
    keys = {"base_model": pico["base"], "parameters": {"lambda": 1e9}}
    decided = plan(recipe("ties", [pico["a"], pico["c"]], out_dtype="bfloat16", **keys))
    with pytest.raises(MergeError, match="does not fit"):
        list(merge(decided, Live(dtype=torch.float16)))
