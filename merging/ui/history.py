"""Merges that were made, newest first, and what differs from one to the next: lines to choose from.

It knows recipes and votes, and no components. The browser keeps it, so that what comes back may be
anything: a recipe is planned anew before it is used, and its identity is what comes of that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merging.recipe import Recipe
from merging.ui.blind import Vote
from merging.ui.jobs import Made
from merging.ui.look import short

MOST = 30
"""Merges that are remembered."""
AGES = ((86400, "d"), (3600, "h"), (60, "min"))
"""Seconds of what an age is told in."""
LARGEST = 1e12
"""Of any number that is kept: seconds since 1970, or bytes of a model."""
OFF = "off"
"""A switch that is not on, whether it is written down or not."""
FIELDS = {
    "id": str, "title": str, "recipe": str, "pins": dict, "sizes": dict, "differs": str,
    "when": int | float, "seconds": int | float, "works": bool | None,
}  # fmt: skip


@dataclass(frozen=True)
class Past:
    """One merge: its pinned `recipe`, `pins` from the names as written, `sizes` in bytes of its
    models by their pinned names, what `differs` from the merge before, `when` it was made in
    seconds since 1970, how many it took (0 where it was found), and whether it `works`, None where
    that is not known.
    """

    id: str
    title: str
    recipe: str
    pins: Mapping[str, str]
    sizes: Mapping[str, int]
    differs: str
    when: float
    seconds: float
    works: bool | None = None

    def written(self) -> Recipe:
        """Its recipe with the models as they were written. Raises MergeError if it is none."""
        names = {str(pinned): str(name) for name, pinned in self.pins.items()}
        return Recipe.from_yaml(self.recipe).renamed(names)

    @property
    def name(self) -> str:
        return f"{self.title} {self.id[:8]}"


def read(kept: Any) -> tuple[Past, ...]:
    """What the browser kept; what is no merge is left out."""
    found = kept if isinstance(kept, list) else []
    return tuple(Past(**each) for each in found[:MOST] if _is_one(each))


def _is_one(each: Any) -> bool:
    return (
        isinstance(each, dict)
        and each.keys() == FIELDS.keys()
        and all(isinstance(each[name], kind) for name, kind in FIELDS.items())
        and all(0 <= each[name] < LARGEST for name in ("when", "seconds"))
        and all(type(size) is int and 0 <= size < LARGEST for size in each["sizes"].values())
    )


def chosen(kept: Any, id: Any) -> Past | None:
    """The one of that identity, if the browser kept it."""
    return next((past for past in read(kept) if past.id == id), None)


def added(pasts: Sequence[Past], made: Made, seconds: float, now: float) -> tuple[Past, ...]:
    """With a merge that has just been made; one that is there moves to the top."""
    if pasts and pasts[0].id == made.identity:
        return tuple(pasts)
    before = Recipe.from_yaml(pasts[0].recipe) if pasts else None
    told = differs(Recipe.from_yaml(made.recipe), before)
    old = next((past for past in pasts if past.id == made.identity), None)
    pins, sizes = dict(made.pins), dict(made.sizes)
    new = Past(made.identity, made.title, made.recipe, pins, sizes, told, now, seconds)
    if old:
        new = replace(new, seconds=old.seconds, works=old.works)
    return (new, *(past for past in pasts if past is not old))[:MOST]


def judged(pasts: Sequence[Past], id: str, works: bool) -> tuple[Past, ...]:
    """With the verdict on one of them."""
    return tuple(replace(past, works=works) if past.id == id else past for past in pasts)


def line(past: Past, votes: Sequence[Vote], now: float) -> str:
    """One merge as a line."""
    rounds = [vote for vote in votes if past.id in {m.identity for m in vote.merges.values()}]
    won = sum(getattr(v.merges.get(v.choice), "identity", None) == past.id for v in rounds)
    parts = [
        past.name,
        {True: "✓ works", False: "✗ does not work", None: ""}[past.works],
        past.differs,
        f"{past.seconds:.2f} s" if past.seconds else "",
        _age(now - past.when),
        f"best in {won} of {len(rounds)} blind rounds" if rounds else "",
    ]
    return " · ".join(part for part in parts if part)


def _age(seconds: float) -> str:
    for unit, name in AGES:
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name} ago"
    return "just now"


def differs(recipe: Recipe, before: Recipe | None) -> str:
    """What a merge has otherwise than the one before; all its settings where the method changed."""
    own, old = _settings(recipe), _settings(before) if before else {}
    models, known = _models(recipe), _models(before) if before else {}
    if before is None or recipe.merge_method != before.merge_method:
        old = {}
    told = [f"{what} {value}" for what, value in models.items() if known.get(what) != value]
    told += [f"without {what}" for what in known if what not in (*models, "base")]
    told += [f"{what} {value}" for what, value in own.items() if old.get(what, OFF) != value]
    told += [f"no {what}" for what in old if what not in own]
    return ", ".join(told) or "the same settings"


def _models(recipe: Recipe) -> dict[str, str]:
    named = {chr(ord("A") + n): short(name) for n, name in enumerate(recipe.listed())}
    base = recipe.base_model if recipe.base_model not in recipe.listed() else None
    return named | ({"base": short(base)} if base else {})


def _settings(recipe: Recipe) -> dict[str, str]:
    """Every setting by name; one that each model has for itself by its letter, unless all agree."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for model in recipe.models for name in model.parameters):
        values = [_told(model.parameters.get(name, "")) for model in recipe.models]
        each = {f"{name} {chr(ord('A') + n)}": value for n, value in enumerate(values)}
        found |= {name: values[0]} if len(set(values)) == 1 else each
    found |= {name: _told(value) for name, value in recipe.parameters.items()}
    rest = recipe.to_dict()
    for name in ("variant", "dtype", "out_dtype", "tokenizer_source", "chat_template",
                 "random_seed"):  # fmt: skip
        if rest.get(name) is not None:
            found[name] = short(str(rest[name]))
    if recipe.slices:
        found["slices"] = f"of {len(recipe.slices)} pieces"
    return found


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else OFF
    if isinstance(value, int | float):
        return f"{value:g}"
    whole = isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    return "–".join(f"{v:g}" for v in value) if whole else str(value) and "by filters"
