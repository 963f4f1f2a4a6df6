"""What a merge will do, tensor by tensor, decided before any weight is read.

It reads configs, headers and tokenizer files; whatever will be filled, skipped, tied or assumed is
a Note that the user sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from merging import vocabulary
from merging.errors import MergeError
from merging.methods import Method, methods
from merging.pairing import HEADS, Step, pair, rows
from merging.parameters import LAYER, Settings, settings
from merging.recipe import Recipe, known_or_raise
from merging.sources import Source, open_source
from merging.vocabulary import Vocabulary

Level = Literal["green", "amber", "red"]

TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
}


@dataclass(frozen=True)
class Note:
    """One thing the user should know: green is fine, amber is to be looked at, red stops."""

    level: Level
    text: str


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
        return sum(source.missing for source in self.sources)


def plan(
    recipe: Recipe,
    sources: Mapping[str, Source] | None = None,
    *,
    find: Callable[[str], Source] = open_source,
) -> Plan:
    """Decide a merge. `sources` by the recipe's names; those not given are looked for by `find`.

    Raises MergeError for anything that would stop it.
    """
    method = _method(recipe)
    base, merged = _roles(recipe, method)
    chosen = settings(recipe, method, merged)
    names = (*merged, base) if base else merged
    found = {name: (sources or {}).get(name) or find(name) for name in names}
    for source in found.values():
        _check_config(source, found[names[0]])
    parents = tuple(found[name] for name in names)
    donor = found[recipe.base_model] if recipe.base_model in found else parents[0]
    aligned, about_tokens = _vocabulary(recipe, found, donor)
    steps = pair(recipe, chosen, parents, aligned)
    template, about_template = _template(recipe, donor, parents)
    pinned = recipe.renamed({name: source.name for name, source in found.items()})
    notes = [*_overview(parents, steps, donor), *_unused(recipe, chosen, base)]
    notes += [*_untied(steps), *about_tokens, *about_template]
    return Plan(
        pinned, tuple(m.model for m in recipe.models), method, parents, bool(base), donor,
        steps, tuple(notes), aligned, _config(donor, steps, aligned), template,
        pinned.identity(f"{s.name} {s.stamp}" for s in parents),
    )  # fmt: skip


def with_sources(plan: Plan, sources: Sequence[Source]) -> Plan:
    """The same plan over the same models, once they are on this machine."""
    donor = sources[plan.sources.index(plan.donor)]
    return replace(plan, sources=tuple(sources), donor=donor)


def _method(recipe: Recipe) -> Method:
    known_or_raise([recipe.merge_method], methods(), "merge methods")
    return methods()[recipe.merge_method]


def _roles(recipe: Recipe, method: Method) -> tuple[str | None, tuple[str, ...]]:
    """The base if the method works on deltas, and the models that are merged, in order."""
    listed = [m.model for m in recipe.models]
    twice = [name for name in listed if listed.count(name) > 1]
    if twice:
        raise MergeError(f"{twice[0]} is listed twice: choose another model for one of the two.")
    base = recipe.base_model if method.base == "required" else None
    if method.base == "required" and not base:
        raise MergeError(
            f"{method.title} merges changes to a common base: add `base_model: …`, "
            "or choose SLERP or Linear."
        )
    if method.base == "first" and recipe.base_model in listed:
        listed.sort(key=lambda name: name != recipe.base_model)
    merged = tuple(name for name in listed if name != base)
    low, high = method.models
    if not low <= len(merged) <= high:
        count = f"{low}" if low == high else f"{low} to {high}"
        raise MergeError(
            f"{method.title} takes {count} models{' beside the base' if base else ''}, and the "
            f"recipe has {len(merged)}: "
            + ("add one." if len(merged) < low else "remove one, or choose another method.")
        )
    return base, merged


def _check_config(source: Source, first: Source) -> None:
    if "quantization_config" in source.config:
        raise MergeError(
            f"{source.name} is quantised, and its deltas would be noise: "
            "choose the model in bf16 or fp16."
        )
    kinds = [_kind(s) for s in (source, first)]
    if kinds[0] != kinds[1]:
        raise MergeError(
            f"{first.name} is a {kinds[1]} and {source.name} a {kinds[0]}: "
            "choose models of one family, best fine-tunes of one base."
        )


def _kind(source: Source) -> str:
    architectures = source.config.get("architectures") or []
    kind = architectures[0] if architectures else source.config.get("model_type")
    if not isinstance(kind, str):
        raise MergeError(f"{source.name}: its config.json names no architecture: choose another.")
    return kind


def _vocabulary(
    recipe: Recipe, found: Mapping[str, Source], donor: Source
) -> tuple[Vocabulary | None, list[Note]]:
    source = recipe.tokenizer_source
    if source not in (None, "union", "base", *found):
        raise MergeError(
            f"`tokenizer_source: {source}` is none of union, base, {', '.join(found)}: "
            "name one of them."
        )
    parents = {s.name: s for s in found.values()}
    sizes = {name: rows(s) for name, s in parents.items()}
    loaded = {name: vocabulary.load(s.folder, name) for name, s in parents.items()}
    tokenizers = {name: t for name, t in loaded.items() if t is not None}
    lacking = [name for name in parents if name not in tokenizers]
    if lacking:
        if len(set(sizes.values())) > 1 or source is not None:
            raise MergeError(
                f"{lacking[0]} has no tokenizer.json, by which tokens could be matched: "
                "choose a model with a fast tokenizer."
            )
        return None, [Note("amber", f"{lacking[0]} has no tokenizer.json: rows pair by number.")]
    alike = vocabulary.same(list(tokenizers.values()))
    if alike and len(set(sizes.values())) == 1:
        return None, [Note("green", f"Same vocabulary · {next(iter(sizes.values())):,} rows")]
    chosen = found.get(source or "", donor)
    union = source in (None, "union")
    aligned = vocabulary.align(tokenizers, sizes, chosen.name, union)
    return aligned, _about_tokens(aligned, tokenizers, chosen.name)


def _about_tokens(aligned: Vocabulary, tokenizers: Mapping[str, Any], donor: str) -> list[Note]:
    notes = []
    for owners in dict.fromkeys(aligned.added.values()):
        tokens = [token for token, who in aligned.added.items() if who == owners]
        shown = ", ".join(f"`{token}`" for token in tokens[:3])
        more = f" and {len(tokens) - 3} more" if len(tokens) > 3 else ""
        many = "tokens" if len(tokens) > 1 else "token"
        notes.append(Note(
            "amber",
            f"{' and '.join(owners)} {'have' if len(owners) > 1 else 'has'} {len(tokens)} {many} "
            f"that {donor} lacks: {shown}{more}. The merged model has {aligned.size:,} rows.",
        ))  # fmt: skip
    dropped = set().union(*(t.get_vocab() for t in tokenizers.values()))
    dropped -= set(tokenizers[donor].get_vocab()) | set(aligned.added)
    if dropped:
        notes.append(Note(
            "amber", f"{len(dropped)} tokens that {donor} lacks are left out, as "
            "`tokenizer_source` says."
        ))  # fmt: skip
    return notes or [Note("green", f"Same tokens, paired by name · {aligned.size:,} rows")]


def _template(
    recipe: Recipe, donor: Source, parents: Sequence[Source]
) -> tuple[str | None, list[Note]]:
    written = recipe.chat_template
    if written not in (None, "auto"):
        if written in TEMPLATES:
            return TEMPLATES[written], []
        if "{" in written and len(written) <= vocabulary.TEMPLATE_CAP:
            return written, []
        raise MergeError(
            f"`chat_template: {written[:40]}` is neither auto, {', '.join(TEMPLATES)} "
            f"nor a Jinja template of at most {vocabulary.TEMPLATE_CAP // 1024} KB: "
            "write one of them."
        )
    own = {p.name: vocabulary.template(p.folder, p.name) for p in (donor, *parents)}
    if own[donor.name]:
        return own[donor.name], []
    for name, template in own.items():
        if template:
            return template, [
                Note("amber", f"The chat template is {name}'s: {donor.name} has none.")
            ]
    return None, [Note("amber", "No parent has a chat template: a plain one is used in the chat.")]


def _untied(steps: Sequence[Step]) -> list[Note]:
    mixed = [s.name for s in steps if s.name in HEADS and set(s.reads) - {s.name}]
    return [
        Note("amber", f"Some parents tie `{name}` to the embeddings and some do not: "
             "the merged model keeps them apart.")
        for name in mixed
    ]  # fmt: skip


def _config(donor: Source, steps: Sequence[Step], aligned: Vocabulary | None) -> dict[str, Any]:
    """The merged config.json: the donor's, with what follows from the tensors."""
    config = dict(donor.config)
    if aligned and "vocab_size" in config:
        config["vocab_size"] = aligned.size
    config["tie_word_embeddings"] = not any(step.name in HEADS for step in steps)
    kinds = [step.dtype for step in steps if not step.copied]
    common = str(max(set(kinds), key=kinds.count)).removeprefix("torch.") if kinds else "float32"
    config.pop("torch_dtype", None)
    return config | {"dtype": common, "torch_dtype": common}


def _overview(parents: Sequence[Source], steps: Sequence[Step], donor: Source) -> list[Note]:
    layers = {m[1] for step in steps if (m := LAYER.search(step.name))}
    millions = sum(step.size for step in steps) / 1e6
    notes = [Note("green", f"Same architecture and shapes · {_kind(donor)}, {len(layers)} layers, "
                  f"{millions:,.1f} M parameters")]  # fmt: skip
    missing = sum(p.missing for p in parents)
    text = f"{missing / 1e9:.2f} GB to fetch from the Hub" if missing else "Nothing to fetch"
    return [*notes, Note("green", text)]


def _unused(recipe: Recipe, chosen: Settings, base: str | None) -> list[Note]:
    title = chosen.method.title
    notes = [Note("amber", f"{title} does not use `{key}`.") for key in chosen.unused]
    listed = {m.model for m in recipe.models}
    if recipe.base_model and not base and recipe.base_model not in listed:
        first = " A is t = 0." if chosen.method.base == "first" else ""
        notes.append(
            Note("amber", f"{title} uses no base: {recipe.base_model} is left out.{first}")
        )
    if recipe.name:
        notes.append(Note("green", f"`name: {recipe.name}` is a label and changes nothing."))
    return notes
