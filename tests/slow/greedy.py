"""What `generate` says greedily to a prompt, and how far an answer must be the same; no tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merging.chat import Reply

NEARLY = {torch.float32: 0.0, torch.bfloat16: 0.5}
"""Two logits are nearly equal if they differ by less. In bf16 they go from 16 to 32 in steps of
1/8; where prompts are read in float32, for want of units for bf16, the best two were 1/2 off."""


@dataclass(frozen=True)
class Greedy:
    """An answer in `tokens`, as `generate` gives it; the first `sure` of them are beyond doubt:
    before each the best logit was well above the second."""

    tokens: list[int]
    sure: int

    def until(self, ends: Sequence[int]) -> Greedy:
        """The same, had any of these tokens ended it."""
        count = next((n + 1 for n, token in enumerate(self.tokens) if token in ends), None)
        return Greedy(self.tokens[:count], min(self.sure, len(self.tokens[:count])))


def greedy(model: Any, tokenizer: Any, messages: Sequence[Any], tokens: int) -> Greedy:
    """By transformers alone, from the whole prompt on."""
    prompt = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(
        **prompt, max_new_tokens=tokens, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    two = torch.cat(out.logits).float().topk(2).values
    close = (two[:, 0] - two[:, 1] < NEARLY[model.dtype]).tolist()
    said = out.sequences[0, prompt["input_ids"].shape[1] :].tolist()
    return Greedy(said, close.index(True) if any(close) else len(said))


def agrees(reply: Reply, wanted: Greedy, tokenizer: Any, ends: Sequence[int]) -> None:
    """A column has said what `generate` says, as far as that is beyond doubt."""
    if wanted.sure < len(wanted.tokens):
        sure = tokenizer.decode(wanted.tokens[: wanted.sure], skip_special_tokens=True)
        assert reply.text.startswith(sure.rstrip("\ufffd"))
        return
    ended = wanted.tokens[-1] in ends
    spoken = wanted.tokens[:-1] if ended else wanted.tokens
    assert reply.text == tokenizer.decode(spoken, skip_special_tokens=True)
    assert reply.tokens == len(spoken)
    assert reply.ended == ("end of text" if ended else "length limit")
