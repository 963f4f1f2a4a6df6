"""What a merge will do, tensor by tensor, decided before any weight is read.

It reads configs, headers and tokenizer files; whatever will be filled, skipped, tied or assumed is
a Note that the user sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from merging import tokens, vocabulary
from merging.errors import MergeError
from merging.formats import FORMATS, TEMPLATE_CAP
from merging.formats import template as own_template
from merging.methods import Method, methods, variants
from merging.names import PACKED, ROUTER, head, layer, layers
from merging.pairing import Step, pair, rows
from merging.parameters import Settings, settings
from merging.recipe import Recipe, known_or_raise
from merging.roles import Part, in_order, roles
from merging.sources import Source, TensorInfo, open_source
from merging.tokens import Words
from merging.vocabulary import Vocabulary

Level = Literal["green", "amber", "red"]

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of layers."""


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
    parts = roles(recipe, method)
    chosen = settings(recipe, method)
    for part in parts:
        chosen.at("", part.piece, part.merged, [""] * len(part.merged))
    names = in_order(parts)
    found = {name: (sources or {}).get(name) or find(name) for name in names}
    for source in found.values():
        _check_config(source, found[names[0]])
    parents = tuple(found.values())
    donor = found[recipe.base_model] if recipe.base_model in found else parents[0]
    aligned, about_tokens = _vocabulary(recipe, found, donor)
    steps = pair(chosen, parts, found, aligned)
    if method.scope == "model":
        _check_whole(method, steps)
    template, about_template = _template(recipe, donor, parents)
    pinned = recipe.renamed({name: source.name for name, source in found.items()})
    notes = [*_overview(parents, steps, donor), *_unused(recipe, chosen, parts)]
    notes += [*_untied(steps), *_routers(steps), *about_tokens, *about_template]
    return Plan(
        pinned, recipe.listed(), method, parents, method.base == "required", donor,
        steps, tuple(notes), aligned, _config(donor, steps, aligned), template,
        pinned.identity(f"{s.name} {s.stamp}" for s in parents),
    )  # fmt: skip


def with_sources(plan: Plan, sources: Sequence[Source]) -> Plan:
    """The same plan over the same models, once they are on this machine."""
    donor = sources[plan.sources.index(plan.donor)]
    return replace(plan, sources=tuple(sources), donor=donor)


def _method(recipe: Recipe) -> Method:
    known_or_raise([recipe.merge_method], methods(), "merge methods")
    found = variants(recipe.merge_method)
    if recipe.variant not in found:
        raise MergeError(
            f"{methods()[recipe.merge_method].title} has no `variant: {recipe.variant}`: "
            f"choose {' or '.join(found)}, or remove the line."
        )
    return found[recipe.variant]


def _check_config(source: Source, first: Source) -> None:
    packed = (n for n, i in source.tensors.items() if PACKED.search(n) or _is_packed(n, i))
    sign = next(packed, "quantization_config" if source.config.get("quantization_config") else None)
    if sign:
        raise MergeError(
            f"{source.name} is quantised (`{sign}`), and its deltas would be noise: "
            "choose the model in bf16 or fp16."
        )
    kinds = [_kind(s) for s in (source, first)]
    if kinds[0] != kinds[1]:
        raise MergeError(
            f"{first.name} is a {kinds[1]} and {source.name} a {kinds[0]}: "
            "choose models of one family, best fine-tunes of one base."
        )


def _is_packed(name: str, info: TensorInfo) -> bool:
    return name.endswith(".weight") and not info.dtype.is_floating_point


def _kind(source: Source) -> str:
    architectures = source.config.get("architectures") or []
    kind = architectures[0] if architectures else source.config.get("model_type")
    if not isinstance(kind, str):
        raise MergeError(f"{source.name}: its config.json names no architecture: choose another.")
    return kind


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
    loaded = {name: tokens.load(s.folder, name) for name, s in parents.items()}
    tokenizers = {name: t for name, t in loaded.items() if t is not None}
    lacking = [name for name in parents if name not in tokenizers]
    if lacking:
        if len(set(sizes.values())) > 1 or source is not None or multiple:
            raise MergeError(
                f"{lacking[0]} has no tokenizer.json, by which tokens could be matched: "
                "choose a model with a fast tokenizer."
            )
        return None, [Note("amber", f"{lacking[0]} has no tokenizer.json: rows pair by number.")]
    alike = tokens.same(list(tokenizers.values()))
    if alike and len(set(sizes.values())) == 1 and not (multiple and sizes[donor.name] % multiple):
        return None, [Note("green", f"Same vocabulary · {next(iter(sizes.values())):,} rows")]
    chosen = found.get(source or "", donor)
    union = source in (None, "union")
    aligned = vocabulary.align(tokenizers, sizes, chosen.name, union, multiple or 1)
    return aligned, _about_tokens(aligned, tokenizers, chosen.name)


def _about_tokens(aligned: Vocabulary, tokenizers: Mapping[str, Words], donor: str) -> list[Note]:
    notes = []
    for owners in dict.fromkeys(aligned.added.values()):
        theirs = [token for token, who in aligned.added.items() if who == owners]
        shown = ", ".join(f"`{token}`" for token in theirs[:3])
        more = f" and {len(theirs) - 3} more" if len(theirs) > 3 else ""
        many = "tokens" if len(theirs) > 1 else "token"
        notes.append(Note(
            "amber",
            f"{' and '.join(owners)} {'have' if len(owners) > 1 else 'has'} {len(theirs)} {many} "
            f"that {donor} lacks: {shown}{more}. The merged model has {aligned.size:,} rows.",
        ))  # fmt: skip
    dropped = set().union(*(t.numbers for t in tokenizers.values()))
    dropped -= aligned.words.numbers.keys()
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
        if written in FORMATS:
            return FORMATS[written], []
        if "{" in written and len(written) <= TEMPLATE_CAP:
            return written, []
        raise MergeError(
            f"`chat_template: {written[:40]}` is neither auto, {', '.join(FORMATS)} "
            f"nor a Jinja template of at most {TEMPLATE_CAP // 1024} KB: "
            "write one of them."
        )
    own = {p.name: own_template(p.folder, p.name) for p in (donor, *parents)}
    if own[donor.name]:
        return own[donor.name], []
    for name, template in own.items():
        if template:
            return template, [
                Note("amber", f"The chat template is {name}'s: {donor.name} has none.")
            ]
    return None, [Note("amber", "No parent has a chat template: a plain one is used in the chat.")]


def _untied(steps: Sequence[Step]) -> list[Note]:
    mixed = [s.name for s in steps if head(s.name) and any(not head(r) for r in s.reads)]
    return [
        Note("amber", f"Some parents tie `{name}` to the embeddings and some do not: "
             "the merged model keeps them apart.")
        for name in mixed
    ]  # fmt: skip


def _routers(steps: Sequence[Step]) -> list[Note]:
    found = [s.name for s in steps if ROUTER.search(s.name)]
    if not found:
        return []
    return [
        Note("amber", f"A mixture of experts: its {len(found)} routers (`{found[0]}`, …) are "
             "merged like weights, which often upsets them. Chat with it before you rely on it.")
    ]  # fmt: skip


def _config(donor: Source, steps: Sequence[Step], aligned: Vocabulary | None) -> dict[str, Any]:
    """The merged config.json: the donor's, with what follows from the tensors."""
    config = _layered(donor, steps)
    if aligned and "vocab_size" in config:
        config["vocab_size"] = aligned.size
    config["tie_word_embeddings"] = not any(head(step.name) for step in steps)
    kinds = [step.dtype for step in steps if not step.copied]
    common = str(max(set(kinds), key=kinds.count)).removeprefix("torch.") if kinds else "float32"
    config.pop("torch_dtype", None)
    return config | {"dtype": common, "torch_dtype": common}


def _layered(donor: Source, steps: Sequence[Step]) -> dict[str, Any]:
    """The config for as many layers as the merged model has; lists with an entry a layer follow."""
    source = {layer(step.name): layer(step.reads[0]) for step in steps}
    taken = [old for n in range(len(source)) if (old := source.get(n)) is not None]
    config, before = dict(donor.config), layers(donor.tensors)
    if taken == list(range(before)):
        return config
    for key, value in donor.config.items():
        if key in COUNTS:
            config[key] = len(taken)
        elif isinstance(value, list) and "layer" in key and len(value) == before:
            config[key] = [value[old] for old in taken]
    return config


def _overview(parents: Sequence[Source], steps: Sequence[Step], donor: Source) -> list[Note]:
    count = len({layer(step.name) for step in steps} - {None})
    millions = sum(step.size for step in steps) / 1e6
    notes = [Note("green", f"Same architecture and shapes · {_kind(donor)}, {count} "
                  f"layer{'s' * (count != 1)}, {millions:,.1f} M parameters")]  # fmt: skip
    missing = sum(p.missing for p in parents)
    text = f"{missing / 1e9:.2f} GB to fetch from the Hub" if missing else "Nothing to fetch"
    return [*notes, Note("green", text)]


def _unused(recipe: Recipe, chosen: Settings, parts: Sequence[Part]) -> list[Note]:
    title = chosen.method.title
    if recipe.variant != "mergekit":
        title += f" ({recipe.variant})"
    notes = [Note("amber", f"{title} does not use `{key}`.") for key in chosen.unused]
    used = {m.model for part in parts for m in part.inputs}
    for base in dict.fromkeys(recipe.names()):
        if base not in used:
            first = " A is t = 0." if chosen.method.base == "first" else ""
            notes.append(Note("amber", f"{title} uses no base: {base} is left out.{first}"))
    if recipe.name:
        notes.append(Note("green", f"`name: {recipe.name}` is a label and changes nothing."))
    return notes
