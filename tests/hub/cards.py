"""What the test Hub tells of a model: front matter, tags, lineage, parameters; reads its files."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from .repos import Stored, Tree, sibling

INDEX = "model.safetensors.index.json"
CONFIG = ("architectures", "model_type", "quantization_config")
TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
ONLY_EXPANDED = ("baseModels", "downloadsAllTime", "trendingScore")
"""What is told only to those who ask for it by `expand`."""
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
)


def info(repo: Stored, sha: str, tree: Tree, blobs: bool = False) -> dict[str, Any]:
    """All that is told of a commit; what does not apply is left out."""
    card, config = front_matter(tree), config_of(tree)
    task, library = card.get("pipeline_tag") or task_of(config), library_of(card, config, tree)
    told = {
        "_id": sha[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "sha": sha,
        "createdAt": next(iter(repo.dates.values())),
        "lastModified": repo.dates[sha],
        "private": repo.private,
        "gated": "manual" if repo.gated is True else repo.gated,
        "disabled": False,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads,
        "trendingScore": repo.downloads,
        "likes": 0,
        "pipeline_tag": task,
        "library_name": library,
        "tags": [tag for tag in (library, task) if tag] + tags(card, config, tree),
        "cardData": card,
        "config": config or None,
        "baseModels": lineage(card, config, tree),
        "safetensors": parameters(tree),
        "spaces": [],
        "usedStorage": sum(it.size for it in tree.values()),
        "siblings": [sibling(path, it, blobs) for path, it in tree.items()],
    }
    return {key: value for key, value in told.items() if value is not None}


def front_matter(tree: Tree) -> dict[str, Any]:
    """The model card's metadata; {} where there is none, or none that is YAML."""
    text = tree["README.md"].file.read_text() if "README.md" in tree else ""
    try:
        card = metadata(text)
    except yaml.YAMLError:
        return {}
    # Dates and the like, which YAML has and JSON has not, are told as text.
    told: dict[str, Any] = json.loads(json.dumps(card, default=str))
    return told


def metadata(text: str) -> dict[str, Any]:
    """A card's front matter; raises yaml.YAMLError where it is not YAML."""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.S)
    data = yaml.safe_load(front[1]) if front else None
    return data if isinstance(data, dict) else {}


def read_json(tree: Tree, path: str) -> dict[str, Any]:
    try:
        data = json.loads(tree[path].file.read_text())
    except UNREADABLE:
        return {}
    return data if isinstance(data, dict) else {}


def config_of(tree: Tree) -> dict[str, Any]:
    """The few settings that the Hub picks from config.json and tokenizer_config.json."""
    config, tokenizer = (read_json(tree, f"{n}.json") for n in ("config", "tokenizer_config"))
    picked = {key: config[key] for key in CONFIG if key in config}
    tokens = {key: tokenizer[key] for key in TOKENS if key in tokenizer}
    return picked | ({"tokenizer_config": tokens} if tokens else {})


def task_of(config: dict[str, Any]) -> str | None:
    kinds = config.get("architectures") or []
    return "text-generation" if any(str(k).endswith("ForCausalLM") for k in kinds) else None


def library_of(card: dict[str, Any], config: dict[str, Any], tree: Tree) -> str | None:
    if "library_name" in card:
        return str(card["library_name"])
    if "adapter_config.json" in tree:
        return "peft"
    return "transformers" if "model_type" in config or "architectures" in config else None


def listed(value: Any) -> list[str]:
    """A value of the card that may be one or many."""
    many = value if isinstance(value, list) else [] if value is None else [value]
    return [str(one) for one in many]


def tags(card: dict[str, Any], config: dict[str, Any], tree: Tree) -> list[str]:
    found = ["safetensors"] if any(p.endswith(".safetensors") for p in tree) else []
    found += listed(config.get("model_type")) + listed(card.get("tags"))
    if derived := lineage(card, config, tree):
        ids = [model["id"] for model in derived["models"]]
        found += [f"base_model:{id}" for id in ids]
        found += [f"base_model:{derived['relation']}:{id}" for id in ids]
    found += [f"license:{name}" for name in listed(card.get("license"))]
    return list(dict.fromkeys(found))


def lineage(card: dict[str, Any], config: dict[str, Any], tree: Tree) -> dict[str, Any] | None:
    """What a model was made of and how, as `baseModels`: the relation is guessed if not given."""
    bases = listed(card.get("base_model"))
    if not bases:
        return None
    guess = "merge" if len(bases) > 1 else "finetune"
    if "quantization_config" in config or any(path.endswith(".gguf") for path in tree):
        guess = "quantized"
    if "adapter_config.json" in tree:
        guess = "adapter"
    relation = card.get("base_model_relation") or guess
    return {"relation": relation, "models": [{"_id": id, "id": id} for id in bases]}


def parameters(tree: Tree) -> dict[str, Any] | None:
    """Counts by dtype from the headers of the model's weights; None where one is unreadable."""
    try:
        names = ["model.safetensors"]
        if INDEX in tree:
            names = sorted(set(read_json(tree, INDEX)["weight_map"].values()))
        counts: Counter[str] = Counter()
        for name in names:
            for key, tensor in header(tree[name].file).items():
                if key != "__metadata__":
                    counts[tensor["dtype"]] += math.prod(tensor["shape"])
    except UNREADABLE:
        return None
    return {"parameters": dict(counts), "total": sum(counts.values())}


def header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; raises one of UNREADABLE."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("The header is longer than the file.")
        told: dict[str, Any] = json.loads(file.read(length))
    return told
