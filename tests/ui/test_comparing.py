"""The chat's columns one by one, marks, blind rounds and what is saved, in a real browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from merging.errors import MergeError
from merging.ui import look
from merging.ui.following import follow
from merging.ui.visit import Visit as State
from tests.ui.playground import DONE, Playground
from tests.ui.running import App

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
SUM = "What is 38 + 27?"
FRENCH = "How do you say the white door in French?"
FIRST = re.compile(r"Ada|Bruno|assets/demo|◆|●|✦|tok/s|merged", re.IGNORECASE)
"""What would say whose an answer is."""


def test_one_column_is_asked_and_retried_alone(visit: Visit) -> None:
    """A question to one column reaches no other, nor does a retry."""
    playground = visit().ready()
    playground.ask(SUM, ("a", "b"))
    playground.awaited(("b",))
    playground.part("question").locator("textarea").fill(FRENCH)
    playground.part("alone-b").click()
    playground.finished(("b",))
    assert playground.answers("a") == ["65"]
    assert playground.answers("b")[1:] == ["la porte blanche"]
    playground.awaited(("b",))
    playground.part("retry-b").click()
    playground.finished(("b",))
    assert playground.answers("b")[1:] == ["la porte blanche"]
    assert playground.answers("a") == ["65"]


def test_a_column_without_a_model_says_so(visit: Visit) -> None:
    """The merged column cannot be asked before there is a merge, and the question stays."""
    playground = visit().ready()
    field = playground.part("question").locator("textarea")
    field.fill(SUM)
    playground.part("alone-merged").click()
    expect(playground.part("status").locator(".failure")).to_contain_text("press Merge")
    expect(field).to_have_value(SUM)


def test_stop_ends_what_waits_and_leaves_it_typed(visit: Visit, long_recipe: str) -> None:
    """A question that comes while columns answer waits, with a sentence; Stop leaves its word."""
    playground = visit().ready().ramble(long_recipe, SUM)
    field = playground.part("question").locator("textarea")
    field.fill(FRENCH)
    field.press("Enter")
    expect(playground.held()).to_have_text(
        "“Ask” is taken: it waits for what is under way, and Stop ends both."
    )
    playground.part("alone-b").click()
    expect(playground.held()).to_contain_text("“Ask B alone” is taken in place of “Ask”")
    field.press("Escape")
    expect(playground.held()).to_have_count(0)
    for slot in ("a", "b"):
        expect(playground.stats(slot)).to_contain_text("stopped")
    expect(field).to_have_value(FRENCH)
    playground.option("Length", 8)
    playground.awaited(("a", "b"))
    field.press("Enter")
    playground.finished(("a", "b"))
    assert len(playground.answers("a")) == 2


def test_the_last_of_those_who_wait_goes_on(visit: Visit, long_recipe: str) -> None:
    """One alone waits. It is put once the columns have answered, and what it replaced is not."""
    playground = visit().ready().ramble(long_recipe, SUM, 256)
    playground.part("question").locator("textarea").fill(FRENCH)
    for slot in ("a", "b"):
        playground.part(f"alone-{slot}").click()
        expect(playground.held()).to_contain_text(f"“Ask {slot.upper()} alone” is taken")
    expect(playground.part("question").locator("textarea")).to_have_value("", timeout=60_000)
    playground.option("Length", 8)
    playground.ask(SUM, ("b",))
    assert [len(playground.answers(slot)) for slot in ("a", "b")] == [2, 3]


def test_one_column_is_stopped_alone(visit: Visit, long_recipe: str) -> None:
    """Its head says so at once; the others go on, blind ones too, and end with the last Stop."""
    playground = visit().ready().ramble(long_recipe, SUM)
    playground.part("halt-a").click()
    expect(playground.stats("a")).to_contain_text("stopped")
    said = playground.answers("b")[-1]
    expect(playground.part("chat-b").locator("[data-testid=bot]").last).not_to_have_text(said)
    expect(playground.stats("b")).not_to_contain_text("stopped")
    playground.part("stop").click()
    expect(playground.stats("b")).to_contain_text("stopped")


def test_who_closes_the_page_stops_computing(app: App, visit: Visit, long_recipe: str) -> None:
    """Soon after the tab is gone the app is at rest."""
    playground = visit().ready().ramble(long_recipe, SUM)
    used = app.processor_seconds()
    playground.page.context.close()
    time.sleep(8)
    assert app.processor_seconds() - used < 4  # the whole answer takes eleven


def test_columns_are_enlarged_and_hidden_by_keys(visit: Visit) -> None:
    """Enter on a column's enlarging button leaves it alone in view, and again brings all back."""
    playground = visit().ready()
    wide = playground.page.get_by_role("button", name="Enlarge A")
    wide.press("Enter")
    expect(playground.part("column-b")).to_be_hidden()
    expect(wide).to_have_attribute("aria-pressed", "true")
    row = playground.part("columns").bounding_box()
    column = playground.part("column-a").bounding_box()
    assert row and column and column["width"] == row["width"]
    wide.press("Enter")
    expect(playground.part("column-b")).to_be_visible()
    boxes = playground.part("folded").get_by_role("checkbox")
    expect(boxes.nth(1)).to_be_checked()
    boxes.nth(1).press("Space")
    expect(playground.part("column-b")).to_be_hidden()
    boxes.nth(1).press("Space")
    expect(playground.part("column-b")).to_be_visible()


def _edit(playground: Playground, slot: str, number: int, text: str) -> None:
    """Change a question where it stands in a column."""
    chat = playground.part(f"chat-{slot}")
    chat.get_by_label("Edit", exact=True).nth(number).click()
    chat.locator("textarea").fill(text)
    chat.get_by_label("Submit", exact=True).click()


def test_a_question_is_edited_in_its_column(visit: Visit) -> None:
    """It is asked there in place of the old one and of what followed; the others keep theirs."""
    playground = visit().ready()
    playground.merge()
    playground.ask(SUM)
    playground.ask(FRENCH)
    marks = playground.part("chat-merged").locator(".follows")
    expect(marks).to_have_count(2)
    playground.awaited(("a",))
    _edit(playground, "a", 0, "What is 21 + 34?")
    playground.finished(("a",))
    assert playground.answers("a") == ["55"]
    asked = playground.part("chat-a").locator("[data-testid=user] .message-content")
    assert [text.strip() for text in asked.all_inner_texts()] == ["What is 21 + 34?"]
    assert len(playground.answers("b")) == 2
    expect(marks).to_have_count(2)
    playground.awaited(("b", "merged"))
    _edit(playground, "merged", 1, SUM)
    playground.part("retry-b").click()  # for which this waits
    playground.finished(("b", "merged"))
    assert playground.answers("merged") == ["65", "65"]
    _edit(playground, "b", 1, "  ")
    expect(playground.part("status").locator(".failure")).to_contain_text("question is empty")
    assert len(playground.answers("b")) == 2


def test_a_question_that_is_gone_is_not_edited() -> None:
    """What a page sends that has changed since, or was made up, is a sentence."""
    said = ({"role": "user", "content": SUM}, {"role": "assistant", "content": "65"})
    visit = State(said={"a": said})
    assert visit.until("a", 0).said == {"a": ()}
    for slot, place in (("a", 1), ("a", 2), ("a", -2), ("b", 0)):
        with pytest.raises(MergeError, match="not there"):
            visit.until(slot, place)


def test_nothing_is_edited_or_drawn_while_columns_answer(visit: Visit, long_recipe: str) -> None:
    """A question cannot be edited then, a new seed waits, until Stop, and answers go on."""
    playground = visit().ready().ramble(long_recipe, SUM)
    edit = playground.part("chat-b").get_by_label("Edit", exact=True)
    expect(edit).to_be_disabled()
    playground.option("Temperature", 1)
    playground.part("new-seed").click()
    expect(playground.held()).to_contain_text("New seed” is taken")
    assert playground.part("seed").locator("input").input_value() == "0"
    assert "tokens ·" not in playground.stats("a").inner_text()
    playground.page.keyboard.press("Escape")
    expect(playground.stats("a")).to_contain_text("stopped")
    expect(edit).to_be_enabled()
    assert playground.part("seed").locator("input").input_value() == "0"


def _asked(playground: Playground, path: Path) -> list[Any]:
    """What was asked so far, with its settings, as it is saved."""
    questions: list[Any] = json.loads(playground.saved("save-json", path))["questions"]
    return questions


def test_a_new_seed_is_drawn_and_kept(visit: Visit, tmp_path: Path) -> None:
    """At temperature 0 a sentence says that it is of no use; else it is shown, and repeats."""
    playground = visit().ready()
    playground.part("new-seed").click()
    expect(playground.part("status").locator(".failure")).to_contain_text("nothing to retry")
    playground.ask(SUM, ("a", "b"))
    playground.part("new-seed").click()
    expect(playground.part("status")).to_contain_text("At temperature 0 the seed changes nothing")
    playground.option("Temperature", 2)
    seed = playground.part("seed").locator("input")
    assert seed.input_value() == "0"
    playground.awaited(("a", "b"))
    playground.part("new-seed").click()
    playground.finished(("a", "b"))
    drawn = int(seed.input_value())
    assert drawn > 0 and len(playground.answers("a")) == 1
    playground.option("Length", 16)
    playground.awaited(("b",))
    playground.part("retry-b").click()
    playground.finished(("b",))
    asked = _asked(playground, tmp_path / "all.json")
    assert [sorted(one["answers"]) for one in asked] == [["a", "b"], ["a", "b"], ["b"]]
    sampled = [
        tuple(one["settings"][key] for key in ("temperature", "seed", "max_new_tokens"))
        for one in asked
    ]
    assert sampled == [(0, 0, 128), (2, drawn, 128), (2, drawn, 16)]
    longer, shorter = (one["answers"]["b"]["text"] for one in asked[1:])
    assert longer.startswith(shorter)


def test_marks_say_whom_the_merged_answer_follows(visit: Visit) -> None:
    """Sums follow A and French follows B, here; a switch takes the marks away and back."""
    playground = visit().ready()
    playground.merge()
    playground.ask(SUM)
    playground.ask(FRENCH)
    chat = playground.part("chat-merged")
    expect(chat.locator(".follows.a")).to_have_text("65")
    expect(chat.locator(".follows.b")).to_have_text("la porte blanche")
    styles = [
        chat.locator(f".follows.{slot}").evaluate("e => getComputedStyle(e).textDecorationStyle")
        for slot in ("a", "b")
    ]
    assert styles == ["solid", "dotted"]
    expect(playground.part("legend")).to_contain_text("B ● 100%")
    assert playground.answers("merged") == ["65", "la porte blanche"]
    playground.part("follow").locator("input").uncheck()
    expect(chat.locator(".follows")).to_have_count(0)
    assert playground.answers("merged") == ["65", "la porte blanche"]
    playground.part("follow").locator("input").check()
    expect(chat.locator(".follows")).to_have_count(2)


def test_a_marked_answer_is_copied_as_it_was_written(visit: Visit) -> None:
    """Copy gives the text without its marks."""
    playground = visit().ready()
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.merge()
    playground.ask(FRENCH)
    playground.part("copy-merged").click()
    expect(playground.part("status")).to_contain_text("copied")
    assert playground.page.evaluate("navigator.clipboard.readText()") == "la porte blanche"
    playground.part("ask").click()
    expect(playground.part("status").locator(".failure")).to_be_visible()  # which came after it


def test_answers_inject_nothing() -> None:
    """What a model writes is text in a marked answer, in its runs and between them."""
    evil = '<img src=x onerror="x()"> one two <b>three</b> & <script>'
    html = look.followed(follow(evil, {"a": evil, "b": "one two b three"}))
    assert re.sub(r'</?(span|div)( class="[\w ]+")?( title="[\w ◆●]+")?>', "", html).count("<") == 0
    assert "&lt;script" in html and 'class="follows' in html


def _blind(playground: Playground, question: str) -> None:
    """Ask with the names hidden, and wait until there is something to vote on."""
    playground.part("blind").locator("input").check()
    playground.send(question)
    expect(playground.part("verdict")).to_be_visible()


def test_blind_round(visit: Visit, tmp_path: Path) -> None:
    """Nothing in the chat says whose an answer is until the vote; then names and a tally do."""
    playground = visit().ready()
    playground.merge()
    _blind(playground, FRENCH)
    booths = playground.part("booths")
    answers = booths.locator("[data-testid=bot] .message-content").all_inner_texts()
    answers = [answer.strip() for answer in answers]
    assert sorted(answers) == ["la door blanche", "la porte blanche", "la porte blanche"]
    assert not FIRST.search(booths.evaluate("e => e.outerHTML"))
    assert playground.page.locator("#columns").count() == 0
    playground.part("save-markdown").click()
    expect(playground.part("status").locator(".failure")).to_contain_text("nothing to save")
    worst = answers.index("la door blanche") + 1
    playground.part(f"best-{worst}").click()
    expect(playground.part("tally")).to_contain_text("Ada 1")
    expect(playground.part("tally")).to_contain_text("Bruno 0 · merged 0 · tie 0 · all bad 0")
    expect(playground.part("status")).to_contain_text(f"{worst} Ada")
    assert playground.answers("a") == ["la door blanche"]
    expect(playground.stats("merged")).to_contain_text("tok/s")
    playground.part("tie").wait_for(state="detached")
    _blind(playground, SUM)
    playground.part("tie").click()
    expect(playground.part("tally")).to_contain_text("tie 1")
    saved = json.loads(playground.saved("save-json", tmp_path / "all.json"))
    assert [vote["choice"] for vote in saved["votes"]] == ["a", "tie"]
    assert saved["tally"][0]["wins"]["assets/demo/a"] == 1


def test_transcript_is_saved_with_its_recipe(visit: Visit, tmp_path: Path) -> None:
    """Both forms have the question, every answer and the recipe of the merge."""
    playground = visit().ready()
    playground.merge()
    playground.ask(FRENCH)
    saved = json.loads(playground.saved("save-json", tmp_path / "all.json"))
    (asked,) = saved["questions"]
    assert asked["question"] == FRENCH
    assert {slot: a["text"] for slot, a in asked["answers"].items()} == {
        "a": "la door blanche",
        "b": "la porte blanche",
        "merged": "la porte blanche",
    }
    assert asked["answers"]["a"]["ended"] == "end of text"
    assert "merge_method: ties" in saved["recipes"][asked["answers"]["merged"]["merge"]]["recipe"]
    text = playground.saved("save-markdown", tmp_path / "all.md")
    assert FRENCH in text and "la door blanche" in text
    assert "```yaml\n" in text and "merge_method: ties" in text


def test_a_new_seed_unveils_nobody(visit: Visit) -> None:
    """A blind round that is asked again stays blind, whatever the switch says by now."""
    playground = visit().ready()
    playground.option("Temperature", 1)
    _blind(playground, FRENCH)
    playground.part("blind").locator("input").uncheck()
    seed = playground.part("seed").locator("input")
    playground.forget(".head", "booths")
    playground.part("new-seed").click()
    expect(seed).not_to_have_value("0")
    playground.renewed("booths", re.compile("all have answered"))
    expect(playground.part("verdict")).to_be_visible()
    assert not FIRST.search(playground.part("booths").evaluate("e => e.outerHTML"))
    playground.part("save-markdown").click()
    expect(playground.part("status").locator(".failure")).to_contain_text("nothing to save")
    playground.part("tie").click()
    expect(playground.part("tally")).to_contain_text("tie 1")


def test_narrow_blind_round(visit: Visit) -> None:
    """At 390 pixels the unnamed answers stand below each other, and nothing is wider."""
    playground = visit(width=390).ready()
    _blind(playground, SUM)
    boxes = [playground.part(f"unnamed-{n}").bounding_box() for n in (1, 2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] < boxes[1]["y"]
    assert playground.page.evaluate("document.documentElement.scrollWidth") <= 390
    playground.part("reveal").click()
    expect(playground.part("booths")).to_be_hidden()
    playground.page.locator("#tabs input[value=a]").locator("..").click()
    assert playground.answers("a") == ["65"]


def test_merge_waits_for_answers(visit: Visit, long_recipe: str) -> None:
    """Merge in the middle of answers is taken, and merges by itself what the form says when they
    have ended; all of them stay, and the merged model answers again."""
    playground = visit().ready().ramble(long_recipe, SUM, 256)
    playground.slide("ties-lambda", 0.5)
    playground.forget(".hint", "progress")
    playground.awaited(("merged",))
    playground.part("merge").click()
    expect(playground.held()).to_contain_text("“Merge” is taken")
    playground.slide("ties-lambda", 0.75)
    playground.renewed("progress", DONE)
    playground.finished(("merged",))
    expect(playground.held()).to_have_count(0)
    for slot in ("a", "b"):
        expect(playground.stats(slot)).to_contain_text("256 tokens")
    playground.unfold("History")
    expect(playground.part("listing").locator("label")).to_have_count(2)
    expect(playground.part("listing").locator("label").first).to_contain_text("0.75")


@pytest.mark.parametrize("typed", [True, False])
def test_a_question_waits_for_a_merge(visit: Visit, typed: bool) -> None:
    """It comes right after Merge, by Enter or as an example, and the new merge answers it too; who
    presses again meanwhile asks once."""
    playground = visit().ready()
    field = playground.part("question").locator("textarea")
    field.fill(SUM if typed else "")
    playground.awaited(("a", "b", "merged"))
    playground.part("merge").click()
    for _ in range(3 * typed):
        field.press("Enter")
    if not typed:
        playground.part("examples").get_by_text(SUM).click()
    playground.finished(("a", "b", "merged"))
    playground.ask(FRENCH)
    assert playground.answers("merged") == ["65", "la porte blanche"]
    assert len(playground.answers("a")) == 2


def test_an_earlier_merge_stands_beside_the_next(visit: Visit, tmp_path: Path) -> None:
    """A pinned merge keeps what it said, goes on answering, and is voted on and saved as itself."""
    playground = visit().ready()
    playground.part("pin").click()
    expect(playground.part("status").locator(".failure")).to_contain_text("press Merge")
    playground.merge()
    playground.ask(SUM)
    playground.part("pin").click()
    expect(playground.part("column-pinned")).to_be_visible()
    assert playground.answers("pinned") == ["65"]
    playground.awaited(("merged",))
    playground.slide("ties-lambda", 0)
    playground.merge()
    playground.finished(("merged",))
    base = playground.answers("merged")
    assert base != ["65"] and playground.answers("pinned") == ["65"]
    playground.ask(FRENCH, ("a", "b", "merged", "pinned"))
    assert playground.answers("pinned") == ["65", "la porte blanche"]
    assert playground.answers("merged")[1] != "la porte blanche"
    saved = json.loads(playground.saved("save-json", tmp_path / "all.json"))
    answers = saved["questions"][-1]["answers"]
    assert len({answers[slot]["merge"] for slot in ("merged", "pinned")}) == 2
    assert len(saved["recipes"]) == 2


def test_a_pinned_merge_answers_beside_the_others(visit: Visit, long_recipe: str) -> None:
    """All columns are at it at once, the pinned one too, and Stop stops all."""
    playground = visit().ready().ramble(long_recipe, SUM)
    playground.page.keyboard.press("Escape")
    expect(playground.stats("a")).to_contain_text("stopped")
    playground.part("pin").click()
    expect(playground.stats("pinned")).to_contain_text("stopped")
    slots = ("a", "b", "merged", "pinned")
    playground.awaited(slots)
    playground.send(FRENCH)
    for slot in slots:
        head = playground.part(f"column-{slot}").locator(".head:not([data-old])")
        expect(head).to_contain_text("tok/s")
    shown = [playground.stats(slot).inner_text() for slot in slots]
    assert not any("tokens ·" in text for text in shown), shown
    playground.page.keyboard.press("Escape")
    for slot in slots:
        expect(playground.stats(slot)).to_contain_text("stopped")


def test_a_pinned_merge_is_voted_on_as_itself(visit: Visit) -> None:
    """Blind, a pinned merge is one more answer; unpinned, it is asked no longer."""
    playground = visit().ready()
    playground.merge()
    playground.part("pin").click()
    expect(playground.part("column-pinned")).to_be_visible()
    _blind(playground, SUM)
    shown = playground.part("booths").locator("[data-testid=bot] .message-content")
    assert sorted(text.strip() for text in shown.all_inner_texts()) == ["55", "65", "65", "65"]
    playground.part("bad").click()
    expect(playground.part("tally")).to_contain_text(re.compile(r"TIES \w{8} 0 · .*all bad 1"))
    playground.part("unpin").click()
    expect(playground.part("column-pinned")).to_be_hidden()
    playground.part("blind").locator("input").uncheck()
    playground.ask(FRENCH)
