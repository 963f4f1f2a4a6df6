"""From recipes and questions to jobs: fetches what is missing, then asks the device.

Downloads happen here, on the page's side, and never inside a GPU call.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from merging import costs, gpu, hub
from merging.conversation import Message
from merging.errors import MergeError
from merging.exam import Exam
from merging.merge import Progress, bring, fetched
from merging.notes import Note
from merging.plan import Plan, plan
from merging.prompts import Prompt, of_merge, of_parent
from merging.recipe import Recipe
from merging.ui import kept
from merging.ui.visitor import Visitor

LENGTH = 128
"""Tokens of an answer at most, until a visitor chooses otherwise."""


@dataclass(frozen=True)
class Made:
    """A merge that can be asked, and made again anywhere: its recipe is pinned.

    `columns` are its models as they were written, `pins` the commits of all that it names, `sizes`
    their bytes by pinned name.
    """

    identity: str
    recipe: str
    title: str
    columns: tuple[str, ...]
    pins: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)


def check(recipe: Recipe, visitor: Visitor) -> tuple[Plan, tuple[Note, ...]]:
    """The plan of a merge, with its notes and those on what it costs here. No weights are read."""
    decided = plan(recipe, find=visitor.find)
    device, room, spare = gpu.room()
    spent = costs.costs(decided, room=room, device=device, spare=spare)
    notes = (*decided.notes, *costs.notes(spent))
    if not gpu.granted():
        return decided, notes
    bill = gpu.Bill(sum(gpu.sizes(decided).values()), len(decided.columns) + 1)
    told = f"A merge asks for {bill.merge(LENGTH)} s of your GPU time, a question to all for "
    told += f"{bill.ask(LENGTH)} s, with answers of {LENGTH} tokens"
    return decided, (*notes, Note("green", told))


def pins_of(recipe: Recipe, decided: Plan) -> dict[str, str]:
    """The models of a recipe as written, and as its plan pinned them."""
    return dict(zip(recipe.names(), decided.recipe.names(), strict=True))


def make(recipe: Recipe, visitor: Visitor) -> Generator[gpu.Event, None, tuple[Made, gpu.Job]]:
    """Plan, and fetch the parents; returns the merge and the job that carries it out."""
    with hub.using(recipe.names()):
        decided = plan(recipe, find=visitor.find)
        kept.give_way(decided.missing)
        decided = yield from fetched(decided, token=visitor.token)
    title, pinned = decided.method.title, decided.recipe
    pins = pins_of(recipe, decided)
    made = Made(
        decided.identity, pinned.to_yaml(), title, decided.columns, pins, gpu.sizes(decided)
    )
    return made, gpu.merge_job(decided)


def sweep(
    recipe: Recipe, recipes: Mapping[float, Recipe], given: Exam, visitor: Visitor
) -> Generator[gpu.Event, None, tuple[Made, gpu.Job]]:
    """Plan, and fetch, a merge that is made and scored at several values of a number."""
    made, job = yield from make(recipe, visitor)
    pinned = {value: each.renamed(made.pins).to_yaml() for value, each in recipes.items()}
    return made, gpu.Job(sweep=gpu.Sweeping(pinned, job.parents, given))


def at_hand(
    models: Mapping[str, str], visitor: Visitor
) -> Generator[Progress, None, dict[str, gpu.Place]]:
    """Fetch models that are to be used, each checked for the visitor; returns where they lie."""
    with hub.using(models.values()):
        found = [visitor.find(model) for model in models.values()]
        kept.give_way(sum(source.missing for source in found))
        here = yield from bring(found, token=visitor.token)
    return dict(zip(models, map(gpu.place, here), strict=True))


def job_of(
    models: Mapping[str, str], merges: Mapping[str, Made], visitor: Visitor
) -> Generator[Progress, None, gpu.Job]:
    """The job of asking models and merges by column; only the question is lacking.

    A merge may be asked by whoever may read all that it was made of, and is checked each time.
    """
    places = yield from at_hand(models, visitor)
    columns = {column: place.name for column, place in places.items()}
    pinned = {name: name for made in merges.values() for name in made.pins.values()}
    parents = yield from at_hand(pinned, visitor)
    merging = {column: _merging(made, parents) for column, made in merges.items()}
    return gpu.Job(tuple(set(places.values())), merging, columns)


def _merging(made: Made, parents: Mapping[str, gpu.Place]) -> gpu.Merging:
    own = tuple(parents[name] for name in dict.fromkeys(made.pins.values()))
    return gpu.Merging(made.recipe, made.identity, own)


def prompts(
    job: gpu.Job, conversations: Mapping[str, Sequence[Message]]
) -> Iterator[tuple[str, Prompt | MergeError]]:
    """What each column of a job would be given to read, or why it refuses. No device is used."""
    places = {place.name: place for place in job.places}
    with hub.using([place.name for place in (*job.places, *job.parents)]):
        for column in job.answering:
            try:
                if merging := job.merges.get(column):
                    sources = {place.name: place.open() for place in merging.parents}
                    decided = plan(Recipe.from_yaml(merging.recipe), sources)
                    yield column, of_merge(decided, conversations[column])
                else:
                    source = places[job.columns[column]].open()
                    yield column, of_parent(source, conversations[column])
            except MergeError as error:
                yield column, error


def run(job: gpu.Job) -> Iterator[gpu.Event]:
    """Have the device do a job, whose models stay in the cache meanwhile.

    Merges that lie here as files are read from there.
    """
    merges = {c: replace(m, files=kept.at_hand(m.identity)) for c, m in job.merges.items()}
    job = replace(job, merges=merges)
    names = [place.name for place in (*job.places, *job.parents)]
    with hub.using(names), closing(gpu.run(job)) as events:  # type: ignore[type-var]  # a generator
        yield from events
