"""A question sheet without its page: what it reads, how it scores, what is saved of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from merging import gpu
from merging.chat import Reply
from merging.conversation import MAX_CHARACTERS
from merging.errors import MergeError
from merging.ui import examining, results, sheet
from merging.ui.jobs import Made
from merging.ui.presets import presets
from merging.ui.sheet import Sheet
from merging.ui.visit import PINNED

SUM = "What is 38 + 27?"
RECIPES = ("merge_method: ties\n", "merge_method: slerp\n")
SETTINGS = {"max_new_tokens": 8, "temperature": 0.0, "seed": 3}
EVIL = '<img src=x onerror="x()">\n|![a](http://b.c/d)\\| `` [e](http://f.g) |\n```\n# head'
"""What a model may say to be more than text on a page, in a table's cell or in a fence."""


def made(number: int) -> Made:
    return Made(str(number) * 40, RECIPES[number], ("TIES", "SLERP")[number], (), {})


def reply(column: str, text: str, ended: str | None = "end of text", failed: bool = False) -> Reply:
    return Reply(column, text, 2, 0.1, 20.0, ended, failed=failed)


def answered() -> Sheet:
    """Three questions; A is right, wrong and cannot answer, the merge was stopped at the last."""
    asked = [(SUM, "65"), ("Say the door.", "la porte | une porte"), ("Who are you?", "Ada")]
    models, merges = {"a": "org/a"}, {gpu.MERGED: made(0), PINNED: made(1)}
    found = sheet.new(asked, SETTINGS, models, merges, ("a", gpu.MERGED, PINNED))
    said = [
        (reply("a", "65."), reply(gpu.MERGED, "It is 65."), reply(PINNED, "165")),
        (
            reply("a", "the door"),
            reply(gpu.MERGED, "Une porte!", "length limit"),
            reply(PINNED, ""),
        ),
        (reply("a", "", "refused", failed=True), reply(gpu.MERGED, "I am Ada", None)),
    ]
    for number, replies in enumerate(said):
        for each in replies:
            found = found.replied(number, each)
    return found


def test_marks_and_scores() -> None:
    """What has ended is marked, and only that is counted; what was stopped is no answer."""
    found = answered().ended()
    marks = {s: [found.mark(n, s) for n in range(3)] for s in found.slots}
    assert marks == {
        "a": [True, False, False],
        gpu.MERGED: [True, True, None],
        PINNED: [False, False, None],
    }
    assert [found.score(slot) for slot in found.slots] == [(1, 3), (2, 2), (0, 2)]
    assert found.done() == 8 and found.idle() is found
    with pytest.raises(MergeError, match="being answered"):
        answered().idle()


def test_nothing_expected_has_no_score() -> None:
    found = sheet.new([(SUM, "")], {}, {"a": "org/a"}, {}, ("a",)).replied(0, reply("a", "65"))
    assert found.mark(0, "a") is None and found.score("a") is None


def test_rows_are_read_and_written() -> None:
    """Empty rows are left out, and what is short is filled up to ten rows for the page."""
    asked = sheet.read([[f" {SUM} ", " 65"], ["", None], ["Who are you?"], [float("nan"), ""]])
    assert asked == ((SUM, "65"), ("Who are you?", ""))
    shown = sheet.rows(asked)
    assert len(shown) == 10 and sheet.read(shown) == asked


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no question"),
        ([["", ""], [None, None]], "no question"),
        ([[SUM, ""]] * 11, "11 questions, and 10 fit"),
        ([[SUM, "65"], ["", "66"]], "Row 2 expects an answer and has no question"),
        ([[SUM, "65"], [], ["x" * (MAX_CHARACTERS + 1), ""]], "Row 3 has a text of 16,001"),
        ([[SUM, "6" * (MAX_CHARACTERS + 1)]], "Row 1 has a text of 16,001"),
    ],
)
def test_bad_rows_are_a_sentence(rows: list[list[str]], told: str) -> None:
    with pytest.raises(MergeError, match=told):
        sheet.read(rows)


def test_json_has_everything() -> None:
    """Questions, what was expected, full answers, marks, scores, and the recipes of both merges."""
    found = json.loads(results.to_json(answered().ended()))
    assert [q["question"] for q in found["questions"]] == [SUM, "Say the door.", "Who are you?"]
    assert [q["expected"] for q in found["questions"]] == ["65", "la porte | une porte", "Ada"]
    first = found["questions"][0]["answers"]
    assert {slot: a["text"] for slot, a in first.items()} == {
        "a": "65.", gpu.MERGED: "It is 65.", PINNED: "165",
    }  # fmt: skip
    assert [first[slot]["right"] for slot in ("a", gpu.MERGED, PINNED)] == [True, True, False]
    assert first["a"]["model"] == "org/a" and first[PINNED]["merge"] == made(1).identity
    assert found["questions"][2]["answers"][gpu.MERGED]["ended"] == "stopped"
    assert found["questions"][0]["settings"]["seed"] == 3
    assert found["scores"][gpu.MERGED] == {"right": 2, "of": 2}
    assert {r["recipe"] for r in found["recipes"].values()} == set(RECIPES)


def test_markdown_has_a_table_and_the_whole_answers() -> None:
    """A table with a row a question and the score below; the recipes at the end."""
    text = results.to_markdown(answered().ended())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 + 1
    assert table[2] == f"| 1 | `{SUM}` | `65` | ✓ `65.` | ✓ `It is 65.` | ✗ `165` |"
    assert table[-1] == "|  | Score |  | 1 of 3 | 2 of 2 | 0 of 2 |"
    assert "`la porte \\| une porte`" in table[3]
    assert all(f"```yaml\n{recipe}```" in text for recipe in RECIPES)


def evil() -> Sheet:
    return sheet.new([(EVIL, EVIL)], {**SETTINGS, "system": EVIL}, {"a": EVIL}, {}, ("a",)).replied(
        0, reply("a", EVIL)
    )


def test_answers_stay_text_in_markdown() -> None:
    """In the table no answer opens a cell or is a link; below it, each ends with its own fence."""
    text = results.to_markdown(evil())
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    cells = re.findall(r"(?:\\.|[^|\\])+", row)  # as GitHub parts them
    assert len(cells) == 4
    for cell in cells[1:]:
        code = re.fullmatch(r" (?:✓ |✗ )?(`+) (.*) \1 ", cell)
        assert code and code[1] not in re.findall("`+", code[2])
    below = text[text.index("## Question 1") :]
    assert below.count(f"````\n{EVIL}\n````") == 3


class _Tags(HTMLParser):
    """Collects the names and attributes of a page's tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {(tag, name) for name, _ in attrs} | {(tag, "")}


def test_answers_inject_nothing() -> None:
    """The page's table has its own tags, and none of a model's, whatever it says."""
    tags, own = _Tags(), _Tags()
    tags.feed(examining._table(evil()))
    own.feed(examining._table(answered()))
    assert {tag for tag, _ in tags.found} <= {tag for tag, _ in own.found}
    assert not any(name.startswith("on") or name == "src" for _, name in tags.found)


def test_demo_presets_have_ten_questions() -> None:
    """Those with the embedded models bring a full sheet, others at least their examples."""
    for preset in presets():
        assert sheet.read(preset.sheet) == preset.sheet
        if "assets/demo" in preset.text:
            assert len(preset.sheet) == 10 and all(expected for _, expected in preset.sheet)
