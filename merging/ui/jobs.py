"""From recipes and questions to jobs: fetches what is missing, then asks the device.

Downloads happen here, on the page's side, and never inside a GPU call.
"""

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from merging import gpu
from merging.chat import Question
from merging.errors import MergeError
from merging.merge import Progress, fetched
from merging.plan import plan
from merging.recipe import Recipe
from merging.sources import fetch, open_source

COLUMNS = "# columns: "


@dataclass(frozen=True)
class Made:
    """A merge that can be asked, and made again anywhere: its recipe is pinned."""

    identity: str
    recipe: str
    title: str
    columns: tuple[str, ...]
    parents: tuple[gpu.Place, ...]


def make(recipe: Recipe, *, folders: bool) -> Generator[gpu.Event, None, tuple[Made, gpu.Job]]:
    """Plan, and fetch the parents; returns the merge and the job that carries it out."""
    decided = yield from fetched(plan(recipe, find=partial(open_source, folders=folders)))
    job = gpu.merge_job(decided)
    pinned = decided.recipe.to_yaml()
    made = Made(decided.identity, pinned, decided.method.title, decided.columns, job.parents)
    return made, job


def at_hand(
    models: Mapping[str, str], *, folders: bool
) -> Generator[Progress, None, dict[str, gpu.Place]]:
    """Fetch models that are to be asked; returns where each column's lies."""
    places = {}
    for column, model in models.items():
        steps = fetch(open_source(model, folders=folders))
        try:
            while True:
                at = next(steps)
                share = at.done / at.total if at.total else 1.0
                yield Progress(at.file, at.done, at.total, share, 0.0, 0.0, "fetch")
        except StopIteration as end:
            places[column] = gpu.place(end.value)
    return places


def ask(
    question: Question, models: Mapping[str, gpu.Place], made: Made | None
) -> Iterator[gpu.Event]:
    """Ask parents by column, and the merge under the column that `question` has for it."""
    columns = {column: place.name for column, place in models.items()}
    job = gpu.Job(tuple(set(models.values())), columns=columns, question=question)
    if made and gpu.MERGED in question.conversations:
        job = replace(
            job, recipe=made.recipe, identity=made.identity, parents=made.parents,
            columns={**columns, gpu.MERGED: ""},
        )  # fmt: skip
    with closing(gpu.run(job)) as events:  # type: ignore[type-var]  # run is a generator
        yield from events


def recipes_folder() -> Path:
    """Where recipes are kept by identity, so that an id survives a restart."""
    home = os.environ.get("MERGING_HOME") or Path.home() / ".cache" / "merging"
    return Path(home) / "recipes"


def keep(made: Made) -> None:
    """Store a merge's pinned recipe, with its models as they were written before they were pinned.

    For those who ask for the merge; asking it by its id later must not rename its columns.
    """
    folder = recipes_folder()
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{made.identity}.{uuid4().hex}.draft"  # others may press Merge just now
    draft.write_text(f"{COLUMNS}{json.dumps(made.columns)}\n{made.recipe}", encoding="utf-8")
    draft.replace(folder / f"{made.identity}.yaml")


def kept(identity: str) -> tuple[str, tuple[str, ...]]:
    """A merge's pinned recipe and its columns. Raises MergeError if this machine knows none."""
    path = recipes_folder() / f"{identity}.yaml"
    if not path.is_file():
        raise MergeError(f"No merge {identity} is known here: send its recipe to /merge again.")
    text = path.read_text(encoding="utf-8")
    first = text.partition("\n")[0].removeprefix(COLUMNS)
    return text, tuple(json.loads(first))
