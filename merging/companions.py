"""The files beside a merged model's weights: config, tokenizer, generation config, recipe, card.

It writes small text files into a folder that somebody else made; it knows no tensors.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging import tokens
from merging.card import card
from merging.inside import Figures
from merging.sources import Source

if TYPE_CHECKING:
    from merging.plan import Plan

FAST = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SLOW = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
"""Tokenizer files that are copied only while no token was added: they could not hold it."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")


def write_companions(plan: "Plan", folder: Path, figures: Figures | None = None) -> None:
    """Write everything that transformers loads beside the weights, the recipe, and a card, which
    tells the whole model's `figures` if there are any."""
    _dump(folder / "config.json", plan.config)
    _write_tokenizer(plan, folder)
    if generation := _generation(plan):
        _dump(folder / "generation_config.json", generation)
    recipe = plan.recipe.to_yaml()
    (folder / "mergekit_config.yml").write_text(recipe, encoding="utf-8")
    (folder / "README.md").write_text(card(plan, recipe, figures), encoding="utf-8")


def _write_tokenizer(plan: "Plan", folder: Path) -> None:
    aligned = plan.vocabulary
    names = {s.name: s for s in (plan.donor, *plan.sources)}
    donor = names.get(aligned.donor, plan.donor) if aligned else plan.donor
    _copy(donor.tokenizer, FAST if aligned and aligned.added else FAST + SLOW, folder)
    if aligned:
        (folder / "tokenizer.json").write_text(aligned.tokenizer, encoding="utf-8")
    if plan.template:
        (folder / "chat_template.jinja").write_text(plan.template, encoding="utf-8")
        config = _load(folder / "tokenizer_config.json")
        _dump(folder / "tokenizer_config.json", config | {"chat_template": plan.template})


def _copy(source: Path, files: Sequence[str], folder: Path) -> None:
    for file in files:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)


def copy_companions(source: Source, folder: Path) -> None:
    """Write what transformers loads beside one parent's weights, as the parent has it."""
    _dump(folder / "config.json", dict(source.config))
    _copy(source.tokenizer, FAST + SLOW + TEMPLATES, folder)
    _copy(source.folder, ("generation_config.json",), folder)


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
        own = tokens.load(parent.tokenizer, parent.name) if merged and ends else None
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


def _load(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
