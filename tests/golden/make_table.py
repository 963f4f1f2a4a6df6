"""Makes the golden table: what the `mergekit-yaml` program of mergekit 0.1.5 writes for each recipe
of `table.yaml`. It knows nothing of the package under test; the tests take only the parents of it.

    python3 -m venv peer
    peer/bin/pip install torch==2.13.0 mergekit==0.1.5
    peer/bin/python tests/golden/make_table.py

It writes, beside itself, `table.npz` (for each recipe all merged tensors, flat, one after the other
in the order of their names; bfloat16 as uint16) and `table.json` (their names and shapes, the
layers and rows that the written config.json states, and which token has which row). The parents are
not stored: `make_parents` makes the same bytes of them anywhere, as it calls no mathematical
library and uses only a bit generator's raw stream, which NumPy keeps fixed.
mergekit is LGPL-3.0: it is run here as a program, and none of it is copied.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

HERE = Path(__file__).parent
LAYERS, HIDDEN, INNER = 4, 8, 12
WORDS = ["<unk>", "</s>", *(f"w{i}" for i in range(62))]
WIDE = [*WORDS[:1:-1], *WORDS[:2]]
WIDE[10:10] = ["<new>"]
WIDE[40:40] = ["<other>"]
"""The same words in other places, and two more."""
ODD = [f"x{word}" if word == "w5" else word for word in WORDS]
"""As many words, one of them another."""


def noise(seed: int, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Heavy-tailed float32 numbers: sums of four uniform ones, bent outwards."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    parts = [(raw >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]
    even = (np.sum(parts, axis=0).astype(np.int64) - 2 * 0xFFFF) / 2.0**15
    return torch.from_numpy(scale * (even + even * even * even / 8)).float().reshape(shape)


def shapes(rows: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama of this size."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    found = {f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    found |= {"embed_tokens": (rows, HIDDEN), "norm": (HIDDEN,)}
    return {f"model.{n}.weight": s for n, s in found.items()} | {"lm_head.weight": (rows, HIDDEN)}


def fine_tune(origin: dict[str, torch.Tensor], seed: int, scale: float) -> dict[str, torch.Tensor]:
    """The origin with noise on it; a layer's scale grows with its number."""
    return {
        name: x + noise(seed + i, tuple(x.shape), scale * (1 + i % 3))
        for i, (name, x) in enumerate(origin.items())
    }


def with_words(origin: dict[str, torch.Tensor], words: Sequence[str]) -> dict[str, torch.Tensor]:
    """The rows in the order of `words`; a word that the origin lacks has a row of its own."""
    rows = [WORDS.index(word) if word in WORDS else -1 for word in words]
    out = {}
    for name, x in origin.items():
        if x.shape[0] != len(WORDS):
            out[name] = x
            continue
        own = noise(777, tuple(x.shape), 0.1)[: len(rows)]
        own = torch.cat([own, own])[: len(rows)]
        out[name] = torch.where(torch.tensor(rows)[:, None] < 0, own, x[rows])
    return out


def save(folder: Path, tensors: dict[str, torch.Tensor], words: Sequence[str]) -> None:
    """A Llama folder with a tokenizer of a word a row."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = str(tensors["model.norm.weight"].dtype).removeprefix("torch.")
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(words),
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": HIDDEN // 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "bos_token_id": None, "eos_token_id": words.index("</s>"), "torch_dtype": dtype,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<unk>", "</s>"])
    inner.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"eos_token": "</s>"}))


def make_parents(root: Path) -> None:
    """`base` and its fine-tunes `a` to `d`, `wide`, `odd` and `tied`; in float32 those with 32.

    `a` is so near the base that their cosines are beyond SLERP's colinear limit; `b` is not.
    """
    origin = {name: noise(i, shape, 0.1) for i, (name, shape) in enumerate(shapes(64).items())}
    origin |= {name: x * 0.2 + 1 for name, x in origin.items() if "norm" in name}
    scales = {"base": 0.0, "a": 0.001, "b": 0.03, "c": 0.01, "wide": 0.02, "odd": 0.02}
    scales |= {"base32": 0.005, "a32": 0.01, "b32": 0.03, "d": 0.02, "tied": 0.02}
    words = {"wide": WIDE, "odd": ODD}
    for i, (name, scale) in enumerate(scales.items()):
        made = with_words(fine_tune(origin, 1000 * (i + 1), scale), words.get(name, WORDS))
        dtype = torch.float32 if name.endswith("32") else torch.bfloat16
        stored = {key: x.to(dtype).contiguous() for key, x in made.items()}
        if name == "tied":
            del stored["lm_head.weight"]
        save(root / name, stored, words.get(name, WORDS))


def recipes() -> dict[str, str]:
    """The table's recipes by name, as YAML."""
    table = yaml.safe_load((HERE / "table.yaml").read_text())
    return {name: yaml.safe_dump(recipe, sort_keys=False) for name, recipe in table.items()}


def run_program(name: str, text: str, root: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """What `mergekit-yaml` writes for a recipe over the folders in `root`: values and facts."""
    program = Path(sys.executable).parent / "mergekit-yaml"
    recipe, out = root / f"{name}.yaml", root / f"{name}.out"
    recipe.write_text(text)
    command = [program, recipe.name, out.name, "--quiet", "--no-write-model-card"]
    subprocess.run(command, cwd=root, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    files = sorted(out.glob("*.safetensors"))
    tensors = {key: x for file in files for key, x in load_file(file).items()}
    config = json.loads((out / "config.json").read_text())
    vocabulary = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    facts = {
        "dtype": str(tensors["lm_head.weight"].dtype).removeprefix("torch."),
        "layers": config["num_hidden_layers"],
        "rows": config["vocab_size"],
        "tensors": {key: list(x.shape) for key, x in sorted(tensors.items())},
        "words": sorted(vocabulary, key=vocabulary.__getitem__),
    }
    return np.concatenate([flat(x) for _, x in sorted(tensors.items())]), facts


def flat(tensor: torch.Tensor) -> np.ndarray:
    """Float32 values as they are, bfloat16 as the uint16 numbers that numpy can store."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return np.asarray(tensor.reshape(-1).numpy())


def main() -> None:
    """Ask the peer for every recipe and write the table; equal lists of names are kept once."""
    arrays, cases, lists = {}, {}, []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        root = Path(folder)
        make_parents(root)
        asked = recipes()
        answers = pool.map(lambda item: run_program(*item, root), asked.items())
        for name, (values, facts) in zip(asked, answers, strict=True):
            arrays[name] = values
            for key in ("tensors", "words"):
                if facts[key] not in lists:
                    lists.append(facts[key])
                facts[key] = lists.index(facts[key])
            cases[name] = facts
    np.savez_compressed(HERE / "table.npz", **arrays)
    rows = [",\n".join(json.dumps(one, separators=(",", ":")) for one in lists)]
    rows += [",\n".join(f"{json.dumps(n)}:{json.dumps(f)}" for n, f in cases.items())]
    (HERE / "table.json").write_text(f'{{"lists":[\n{rows[0]}\n],\n"cases":{{\n{rows[1]}\n}}}}\n')


if __name__ == "__main__":
    main()
