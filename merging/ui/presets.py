"""The recipes that come with the app, and what its pickers offer; knows no components."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from merging.opening import APP, RESERVED
from merging.recipe import Recipe

SHEET = "# sheet:"
"""Begins the line of a question for the sheet, with `=>` before what is expected."""


@dataclass(frozen=True)
class Preset:
    """A recipe with its title, one sentence why, and questions that fit it.

    `sheet` are questions with what is expected of their answers, or nothing.
    """

    key: str
    title: str
    why: str
    questions: tuple[str, ...]
    sheet: tuple[tuple[str, str], ...]
    text: str


def presets(folder: Path = APP / "assets" / "recipes") -> tuple[Preset, ...]:
    """All presets, in the order of their files' names."""
    return tuple(_read(path) for path in sorted(folder.glob("*.yaml")))


@cache
def offered() -> tuple[str, ...]:
    """Models that the pickers list: the embedded ones, then those of the presets."""
    named = [name for p in presets() for name in Recipe.from_yaml(p.text).names()]
    return tuple(dict.fromkeys((*RESERVED, *named)))


def _read(path: Path) -> Preset:
    text = path.read_text(encoding="utf-8")
    said = dict.fromkeys(("title", "why", "ask"), "")
    for line in text.splitlines():
        key, _, value = line.removeprefix("#").strip().partition(":")
        if line.startswith("#") and key in said:
            said[key] = value.strip()
    questions = tuple(q.strip() for q in said["ask"].split("|") if q.strip())
    sheet = tuple(_expected(line) for line in text.splitlines() if line.startswith(SHEET))
    sheet = sheet or tuple((question, "") for question in questions)
    recipe = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))
    return Preset(path.stem, said["title"] or path.stem, said["why"], questions, sheet, recipe)


def _expected(line: str) -> tuple[str, str]:
    question, _, expected = line.removeprefix(SHEET).partition(" => ")
    return question.strip(), expected.strip()
