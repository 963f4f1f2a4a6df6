"""What a merge will do, tensor by tensor, decided before any weight is read.

It reads configs, headers and tokenizer files; whatever will be filled, skipped, tied or assumed is
a Note that the user sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merging import configs, notes, tokens, vocabulary
from merging.errors import MergeError
from merging.formats import FORMATS, TEMPLATE_CAP
from merging.formats import template as own_template
from merging.methods import Method
from merging.notes import Note
from merging.opening import open_source
from merging.pairing import Step, pair, rows
from merging.parameters import settings
from merging.recipe import Recipe
from merging.roles import in_order, method_of, roles
from merging.sources import Source
from merging.vocabulary import Vocabulary


@dataclass(frozen=True)
class Plan:
    """Everything decided. `sources` are the merged models in order, then the base if it has one.

    `recipe` is pinned; `columns` are the models as the user wrote them.
    """

    recipe: Recipe
    columns: tuple[str, ...]
    method: Method
    sources: tuple[Source, ...]
    based: bool
    donor: Source
    steps: tuple[Step, ...]
    notes: tuple[Note, ...]
    vocabulary: Vocabulary | None
    config: Mapping[str, Any]
    template: str | None
    identity: str

    @property
    def size(self) -> int:
        """Bytes of the merged weights."""
        return sum(step.size * step.dtype.itemsize for step in self.steps)

    @property
    def missing(self) -> int:
        """Bytes still to be fetched."""
        parts = {p.name: p.missing for source in self.sources for p in source.parts}
        return sum(parts.values())


def plan(
    recipe: Recipe,
    sources: Mapping[str, Source] | None = None,
    *,
    find: Callable[[str], Source] = open_source,
) -> Plan:
    """Decide a merge. `sources` by the recipe's names; those not given are looked for by `find`.

    Raises MergeError for anything that would stop it.
    """
    method = method_of(recipe)
    parts = roles(recipe, method)
    chosen = settings(recipe, method)
    for part in parts:
        chosen.at("", part.piece, part.merged, [""] * len(part.merged))
    names = in_order(parts)
    found = {name: (sources or {}).get(name) or find(name) for name in names}
    for source in found.values():
        configs.check(source, found[names[0]])
    parents = tuple(found.values())
    donor = found[recipe.base_model] if recipe.base_model in found else parents[0]
    aligned, about_tokens = _vocabulary(recipe, found, donor)
    steps = pair(chosen, parts, found, aligned)
    if method.scope == "model":
        _check_whole(method, steps)
    template, about_template = _template(recipe, donor, parents)
    pinned = recipe.renamed({name: source.name for name, source in found.items()})
    found_notes = [
        *notes.about_models(parents, steps, donor), *notes.about_adapters(parents), *about_tokens,
        *about_template, *notes.about_licences(parents),
        *notes.about_recipe(recipe, chosen, parts),
    ]  # fmt: skip
    return Plan(
        pinned, recipe.listed(), method, parents, method.base == "required", donor,
        steps, tuple(found_notes), aligned, configs.merged(donor, steps, aligned), template,
        pinned.identity(f"{s.name} {s.stamp}" for s in parents),
    )  # fmt: skip


def with_sources(plan: Plan, sources: Sequence[Source]) -> Plan:
    """The same plan over the same models, once they are on this machine."""
    donor = sources[plan.sources.index(plan.donor)]
    return replace(plan, sources=tuple(sources), donor=donor)


def _check_whole(method: Method, steps: Sequence[Step]) -> None:
    """A method that measures whole models needs the same models and values in every tensor."""
    whole = f"`variant: {method.variant}` trims each model as a whole"
    merged = [step for step in steps if not step.copied]
    for name in method.measured:
        if len({step.values[name] for step in merged}) > 1:
            raise MergeError(
                f"`{name}` must be one number for each model, as {whole}: "
                "write it without filters and gradients, and the same in every slice."
            )
    if len({step.sources for step in merged}) > 1:
        raise MergeError(
            f"{whole}, and the slices differ in their models: list the same ones in each, "
            "or choose another variant."
        )


def _vocabulary(
    recipe: Recipe, found: Mapping[str, Source], donor: Source
) -> tuple[Vocabulary | None, list[Note]]:
    source, multiple = recipe.tokenizer_source, recipe.pad_to_multiple_of
    if source not in (None, "union", "base", *found):
        raise MergeError(
            f"`tokenizer_source: {source}` is none of union, base, {', '.join(found)}: "
            "name one of them."
        )
    parents = {s.name: s for s in found.values()}
    sizes = {name: rows(s) for name, s in parents.items()}
    loaded = {name: tokens.load(s.tokenizer, name) for name, s in parents.items()}
    tokenizers = {name: t for name, t in loaded.items() if t is not None}
    lacking = [name for name in parents if name not in tokenizers]
    if lacking:
        if len(set(sizes.values())) > 1 or source is not None or multiple:
            raise MergeError(
                f"{lacking[0]} has no tokenizer.json, by which tokens could be matched: "
                "choose a model with a fast tokenizer."
            )
        return None, [
            Note("amber", f"{notes.shown(parents)[lacking[0]]} has no tokenizer.json: "
                 "rows pair by number.")
        ]  # fmt: skip
    alike = tokens.same(list(tokenizers.values()))
    if alike and len(set(sizes.values())) == 1 and not (multiple and sizes[donor.name] % multiple):
        return None, [Note("green", f"Same vocabulary · {next(iter(sizes.values())):,} rows")]
    chosen = found.get(source or "", donor)
    union = source in (None, "union")
    aligned = vocabulary.align(tokenizers, sizes, chosen.name, union, multiple or 1)
    return aligned, notes.about_tokens(aligned, tokenizers, chosen.name)


def _template(
    recipe: Recipe, donor: Source, parents: Sequence[Source]
) -> tuple[str | None, list[Note]]:
    written = recipe.chat_template
    if written not in (None, "auto"):
        if written in FORMATS:
            return FORMATS[written], []
        if "{" in written and len(written) <= TEMPLATE_CAP:
            return written, []
        raise MergeError(
            f"`chat_template: {written[:40]}` is neither auto, {', '.join(FORMATS)} "
            f"nor a Jinja template of at most {TEMPLATE_CAP // 1024} KB: "
            "write one of them."
        )
    own = {p.name: own_template(p.tokenizer, p.name) for p in (donor, *parents)}
    taken = next((name for name, template in own.items() if template), None)
    return own.get(taken or ""), notes.about_templates(own, taken)
