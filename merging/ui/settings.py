"""What the page's inputs say: whether it is free, which models answer, and how they are asked."""

from collections.abc import Mapping, Sequence
from typing import Any

from merging.chat import Question
from merging.conversation import Message, with_system
from merging.ui.errors import Values
from merging.ui.page import Page
from merging.ui.visit import Visit


def idle(page: Page, values: Values) -> Visit:
    """The visit. Raises MergeError while columns answer, in the chat or in the question sheet."""
    values[page.sheet].idle()
    visit: Visit = values[page.visit].idle()
    return visit


def question_of(page: Page, values: Values, talks: Mapping[str, Sequence[Message]]) -> Question:
    """A question by the page's settings."""
    system = values[page.system]
    talks = {slot: with_system(system, messages) for slot, messages in talks.items()}
    return Question(talks, **_sampling(page, values))


def _sampling(page: Page, values: Values) -> dict[str, Any]:
    return {
        "max_new_tokens": int(values[page.tokens] or 256),
        "temperature": float(values[page.temperature] or 0),
        "seed": int(values[page.seed] or 0),
    }


def how_asked(page: Page, values: Values) -> dict[str, Any]:
    """How the models are asked, for whoever reads it later."""
    system = (values[page.system] or "").strip()
    return _sampling(page, values) | ({"system": system} if system else {})


def names(page: Page, values: Values) -> dict[str, str]:
    """The model of each parent's column; the base's only where it is wanted."""
    picked = {slot: values[picker] for slot, picker in page.form.pickers.items()}
    return {
        s: name for s, name in picked.items() if name and (s != "base" or values[page.show_base])
    }
