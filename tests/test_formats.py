"""Chat templates: what the named formats say of a conversation, and where a model keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from merging import formats
from tests.conftest import tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": " Bye "},
]
SAID = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
    "### Instruction:\n Bye \n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n Bye <|im_end|>\n"
    "<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|] Bye \n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST]  Bye  [/INST]",
}
"""Written by hand, after what each family's models were trained on."""


@pytest.fixture(scope="module")
def fast() -> PreTrainedTokenizerFast:
    return tokenizer()


@pytest.mark.parametrize("name", sorted(formats.FORMATS))
def test_a_named_format_says_a_conversation(name: str, fast: PreTrainedTokenizerFast) -> None:
    """transformers renders each of them to the letter as it should be."""
    said = fast.apply_chat_template(
        TALK, chat_template=formats.FORMATS[name], tokenize=False, add_generation_prompt=True
    )
    assert said == SAID[name]


def test_templates_are_found_where_they_are_kept(tmp_path: Path) -> None:
    """In the config, there as `default` of several, and in a file of its own, which wins."""
    config = tmp_path / "tokenizer_config.json"
    assert formats.template(tmp_path, "x") is None
    config.write_text('{"chat_template": "one"}')
    assert formats.template(tmp_path, "x") == "one"
    config.write_text('{"chat_template": [{"name": "rag", "template": "no"}, '
                      '{"name": "default", "template": "two"}]}')  # fmt: skip
    assert formats.template(tmp_path, "x") == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert formats.template(tmp_path, "x") == "three"


def test_a_template_has_a_cap(tmp_path: Path) -> None:
    """One that is larger than any real template is not taken."""
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": "{"x" * 70_000}"}}')
    assert formats.template(tmp_path, "x") is None
