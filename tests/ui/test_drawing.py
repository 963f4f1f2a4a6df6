"""The pictures of what a merge did, in a real browser: there, legible on either ground, narrow."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from merging.ui.drawing import _about
from merging.ui.jobs import Made
from tests.ui.models import SLERP, TIES
from tests.ui.playground import Playground

pytestmark = pytest.mark.browser

Visit = Callable[..., Playground]
TITLES = {
    "ties": [
        "Where the models changed", "How alike the changes are", "How much they disagree",
        "What the trim keeps", "Length of the merged change", "What is kept of each model",
    ],
    "slerp": [
        "How far apart the models are", "The angle between the models",
        "Length of the merged weights",
    ],
}  # fmt: skip
DRAWN = """count => document.querySelectorAll(".frame .js-plotly-plot .main-svg").length >= count
    && [...document.querySelectorAll(".frame .js-plotly-plot")].every(plot =>
        plot.querySelector(".heatmaplayer image, .scatterlayer path, .barlayer path"))"""
CONTRAST = """() => {
    const light = (rgb) => rgb.map((v) => v / 255).map((v) =>
        v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const bright = (colour) => {
        const [r, g, b] = light(colour.match(/[0-9.]+/g).slice(0, 3).map(Number));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const ground = bright(getComputedStyle(document.querySelector("#inside-box")).backgroundColor);
    const found = {text: [], line: []};
    const own = ".frame :is(.xtick, .ytick, .legendtext, .annotation, .cbaxis) text, .legendtext";
    document.querySelectorAll(own).forEach((part) =>
        found.text.push(ratio(bright(getComputedStyle(part).fill), ground)));
    document.querySelectorAll(".frame .scatterlayer .js-line").forEach((part) =>
        found.line.push(ratio(bright(getComputedStyle(part).stroke), ground)));
    document.querySelectorAll(".frame .barlayer .point path").forEach((part) =>
        found.line.push(ratio(bright(getComputedStyle(part).fill), ground)));
    document.querySelectorAll(".frame .barlayer .bartext").forEach((part) =>
        found.text.push(ratio(bright(getComputedStyle(part).fill),
            bright(getComputedStyle(part.parentNode.querySelector("path")).fill))));
    return found;
}"""
WIDE = "document.documentElement.scrollWidth > innerWidth"


def drawn(playground: Playground, kind: str) -> None:
    """Wait until all pictures of a kind of merge are there, each with one sentence."""
    heads = playground.page.locator(".frame h3")
    expect(heads).to_have_text(TITLES[kind])
    playground.page.wait_for_function(DRAWN, arg=len(TITLES[kind]))
    for text in playground.page.locator(".frame .caption p:not(.facts)").all_inner_texts():
        assert len(re.findall(r"[.!?](?:\s|$)", text)) == 1, text


def test_pictures_of_ties_and_of_slerp(visit: Visit) -> None:
    """Drawn when the panel is opened, and anew after the next merge; legible, also in the dark."""
    playground = visit().ready()
    playground.unfold("Inside the merge")
    status = playground.part("inside-status")
    expect(status).to_contain_text("no merge yet")
    playground.merge()
    drawn(playground, "ties")
    expect(status).to_contain_text("two standard errors")
    facts = playground.page.locator(".frame .facts")
    expect(facts.nth(1)).to_contain_text(re.compile(r"cosine: ◆ Ada and ● Bruno 0\.4\d ± 0\.0\d"))
    expect(facts.nth(2)).to_contain_text(re.compile(r"differ in (39|4\d).*, by chance in 50"))
    for dark in (False, True):
        playground.page.evaluate(f"document.body.classList.toggle('dark', {str(dark).lower()})")
        found = playground.page.evaluate(CONTRAST)
        assert len(found["text"]) > 40 and len(found["line"]) >= 7
        assert min(found["text"]) > 4.5 and min(found["line"]) > 3, dark
    assert not playground.page.evaluate(WIDE)
    playground.paste(SLERP)
    expect(playground.part("recipe-status")).to_contain_text("in use")
    playground.merge()
    drawn(playground, "slerp")
    expect(facts.nth(1)).to_contain_text(re.compile(r"spherical in \d+ of \d+ places"))
    expect(
        playground.page.locator(".frame").nth(1).locator(".heatmaplayer text").first
    ).to_have_text("•")


def test_pictures_on_a_telephone(visit: Visit) -> None:
    """A merge that was found again has them too; the page does not scroll sideways."""
    playground = visit("?__theme=dark", width=390).ready()
    playground.merge()
    playground.unfold("Inside the merge")
    drawn(playground, "ties")
    assert not playground.page.evaluate(WIDE)
    widths = playground.page.evaluate(
        "[...document.querySelectorAll('.frame')].map(f => [f.clientWidth, "
        "f.querySelector('.main-svg').clientWidth])"
    )
    assert all(plot <= frame <= 390 for frame, plot in widths) and len(widths) == 6


def test_where_nothing_can_be_drawn() -> None:
    """A sentence says why."""
    made = Made("0" * 16, TIES, "TIES", ("a", "b"), {})
    sliced = "merge_method: passthrough\nslices:\n- sources:\n  - {model: x, layer_range: [0, 1]}\n"
    stacked = Made("0" * 16, sliced, "Passthrough", ("x",), {})
    assert "no merge yet" in _about(None, False, False)
    assert "found again" in _about(made, False, False)
    assert "slices with different models" in _about(stacked, False, False)
    assert "nothing to compare" in _about(stacked, True, False)
