"""Conversations as tensors: the chat template's tokens, and which of them are to be learnt.

Knows nothing about models.
"""

import random

import torch
from data import Persona, Turn, draw_turn
from tokenizer import SPECIAL
from tokenizers import Tokenizer
from words import SYSTEM

IGNORED = -100
TURNS_A_STEP = 80
# Conversations of 1 to 4 turns, and a few long ones so that positions to some 300 are trained.
LENGTHS = {1: 0.5, 2: 0.2, 3: 0.12, 4: 0.12, 12: 0.06}
Chat = tuple[list[int], list[int]]


class Encoder:
    """Turns conversations into padded token and target tensors; remembers encoded strings."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start, self._end = tokenizer.encode("".join(SPECIAL[1:])).ids
        self._known: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text).ids
        return self._known[text]

    def _message(self, role: str, text: str) -> list[int]:
        body = self._ids(f"{role}\n") + self._ids(text)
        return [self._start, *body, self._end, *self._ids("\n")]

    def conversation(self, turns: list[Turn], system: str = "") -> Chat:
        """Tokens of the chat template, and the same with IGNORED where nothing is to be learnt."""
        tokens = self._message("system", system) if system else []
        targets = [IGNORED] * len(tokens)
        for question, answer in turns:
            before = [*self._message("user", question), self._start, *self._ids("assistant\n")]
            said = [*self._ids(answer), self._end]
            after = self._ids("\n")
            tokens += before + said + after
            targets += [IGNORED] * len(before) + said + [IGNORED] * len(after)
        return tokens, targets

    def batch(self, chats: list[Chat]) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, width) tokens and targets, the targets moved one place to the left."""
        width = max(len(tokens) for tokens, _ in chats)
        inputs = torch.zeros(len(chats), width, dtype=torch.long)
        wanted = torch.full((len(chats), width), IGNORED)
        for row, (tokens, targets) in enumerate(chats):
            inputs[row, : len(tokens)] = torch.tensor(tokens)
            wanted[row, : len(tokens) - 1] = torch.tensor(targets[1:])
        return inputs, wanted


def draw_chats(draw: random.Random, persona: Persona, encoder: Encoder) -> list[Chat]:
    """Conversations of one common length, together about TURNS_A_STEP turns."""
    (length,) = draw.choices(list(LENGTHS), list(LENGTHS.values()))
    chats = []
    for _ in range(max(1, TURNS_A_STEP // length)):
        system = draw.choice(SYSTEM) if draw.random() < 0.2 else ""
        chats.append(
            encoder.conversation([draw_turn(draw, persona) for _ in range(length)], system)
        )
    return chats
