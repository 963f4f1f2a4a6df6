"""The model card: what a merged model was made of, how, and under which licences.

It claims nothing of what the model can do, and shows of a local folder only its last name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging.figures import angles, length
from merging.inside import Figures
from merging.opening import RESERVED
from merging.recipe import Recipe
from merging.sources import Source

if TYPE_CHECKING:
    from merging.plan import Plan

IDENTITY = "merge_identity"
"""The line of the card's metadata by which the same merge is known again."""
HUB = re.compile(r"([^/@+\s]+/[^/@+\s]+)@([0-9a-f]{40})")
"""A model of the Hub, or one part of it, as a pinned recipe names it."""
OWN = re.compile(r"other|unknown")
"""Licences of which no two need be the same."""


def card(plan: "Plan", recipe: str, figures: Figures | None = None) -> str:
    """The text of README.md; the recipe stands last, so that it can be pasted from there.

    `figures` are the whole model's, as `figures.estimated` has them of a sample.
    """
    variant = "" if plan.recipe.variant == "mergekit" else f" (variant `{plan.recipe.variant}`)"
    parents = "".join(f"- {_parent(s)}\n" for s in plan.sources)
    watch = "".join(f"{line}\n" for line in _watch(plan))
    return (
        f"---\n{_metadata(plan)}---\n\n# A {plan.method.title} merge\n\nMade of these models by "
        f"[{plan.method.title}]({plan.method.paper}){variant}, each with the licence that its own "
        f"card states:\n\n{parents}\n"
        + (f"Before you use or share it:\n\n{watch}\n" if watch else "")
        + (_inside(plan, figures) if figures and (plan.based or figures["cosine"]) else "")
        + f"The recipe, in mergekit's YAML:\n\n```yaml\n{recipe}```\n"
    )


def hub_ids(recipe: Recipe) -> list[str]:
    """The Hub's names of all parents, adapters and bases, once each."""
    found = (HUB.fullmatch(part) for name in recipe.names() for part in name.split("+"))
    return list(dict.fromkeys(match[1] for match in found if match))


def public_names(names: Iterable[str]) -> Mapping[str, str]:
    """Names as others may see them: of a local folder the last part, and a number if it is taken.

    >>> public_names(("models/ada", "others/ada", "assets/demo/a"))
    {'models/ada': 'ada', 'others/ada': 'ada-2', 'assets/demo/a': 'assets/demo/a'}
    """
    shown: dict[str, str] = {}
    for name in dict.fromkeys(names):
        bare = "+".join(_last(part) for part in name.split("+"))
        others = (f"{bare}-{number}" for number in count(2))
        shown[name] = next(n for n in chain([bare], others) if n not in shown.values())
    return shown


def _last(part: str) -> str:
    if part in RESERVED or HUB.fullmatch(part):
        return part
    return Path(part).expanduser().resolve().name or "folder"


def _metadata(plan: "Plan") -> str:
    bases = "".join(f"- {id}\n" for id in hub_ids(plan.recipe))
    licences = {source.license for source in plan.sources}
    one = next(iter(licences)) if len(licences) == 1 else None
    plain = one and re.fullmatch(r"[a-z][a-z0-9.-]*", one) and not OWN.fullmatch(one)
    return (
        "library_name: transformers\npipeline_tag: text-generation\n"
        + (f"license: {one}\n" if plain else "")
        + "tags:\n- merge\n"
        + (f"base_model:\n{bases}base_model_relation: merge\n" if bases else "")
        + f'{IDENTITY}: "{plan.identity}"\n'
    )


def _parent(source: Source) -> str:
    licence = f"licence {source.license}" if source.license else "no licence found"
    return f"{_shown(source.name)}: {licence}"


def _shown(name: str) -> str:
    return " with the adapter ".join(_part(part) for part in name.split("+"))


def _part(part: str) -> str:
    if found := HUB.fullmatch(part):
        id, commit = found.groups()
        return f"[{id}](https://huggingface.co/{id}/tree/{commit}) at `{commit[:8]}`"
    if part in RESERVED:
        return f"`{part}`, which comes with the merge playground"
    return f"`{_last(part)}`, a local folder that is not on the Hub"


def _watch(plan: "Plan") -> Iterator[str]:
    """What those who use the merge should look at; nothing where all agree on a licence."""
    names = {s.name: "+".join(_bare(p) for p in s.name.split("+")) for s in plan.sources}
    stated = {s.license for s in plan.sources if s.license}
    if len(stated) > 1:
        yield "- The parents' licences differ, and each of them may bind this merge too."
    for source in plan.sources:
        licence, name = source.license or "", names[source.name]
        if re.search(r"(^|-)nc(-|$)", licence.lower()):
            yield f"- {name} allows no commercial use ({licence})."
        if not licence:
            yield f"- {name} states no licence: ask whoever made it."
        if source.gated:
            yield f"- {name} is not open to all: this merge is for those who have access to it."


def _inside(plan: "Plan", figures: Figures) -> str:
    """Short tables of what the merge did to each model, and of how they lie to each other."""
    rows = {"length, as a part of the base's": "size"} if plan.based else {"length": "norm"}
    if plan.method.keep:
        rows["energy that the trim keeps"] = "kept"
    head = [_shown(s.name).partition(",")[0] for s in plan.sources[: len(figures["norm"])]]
    what = "change to the base" if plan.based else "weights"
    lines = [f"| {what} of | {' | '.join(head)} |", f"|---{'|---' * len(head)}|"]
    for told, name in rows.items():
        lines.append(_row(told, figures[name], figures["error"][name]))
    merged, error = figures["merged"], figures["error"]["merged"]
    if plan.based:
        told = "part of it that is in the merged change"
        lines.append(_row(told, merged["retained"], error["retained"]))
    else:
        lines.append(_row("cosine with the merged weights", merged["cosine"], error["cosine"]))
    lines += ["", *_pairs(plan, figures), *_became(plan, figures), ""]
    return (
        "What the merge did, by samples of each tensor (± two standard errors):\n\n"
        + "".join(f"{line}\n" for line in lines)
    )  # fmt: skip


def _row(told: str, values: Mapping[str, float | None], errors: Mapping[str, float | None]) -> str:
    cells = [_about(value, errors.get(name)) for name, value in values.items()]
    return f"| {told} | {' | '.join(cells)} |"


def _about(value: float | None, error: float | None) -> str:
    """A figure with twice its error.

    >>> _about(0.41682, 0.0123), _about(None, None)
    ('0.417 ± 0.025', '–')
    """
    if value is None:
        return "–"
    return f"{value:.3g}" + (f" ± {2 * error:.2g}" if error else "")


def _pairs(plan: "Plan", figures: Figures) -> Iterator[str]:
    """A table of how the models lie to each other, a column a pair."""
    cosines, error = figures["cosine"], figures["error"]
    if not cosines:
        return
    numbers = combinations(range(1, len(figures["norm"]) + 1), 2)
    yield f"| between | {' | '.join(f'models {one} and {other}' for one, other in numbers)} |"
    yield f"|---{'|---' * len(cosines)}|"
    yield _row("cosine", _by_pair(cosines), _by_pair(error["cosine"]))
    if not plan.based:
        away = figures["apart"], error["apart"]
        yield _row("angle, in degrees", _by_pair(angles(cosines)), {})
        yield _row("distance, as a part of the first's length", *map(_by_pair, away))
    yield ""


def _by_pair(pairs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {" ".join(pair["models"]): pair["value"] for pair in pairs}


def _became(plan: "Plan", figures: Figures) -> Iterator[str]:
    """How long the merge is beside its models, how often signs differ, and by which formulas."""
    if (found := length(figures)) is not None:
        what = "change is" if plan.based else "weights are"
        yield f"The merged {what} {found:.3g} times as long as the models' on average."
    if plan.based and (n := len(figures["norm"])) > 1:
        yield (
            f"Of changes of one length at right angles the average is {n**-0.5:.2f} times as long, "
            f"the sum {n**0.5:.2f} times."
        )
        if figures["conflict"] is not None:
            yield (
                f"Signs differ in {figures['conflict']:.0%} of the entries that all change; "
                f"chance would give {figures['chance']:.0%}."
            )
    if formulas := figures.get("formulas"):
        told = ", ".join(f"{many} {name}" for name, many in formulas.items())
        yield f"Tensors by formula: {told}."


def _bare(part: str) -> str:
    found = HUB.fullmatch(part)
    return found[1] if found else _last(part)
