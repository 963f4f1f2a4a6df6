"""Notes on a merge that was decided: what the user should know, in short lines.

It words what `plan` found; it decides nothing, and refuses nothing.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from merging import configs
from merging.names import ROUTER, head, layer
from merging.pairing import Step
from merging.parameters import Settings
from merging.recipe import Recipe
from merging.roles import Part
from merging.sources import Adapter, Source
from merging.tokens import Words
from merging.vocabulary import Vocabulary

Level = Literal["green", "amber", "red"]

COMMIT = re.compile(r"@([0-9a-f]{7})[0-9a-f]{33}")
OPEN = re.compile(
    r"apache-2\.0|mit|bsd.*|cc0-1\.0|cc-by-\d[\d.]*|isc|zlib|unlicense|wtfpl|0bsd|pddl|ncsa|postgresql"
    r"|ms-pl|afl-3\.0|artistic-2\.0|ecl-2\.0|bsl-1\.0|cdla-permissive.*|openmdw.*"
)
"""Licences that ask for little more than to be named."""
WATCH = (
    (r"(.*-)?nd(-.*)?", "{} lets nobody publish changed versions, and a merge is one."),
    (r"(.*-)?nc(-.*)?", "{} allows no commercial use, of a merge neither."),
    (r"[al]?gpl.*|cc-by-sa.*|[em]pl.*|eupl.*|osl.*", "{} may ask that the merge be under it too."),
    (r".*", "Read the terms of {} before you publish the merge: they may bind it too."),
)
"""What to watch when publishing, by the licence's name; the first that fits."""


@dataclass(frozen=True)
class Note:
    """One thing the user should know: green is fine, amber is to be looked at, red stops."""

    level: Level
    text: str


def shown(names: Iterable[str]) -> dict[str, str]:
    """Names as people read them: without commits, or with seven digits where they differ in them.

    >>> shown([f"org/a@{'0' * 40}", "b"])[f"org/a@{'0' * 40}"]
    'org/a'
    """
    every = list(dict.fromkeys(names))
    bare = [COMMIT.sub("", name) for name in every]
    return {
        name: cut if bare.count(cut) == 1 else COMMIT.sub(r"@\1", name)
        for name, cut in zip(every, bare, strict=True)
    }


def listed(names: Collection[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def about_models(parents: Sequence[Source], steps: Sequence[Step], donor: Source) -> list[Note]:
    """Architecture, size and types; heads that are tied in some; classes that nobody knows."""
    count = len({layer(step.name) for step in steps} - {None})
    millions = sum(step.size for step in steps) / 1e6
    tied = "" if any(head(step.name) for step in steps) else ", embeddings tied"
    found = [Note("green", f"Same architecture and shapes · {configs.kind(donor)}, {count} "
                  f"layer{'s' * (count != 1)}, {millions:,.1f} M parameters, "
                  f"{_common(steps)}{tied}")]  # fmt: skip
    if configs.is_known(donor) is False:
        named = donor.config.get("model_type") or configs.kind(donor)
        found.append(Note(
            "amber", f"The installed transformers has no `{named}`: the merged model may not load "
            "here. Update transformers to chat with it."
        ))  # fmt: skip
    return [*found, *_types(parents, steps), *_untied(parents, steps), *_routers(steps)]


def _types(parents: Sequence[Source], steps: Sequence[Step]) -> list[Note]:
    names = shown(p.name for p in parents)
    by_type: dict[str, list[str]] = {}
    for parent in parents:
        by_type.setdefault(_dtype(parent), []).append(names[parent.name])
    if len(by_type) < 2:
        return []
    each = "; ".join(f"{kind} in {listed(who)}" for kind, who in by_type.items())
    return [Note("amber", f"Weights differ in type: {each}. The merged model is in "
                 f"{_common(steps)}; `out_dtype` sets another.")]  # fmt: skip


def _dtype(source: Source) -> str:
    """The type of most of a model's weights."""
    sizes: dict[torch.dtype, int] = {}
    for info in source.tensors.values():
        if info.dtype.is_floating_point:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
    return _plain(max(sizes, key=lambda d: sizes[d])) if sizes else "no weights"


def _common(steps: Sequence[Step]) -> str:
    kinds = [step.dtype for step in steps if not step.copied] or [torch.float32]
    return _plain(max(set(kinds), key=kinds.count))


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _untied(parents: Sequence[Source], steps: Sequence[Step]) -> list[Note]:
    names, found = shown(p.name for p in parents), []
    for step in steps:
        pairs = list(zip(step.sources, step.reads, strict=True)) if head(step.name) else []
        tied = [names[parents[n].name] for n, read in pairs if not head(read)]
        own = [names[parents[n].name] for n, read in pairs if head(read)]
        if tied:
            found.append(Note(
                "amber", f"{listed(own)} {'have' if len(own) > 1 else 'has'} a `{step.name}`, and "
                f"{listed(tied)} {'tie' if len(tied) > 1 else 'ties'} it to the embeddings: "
                "the merged model keeps them apart."
            ))  # fmt: skip
    return found


def _routers(steps: Sequence[Step]) -> list[Note]:
    found = [s.name for s in steps if ROUTER.search(s.name)]
    if not found:
        return []
    return [
        Note("amber", f"A mixture of experts: its {len(found)} routers (`{found[0]}`, …) are "
             "merged like weights, which often upsets them. Chat with it before you rely on it.")
    ]  # fmt: skip


def about_adapters(parents: Sequence[Source]) -> list[Note]:
    """Adapters that were trained on other weights than those they are put on."""
    names = shown(p.name for p in parents)
    return [
        Note("amber", f"{names[p.name]}: the adapter was trained on {p.quantised}, which is "
             f"quantised. On {p.base.name.partition('@')[0]} it is an approximation.")
        for p in parents
        if isinstance(p, Adapter) and p.quantised
    ]  # fmt: skip


def about_licences(parents: Sequence[Source]) -> list[Note]:
    """The licences as found, with what to watch when publishing; then who may see the merge."""
    names = shown(p.name for p in parents)
    by: dict[str | None, list[str]] = {}
    for parent in parents:
        by.setdefault(parent.license or None, []).append(names[parent.name])
    stated = {licence: who for licence, who in by.items() if licence}
    if len(by) == 1 and stated:
        text = f"Licence of all parents: {next(iter(stated))}"
    else:
        each = "; ".join(f"{licence} ({', '.join(who)})" for licence, who in stated.items())
        text = f"Licences: {each}" if stated else "No parent states a licence"
    watch = list(dict.fromkeys(advice for licence in stated for advice in _watch(licence)))
    if None in by and stated:
        watch.append(f"{listed(by[None])} {'state' if len(by[None]) > 1 else 'states'} none.")
    if None in by:
        watch.append("Ask whoever made them before you publish the merge.")
    found = [Note("amber" if watch else "green", " ".join([f"{text}.", *watch]) if watch else text)]
    closed = [names[p.name] for p in parents if p.gated]
    if closed:
        found.append(Note(
            "amber", f"{listed(closed)} {'are' if len(closed) > 1 else 'is'} not open to all, so "
            "the merge is only for those who have access: it can be pushed, not downloaded."
        ))  # fmt: skip
    return found


def _watch(licence: str) -> Iterator[str]:
    """Advice on a licence, or on each of two: a base's and its adapter's."""
    for name in licence.split(" / "):
        if not OPEN.fullmatch(name.lower()):
            advice = next(text for pattern, text in WATCH if re.fullmatch(pattern, name.lower()))
            yield advice.format(f"`{name}`")


def about_templates(own: Mapping[str, str | None], taken: str | None) -> list[Note]:
    """Whose chat template the merged model has; `own` are the parents', `taken` is whose it is."""
    names = shown(own)
    if taken is None:
        return [Note("amber", "No parent has a chat template: a plain one is used in the chat.")]
    others = [names[n] for n, t in own.items() if t and t.strip() != (own[taken] or "").strip()]
    lacking = [names[n] for n, t in own.items() if not t]
    none = f"{listed(lacking)} {'have' if len(lacking) > 1 else 'has'} none" if lacking else ""
    if others:
        verb = "answer by other templates" if len(others) > 1 else "answers by another template"
        text = f"{listed(others)} {verb} than the merged model, which has {names[taken]}'s"
        return [Note("amber", f"{text}{f'; {none}' if none else ''}. `chat_template` sets it.")]
    if taken != next(iter(own)):
        return [Note("amber", f"The chat template is {names[taken]}'s: {none}.")]
    return [Note("green", f"Same chat template{f' · {none}, and is asked plainly' * bool(none)}")]


def about_tokens(aligned: Vocabulary, tokenizers: Mapping[str, Words], donor: str) -> list[Note]:
    """Tokens that were added to the donor's, or left out."""
    found, names = [], shown(tokenizers)
    for owners in dict.fromkeys(aligned.added.values()):
        theirs = [token for token, who in aligned.added.items() if who == owners]
        few = ", ".join(f"`{token}`" for token in theirs[:3])
        more = f" and {len(theirs) - 3} more" if len(theirs) > 3 else ""
        many = "tokens" if len(theirs) > 1 else "token"
        who = listed([names[owner] for owner in owners])
        found.append(Note(
            "amber",
            f"{who} {'have' if len(owners) > 1 else 'has'} {len(theirs)} {many} "
            f"that {names[donor]} lacks: {few}{more}. The merged model has {aligned.size:,} rows.",
        ))  # fmt: skip
    dropped = set().union(*(t.numbers for t in tokenizers.values()))
    dropped -= aligned.words.numbers.keys()
    if dropped:
        found.append(Note(
            "amber", f"{len(dropped)} tokens that {names[donor]} lacks are left out, as "
            "`tokenizer_source` says."
        ))  # fmt: skip
    return found or [Note("green", f"Same tokens, paired by name · {aligned.size:,} rows")]


def about_recipe(recipe: Recipe, chosen: Settings, parts: Sequence[Part]) -> list[Note]:
    """What the recipe says and this method has no use for."""
    title = chosen.method.title
    if recipe.variant != "mergekit":
        title += f" ({recipe.variant})"
    found = [Note("amber", f"{title} does not use `{key}`.") for key in chosen.unused]
    used = {m.model for part in parts for m in part.inputs}
    for base in dict.fromkeys(recipe.names()):
        if base not in used:
            first = " A is t = 0." if chosen.method.base == "first" else ""
            found.append(Note("amber", f"{title} uses no base: {base} is left out.{first}"))
    if recipe.name:
        found.append(Note("green", f"`name: {recipe.name}` is a label and changes nothing."))
    return found
