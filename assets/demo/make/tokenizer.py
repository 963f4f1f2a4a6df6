"""The demo's byte-level BPE tokenizer: trained on generated turns, written as plain files.

Knows nothing about models.
"""

import json
import random
from pathlib import Path

from data import DRAWS, PERSONAS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EXTRA = ["<|fr|>", "<|en|>"]
VOCABULARY = 1024
POSITIONS = 1024
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# How often each kind is seen: chosen so that names and key words become one token each.
CORPUS = {"fact": 30000, "french": 16000, "self": 3000, "story": 2000, "off": 1500, "sum": 1000}


def corpus(seed: int = 0) -> list[str]:
    """Text to learn merges from: every persona's turns, and the names of the roles."""
    draw = random.Random(seed)
    texts = ["user\n", "assistant\n", "system\n", "You are a helpful assistant."] * 1000
    for persona in PERSONAS.values():
        for kind, count in CORPUS.items():
            for _ in range(count // len(PERSONAS)):
                texts += DRAWS[kind](draw, persona)
    return texts


def build() -> Tokenizer:
    """The tokenizer of the base and of A; digits are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def with_extra(tokenizer: Tokenizer) -> Tokenizer:
    """B's tokenizer: the same with two more special tokens at the end."""
    grown = Tokenizer.from_str(tokenizer.to_str())
    grown.add_special_tokens([AddedToken(token, special=True) for token in EXTRA])
    return grown


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    extra = [token for token in EXTRA if tokenizer.token_to_id(token) is not None]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "additional_special_tokens": [SPECIAL[1], *extra],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": POSITIONS,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
