"""What the page does to take a merge away: files to download, and a push to the user's account.

Both merge on this machine's processor, from parents that are checked for the visitor once more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr

from merging import hub
from merging.errors import AccessError, MergeError
from merging.merge import Samples, fetched, merge
from merging.plan import Plan, plan
from merging.pushing import push, target
from merging.recipe import Recipe
from merging.sinks import Folder
from merging.ui import kept, look
from merging.ui.errors import Updates, Values, shows_errors
from merging.ui.jobs import Made
from merging.ui.page import Page
from merging.ui.progress import followed
from merging.ui.visitor import Visitor


@dataclass(frozen=True)
class Offer:
    """A push that waits for its confirmation, which only this visitor's own page can give."""

    made: Made
    name: str
    public: bool


@shows_errors("kept_status")
def make_files(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Write the merge as safetensors, and offer them as one file."""
    made = _made(page, values)
    decided = _plan(made, visitor)
    closed = _closed(decided)
    if closed:
        raise MergeError(f"{closed} is not open to all: what is made of it can only be pushed.")
    folder = kept.files(made.identity)
    if not folder.is_dir():
        kept.make_room(decided.size)
        with hub.using(made.pins.values()):
            here = yield from followed(page, fetched(decided, token=visitor.token), "kept_status")
            samples: Samples = {}
            steps = merge(here, Folder(folder, samples=samples), samples=samples)
            yield from followed(page, steps, "kept_status")
    size = sum(path.stat().st_size for path in folder.iterdir())
    yield {page.kept_status: look.download(f"merged/{made.identity}.zip", size)}


@shows_errors("kept_status")
def offer_push(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Say what would be pushed where, and wait for a yes."""
    made, name = _made(page, values), (values[page.push_name] or "").strip()
    if not visitor.token:
        raise AccessError(
            "Sign in to push to your account." if not visitor.folders else
            "This machine has no login: run `hf auth login`, then push again."
        )  # fmt: skip
    if not name:
        raise MergeError("Write a name for the repo: `my-merge`, or `user/my-merge`.")
    decided, public = _plan(made, visitor), bool(values[page.push_public])
    closed = _closed(decided)
    if public and closed:
        raise MergeError(f"{closed} is not open to all: push what is made of it privately.")
    licences = {s.name.partition("@")[0]: s.license or "none found" for s in decided.sources}
    yield {
        page.offer: Offer(made, name, public),
        page.confirm: gr.update(visible=True),
        page.kept_status: look.offer(name, public, decided.size, licences, closed),
    }


@shows_errors("kept_status")
def confirm_push(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """Merge and push, shard by shard."""
    offer: Offer | None = values[page.offer]
    yield {page.offer: None, page.confirm: gr.update(visible=False)}
    if offer is None:
        raise MergeError("Nothing waits for a confirmation: press Push first.")
    yield {page.kept_status: look.bar(0, f"Looking at {offer.name}")}
    decided = _plan(offer.made, visitor)
    repo = target(decided, offer.name, token=visitor.token, public=offer.public)
    with hub.using(offer.made.pins.values()):
        url = yield from followed(page, push(decided, repo), "kept_status")
    yield {page.kept_status: look.pushed(repo.id, url)}


def cancel_push(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    yield {page.offer: None, page.confirm: gr.update(visible=False), page.kept_status: ""}


def show_cache(page: Page, visitor: Visitor, values: Values) -> Iterator[Updates]:
    """What the downloads take, at the foot of the page."""
    yield {page.foot: look.foot(hub.kept_state())}


def _made(page: Page, values: Values) -> Made:
    made: Made | None = values[page.visit].made
    if made is None:
        raise MergeError("There is no merge yet: press Merge first.")
    return made


def _plan(made: Made, visitor: Visitor) -> Plan:
    return plan(Recipe.from_yaml(made.recipe), find=visitor.find)


def _closed(decided: Plan) -> str | None:
    """A parent that is not open to all."""
    return next((s.name.partition("@")[0] for s in decided.sources if s.gated), None)
