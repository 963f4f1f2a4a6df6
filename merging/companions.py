"""The files beside a merged model's weights: config, tokenizer, generation config, recipe, card.

It writes small text files into a folder that somebody else made; it knows no tensors.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging import tokens
from merging.sources import Source

if TYPE_CHECKING:
    from merging.plan import Plan

FAST = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SLOW = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
"""Copied only while no token was added: they could not hold it."""


def write_companions(plan: "Plan", folder: Path) -> None:
    """Write everything that transformers loads beside the weights, the recipe, and a card."""
    _dump(folder / "config.json", plan.config)
    _write_tokenizer(plan, folder)
    if generation := _generation(plan):
        _dump(folder / "generation_config.json", generation)
    recipe = plan.recipe.to_yaml()
    (folder / "mergekit_config.yml").write_text(recipe, encoding="utf-8")
    (folder / "README.md").write_text(_card(plan, recipe), encoding="utf-8")


def _write_tokenizer(plan: "Plan", folder: Path) -> None:
    aligned = plan.vocabulary
    names = {s.name: s for s in (plan.donor, *plan.sources)}
    donor = names.get(aligned.donor, plan.donor) if aligned else plan.donor
    for file in FAST if aligned and aligned.added else FAST + SLOW:
        if (donor.folder / file).is_file():
            shutil.copyfile(donor.folder / file, folder / file)
    if aligned:
        (folder / "tokenizer.json").write_text(aligned.tokenizer, encoding="utf-8")
    if plan.template:
        (folder / "chat_template.jinja").write_text(plan.template, encoding="utf-8")
        config = _load(folder / "tokenizer_config.json")
        _dump(folder / "tokenizer_config.json", config | {"chat_template": plan.template})


def _generation(plan: "Plan") -> dict[str, Any]:
    """The donor's generation config, stopping at every parent's end-of-text token."""
    generation = _load(plan.donor.folder / "generation_config.json")
    ends = sorted(dict.fromkeys(_ends(plan)))
    if ends:
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    generation.pop("transformers_version", None)
    return generation


def _ends(plan: "Plan") -> Iterator[int]:
    merged = plan.vocabulary.words.numbers if plan.vocabulary else None
    for parent in {s.name: s for s in (plan.donor, *plan.sources)}.values():
        ends = end_tokens(parent)
        own = tokens.load(parent.folder, parent.name) if merged and ends else None
        if merged is None or own is None:
            yield from ends
            continue
        named = {number: token for token, number in own.numbers.items() if number in ends}
        yield from (merged[named[n]] for n in ends if named.get(n, "") in merged)


def end_tokens(source: Source) -> Sequence[int]:
    """The numbers at which a model stops, in its own vocabulary."""
    written = _load(source.folder / "generation_config.json").get("eos_token_id")
    ends = source.config.get("eos_token_id") if written is None else written
    return [n for n in (ends if isinstance(ends, list) else [ends]) if isinstance(n, int)]


def _card(plan: "Plan", recipe: str) -> str:
    """A model card: parents with revisions and licences, method and recipe. It claims no more."""
    parents = "".join(f"- {s.name}: {_licence(s.license)}\n" for s in plan.sources)
    hub = [n.partition("@")[0] for n in plan.recipe.names() if "@" in n]
    bases = "".join(f"- {name}\n" for name in hub)
    variant = "" if plan.recipe.variant == "mergekit" else f" (variant `{plan.recipe.variant}`)"
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- merge\n"
        + (f"base_model:\n{bases}base_model_relation: merge\n" if hub else "")
        + f"---\n\n# A {plan.method.title} merge\n\nMade of these models by "
        f"[{plan.method.title}]({plan.method.paper}){variant}, each with the licence that its own "
        f"card states:\n\n{parents}\n"
        f"The recipe, in mergekit's YAML:\n\n```yaml\n{recipe}```\n"
    )


def _licence(stated: str | None) -> str:
    return f"licence {stated}" if stated else "no licence found"


def _load(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
