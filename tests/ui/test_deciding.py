"""Where the merge decides like whom, looked into in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.ui.playground import Playground
from tests.ui.running import running

pytestmark = pytest.mark.browser

SECONDS = 4.0
"""What a piece takes in the slow app."""
SUM = "What is 38 + 27?"
FRENCH = "How do you say the white door in French?"
CURVES = r"""(answer) => {
    const bare = (text) => text.replace(/\s/g, "");
    const all = (what) => [...document.querySelectorAll(what)].map(part => part.innerText);
    const tokens = all("#strip .token-container"), heads = all("#bars .nexts > div");
    const plot = document.querySelector("#along .js-plotly-plot");
    const lines = (plot?.data ?? []).filter(line => line.showlegend);
    return bare(tokens.join("")) === bare(answer)
        && document.querySelectorAll("#along .scatterlayer .js-line").length === 2
        && lines.map(line => line.name).join() === "◆ A,● B"
        && lines.every(({y}, n) => y.length === tokens.length
            && heads[n].includes(`${y[0].toFixed(2)} nats`));
}"""
"""Whether each parent's line goes over all tokens of this answer and begins as the bars say."""
WIDE = "document.documentElement.scrollWidth > innerWidth"


def test_the_merged_answer_token_by_token(visit: Callable[..., Playground]) -> None:
    """At each token that is chosen, the merged model's likeliest is the one it said; the parents
    have theirs beside it, and the page says which of them is nearer.
    """
    playground = visit().ready()
    playground.unfold("Where the merge decides")
    playground.part("look-into").click()
    expect(playground.part("looked-status").locator(".failure")).to_contain_text("press Merge")
    playground.merge()
    playground.ask(SUM)
    assert playground.answers("merged") == ["65"]
    playground.part("look-into").click()
    bars = playground.part("bars")
    expect(bars.locator(".nexts > div")).to_have_count(3)
    expect(playground.part("looked-status").locator(".failure")).to_have_count(0)
    tokens = playground.part("strip").locator(".token-container")
    expect(tokens.first).to_be_visible()
    said = [text.strip() for text in tokens.all_inner_texts()]
    assert "".join(said) == "65"
    expect(playground.part("strip")).to_contain_text(re.compile("A|B|all|neither"))
    for number, text in [*enumerate(said), *enumerate(said)][1:]:  # the first is shown already
        tokens.nth(number).click()
        expect(bars).to_contain_text(f"Token {number + 1}, “{text}”")
        merged = bars.locator(".nexts > div").last.locator("li")
        expect(merged.first.locator("code")).to_have_text(text)
        expect(merged.first).to_have_class("said")
        expect(bars.locator(".nexts > div").first).to_contain_text("nats from merged")
    slider = playground.part("token").locator("input[type=range]")
    slider.press("Home")
    expect(bars).to_contain_text(f"Token 1, “{said[0]}”")  # by keyboard alone
    shares = [int(share.rstrip("%")) for share in merged.locator("b").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 102


@pytest.mark.parametrize("width", [1440, 390])
def test_curves_follow_the_answer(visit: Callable[..., Playground], width: int) -> None:
    """A line a parent over the tokens of the answer looked into, and then over another's."""
    playground = visit(width=width).ready()
    playground.merge()
    playground.unfold("Where the merge decides")
    expect(playground.part("along")).to_have_count(0)
    for question in (SUM, FRENCH):
        playground.ask(question)
        playground.part("look-into").click()
        playground.page.wait_for_function(CURVES, arg=playground.answers("merged")[-1])
    assert not playground.page.evaluate(WIDE)


def test_looking_can_be_stopped(browser: Browser, tmp_path: Path) -> None:
    """Between two pieces: it says how far it was, and then nothing is shown."""
    with running(tmp_path, ("-m", "tests.ui.slow")) as app:
        page = browser.new_page()
        page.goto(app.url)
        playground = Playground(page).ready()
        playground.merge()
        playground.ask(SUM)
        playground.unfold("Where the merge decides")
        playground.part("look-into").click()
        status = playground.part("looked-status").locator("p")
        expect(status).to_contain_text("merged has read 3 of 3 tokens", timeout=20_000)
        playground.part("stop-looking").click()
        expect(status).to_have_count(0)
        page.wait_for_timeout(3 * 1000 * SECONDS)  # when all three would have read
        expect(playground.part("strip")).to_be_hidden()
        page.close()


def test_a_blind_round_is_not_given_away(visit: Callable[..., Playground]) -> None:
    """Before the vote nobody can look into the merged model's answer."""
    playground = visit().ready()
    playground.merge()
    playground.part("blind").locator("input").check()
    playground.send(SUM)
    expect(playground.part("verdict")).to_be_visible(timeout=60_000)
    playground.unfold("Where the merge decides")
    playground.part("look-into").click()
    expect(playground.part("looked-status").locator(".failure")).to_contain_text("vote first")
