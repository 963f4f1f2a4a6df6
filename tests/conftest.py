"""Pico models on disk, changed copies of them, and recipes over them; knows no method's formula."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch, as the app has it

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merging.recipe import Recipe
from merging.vocabulary import ROWS

collect_ignore_glob = ["golden/make_*.py"]  # they run the peers, which are not required here

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(61))]
EXTRA = ["<|im_start|>", "<|im_end|>"]
"""What model b adds to the vocabulary."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tokenizer(extra: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A word a token; `extra` are special tokens after the rest."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(extra)})
    return fast


def config(rows: int, layers: int = 2) -> LlamaConfig:
    """Two layers, 32 wide, heads not tied; wide enough initial values for clear preferences."""
    return LlamaConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip


def weights(model: LlamaForCausalLM, seed: int, rows: int) -> dict[str, Tensor]:
    """A fine-tune as far as a merge can tell: the base with noise on it, and further rows."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, base in model.state_dict().items():
        wanted = (rows, *base.shape[1:]) if ROWS.search(name) else base.shape
        grown = torch.randn(wanted, generator=generator) * 0.3
        grown[: base.shape[0]] = base + grown[: base.shape[0]] * 0.2 * bool(seed)
        found[name] = grown.bfloat16()
    return found


def save(folder: Path, tensors: Mapping[str, Tensor], extra: Iterable[str] = ()) -> Path:
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    settings = config(tensors["model.embed_tokens.weight"].shape[0])
    settings.architectures = ["LlamaForCausalLM"]
    settings.dtype = torch.bfloat16
    settings.save_pretrained(folder)
    tokenizer(extra).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small models are slower on several threads, many times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of `base` and of its fine-tunes `a`, `b` (two more tokens) and `c`, bfloat16."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(len(WORDS)))
    root = tmp_path_factory.mktemp("pico")
    return {
        name: save(
            root / name,
            weights(model, seed, len(WORDS) + (2 if name == "b" else 0)),
            EXTRA if name == "b" else (),
        )
        for seed, name in enumerate(("base", "a", "b", "c"))
    }


def changed(
    folder: Path,
    to: Path,
    *,
    tensors: Mapping[str, Tensor | None] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A copy of a model with some tensors replaced, or dropped if None, and config entries."""
    shutil.copytree(folder, to)
    kept = load_file(folder / WEIGHTS) | dict(tensors or {})
    save_file({k: v for k, v in kept.items() if v is not None}, to / WEIGHTS)
    written = json.loads((folder / "config.json").read_text()) | dict(config or {})
    (to / "config.json").write_text(json.dumps(written))
    return to


def loaded(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a written merge, from all its shards."""
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def written(method: str, entries: Iterable[Any], **keys: Any) -> str:
    """A recipe's YAML. Entries are folders, or (folder, its parameters)."""
    listed = []
    for entry in entries:
        folder, own = entry if isinstance(entry, tuple) else (entry, None)
        listed.append({"model": str(folder)} | ({"parameters": own} if own else {}))
    keys = {k: str(v) if isinstance(v, Path) else v for k, v in keys.items()}
    return yaml.safe_dump({"merge_method": method, "models": listed} | keys, sort_keys=False)


def recipe(method: str, entries: Iterable[Any], **keys: Any) -> Recipe:
    return Recipe.from_yaml(written(method, entries, **keys))


@pytest.fixture
def ties(tmp_path: Path, pico: dict[str, Path]) -> Path:
    """A TIES recipe over two fine-tunes with the base's vocabulary."""
    path = tmp_path / "ties.yaml"
    path.write_text(
        written("ties", [pico["a"], pico["c"]], base_model=pico["base"],
                parameters={"density": 0.5})
    )  # fmt: skip
    return path
