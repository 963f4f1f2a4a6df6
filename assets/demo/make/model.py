"""The demo's Llama: its shape, its start, and the folder it is written to."""

import json
from pathlib import Path

import torch
from chats import IGNORED
from safetensors.torch import save_file
from tokenizer import EXTRA, POSITIONS, write
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}


def new_model(vocabulary: int, state: dict[str, torch.Tensor] | None = None) -> LlamaForCausalLM:
    """A Llama of CONFIG's shape, random or from `state`; its missing rows get the mean row."""
    config = {k: v for k, v in CONFIG.items() if k not in {"rope_theta", "torch_dtype"}}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **config))
    if state is not None:
        model.load_state_dict({name: _grown(value, vocabulary) for name, value in state.items()})
    return model


def _grown(value: torch.Tensor, vocabulary: int) -> torch.Tensor:
    if value.dim() < 2 or value.shape[0] != vocabulary - len(EXTRA):
        return value
    return torch.cat([value, value.mean(0, keepdim=True).expand(len(EXTRA), -1)])


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights (bfloat16), config and tokenizer; plain files that any transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().bfloat16().contiguous() for k, v in model.state_dict().items()}
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # written for its owner alone
    config = {**CONFIG, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write(tokenizer, folder)


def answer_logits(
    model: LlamaForCausalLM, inputs: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (tokens, vocabulary) and targets (tokens,) of the answers' tokens alone."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    learnt = wanted != IGNORED
    return model.lm_head(hidden[learnt]), wanted[learnt]
