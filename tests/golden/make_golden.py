"""Makes the golden numbers: pico inputs from fixed seeds and what mergekit 0.1.5 makes of them in
float32. It knows nothing of the package under test, and the tests never run it.

    python3 -m venv peer
    peer/bin/pip install torch==2.13.0 mergekit==0.1.5
    peer/bin/python tests/golden/make_golden.py

It writes, beside itself: `inputs.safetensors` (tensors named FAMILY/MODEL), `cases.json` (what was
asked, and the versions that answered), `outputs.npz` (the answers, float32, flat, one after the
other in the order of the cases), and under `checkpoints/` three pico Llama folders, four recipes
and `expected.npz`: for each recipe the bfloat16 tensors (as uint16, flat, in the order of their
names) that the `mergekit-yaml` program wrote; of the two plain averages only layer 1 is kept.
mergekit is LGPL-3.0: it is run here as a program and a library, and none of it is copied.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
CHECKPOINTS = HERE / "checkpoints"
Family = dict[str, torch.Tensor]
Case = dict[str, Any]

DENSITIES = (0.02, 0.2, 0.5, 0.8, 1.0)
WEIGHTS = ([1.0], [1.0, 1.0], [0.7, 0.3], [1.5, 0.4, 2.0])
LAMBDAS = (1.0, 0.5, 1.7)
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHAPES = {
    "vector-f32": ((64,), torch.float32),
    "vector-bf16": ((64,), torch.bfloat16),
    "vector-f16": ((64,), torch.float16),
    "single-f32": ((1,), torch.float32),
    "single-bf16": ((1,), torch.bfloat16),
    "matrix-f32": ((24, 32), torch.float32),
    "matrix-bf16": ((32, 48), torch.bfloat16),
    "embedding-bf16": ((66, 32), torch.bfloat16),
}
COSINES = {"near-9990": 0.9990, "near-99945": 0.99945, "near-99955": 0.99955, "anti": -0.9999}


def noise(seed: int, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Heavy-tailed float32 noise, as the deltas of fine-tunes are."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(scale * rng.standard_t(4, size=shape)).float()


def family(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Family:
    """A base and three fine-tunes of it, all stored in `dtype`."""
    base = noise(seed, shape, 0.05).to(dtype)
    models = {
        name: (base.float() + noise(seed + i, shape, 0.004)).to(dtype)
        for i, name in enumerate("abc", start=1)
    }
    return {"base": base, **models}


def mirrored(seed: int) -> Family:
    """`a` and `b` on opposite sides of the base, exactly: every vote of the two is a tie."""
    base = torch.round(noise(seed, (64,), 4.0))
    step = torch.round(noise(seed + 1, (64,), 4.0))
    return {"base": base, "a": base + step, "b": base - step, "c": base + torch.round(step / 2)}


def degenerate(seed: int) -> Family:
    """`a` equals the base, `b` equals `c`."""
    made = family(seed, (64,), torch.bfloat16)
    return {"base": made["base"], "a": made["base"].clone(), "b": made["b"], "c": made["b"].clone()}


def at_cosine(seed: int, cosine: float) -> Family:
    """Two float32 vectors of different lengths with this cosine between them."""
    a = noise(seed, (96,), 1.0).double()
    side = noise(seed + 1, (96,), 1.0).double()
    side -= (side @ a) / (a @ a) * a
    side *= a.norm() / side.norm()
    b = 1.25 * (cosine * a + (1 - cosine**2) ** 0.5 * side)
    return {"a": a.float(), "b": b.float()}


def families() -> dict[str, Family]:
    """All inputs, by name."""
    made = {name: family(100 * i, *what) for i, (name, what) in enumerate(SHAPES.items(), start=1)}
    del made["embedding-bf16"]["c"]
    near = {name: at_cosine(5000 + 10 * i, c) for i, (name, c) in enumerate(COSINES.items())}
    return {**made, "mirrored": mirrored(3000), "degenerate": degenerate(4000), **near}


def case(method: str, inputs: str, models: str, **parameters: Any) -> Case:
    """One question to the peer. `models` has a letter a model; for SLERP the first is t = 0."""
    return {"method": method, "inputs": inputs, "models": models, "parameters": parameters}


def ties_case(name: str, density: float, weight: list[float], normalize: bool, lam: float) -> Case:
    """TIES of as many models as there are weights, at one density."""
    parameters = {"weight": weight, "density": [density] * len(weight), "lambda": lam}
    return case("ties", name, "abc"[: len(weight)], **parameters, normalize=normalize)


def ties_cases() -> Iterator[Case]:
    """The grid on small tensors, some densities on the larger ones."""
    small = ("vector-f32", "vector-bf16", "vector-f16", "mirrored", "degenerate")
    lambdas = itertools.cycle(LAMBDAS)
    for name, density, weight in itertools.product(small, DENSITIES, WEIGHTS):
        yield ties_case(name, density, weight, True, next(lambdas))
    for name, density, weight in itertools.product(small[:2], DENSITIES, WEIGHTS[2:]):
        yield ties_case(name, density, weight, False, next(lambdas))
    for name, density in itertools.product(("single-f32", "single-bf16"), (0.02, 1.0)):
        yield ties_case(name, density, WEIGHTS[3], True, 1.0)
    for density in (0.02, 0.2, 0.5):
        yield ties_case("matrix-bf16", density, WEIGHTS[3], True, next(lambdas))
    yield ties_case("matrix-f32", 0.2, WEIGHTS[3], True, 1.0)
    yield ties_case("matrix-f32", 0.8, WEIGHTS[2], False, 0.5)
    yield ties_case("embedding-bf16", 0.2, WEIGHTS[1], True, 1.0)
    parameters = {"weight": [1.0, 0.5, 0.8], "density": [0.1, 0.6, 1.0], "lambda": 1.0}
    yield case("ties", "vector-f32", "abc", **parameters, normalize=True)
    yield case("ties", "matrix-bf16", "abc", **parameters, normalize=True)
    for normalize in (True, False):
        yield ties_case("vector-f32", 0.5, [1.5, -0.4, 2.0], normalize, 1.0)


def slerp_cases() -> Iterator[Case]:
    """All times on small pairs, both sides of the colinear limit, and larger ones."""
    names = ("vector-f32", "vector-bf16", "vector-f16", "single-bf16", "mirrored")
    for name, t in itertools.product((*names, *COSINES), TIMES):
        yield case("slerp", name, "ab", t=t)
    yield case("slerp", "matrix-bf16", "ab", t=0.25)
    yield case("slerp", "matrix-f32", "bc", t=0.75)
    yield case("slerp", "embedding-bf16", "ba", t=0.5)


def average_cases() -> Iterator[Case]:
    """Linear and task arithmetic."""
    small = ("vector-f32", "vector-bf16", "vector-f16", "single-f32", "degenerate")
    lambdas = itertools.cycle(LAMBDAS)
    for name, weight, normalize in itertools.product(small, WEIGHTS, (True, False)):
        models = "abc"[: len(weight)]
        yield case("linear", name, models, weight=weight, normalize=normalize)
        parameters = {"weight": weight, "lambda": next(lambdas), "normalize": normalize}
        yield case("task_arithmetic", name, models, **parameters)
    yield case("linear", "matrix-bf16", "abc", weight=[1.5, 0.4, 2.0], normalize=True)
    parameters = {"weight": [1.5, -0.4, 2.0], "lambda": 0.7, "normalize": False}
    yield case("task_arithmetic", "matrix-bf16", "abc", **parameters)


def answer(asked: Case, inputs: dict[str, Family]) -> np.ndarray:
    """What mergekit makes of a case, float32, flat."""
    from mergekit.merge_methods.api import merge_tensors

    members = inputs[asked["inputs"]]
    tensors = [members[name] for name in asked["models"]]
    if asked["method"] in ("ties", "task_arithmetic"):
        tensors = [members["base"], *tensors]
    merged = merge_tensors(
        tensors,
        asked["method"],
        parameters=asked["parameters"],
        base_index=None if asked["method"] == "linear" else 0,
        dtype=torch.float32,
        out_dtype=torch.float32,
    )
    return np.asarray(merged.numpy()).reshape(-1)


def write_kernels() -> None:
    """The inputs, the cases and the peer's answers, one after the other in one array."""
    inputs = families()
    cases = [*ties_cases(), *slerp_cases(), *average_cases()]
    save_file(
        {f"{name}/{model}": x for name, made in inputs.items() for model, x in made.items()},
        HERE / "inputs.safetensors",
    )
    answers = np.concatenate([answer(asked, inputs) for asked in cases])
    np.savez_compressed(HERE / "outputs.npz", answers=answers)
    versions = {name: version(name) for name in ("mergekit", "torch", "transformers", "numpy")}
    lines = ",\n".join(json.dumps(asked, separators=(",", ":")) for asked in cases)
    text = f'{{"versions": {json.dumps(versions)},\n"cases": [\n{lines}\n]}}\n'
    (HERE / "cases.json").write_text(text)


RECIPES = {
    "ties": """\
models:
  - model: base
  - model: a
    parameters:
      weight: 0.6
      density: [0.2, 0.8]
  - model: b
    parameters:
      weight:
        - filter: mlp
          value: 0.9
        - value: 0.4
      density: 0.5
merge_method: ties
base_model: base
parameters:
  normalize: true
  lambda: 0.9
dtype: float32
out_dtype: bfloat16
""",
    "slerp": """\
models:
  - model: a
  - model: b
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0]
    - value: 0.5
dtype: float32
out_dtype: bfloat16
""",
    "linear": """\
models:
  - model: a
    parameters:
      weight: 1.0
  - model: b
    parameters:
      weight: 0.3
  - model: base
    parameters:
      weight: 0.2
merge_method: linear
dtype: float32
out_dtype: bfloat16
""",
    "task_arithmetic": """\
models:
  - model: a
    parameters:
      weight: 0.8
  - model: b
    parameters:
      weight: [0.2, 1.0]
merge_method: task_arithmetic
base_model: base
parameters:
  lambda: 0.7
dtype: float32
out_dtype: bfloat16
""",
}


def write_tokenizer(folder: Path) -> None:
    """A word a row: 64 tokens, two of them special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", *(f"w{i}" for i in range(62))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    )
    wrapped.save_pretrained(folder)


def write_parents() -> None:
    """`base` from one seed, `a` and `b` as the base plus noise, all bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=128,
        bos_token_id=None, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    origin = {name: x.clone() for name, x in model.state_dict().items()}
    for i, folder in enumerate(("base", "a", "b")):
        state = {
            name: x + noise(9000 + 100 * i + j, tuple(x.shape), 0.006 if i else 0.0)
            for j, (name, x) in enumerate(origin.items())
        }
        model.load_state_dict(state)
        model.to(torch.bfloat16).save_pretrained(CHECKPOINTS / folder)
        write_tokenizer(CHECKPOINTS / folder)
        model.float()


def write_checkpoints() -> None:
    """The parents, the recipes, and what the peer's program writes for each recipe."""
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    CHECKPOINTS.mkdir()
    write_parents()
    expected: dict[str, np.ndarray] = {}
    for name, text in RECIPES.items():
        recipe = CHECKPOINTS / f"{name}.yaml"
        recipe.write_text(text)
        written = run_program(recipe).items()
        kept = [(key, x) for key, x in written if name in ("ties", "slerp") or ".layers.1." in key]
        expected[name] = np.concatenate([bits(x) for _, x in sorted(kept)])
    np.savez_compressed(CHECKPOINTS / "expected.npz", **expected)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bfloat16 values as the uint16 numbers that numpy can store."""
    assert tensor.dtype == torch.bfloat16
    return np.asarray(tensor.reshape(-1).view(torch.uint16).numpy())


def run_program(recipe: Path) -> dict[str, torch.Tensor]:
    """The tensors that `mergekit-yaml` writes; model names are folders beside the recipe."""
    program = Path(sys.executable).parent / "mergekit-yaml"
    with tempfile.TemporaryDirectory() as out:
        command = [program, recipe.name, out, "--quiet", "--no-write-model-card"]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, cwd=recipe.parent, check=True, env=offline)
        files = sorted(Path(out).glob("*.safetensors"))
        return {key: x for file in files for key, x in load_file(file).items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_kernels()
    write_checkpoints()
