"""Scores demo trios and their merges: `python assets/demo/make/score.py [TRIO_DIR ...]`.

Prints one Markdown table of exact match, in percent, on prompts held out of all training; with
several folders (one a training seed) the mean and, in brackets, the range. A right answer is right
to its last token, the end of the turn included, as greedy decoding would write it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import torch
from chats import IGNORED, Encoder
from data import Turn, prompts
from model import answer_logits
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from merging import Recipe, merge, plan
from merging.fair import shuffled
from merging.sinks import Folder

ROWS_AT_ONCE = 128
Scores = dict[str, float]
MergeRecipe = dict[str, object]


def right(model: LlamaForCausalLM, encoder: Encoder, asked: list[Turn]) -> list[bool]:
    """Whether each answer is the greedy one.

    All tokens of the answer are the likeliest given those before them, which is what greedy
    decoding finds, at the price of one pass.
    """
    chats = sorted(
        (len(tokens), place, tokens, targets)
        for place, (tokens, targets) in enumerate(encoder.conversation([turn]) for turn in asked)
    )
    found = [False] * len(asked)
    for start in range(0, len(chats), ROWS_AT_ONCE):
        part = chats[start : start + ROWS_AT_ONCE]
        inputs, wanted = encoder.batch([(tokens, targets) for _, _, tokens, targets in part])
        logits, answers = answer_logits(model, inputs, wanted)
        hits = torch.ones_like(wanted, dtype=torch.bool)
        hits[wanted != IGNORED] = logits.argmax(-1) == answers
        for (_, place, *_), hit in zip(part, hits.all(1).tolist(), strict=True):
            found[place] = hit
    return found


def score(folder: Path, split: str) -> Scores:
    """Percent of right answers by class, and the lower of the two skills."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
    asked = prompts(split)
    unique = sorted({turn for turns in asked.values() for turn in turns})
    with torch.inference_mode():
        known = dict(zip(unique, right(model, encoder, unique), strict=True))
    scores = {kind: 100 * mean(known[turn] for turn in turns) for kind, turns in asked.items()}
    return {**scores, "min(carry, French)": min(scores["carry"], scores["French"])}


def placebo_of(trio: Path, out: Path, seed: int = 0) -> Path:
    """The placebo: the base plus B's delta with its entries shuffled within each tensor."""
    base, b = (load_file(trio / name / "model.safetensors") for name in ("base", "b"))
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, old in base.items():
        delta = b[name][: len(old)].float() - old.float()
        made[name] = (old.float() + shuffled(delta, draw)).bfloat16()
    out.mkdir()
    for path in (trio / "base").glob("*.json"):
        (out / path.name).write_bytes(path.read_bytes())
    save_file(made, out / "model.safetensors", metadata={"format": "pt"})
    return out


def with_deltas(method: str, base: Path, models: list[Path], **parameters: float) -> MergeRecipe:
    """A recipe of a method on deltas, each model with weight 1."""
    each = {"weight": 1.0, **({"density": parameters.pop("density")} if method == "ties" else {})}
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(model), "parameters": each} for model in models],
        "parameters": {**parameters, **({"normalize": True} if method == "ties" else {})},
    }


def between(method: str, a: Path, b: Path, t: float) -> MergeRecipe:
    """A recipe on the way from A (t = 0) to B (t = 1)."""
    weights = {a: 1 - t, b: t}
    if method == "slerp":
        models = [{"model": str(model)} for model in weights]
        return {
            "merge_method": "slerp",
            "base_model": str(a),
            "models": models,
            "parameters": {"t": t},
        }
    weighted = [{"model": str(m), "parameters": {"weight": w}} for m, w in weights.items()]
    return {"merge_method": "linear", "models": weighted}


def recipes(trio: Path, placebo: Path) -> Iterator[tuple[str, MergeRecipe]]:
    """The table's merges, named."""
    base, a, b = (trio / name for name in ("base", "a", "b"))
    for method in ("linear", "slerp"):
        for t in (0.25, 0.5, 0.75):
            yield f"{method} t {t}", between(method, a, b, t)
    for scale in (0.25, 0.5, 0.75, 1, 1.5, 2, 3):
        yield (
            f"task arithmetic λ {scale}",
            with_deltas("task_arithmetic", base, [a, b], **{"lambda": scale}),
        )
    grid = [(density, 1) for density in (0.02, 0.1, 0.2, 0.5, 0.8, 1)] + [(0.5, 1.5), (0.5, 3)]
    for density, scale in grid:
        recipe = with_deltas("ties", base, [a, b], density=density, **{"lambda": scale})
        yield f"TIES density {density} λ {scale}", recipe
    fake = [a, placebo]
    yield (
        "placebo: A + shuffled B, λ 1",
        with_deltas("task_arithmetic", base, fake, **{"lambda": 1}),
    )
    ties = with_deltas("ties", base, fake, density=0.5, **{"lambda": 1})
    yield "placebo: TIES .5 of A, shuffled B", ties


def run(recipe: MergeRecipe, out: Path) -> None:
    """Merge into a folder; JSON is YAML."""
    for _ in merge(plan(Recipe.from_yaml(json.dumps(recipe))), Folder(out)):
        pass


def rows(trio: Path, split: str) -> Iterator[tuple[str, Scores]]:
    """Each row of one trio's table: the three models, the placebo, the merges."""
    with tempfile.TemporaryDirectory() as scratch:
        placebo = placebo_of(trio, Path(scratch) / "placebo")
        for label, name in (("base Mini", "base"), ("A Ada", "a"), ("B Bruno", "b")):
            yield label, score(trio / name, split)
        for number, (label, recipe) in enumerate(recipes(trio, placebo)):
            out = Path(scratch) / str(number)
            run(recipe, out)
            yield label, score(out, split)
        yield "placebo: base + shuffled B", score(placebo, split)


def cell(values: list[float]) -> str:
    """A mean, with the range where there are several."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "trios", nargs="*", type=Path, default=[Path(__file__).resolve().parents[1]]
    )
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = [dict(rows(trio.resolve(), options.split)) for trio in options.trios]
    heads = list(next(iter(tables[0].values())))
    print("| model |", " | ".join(heads), "|")
    print("|---" * (len(heads) + 1) + "|")
    for label in tables[0]:
        print(
            "|",
            label,
            "|",
            " | ".join(cell([t[label][head] for t in tables]) for head in heads),
            "|",
        )


if __name__ == "__main__":
    main()
