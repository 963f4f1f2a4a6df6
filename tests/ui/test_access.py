"""Two people on one Space: what one may read, the other sees nothing of; through every door."""

from __future__ import annotations

import base64
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, expect

from tests.hub import LocalHub
from tests.ui.models import DEMO, NAMES, TIES, talkative
from tests.ui.playground import Playground
from tests.ui.running import App, connected, running

pytestmark = pytest.mark.browser

SECRET, CLOSED = "org/secret", "org/closed"
TOKEN = "hf_alice_3f81"
SUM = "What is 38 + 27?"


@pytest.fixture(scope="module")
def local() -> Iterator[LocalHub]:
    """The demo models, and one gated and one private copy of them."""
    with LocalHub() as hub:
        for name in NAMES:
            hub.add(f"org/{name}", DEMO / name)
        hub.add(CLOSED, DEMO / "a", gated=True)
        hub.add(SECRET, DEMO / "b", private=True)
        yield hub


@pytest.fixture
def hub(local: LocalHub) -> LocalHub:
    """That Hub with its users as they are at first: Alice may read all, Bob what is public."""
    local.user(TOKEN, name="alice", reads=[CLOSED, SECRET])
    local.user("hf_bob", name="bob")
    local.user("hf_owner", name="owner", reads=[CLOSED, SECRET])
    return local


@pytest.fixture(scope="module")
def space(local: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app as a Space of that Hub, whose owner left a token in it that may read everything."""
    home = tmp_path_factory.mktemp("space")
    with running(home, HF_TOKEN="hf_owner", **local.space()) as app:
        yield app


Door = Callable[[str | None], Playground]


@pytest.fixture
def door(hub: LocalHub, space: App, browser: Browser) -> Iterator[Door]:
    """Opens the page in a browser of its own, signed in under a name."""
    contexts = []

    def opened(name: str | None) -> Playground:
        context = browser.new_context(viewport={"width": 1440, "height": 1000})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(space.url)
        visitor = Playground(page).ready()
        if name:
            context.add_cookies([{"name": "who", "value": name, "url": hub.url}])
            visitor.part("sign-in").click()
            expect(visitor.part("sign-in")).to_have_text(re.compile(name), timeout=30_000)
            visitor.ready()
        return visitor

    yield opened
    for context in contexts:
        context.close()


def recipe(a: str = CLOSED, b: str = SECRET) -> str:
    text = TIES.replace("assets/demo/base", "org/base")
    return text.replace("assets/demo/a\n", f"{a}\n").replace("assets/demo/b\n", f"{b}\n")


def merged_by(visitor: Playground, text: str) -> None:
    visitor.paste(text)
    expect(visitor.part("recipe-status")).to_contain_text("in use")
    visitor.merge()


def identity(space: App) -> str:
    """The id of the last merge that the app keeps a recipe of."""
    kept = (space.log.parent / "merging" / "recipes").glob("*.yaml")
    return max(kept, key=lambda path: path.stat().st_mtime).stem


def status(url: str, **headers: str) -> int:
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_merge_of_closed_models_is_for_those_who_may_read_them(space: App, door: Door) -> None:
    """Alice merges and asks. Bob, nobody and programs get a sentence, by every way in."""
    alice = door("alice")
    merged_by(alice, recipe())
    alice.ask("What is 38 + 27?")
    assert alice.answers("merged") == ["65"]
    merge = identity(space)

    for name in ("bob", None):
        other = door(name)
        other.paste(recipe())
        expect(other.part("recipe-status")).to_contain_text("in use")
        for press, where in (("check", "notes"), ("merge", "progress")):
            other.part(press).click()
            expect(other.part(where).locator(".failure")).to_contain_text("log in")
        other.part("question").locator("textarea").fill("What is 38 + 27?")
        other.part("ask").click()  # it is refused, and stays in the box
        expect(other.part("status").locator(".failure")).to_contain_text("log in")
        assert not any(other.answers(slot) for slot in ("a", "b", "merged"))

    with connected(space) as program:
        assert program.predict(recipe(), api_name="/check")["ok"] is False
        with pytest.raises(AppError, match=r"log in"):
            program.predict(recipe(), api_name="/merge")
        with pytest.raises(AppError, match=r"you may not read") as told:
            program.predict(merge, "What is 38 + 27?", api_name="/chat")
        assert "org/" not in str(told.value)

    alice.unfold("Keep this merge")
    alice.part("files").click()
    expect(alice.part("kept-status").locator(".failure")).to_contain_text("only be pushed")
    assert status(f"{space.url}/merged/{merge}.zip") == 404
    cache = space.log.parent / "hf" / "hub" / "models--org--closed"
    weights = next(path for path in cache.rglob("model.safetensors"))
    assert status(f"{space.url}/gradio_api/file={weights}") in (403, 404)
    assert not list((space.log.parent / "merging").rglob("*.safetensors"))


def test_access_that_is_taken_back_ends_at_once(hub: LocalHub, door: Door) -> None:
    """The models are in memory and on disk; the next question asks the Hub all the same."""
    alice = door("alice")
    merged_by(alice, recipe(b="org/b"))
    alice.ask("What is 38 + 27?")
    hub.revoke(TOKEN, CLOSED)
    alice.part("question").locator("textarea").fill("What is 21 + 34?")
    alice.part("ask").click()
    expect(alice.part("status").locator(".failure")).to_contain_text("gated")
    assert alice.answers("merged") == ["65"]
    hub.expire(TOKEN)
    alice.part("check").click()
    expect(alice.part("notes").locator(".failure")).to_contain_text("log in again")


def test_no_token_is_left_anywhere(hub: LocalHub, space: App, door: Door) -> None:
    """Not in a file, not in the log, not in the page; and the owner's is never sent at all."""
    alice = door("alice")
    merged_by(alice, recipe())
    alice.ask("Who are you?")
    assert TOKEN not in alice.page.content()
    assert TOKEN not in str(alice.page.evaluate("JSON.stringify(localStorage)"))
    for path in space.log.parent.rglob("*"):
        if path.is_file() and path.stat().st_size < 5_000_000:
            assert TOKEN.encode() not in path.read_bytes(), path
    sent = {seen.token for seen in hub.requests("/(api|resolve)/")}
    assert TOKEN in sent
    assert "hf_owner" not in sent


def test_an_accounts_tabs_take_turns(hub: LocalHub, space: App, door: Door, tmp_path: Path) -> None:
    """What is asked in a second tab waits for the first one's answer, or its end, and says so; who
    is nobody's account waits for nobody."""
    text = recipe("org/long-a", "org/long-b").replace("org/base", "org/long-base")
    for name, folder in talkative(tmp_path).items():
        hub.add(f"org/long-{name}", folder)
    left, stranger = door("alice"), door("bob")
    right = Playground(left.page.context.new_page())
    code = base64.urlsafe_b64encode(TIES.encode()).decode()
    right.page.goto(f"{space.url}/?recipe={code}")
    right.ready().part("question").locator("textarea").fill(SUM)
    left.ramble(text, SUM)
    right.part("ask").click()
    expect(right.part("status")).to_contain_text("Another request of yours comes first")
    stranger.ask(SUM, ("a", "b"))
    left.part("stop").click()
    right.finished(("a", "b"))
    assert right.answers("a") == ["65"]


def test_public_models_need_no_login(door: Door) -> None:
    """An anonymous visitor of a Space merges and asks public models."""
    anyone = door(None)
    merged_by(anyone, recipe("org/a", "org/b"))
    anyone.ask("What is 38 + 27?")
    assert anyone.answers("merged") == ["65"]


def test_another_sites_page_can_do_nothing(space: App, door: Door) -> None:
    """Its requests carry the visitor's cookie, so that they are refused for their origin."""
    alice = door("alice")
    for path in ("/gradio_api/queue/join", "/config", "/gradio_api/info"):
        assert status(space.url + path, Origin="https://evil.example") == 403
    assert status(f"{space.url}/config", Origin=space.url) == 200
    headers = alice.page.request.get(space.url).headers
    assert "frame-ancestors 'self' https://huggingface.co" in headers["content-security-policy"]
