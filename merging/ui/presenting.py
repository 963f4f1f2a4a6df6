"""A recipe that comes by a link: to begin from, or fixed for a class until one makes it one's own.

The page's address carries it, and stays as it is while the recipe is fixed: so a reload shows it
again, and what the browser keeps of a visitor's own recipe is left alone.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import gradio as gr

from merging.errors import MergeError
from merging.recipe import Recipe
from merging.ui import choosing, look
from merging.ui.errors import Updates, Values
from merging.ui.page import Page
from merging.ui.visitor import Visitor
from merging.yaml_text import MAX_BYTES


def linked(request: gr.Request) -> str | None:
    """The recipe in the page's address, if there is a readable one."""
    code = request.query_params.get("recipe", "")
    if not code or len(code) > 2 * MAX_BYTES:
        return None
    try:
        return base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None


def fixed(request: gr.Request) -> bool:
    """Whether the page shows a recipe that a presenter fixed."""
    if "class" not in request.query_params:
        return False
    try:
        return bool(Recipe.from_yaml(linked(request) or ""))
    except MergeError:  # the page says so, and is the visitor's own
        return False


def remembered(page: Page, values: Values, request: gr.Request) -> dict[str, Any]:
    """What the browser keeps of the page. Beside a fixed recipe, the visitor's own stays kept."""
    before = values[page.kept] or {}
    recipe = before.get("recipe") if fixed(request) else values[page.recipe]
    options = [values[option] for option in page.options()]
    return {"recipe": recipe, "rows": values[page.rows], "options": options}


def restore(page: Page, visitor: Visitor, values: Values, request: gr.Request) -> Iterator[Updates]:
    """Fill the form from the address, else from what the browser kept, else from a preset."""
    kept = values[page.kept] or {}
    text = linked(request) or kept.get("recipe") or page.presets[0].text
    filling = choosing.restore(page, visitor, text, kept.get("options") or [])
    yield from _switched(page, filling, on=False) if fixed(request) else filling


def share(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """The recipe for a class, its models at the commits at which they were checked."""
    try:
        recipe = Recipe.from_yaml(values[page.recipe] or "").renamed(values[page.pins])
    except MergeError as error:
        yield {page.saved: None, page.recipe_status: look.failure(str(error))}
    else:
        yield {page.saved: {"text": recipe.to_yaml()}, page.recipe_status: ""}


def own(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Let the visitor change the recipe from here on, in place of the one that was kept."""
    text = values[page.recipe]
    yield {page.kept: {**(values[page.kept] or {}), "recipe": text}}
    yield from _switched(page, choosing.restore(page, visitor, text, []), on=True)


def _switched(page: Page, filling: Iterator[Updates], *, on: bool) -> Iterator[Updates]:
    """Fill the form, then switch all that changes the recipe on or off.

    At the end, and with the values: gradio draws anew what is switched, and while it does, other
    updates of it are lost.
    """
    filled: Updates = {}
    for updates in filling:
        yield updates
        filled |= updates
    switched: Updates = {button: gr.update(interactive=on) for button in page.changing()}
    for part in {page.preset, page.recipe, *page.form.inputs()} & filled.keys():
        given = filled[part] if isinstance(filled[part], dict) else gr.update(value=filled[part])
        switched[part] = {"interactive": on} | given | ({} if on else {"interactive": False})
    yield switched | {page.fixed: gr.update(visible=not on)}
