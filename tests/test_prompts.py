"""What models are given to read, against transformers' own and against what the chat reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from merging import plan
from merging.conversation import MAX_TURNS, prompt
from merging.errors import MergeError
from merging.loading import Loaded
from merging.merge import merge
from merging.opening import open_folder
from merging.prompts import OWN, PLAIN, of_merge, of_parent
from merging.sinks import Live
from tests.conftest import recipe
from tests.ui.models import DEMO

Pico = Mapping[str, Path]
TALK = (
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am Ada. I like numbers."},
    {"role": "user", "content": "What is 38 + 27?"},
)


def test_it_is_what_transformers_would_give() -> None:
    """Text and number of tokens are those of `apply_chat_template`; the config says how many."""
    found = of_parent(open_folder(DEMO / "a", "a", "stamp"), TALK)
    own = AutoTokenizer.from_pretrained(DEMO / "a")
    assert found.text == own.apply_chat_template(
        list(TALK), tokenize=False, add_generation_prompt=True
    )
    ids = own.apply_chat_template(list(TALK), add_generation_prompt=True)["input_ids"]
    assert (found.tokens, found.context) == (len(ids), 1024)
    assert (found.template, found.whole) == (OWN, True)


def test_a_plain_prompt_shows_the_tokens_that_are_added(pico: Pico) -> None:
    """Without a template the tokenizer's own beginning is seen, and who wrote the text is said."""
    found = of_parent(open_folder(pico["a"], "a", "s"), [{"role": "user", "content": "w1 w2 w3"}])
    assert found.text.split() == ["<s>", *["<unk>"] * 2, "w1", "w2", "w3", *["<unk>"] * 2]
    assert (found.tokens, found.context, found.template) == (8, 64, PLAIN)


@pytest.mark.parametrize(
    ("chosen", "template"),
    [
        ("chatml", "the recipe's template, chatml"),
        ("{{ '<|im_start|>' + messages[0]['content'] }}", "the recipe's template"),
        (None, PLAIN),
    ],
)
def test_of_a_merge_it_is_what_the_merged_model_reads(
    pico: Pico, chosen: str | None, template: str
) -> None:
    """Known before it is made; and once it is made, the chat gives it the very same tokens."""
    keys = {"chat_template": chosen} if chosen else {}
    decided = plan(recipe("linear", [pico["a"], pico["b"]], parameters={"weight": 0.5}, **keys))
    talk = [{"role": "user", "content": "w1 w2"}]
    found = of_merge(decided, talk)
    live = Live(dtype=torch.float32)
    for _ in merge(decided, live):
        pass
    ids, _ = prompt("merged", Loaded.of(live.model, live.tokenizer), talk)
    assert (found.text, found.tokens) == (live.tokenizer.decode(ids), len(ids))
    assert found.template == template
    assert ("<|im_start|>" in found.text) == bool(chosen)


def test_left_out_questions_are_told() -> None:
    """What the model no longer reads is not in the text."""
    talk = [
        {"role": role, "content": f"{role} {n}"}
        for n in range(MAX_TURNS + 1)
        for role in ("user", "assistant")
    ][:-1]
    found = of_parent(open_folder(DEMO / "a", "a", "stamp"), talk)
    assert not found.whole
    assert "user 0<" not in found.text and f"user {MAX_TURNS}<" in found.text


def test_a_template_that_refuses(tmp_path: Path) -> None:
    """Its own reason is in the sentence, and what to do."""
    folder = Path(shutil.copytree(DEMO / "a", tmp_path / "a"))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Never on Sundays') }}")
    with pytest.raises(MergeError, match=r"refuses this conversation .*Never on Sundays.*: start"):
        of_parent(open_folder(folder, "a", "stamp"), TALK)
