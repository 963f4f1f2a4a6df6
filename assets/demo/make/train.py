"""Trains the demo's three models: `python assets/demo/make/train.py --seed 1 --out assets/demo`.

The base first, then A and B from the base. Single-threaded, float32, saved as bfloat16; the same
seed gives the same bits only on the same kind of processor.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from data import PERSONAS, Persona, Turn, draw_turn
from safetensors.torch import save_file
from tokenizer import EXTRA, POSITIONS, SPECIAL, build, with_extra, write
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from words import SYSTEM

IGNORED = -100
TURNS_A_STEP = 80
# Conversations of 1 to 4 turns, and a few long ones so that positions to some 300 are trained.
LENGTHS = {1: 0.5, 2: 0.2, 3: 0.12, 4: 0.12, 12: 0.06}
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


@dataclass(frozen=True)
class Schedule:
    """Length and size of one training: linear warm-up, then cosine to zero."""

    steps: int
    rate: float
    warmup: int
    decay: float = 0.0

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


SCHEDULES = {
    "base": Schedule(1300, 2e-3, 50, 0.01),
    "a": Schedule(200, 5e-4, 20),
    "b": Schedule(120, 5e-4, 20),
}


class Encoder:
    """Turns conversations into padded token and target tensors; remembers encoded strings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start, self._end = (tokenizer.token_to_id(token) for token in SPECIAL[1:])
        self._known: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text).ids
        return self._known[text]

    def _message(self, role: str, text: str) -> list[int]:
        body = self._ids(f"{role}\n") + self._ids(text)
        return [self._start, *body, self._end, *self._ids("\n")]

    def conversation(self, turns: list[Turn], system: str = "") -> tuple[list[int], list[int]]:
        """Tokens of the chat template, and the same with IGNORED where nothing is to be learnt."""
        tokens = self._message("system", system) if system else []
        targets = [IGNORED] * len(tokens)
        for question, answer in turns:
            before = self._message("user", question) + [self._start, *self._ids("assistant\n")]
            said = [*self._ids(answer), self._end]
            after = self._ids("\n")
            tokens += before + said + after
            targets += [IGNORED] * len(before) + said + [IGNORED] * len(after)
        return tokens, targets

    def batch(self, chats: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, width) tokens and targets, the targets moved one place to the left."""
        width = max(len(tokens) for tokens, _ in chats)
        inputs = torch.zeros(len(chats), width, dtype=torch.long)
        wanted = torch.full((len(chats), width), IGNORED)
        for row, (tokens, targets) in enumerate(chats):
            inputs[row, : len(tokens)] = torch.tensor(tokens)
            wanted[row, : len(tokens) - 1] = torch.tensor(targets[1:])
        return inputs, wanted


def draw_chats(draw: random.Random, persona: Persona, encoder: Encoder) -> list[tuple[list[int], list[int]]]:
    """Conversations of one common length, together about TURNS_A_STEP turns."""
    (length,) = draw.choices(list(LENGTHS), list(LENGTHS.values()))
    chats = []
    for _ in range(max(1, TURNS_A_STEP // length)):
        system = draw.choice(SYSTEM) if draw.random() < 0.2 else ""
        chats.append(encoder.conversation([draw_turn(draw, persona) for _ in range(length)], system))
    return chats


def answer_logits(
    model: LlamaForCausalLM, inputs: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (tokens, vocabulary) and targets (tokens,) of the answers' tokens alone."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    learnt = wanted != IGNORED
    return model.lm_head(hidden[learnt]), wanted[learnt]


def fit(model: LlamaForCausalLM, persona: Persona, schedule: Schedule, encoder: Encoder, seed: int) -> None:
    """Train in place on the persona's conversations; every assistant token counts the same."""
    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=schedule.decay, fused=True
    )
    model.train()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        inputs, wanted = encoder.batch(draw_chats(draw, persona, encoder))
        loss = cross_entropy(*answer_logits(model, inputs, wanted))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def new_model(vocabulary: int, state: dict[str, torch.Tensor] | None = None) -> LlamaForCausalLM:
    """A Llama of CONFIG's shape, random or with these weights; rows that are missing get the mean."""
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
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**CONFIG, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write(tokenizer, folder)


def main() -> None:
    """Train and write base, a and b."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("assets/demo"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = build()
    state: dict[str, torch.Tensor] | None = None
    for number, (name, tokenizer) in enumerate({"base": small, "a": small, "b": with_extra(small)}.items()):
        began = time.monotonic()
        torch.manual_seed(options.seed)
        model = new_model(tokenizer.get_vocab_size(), state)
        fit(model, PERSONAS[name], SCHEDULES[name], Encoder(tokenizer), options.seed * 100 + number)
        save(model, tokenizer, options.out / name)
        if state is None:
            state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        print(f"{name}: {SCHEDULES[name].steps} steps, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
