"""Whole merges of models that nobody trains: scalars, single elements and empty tensors, magnitudes
that are all equal, denormals; and that neither tiles, threads nor the order of tensors show.

The formulas are those of reference.py; that a folder loads is tested in test_sinks.py.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from merging import merge, methods, plan
from merging.methods import Method, variants
from merging.plan import Plan
from merging.shards import CODES
from merging.sinks import Folder, Live
from tests import reference
from tests.conftest import INDEX, WEIGHTS, loaded, recipe

LOOP, THREADS = sys.modules["merging.blocks"], sys.modules["merging.threads"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TINY = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
"""The smallest denormal of each."""
ROUNDING = 2.0**-18
"""An arc between vectors that are nearly opposite makes rounding up to 32 times as large."""
IN_PIECES = {"slerp": 512}
"""Methods that add up so many products in float32 first: tiles are multiples of them."""
ALL = [m for name in methods() for m in variants(name).values()]
EVERY = pytest.mark.parametrize("method", ALL, ids=[f"{m.name}-{m.variant}" for m in ALL])
VALUES: dict[str, Any] = {
    "weight": [1.0, 2.0], "density": [0.5, 0.3], "lambda": 0.5, "t": 0.3, "scale": [0.75],
}  # fmt: skip
"""Powers of two where a vote depends on them: it must not hang on a denormal's rounding."""
Tensors = dict[str, Tensor]
Array = np.ndarray[Any, Any]
few = settings(derandomize=True, deadline=None, max_examples=12, database=None)


@dataclass(frozen=True)
class Kind:
    """One tensor of a model that does not exist."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    values: str


KINDS = st.builds(
    Kind,
    st.lists(st.sampled_from([0, 1, 1, 2, 3, 8]), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.sampled_from(["ordinary", "equal", "denormal", "zero"]),
)


def drawn(kind: Kind, rng: np.random.Generator, base: Array | None) -> Array:
    """A tensor's values: the base's own, or those of a model that differs from it."""
    if kind.values == "zero":
        return np.zeros(kind.shape)
    if kind.values == "ordinary":
        found = rng.normal(0, 1, kind.shape)
        return found if base is None else base + found / 16
    unit = 0.5 if kind.values == "equal" else TINY[kind.dtype]
    steps = rng.choice([-1, 1], kind.shape) if kind.values == "equal" else (
        rng.integers(-9, 10, kind.shape)
    )  # fmt: skip
    return steps * unit + (0 if base is None else base)


def models(kinds: Sequence[Kind], seed: int, count: int) -> list[Tensors]:
    """A base and fine-tunes of it, by name."""
    rng, found = np.random.default_rng(seed), [Tensors() for _ in range(count + 1)]
    for number, kind in enumerate(kinds):
        base = None
        for tensors in found:
            values = drawn(kind, rng, base)
            base = values if base is None else base
            single = torch.from_numpy(np.asarray(values, dtype=np.float32))
            tensors[f"model.layers.{number % 2}.t{number}"] = single.to(kind.dtype)
    return found


def saved(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A folder that a plan accepts; without a tokenizer, rows pair by number."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def values(method: Method, count: int) -> dict[str, Any]:
    """The method's own of VALUES, for so many models."""
    own = {p.name: VALUES[p.name] for p in method.parameters if p.name in VALUES}
    return {k: v[:count] if isinstance(v, list) else v for k, v in own.items()}


def decide(method: Method, folders: Sequence[Path], **keys: Any) -> Plan:
    """A plan over a base and its fine-tunes, as many as the method takes."""
    base, *tunes = folders
    tunes = tunes[: method.models[1]]
    own = values(method, len(tunes))
    each = [{k: v[i] for k, v in own.items() if isinstance(v, list)} for i in range(len(tunes))]
    whole = {k: v for k, v in own.items() if not isinstance(v, list)}
    if method.base == "required":
        keys["base_model"] = base
    if len(variants(method.name)) > 1:
        keys["variant"] = method.variant
    entries = list(zip(tunes, each, strict=True))
    return plan(recipe(method.name, entries, **keys, **({"parameters": whole} if whole else {})))


def wanted(method: Method, base: Array, tunes: Sequence[Array]) -> Array:
    """By the plain formula, in float64."""
    tunes = tunes[: method.models[1]]
    own = {{"lambda": "lam"}.get(k, k): v for k, v in values(method, len(tunes)).items()}
    if method.name == "passthrough":
        return tunes[0].astype(np.float64) * own["scale"][0]
    if method.name == "slerp":
        return reference.slerp(tunes[0], tunes[1], own["t"])
    name = method.name if method.variant == "mergekit" else f"{method.name}_{method.variant}"
    formula: Callable[..., Array] = getattr(reference, name)
    return formula(tunes, *([base] if method.base == "required" else []), **own)


def flat(tensors: Tensors) -> Array:
    parts = [tensors[name].float().numpy().reshape(-1) for name in sorted(tensors)]
    return np.concatenate(parts)


def oracle(method: Method, every: Sequence[Tensors]) -> dict[str, Array]:
    """What each tensor should be; a method that measures the whole sees one vector."""
    if method.scope == "tensor":
        return {n: wanted(method, *_split([t[n].float().numpy() for t in every])) for n in every[0]}
    whole, found = wanted(method, *_split([flat(tensors) for tensors in every])), {}
    for name in sorted(every[0]):
        size = every[0][name].numel()
        found[name], whole = whole[:size].reshape(every[0][name].shape), whole[size:]
    return found


def _split(arrays: list[Array]) -> tuple[Array, list[Array]]:
    return arrays[0], arrays[1:]


def run(decided: Plan, out: Path) -> Tensors:
    for _ in merge(decided, Folder(out)):
        pass
    return loaded(out)


def in_memory(decided: Plan) -> Tensors:
    """What Live holds when all is merged, before it looks for a class that these would fit."""
    sink = Live()
    for at in merge(decided, sink):
        if at.tensor == decided.steps[-1].name:
            return sink.filled
    raise AssertionError


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)


def same(one: Tensors, other: Tensors) -> bool:
    """Equal names, types, shapes and bytes."""
    return one.keys() == other.keys() and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
        for a, b in ((one[name], other[name]) for name in one)
    )


@EVERY
@few
@given(kinds=st.lists(KINDS, min_size=2, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_any_model_is_merged(method: Method, kinds: list[Kind], seed: int) -> None:
    """Every element agrees with the formula, every tensor has its shape, in memory as on disk;
    float16 and bfloat16 are the float32 result rounded once; the file is the official writer's.
    """
    every = models(kinds, seed, 2)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        folders = [saved(root / f"{i}", tensors) for i, tensors in enumerate(every)]
        exact = run(decide(method, folders, out_dtype="float32"), root / "exact")
        assert same(in_memory(decide(method, folders, out_dtype="float32")), exact)
        stored = run(decide(method, folders), root / "stored")
        save_file(stored, root / "theirs", metadata={"format": "pt"})
        assert (root / "stored" / WEIGHTS).read_bytes() == (root / "theirs").read_bytes()
    formula = oracle(method, every)
    for name, base in every[0].items():
        found, furthest = exact[name], np.max([np.abs(t[name].float().numpy()) for t in every], 0)
        assert found.shape == base.shape and found.dtype == torch.float32
        error = np.abs(found.numpy().astype(np.float64) - formula[name])
        assert (error <= ROUNDING * furthest + 4 * TINY[torch.float32]).all(), name
        assert same({name: stored[name]}, {name: found.to(base.dtype)}), name


LONG = [
    Kind((5003,), torch.float32, "ordinary"), Kind((57, 83), torch.bfloat16, "ordinary"),
    Kind((4099,), torch.float32, "equal"), Kind((3001,), torch.float32, "denormal"),
    Kind((2, 1300), torch.float16, "equal"), Kind((), torch.float32, "ordinary"),
    Kind((1,), torch.bfloat16, "denormal"), Kind((0, 3), torch.float32, "zero"),
]  # fmt: skip


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models with tensors that are longer than some tiles."""
    root = tmp_path_factory.mktemp("long")
    return [saved(root / f"{i}", tensors) for i, tensors in enumerate(models(LONG, 3, 2))]


@EVERY
def test_neither_tiles_nor_threads_show(
    method: Method, long: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of equal bytes, whatever number of elements is taken at a time, by however many."""
    decided = decide(method, long, out_dtype="float32")
    piece = IN_PIECES.get(method.name)
    tiles = (piece, 3 * piece, 7 * piece) if piece else (101, 1000, 4097)
    files = set()
    for tile in (LOOP.BLOCK, *tiles):
        monkeypatch.setattr(LOOP, "BLOCK", tile)
        for threads in (1, 3):
            monkeypatch.setattr(THREADS, "cores", lambda threads=threads: threads)
            run(decided, tmp_path / f"{tile}-{threads}")
            files.add((tmp_path / f"{tile}-{threads}" / WEIGHTS).read_bytes())
    assert len(files) == 1


def scattered(folder: Path, tensors: Tensors, order: Sequence[str]) -> Path:
    """A model in two files, its tensors in any order, not aligned and not as the official writer
    sorts them.
    """
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    cut = len(order) // 2
    files = {"x-1.safetensors": order[:cut], "x-2.safetensors": order[cut:]}
    for file, names in files.items():
        header, body = {}, b""
        for name in names:
            start, body = len(body), body + bytes(bits(tensors[name]).to(torch.uint8).tolist())
            header[name] = {
                "dtype": CODES[tensors[name].dtype], "shape": list(tensors[name].shape),
                "data_offsets": [start, len(body)],
            }  # fmt: skip
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + body)
    found = {name: file for file, names in files.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": found}))
    return folder


@EVERY
def test_the_order_of_tensors_does_not_show(
    method: Method, long: list[Path], tmp_path: Path
) -> None:
    """Neither where the parents' files have their tensors, nor in which order they are merged."""
    run(decide(method, long, out_dtype="float32"), tmp_path / "sorted")
    names = sorted(loaded(long[0]))
    moved = []
    for number, folder in enumerate(long):
        order = [names[i] for i in np.random.default_rng(number).permutation(len(names))]
        moved.append(scattered(tmp_path / f"moved-{number}", loaded(folder), order))
    decided = decide(method, moved, out_dtype="float32")
    assert {n.file for n in decided.sources[0].tensors.values()} == {
        "x-1.safetensors", "x-2.safetensors"
    }  # fmt: skip
    run(replace(decided, steps=decided.steps[::-1]), tmp_path / "scattered")
    one, other = (tmp_path / n / WEIGHTS for n in ("sorted", "scattered"))
    assert one.read_bytes() == other.read_bytes()
