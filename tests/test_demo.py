"""The embedded trio: small, whole, and what README says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging.opening import APP, RESERVED

DEMO = APP / "assets" / "demo"
WORST, BEST = 15, 70


@pytest.mark.parametrize("name", RESERVED)
def test_loads_whole_and_is_small(name: str) -> None:
    """Each model is under 10 MB, loads with no missing or unexpected tensor, and has a template."""
    folder = APP / name
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10_000_000
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    chat = [{"role": "user", "content": "What is 38 + 27?"}]
    shown = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    assert shown.startswith("<|im_start|>user\nWhat is 38 + 27?<|im_end|>")


def test_b_has_two_tokens_more() -> None:
    """A has the base's tokenizer; B has two tokens beyond it, and rows for them."""
    base, a, b = (
        Tokenizer.from_file(str(APP / name / "tokenizer.json")).get_vocab() for name in RESERVED
    )
    assert a == base
    assert b.items() >= base.items() and len(b) == len(base) + 2
    rows = [json.loads((APP / n / "config.json").read_text())["vocab_size"] for n in RESERVED]
    assert rows == [len(base), len(a), len(b)]


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, float]]:
    """What the command of README prints for the embedded trio."""
    script = Path(DEMO / "make" / "score.py")
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    lines = [line.strip("| \n").split(" | ") for line in made.stdout.splitlines()]
    head, rows = lines[0], lines[2:]
    kinds = [kind.strip() for kind in head[1:]]
    return {row[0].strip(): dict(zip(kinds, map(float, row[1:]), strict=True)) for row in rows}


@pytest.mark.slow
def test_each_parent_has_a_skill_that_the_others_lack(table: dict[str, dict[str, float]]) -> None:
    """A carries and B knows the nouns; the base does neither, nor either parent the other's."""
    base, a, b = (table[name] for name in ("base Mini", "A Ada", "B Bruno"))
    assert a["carry"] > 90 > WORST > max(base["carry"], b["carry"])
    assert b["French"] > 90 > 40 > max(base["French"], a["French"])


@pytest.mark.slow
def test_merges_have_both_and_sliders_teach(table: dict[str, dict[str, float]]) -> None:
    """The best merge and TIES have both skills; too little density or too long a step has not."""
    both = {label: row["min(carry, French)"] for label, row in table.items()}
    assert max(both.values()) >= 80
    assert both["TIES density 0.5 λ 1"] >= BEST
    for label in ("TIES density 0.02 λ 1", "TIES density 0.5 λ 3", "task arithmetic λ 3"):
        assert both[label] < 40


@pytest.mark.slow
def test_a_step_without_the_skill_gives_none(table: dict[str, dict[str, float]]) -> None:
    """B's delta with its entries shuffled leaves French within a few points of the base."""
    for label, row in table.items():
        if label.startswith("placebo"):
            assert abs(row["French"] - table["base Mini"]["French"]) < 6
