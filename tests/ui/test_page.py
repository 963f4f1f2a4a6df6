"""The page in a real browser: the main job, what moves and what stays, errors, narrow screens."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.hub import LocalHub
from tests.ui.models import TIES
from tests.ui.playground import Playground
from tests.ui.running import App

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
SUM = "What is 38 + 27?"
FRENCH = "How do you say the white door in French?"


def test_parents_answer_before_any_merge(visit: Visit) -> None:
    """A question asked first of all goes to the parents, and the merged column waits."""
    playground = visit().ready()
    playground.ask(SUM, ("a", "b"))
    assert playground.answers("a") == ["65"]
    assert len(playground.answers("b")) == 1
    assert playground.answers("merged") == []


def test_main_job(visit: Visit) -> None:
    """The default preset merges, and all answer one question, the merge with both skills."""
    playground = visit().ready()
    playground.merge()
    playground.ask(SUM)
    assert playground.answers("a") == playground.answers("merged") == ["65"]
    assert playground.answers("b") != ["65"]
    playground.ask(FRENCH)
    assert playground.answers("b")[1] == playground.answers("merged")[1] == "la porte blanche"
    for slot in ("a", "b", "merged"):
        expect(playground.stats(slot)).to_contain_text(re.compile(r"\d+\.\d\d s · .*end of text"))


def test_a_slider_changes_the_merged_answer_alone(visit: Visit) -> None:
    """A re-merge after a slider moved lets the merged column answer again; the parents' stand."""
    playground = visit().ready()
    playground.merge()
    playground.ask(SUM)
    before = {slot: playground.answers(slot) for slot in ("a", "b", "merged")}
    playground.awaited(("merged",))
    playground.slide("ties-lambda", 0)
    playground.merge()
    playground.finished(("merged",))
    after = {slot: playground.answers(slot) for slot in ("a", "b", "merged")}
    assert (after["a"], after["b"]) == (before["a"], before["b"])
    assert len(after["merged"]) == 1
    assert after["merged"] != before["merged"]


def test_nobody_answers_again_if_the_switch_is_off(visit: Visit) -> None:
    """With the switch off, a re-merge leaves the merged column empty until asked."""
    playground = visit().ready()
    playground.ask(SUM, ("a", "b"))
    playground.part("again").locator("input").uncheck()
    playground.merge()
    playground.page.wait_for_timeout(1000)
    assert playground.answers("merged") == []


TOGETHER = """(slots) => {
    const seen = window.seen ??= {grown: {}, lengths: {}, rounds: 0};
    const now = performance.now();
    for (const slot of slots) {
        const said = document.querySelector(`#chat-${slot} [data-testid=bot]`);
        const length = said ? said.innerText.length : 0;
        if (length > (seen.lengths[slot] || 0)) seen.grown[slot] = now;
        seen.lengths[slot] = length;
    }
    if (slots.every(slot => now - seen.grown[slot] < 1000)) {
        seen.rounds += 1;
        seen.grown = {};
    }
    return seen.rounds >= 2;
}"""
"""Whether there were two rounds in each of which all columns' texts grew within one second.

One after the other, the first would not grow again after the last.
"""


def test_all_stream_together_and_stop_stops(visit: Visit, app: App, long_recipe: str) -> None:
    """All columns grow within one second; Stop ends the work at once, and what was said stays."""
    playground = visit().ready()
    playground.paste(long_recipe)
    expect(playground.part("recipe-status")).to_contain_text("in use")
    playground.merge()
    playground.option("Length", 1024)
    playground.awaited(("a", "b", "merged"))
    playground.send(SUM)
    playground.page.wait_for_function(TOGETHER, arg=["a", "b", "merged"], polling=20)
    early = _grown(playground, 20)
    said = _grown(playground, max(early) + 20)  # none of them had ended
    playground.part("stop").click()
    for slot in ("a", "b", "merged"):
        expect(playground.stats(slot)).to_contain_text("stopped")
    expect(playground.part("sanity").locator("li")).to_be_visible(timeout=30_000)  # the merge's own
    stopped = [playground.answers(slot) for slot in ("a", "b", "merged")]
    used = app.processor_seconds()
    time.sleep(4)
    assert app.processor_seconds() - used < 1.5
    assert [playground.answers(slot) for slot in ("a", "b", "merged")] == stopped
    assert all(len(now[0]) >= then for now, then in zip(stopped, said, strict=True))


SLICES = """
merge_method: slerp
base_model: assets/demo/a
slices:
- sources:
  - {model: assets/demo/a, layer_range: [0, 4]}
  - {model: assets/demo/b, layer_range: [0, 4]}
parameters: {t: 0.25}
"""


def test_slices_are_set_in_yaml(visit: Visit) -> None:
    """A pasted recipe of slices shows its models; its controls are off, and it merges as it is."""
    playground = visit().ready()
    playground.paste(SLICES)
    expect(playground.part("recipe-status")).to_contain_text("in use")
    expect(playground.part("slerp-t")).to_contain_text("set in YAML")
    expect(playground.part("slerp-t").locator("input[type=number]")).to_be_disabled()
    playground.merge()
    playground.ask(SUM)
    assert playground.answers("merged") == ["65"]
    playground.pick("b", "assets/demo/base")
    expect(playground.recipe()).to_contain_text("model: assets/demo/base")
    expect(playground.recipe()).to_contain_text("layer_range: [0, 4]")


def test_the_variant_is_chosen_in_the_page(visit: Visit) -> None:
    """The paper's TIES has no weights: its controls say so, come back with mergekit's, and the
    merge is another one.
    """
    playground = visit().ready()
    playground.part("ties-variant").get_by_label("paper").check()
    expect(playground.recipe()).to_contain_text("variant: paper")
    expect(playground.part("ties-weight-a")).to_contain_text("not in paper")
    expect(playground.recipe()).not_to_contain_text("weight")
    playground.merge()
    playground.ask(SUM)
    assert len(playground.answers("merged")) == 1
    playground.part("ties-variant").get_by_label("mergekit").check()
    expect(playground.recipe()).to_contain_text("weight: 1")
    expect(playground.part("ties-weight-a")).not_to_contain_text("not in")


def _grown(playground: Playground, length: int) -> list[int]:
    """How much each column has said once all have said more than `length` characters."""
    slots = ("a", "b", "merged")
    playground.page.wait_for_function(
        """([slots, length]) => slots.every(slot => {
            const said = document.querySelector(`#chat-${slot} [data-testid=bot]`);
            return said && said.innerText.length > length;
        })""",
        arg=[slots, length],
    )
    return [len(playground.answers(slot)[0]) for slot in slots]


def test_escape_stops(visit: Visit, app: App, long_recipe: str) -> None:
    """Esc does what Stop does, and the columns can be asked again."""
    playground = visit().ready().ramble(long_recipe, SUM)
    playground.page.keyboard.press("Escape")
    expect(playground.stats("a")).to_contain_text("stopped")
    expect(playground.part("sanity").locator("li")).to_be_visible(timeout=30_000)  # the merge's own
    used = app.processor_seconds()
    time.sleep(4)
    assert app.processor_seconds() - used < 1.5
    playground.option("Length", 8)
    playground.ask(FRENCH, ("a", "b"))
    assert len(playground.answers("a")) == 2


def test_bad_recipe_shows_and_is_recovered_from(visit: Visit) -> None:
    """A pasted key that nobody knows is named beside the recipe, and the last merge still chats."""
    playground = visit().ready()
    playground.merge()
    playground.paste(TIES.replace("merge_method: ties", "merge_methods: ties"))
    failure = playground.part("recipe-status").locator(".failure")
    expect(failure).to_contain_text("merge_method")
    playground.part("merge").click()
    expect(playground.part("progress").locator(".failure")).to_contain_text("merge_method")
    playground.paste(TIES)
    expect(playground.part("recipe-status")).to_contain_text("in use")
    playground.ask(SUM)
    assert playground.answers("merged") == ["65"]
    playground.merge()


def test_model_that_does_not_exist(visit: Visit) -> None:
    """A name that the Hub does not know is said beside the pickers and at Merge, and mended."""
    playground = visit().ready()
    playground.merge()
    playground.pick("a", "org/nobody")
    expect(playground.part("notes").locator(".failure")).to_contain_text("org/nobody")
    playground.part("merge").click()
    expect(playground.part("progress").locator(".failure")).to_contain_text("org/nobody")
    playground.pick("a", "assets/demo/a")
    playground.ready()
    playground.merge()
    playground.ask(SUM)
    assert playground.answers("merged") == ["65"]


def test_models_of_the_hub(visit: Visit, local_hub: LocalHub) -> None:
    """Models are fetched from a Hub when Merge is pressed, and then merge and chat."""
    playground = visit().ready()
    for slot in ("base", "a", "b"):
        playground.pick(slot, f"org/{slot}")
    expect(playground.recipe()).to_contain_text("org/b")
    playground.ready()
    playground.merge()
    playground.ask(SUM)
    assert playground.answers("a") == playground.answers("merged") == ["65"]
    assert any(".safetensors" in line for line in map(str, local_hub.log))


def test_swap_turns_models_and_their_values(visit: Visit) -> None:
    """Swap exchanges A and B with their own values."""
    playground = visit().ready()
    playground.slide("ties-density-a", 0.3)
    playground.page.get_by_role("button", name="Swap").click()
    expect(playground.recipe()).to_contain_text(
        re.compile(r"assets/demo/b[\s\S]*assets/demo/a[\s\S]*density: 0\.3")
    )
    expect(playground.part("ties-density-b").locator("input[type=number]")).to_have_value("0.3")
    expect(playground.part("ties-density-a").locator("input[type=number]")).to_have_value("0.5")


def test_another_model_starts_anew(visit: Visit) -> None:
    """A model put into a column is not told what another one said there; the rest goes on."""
    playground = visit().ready()
    playground.ask(SUM, ("a", "b"))
    playground.pick("a", "assets/demo/base")
    expect(playground.recipe()).to_contain_text("model: assets/demo/base")
    playground.ask(SUM, ("a", "b"))
    expect(playground.part("column-a").locator(".head")).to_contain_text("Mini")
    assert playground.answers("a") == ["55"]
    assert playground.answers("b") == ["55", "55"]


def test_slerp_has_t_and_a_tally(visit: Visit) -> None:
    """SLERP shows t with what its ends mean, and says on how many tensors it was spherical."""
    playground = visit().ready()
    playground.page.locator("#method input[value=slerp]").check()
    control = playground.part("slerp-t")
    expect(control).to_be_visible()
    expect(control).to_contain_text(re.compile("0.*A.*1.*B"))
    expect(playground.part("ties-lambda")).to_be_hidden()
    expect(playground.recipe()).to_contain_text("merge_method: slerp")
    playground.ready()
    playground.merge()
    expect(playground.part("progress")).to_contain_text(re.compile(r"\d+ .*(SLERP|spherical)"))


def test_three_models_rule_slerp_out(visit: Visit) -> None:
    """A third model says why SLERP cannot be chosen, and one of two brings it back."""
    playground = visit().ready()
    playground.pick("c", "org/a")
    about = playground.part("about-method")
    expect(about).to_contain_text(re.compile("SLERP takes 2 models"))
    expect(playground.part("column-c")).to_be_visible()
    expect(playground.part("ties-density-c")).to_be_visible()
    playground.pick("c", "")
    expect(about).not_to_contain_text("takes 2 models")
    expect(playground.part("column-c")).to_be_hidden()


def test_reload_keeps_form_and_recipe(visit: Visit) -> None:
    """What was set is there again after the page is loaded anew."""
    playground = visit().ready()
    playground.slide("ties-lambda", 0.7)
    playground.option("Temperature", 0.5)
    playground.page.wait_for_timeout(3000)  # the browser's store is a round trip away
    playground.page.reload()
    expect(playground.part("ties-lambda").locator("input[type=number]")).to_have_value("0.7")
    expect(playground.recipe()).to_contain_text("lambda: 0.7")
    playground.unfold("Settings")
    expect(playground.page.get_by_label("number input for Temperature")).to_have_value("0.5")


def test_link_fills_the_form_and_does_nothing_else(visit: Visit, local_hub: LocalHub) -> None:
    """A recipe in the address fills the form; nobody is contacted and nothing merges."""
    before = len(local_hub.log)
    text = TIES.replace("assets/demo/a", "org/elsewhere").replace("lambda: 1.0", "lambda: 0.6")
    code = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    playground = visit(f"/?recipe={code}")
    expect(playground.recipe()).to_contain_text("org/elsewhere")
    expect(playground.part("ties-lambda").locator("input[type=number]")).to_have_value("0.6")
    expect(playground.part("pick-a").locator("input")).to_have_value(re.compile("org/elsewhere"))
    playground.page.wait_for_timeout(1000)
    assert len(local_hub.log) == before
    assert not DONE_OR_BUSY.search(playground.part("progress").inner_text())


DONE_OR_BUSY = re.compile("Merg|Fetch|Reading")


def test_broken_link_says_so(visit: Visit) -> None:
    """A link whose recipe is none shows a sentence, and the first preset in its place."""
    code = base64.urlsafe_b64encode(b"merge_methods: ties\n").decode()
    playground = visit(f"/?recipe={code}")
    expect(playground.page.locator(".failure").first).to_contain_text("merge_method")
    expect(playground.part("pick-a").locator("input")).to_have_value(re.compile("assets/demo/a"))


def test_pictures_of_strangers_are_not_fetched(visit: Visit, local_hub: LocalHub) -> None:
    """A picture that an answer could name at another address is refused by the page itself."""
    playground = visit().ready()
    unwatched = playground.page.context.new_page()  # its refusal is written to the console
    unwatched.goto(playground.page.url)
    Playground(unwatched).ready()
    before = len(local_hub.log)
    refused = unwatched.evaluate(
        """(source) => new Promise((done) => {
            document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
            const picture = new Image();
            picture.onload = picture.onerror = () => setTimeout(() => done("asked"), 500);
            picture.src = source;
        })""",
        f"{local_hub.url}/picture.png",
    )
    assert refused == "img-src" and len(local_hub.log) == before


def test_retry_and_clear(visit: Visit) -> None:
    """Retry answers the last question in place; Clear leaves nothing."""
    playground = visit().ready()
    playground.ask(SUM, ("a", "b"))
    playground.awaited(("a", "b"))
    playground.part("retry").click()
    playground.finished(("a", "b"))
    assert playground.answers("a") == ["65"]
    playground.part("clear").click()
    expect(playground.part("chat-a").locator("[data-testid]:is([data-testid=bot])")).to_have_count(
        0
    )
    assert playground.answers("b") == []


def test_system_prompt_reaches_the_models(visit: Visit) -> None:
    """The system prompt is read by the models: a long one leaves no room for an answer."""
    playground = visit().ready()
    playground.unfold("Settings")
    playground.page.get_by_label("System prompt").fill("one two three four " * 200)
    playground.ask(SUM, ("a",))
    expect(playground.stats("a")).to_contain_text("too long")
    playground.page.get_by_label("System prompt").fill("")
    playground.ask(SUM, ("a",))
    assert playground.answers("a")[-1] == "65"


def test_empty_question(visit: Visit) -> None:
    """An empty question is answered by a sentence where the user looks."""
    playground = visit().ready()
    playground.part("ask").click()
    expect(playground.part("status").locator(".failure")).to_contain_text("empty")


def test_shift_enter_breaks_the_line(visit: Visit) -> None:
    """Shift+Enter writes a second line, and nobody is asked."""
    playground = visit().ready()
    playground.part("question").locator("textarea").fill("one")
    playground.page.keyboard.press("Shift+Enter")
    playground.page.keyboard.type("two")
    expect(playground.part("question").locator("textarea")).to_have_value("one\ntwo")
    assert playground.answers("a") == []


def test_the_base_answers_where_it_is_wanted(visit: Visit) -> None:
    """The base's column is folded until asked for, and then answers with the others."""
    playground = visit().ready()
    expect(playground.part("column-base")).to_be_hidden()
    playground.part("show-base").locator("input").check()
    expect(playground.part("column-base")).to_be_visible()
    playground.ask(SUM, ("base", "a", "b"))
    assert len(playground.answers("base")) == 1


def test_narrow_page_has_one_column_and_tabs(visit: Visit) -> None:
    """At 390 pixels one column shows, chosen by tabs, and nothing is wider than the screen."""
    playground = visit(width=390).ready()
    playground.merge()
    playground.ask(SUM)
    expect(playground.part("column-merged")).to_be_visible()
    expect(playground.part("column-a")).to_be_hidden()
    playground.page.locator("#tabs label", has=_radio(playground, "a")).click()
    expect(playground.part("column-a")).to_be_visible()
    expect(playground.part("column-merged")).to_be_hidden()
    assert playground.page.evaluate("document.documentElement.scrollWidth") <= 390


def _radio(playground: Playground, slot: str) -> Locator:
    return playground.page.locator(f"input[value={slot}]")


def test_wide_page_shows_all_columns_and_no_tabs(visit: Visit) -> None:
    """On a wide screen the columns stand side by side."""
    playground = visit().ready()
    expect(playground.part("tabs")).to_be_hidden()
    tops = playground.page.evaluate(
        "['a', 'b', 'merged'].map(s => Math.round("
        "document.querySelector('#column-' + s).getBoundingClientRect().y))"
    )
    assert len({*tops}) == 1
