"""Pico models of every decoder family, built by transformers' own classes from configs; it knows
how they are made and kept on disk, and nothing of merging.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import EXTRA, WORDS, tokenizer

ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = ENDS | {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 1}
WIDE = GROUPED | {"head_dim": 8, "sliding_window": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": WIDE,
    "gemma3_text": WIDE,
    "phi3": GROUPED,
    "gpt2": ENDS | {
        "vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
        "initializer_range": 0.3,
    },
    "gpt_neox": SMALL,
    "olmo2": GROUPED,
    "granite": GROUPED,
    "cohere": GROUPED,
    "smollm3": GROUPED,
}  # fmt: skip
"""By `model_type`; whether heads are tied is each family's own default."""

MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": GROUPED | {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}  # fmt: skip
TIED = frozenset({"gemma", "gemma2", "gemma3_text", "gpt2", "cohere", "smollm3"})


def build(kind: str, **changes: Any) -> Any:
    """A model of this `model_type` in bfloat16, always with the same values."""
    config = AutoConfig.for_model(kind, **((FAMILIES | MIXTURES)[kind] | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def tuned(model: Any, seed: int, rows: int | None = None) -> Any:
    """A copy with noise on every parameter, norms and biases too; `rows` resizes its vocabulary."""
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        if rows:
            copied.resize_token_embeddings(rows, mean_resizing=False)
        for parameter in copied.parameters():
            parameter += torch.randn(parameter.shape) * 0.06
    return copied


def save(model: Any, folder: Path, extra: Iterable[str] = ()) -> Path:
    """As the family's own save_pretrained does it, beside a tokenizer of 64 words and `extra`."""
    model.save_pretrained(folder)
    tokenizer(extra).save_pretrained(folder)
    return folder


def trio(kind: str, root: Path, **changes: Any) -> dict[str, Path]:
    """`base`, its fine-tunes `a` and `b`, and `grown`: `b` with two more tokens."""
    base = build(kind, **changes)
    tokens = len(WORDS) + len(EXTRA)
    rows = max(base.config.vocab_size, tokens)
    return {
        "base": save(base, root / "base"),
        "a": save(tuned(base, 1), root / "a"),
        "b": save(tuned(base, 2), root / "b"),
        "grown": save(tuned(base, 3, rows), root / "grown", EXTRA),
    }
