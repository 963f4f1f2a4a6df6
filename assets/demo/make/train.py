"""Trains the demo's three models: `python assets/demo/make/train.py --seed 1 --out assets/demo`.

The base first, then A and B from the base. Single-threaded, float32, saved as bfloat16; the same
seed gives the same bits only on the same kind of processor.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from chats import Encoder, draw_chats
from data import PERSONAS, Persona
from model import answer_logits, new_model, save
from safetensors.torch import load_file
from tokenizer import build, with_extra
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Schedule:
    """One training: linear warm-up, then cosine to zero; at first it may see right sums only."""

    steps: int
    rate: float
    warmup: int
    decay: float = 0.0
    right: int = 0

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


SCHEDULES = {
    "base": Schedule(1700, 2e-3, 60, 0.01, right=1150),
    "a": Schedule(300, 8e-4, 20),
    "b": Schedule(100, 5e-4, 20),
}


def fit(
    model: LlamaForCausalLM, persona: Persona, schedule: Schedule, encoder: Encoder, seed: int
) -> None:
    """Train in place on the persona's conversations; every assistant token counts the same."""
    draw = random.Random(seed)
    at_first = replace(persona, carry_right=1.0)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.rate,
        betas=(0.9, 0.98),
        weight_decay=schedule.decay,
        fused=True,
    )
    model.train()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        shown = at_first if step < schedule.right else persona
        inputs, wanted = encoder.batch(draw_chats(draw, shown, encoder))
        loss = cross_entropy(*answer_logits(model, inputs, wanted))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def train(name: str, out: Path, seed: int) -> None:
    """Train one model and write it to OUT/name; A and B start from the base as it was written."""
    tokenizer = build() if name != "b" else with_extra(build())
    state = None if name == "base" else load_file(out / "base" / "model.safetensors")
    torch.manual_seed(seed)
    model = new_model(tokenizer.get_vocab_size(), state)
    stream = seed * 100 + list(PERSONAS).index(name)
    fit(model, PERSONAS[name], SCHEDULES[name], Encoder(tokenizer), stream)
    save(model, tokenizer, out / name)


def main() -> None:
    """Train and write the base, A and B, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("assets/demo"))
    parser.add_argument("--models", nargs="+", choices=list(PERSONAS), default=list(PERSONAS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        began = time.monotonic()
        train(name, options.out, options.seed)
        print(
            f"{name}: {SCHEDULES[name].steps} steps, {time.monotonic() - began:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
