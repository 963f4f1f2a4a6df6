"""From a name typed in a box to a model that others can load: the whole way, in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub import LocalHub
from tests.ui.models import DEMO, NAMES
from tests.ui.playground import Playground
from tests.ui.running import App, running

pytestmark = pytest.mark.browser
TOKEN = "hf_alice"
PUSHED = "alice/sums-and-french"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A base and two tunes of it, all public, and a user who may write."""
    with LocalHub() as hub:
        for name in NAMES:
            hub.add(f"demo/mini-{name}", DEMO / name, downloads=100)
            hub.add(f"demo/slow-{name}", DEMO / name)
        hub.user(TOKEN, name="alice")
        hub.login_as(TOKEN)
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "space"


@pytest.fixture
def space(hub: LocalHub, home: Path) -> Iterator[App]:
    with running(home, **hub.space()) as app:
        yield app


@pytest.fixture
def alice(space: App, browser: Browser) -> Iterator[Playground]:
    """The page in her browser, signed in."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(space.url)
    visitor = Playground(page).ready()
    visitor.part("sign-in").click()
    expect(visitor.part("sign-in")).to_have_text(re.compile("alice"), timeout=30_000)
    yield visitor.ready()
    context.close()


def choose(visitor: Playground, slot: str, text: str, name: str) -> None:
    """Type a part of a name, and take what the Hub has."""
    visitor.part(f"pick-{slot}").locator("input").click()
    visitor.page.keyboard.press("Control+A")
    visitor.page.keyboard.type(text, delay=30)
    found = visitor.part(f"pick-{slot}").locator("[role=option]", has_text=f"{name} ·")
    found.first.click()
    line = visitor.recipe().locator(".cm-line", has_text=re.compile(rf"model: {name}$"))
    expect(line).to_be_visible()


def test_search_check_fetch_merge_chat_push_and_load(
    hub: LocalHub, alice: Playground, tmp_path: Path
) -> None:
    """What is pushed is private, loads with transformers, and answers as it did in the page."""
    for slot, name in (("base", "base"), ("a", "a"), ("b", "b")):
        choose(alice, slot, f"mini-{name}", f"demo/mini-{name}")
    notes = alice.part("notes")
    expect(notes).to_contain_text("to fetch")
    expect(notes).to_contain_text("The merged model has 1,026 rows")
    hub.fault("GET /cdn/", "slow", times=99, piece=200_000, delay=0.2)
    alice.part("merge").click()
    expect(alice.part("progress")).to_contain_text(re.compile(r"Fetching .*safetensors .* MB"))
    expect(alice.part("progress")).to_contain_text("Merged in", timeout=60_000)
    alice.ask("What is 38 + 27?")
    assert alice.answers("merged") == ["65"]
    hub.faults.clear()
    expect(alice.part("foot")).to_contain_text(re.compile(r"Downloads: [3-5] models"))

    alice.unfold("Keep this merge")
    alice.part("push-name").locator("textarea, input").first.fill("sums-and-french")
    alice.part("push").click()
    expect(alice.part("kept-status")).to_contain_text("a private repo of yours")
    assert PUSHED not in hub.repos
    alice.part("confirm").click()
    link = alice.part("kept-status").get_by_role("link", name=PUSHED)
    expect(link).to_be_visible(timeout=60_000)
    assert hub.repos[PUSHED].private
    card = hub.files(PUSHED)["README.md"].read_text()
    assert "base_model_relation: merge" in card
    assert TOKEN not in card
    assert answered(hub, tmp_path / "pushed") == "65"


def answered(hub: LocalHub, folder: Path) -> str:
    """What transformers makes of the pushed files when it is asked the same."""
    folder.mkdir()
    for name, file in hub.files(PUSHED).items():
        shutil.copyfile(file, folder / name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is 38 + 27?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**prompt, do_sample=False, max_new_tokens=8)
    text = tokenizer.decode(said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text).strip()


def test_stop_ends_a_download_and_leaves_nothing(
    hub: LocalHub, alice: Playground, home: Path
) -> None:
    """Stop while a file comes slowly; the page goes on, and no half file is left. Until then
    nothing is asked, for the merge would write over it: a question waits, and then stays typed."""
    alice.paste(
        "merge_method: slerp\nbase_model: demo/slow-a\nmodels:\n- model: demo/slow-a\n"
        "- model: demo/slow-b\nparameters: {t: 0.5}\n"
    )
    expect(alice.part("recipe-status")).to_contain_text("in use")
    alice.part("check").click()
    expect(alice.part("notes")).to_contain_text("to fetch")
    hub.fault("GET /cdn/", "slow", times=99, piece=20_000, delay=0.3)
    alice.part("merge").click()
    expect(alice.part("progress")).to_contain_text("Fetching")
    field = alice.part("question").locator("textarea")
    field.fill("Who are you?")
    alice.part("ask").click()
    expect(alice.held()).to_contain_text("“Ask” is taken")
    alice.part("clear").click()
    expect(alice.part("status").locator(".failure")).to_contain_text("A merge is being made")
    alice.part("stop-merge").click()
    expect(alice.part("progress")).to_contain_text("Stopped")
    expect(alice.held()).to_have_count(0)
    expect(field).to_have_value("Who are you?")
    cache = home / "hf" / "hub"
    alice.page.wait_for_timeout(3000)
    assert not list(cache.rglob("*incomplete*"))
    hub.faults.clear()
    alice.merge()
    alice.ask("Who are you?")


def test_the_commits_of_a_merge_hold_for_its_parents(hub: LocalHub, alice: Playground) -> None:
    """A branch that moves on after the merge does not change who answers beside it."""
    hub.add("demo/moving", DEMO / "a")
    alice.paste(
        "merge_method: slerp\nbase_model: demo/moving\nmodels:\n- model: demo/moving\n"
        "- model: demo/mini-b\nparameters: {t: 0.5}\n"
    )
    expect(alice.part("recipe-status")).to_contain_text("in use")
    alice.merge()
    hub.add("demo/moving", DEMO / "b")
    alice.ask("What is 38 + 27?")
    assert alice.answers("a") == ["65"]
    alice.part("check").click()
    expect(alice.part("notes")).to_contain_text("to fetch")
    alice.ask("What is 38 + 27?", slots=("a",))
    assert alice.answers("a") == ["65", "55"]


def test_a_push_without_a_yes_pushes_nothing(hub: LocalHub, alice: Playground) -> None:
    """No means no; and a public push of a public merge is public."""
    alice.merge()
    alice.unfold("Keep this merge")
    alice.part("push-name").locator("textarea, input").first.fill("mine")
    alice.part("push").click()
    expect(alice.part("confirm")).to_be_visible()
    alice.part("cancel").click()
    expect(alice.part("confirm")).to_be_hidden()
    assert "alice/mine" not in hub.repos
    alice.part("push-public").locator("input").check()
    alice.part("push").click()
    expect(alice.part("kept-status")).to_contain_text("everybody can see")
    alice.part("confirm").click()
    expect(alice.part("kept-status").get_by_role("link")).to_be_visible(timeout=60_000)
    assert hub.repos["alice/mine"].private is False
