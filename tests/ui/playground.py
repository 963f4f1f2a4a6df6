"""The page as its visitor sees it: what to press, and what to wait for. Knows ids, not looks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

START = 120_000
"""Milliseconds for an app to be ready; the page answers well before."""
DONE = re.compile(r"Merged in|found again")
SCORED = re.compile(r"\d+ answers in")
ENDED = re.compile(r"\d+ tokens · |too long|no words")
DRAWN = """([bots, said]) => [...document.querySelectorAll(bots)]
    .every(bot => bot.querySelector(said.split(" ").slice(1).join(" ")))"""
"""Whether every message has its text: an answer that is being marked has none for a moment."""
OLD = "document.querySelectorAll('{}').forEach(part => part.dataset.old = '1')"


@dataclass(frozen=True)
class Playground:
    """One visitor's page."""

    page: Page

    def part(self, id: str) -> Locator:
        return self.page.locator(f"#{id}")

    def ready(self) -> Playground:
        """Wait until the form is filled and its recipe checked: the last that a start brings."""
        self.part("notes").locator("li").first.wait_for(timeout=START)
        return self

    def stats(self, slot: str) -> Locator:
        return self.page.locator(f"#column-{slot} .head .stats")

    def answers(self, slot: str) -> list[str]:
        """What a column's model has said, oldest first."""
        said = "[data-testid=bot] :is(.message-content, .followed)"
        self.page.wait_for_function(DRAWN, arg=[f"#chat-{slot} [data-testid=bot]", said])
        found = self.part(f"chat-{slot}").locator(said)
        return [text.strip() for text in found.all_inner_texts()]

    def merge(self) -> None:
        """Press Merge, and wait until the new merge stands in the progress line."""
        self.forget(":is(.bar, .hint, .failure)", "progress")
        self.part("merge").click()
        self.renewed("progress", DONE)

    def run_sheet(self) -> None:
        """Run the question sheet, and wait until it says that all have answered."""
        self.forget(":is(.bar, .hint, .failure)", "sheet-status")
        self.part("run-sheet").click()
        self.renewed("sheet-status", SCORED)

    def ask(self, question: str, slots: tuple[str, ...] = ("a", "b", "merged")) -> None:
        """Put a question to all, and wait until these columns have finished."""
        self.awaited(slots)
        self.send(question)
        self.finished(slots)

    def send(self, question: str) -> None:
        """Press Enter, and wait until the question is put: once what is under way has ended."""
        field = self.part("question").locator("textarea")
        field.fill(question)
        field.press("Enter")
        expect(field).to_have_value("", timeout=60_000)

    def held(self) -> Locator:
        """What is said of a request that waits for another."""
        return self.page.locator(".held p:not(:empty)")

    def ramble(self, recipe: str, question: str, length: int = 1024) -> Playground:
        """Be in the middle of long answers, three so that a quick machine is at it for seconds."""
        self.paste(recipe)
        expect(self.part("recipe-status")).to_contain_text("in use")
        self.merge()
        self.option("Length", length)
        self.send(question)
        expect(self.stats("a")).to_contain_text("tok/s")
        return self

    def saved(self, button: str, path: Path) -> str:
        """What a button has the browser save, by way of `path`."""
        with self.page.expect_download() as download:
            self.part(button).click()
        download.value.save_as(path)
        return path.read_text(encoding="utf-8")

    def awaited(self, slots: tuple[str, ...]) -> None:
        """Mark what these columns' heads say as old, before they are asked."""
        for slot in slots:
            self.forget(".head", f"column-{slot}")

    def finished(self, slots: tuple[str, ...]) -> None:
        for slot in slots:
            self.renewed(f"column-{slot}", ENDED)

    def slide(self, id: str, value: float) -> None:
        """Type a value beside a slider, and wait until the recipe has it."""
        field = self.part(id).locator("input[type=number]")
        field.fill(str(value))
        field.press("Tab")
        name = id.split("-")[1]
        expect(self.recipe()).to_contain_text(re.compile(rf"{name}: {value}(\.0)?(?![\d.])"))

    def pick(self, slot: str, model: str) -> None:
        """Write a model's name into a picker."""
        field = self.part(f"pick-{slot}").locator("input")
        field.click()
        field.fill(model)
        field.press("Enter" if model else "Tab")

    def unfold(self, title: str) -> None:
        """Open an accordion by its title, if it is closed."""
        button = self.page.locator("button.label-wrap", has_text=title)
        if "open" not in (button.get_attribute("class") or "").split():
            button.click()

    def recipe(self) -> Locator:
        """The recipe's text."""
        self.unfold("Recipe")
        return self.part("recipe").locator(".cm-content")

    def paste(self, text: str) -> None:
        """Replace the recipe's text and press Use."""
        self.recipe().click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(text)
        self.part("use").click()

    def option(self, label: str, value: float) -> None:
        """Set one of the chat's settings."""
        self.unfold("Settings")
        field = self.page.get_by_label(f"number input for {label}")
        for _ in range(5):  # what has just been unfolded may still be set to what it was
            field.fill(str(value))
            field.press("Tab")
            self.page.wait_for_timeout(300)
            if field.input_value() == str(value):
                return

    def forget(self, what: str, where: str) -> None:
        """Mark what is there as old."""
        self.page.evaluate(OLD.format(f"#{where} {what}"))

    def renewed(self, where: str, text: re.Pattern[str]) -> None:
        """Wait until nothing of what was marked is left and the new says `text`."""
        self.page.wait_for_function(
            """([where, text]) => {
                const part = document.querySelector(where);
                return part && !part.querySelector('[data-old]')
                    && new RegExp(text).test(part.innerText);
            }""",
            arg=["#" + where, text.pattern],
        )
