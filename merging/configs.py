"""What a parent's config.json may say, and the merged model's own.

It checks configs against the tensors in the headers; it builds no model, nor imports transformers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from merging.errors import MergeError
from merging.headers import TensorInfo
from merging.names import EMBEDDING, PACKED, head, layer, layers
from merging.pairing import Step, rows
from merging.sources import Source
from merging.vocabulary import Vocabulary

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of layers."""
WIDTHS = ("hidden_size", "n_embd", "d_model")
"""What they call the width of the embeddings."""
OTHERS = ("word_embed_proj_dim", "embedding_size")
"""Configs with one of these have embeddings of another width than the layers."""
PARTS = (
    "intermediate_size", "n_inner", "ffn_dim", "head_dim", "num_attention_heads", "n_head",
    "num_key_value_heads",
)  # fmt: skip
"""Sizes inside a layer: none is larger than the largest dimension of any tensor."""


def check(source: Source, first: Source) -> None:
    """Refuse what cannot be merged: MergeError for quantised models, other families than `first`'s,
    models that need code of their own, and configs that the headers do not bear out.
    """
    _check_packed(source)
    kinds = [kind(s) for s in (source, first)]
    if kinds[0] != kinds[1]:
        raise MergeError(
            f"{first.name} is a {kinds[1]} and {source.name} a {kinds[0]}: "
            "choose models of one family, best fine-tunes of one base."
        )
    if source.config.get("auto_map") and is_known(source) is False:
        raise MergeError(
            f"{source.name} needs code of its own (`auto_map` in its config.json), which is not "
            "run here: choose a model that transformers itself brings."
        )
    for key, written, there in _contradictions(source):
        raise MergeError(
            f"{source.name}: `{key}` is {str(written)[:40]} in its config.json, and its tensors "
            f"say {there}: the files do not belong together; fetch it again, or choose another."
        )


def kind(source: Source) -> str:
    """The model's class as its config names it. Raises MergeError if it names none."""
    architectures = source.config.get("architectures") or []
    found = architectures[0] if architectures else source.config.get("model_type")
    if not isinstance(found, str):
        raise MergeError(f"{source.name}: its config.json names no architecture: choose another.")
    return found


def is_known(source: Source) -> bool | None:
    """Whether the installed transformers has the model's class; None where none is installed."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    name = source.config.get("model_type")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        return False
    models = Path(spec.submodule_search_locations[0]) / "models"
    folder = models / re.sub(r"[-.]", "_", name)
    return folder.is_dir() or f'("{name}",' in _listing(models / "auto" / "modeling_auto.py")


@cache
def _listing(path: Path) -> str:
    """Transformers' own table of models: some, as gemma3_text, have no folder of their own."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def merged(donor: Source, steps: Sequence[Step], aligned: Vocabulary | None) -> dict[str, Any]:
    """The merged config.json: the donor's, with what follows from the tensors."""
    config = _layered(donor, steps)
    if aligned and "vocab_size" in config:
        config["vocab_size"] = aligned.size
    config["tie_word_embeddings"] = not any(head(step.name) for step in steps)
    kinds = [step.dtype for step in steps if not step.copied]
    common = str(max(set(kinds), key=kinds.count)).removeprefix("torch.") if kinds else "float32"
    for gone in ("torch_dtype", "auto_map"):  # the code that auto_map names is not copied
        config.pop(gone, None)
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


def _check_packed(source: Source) -> None:
    packed = (n for n, i in source.tensors.items() if PACKED.search(n) or _is_packed(n, i))
    sign = next(packed, "quantization_config" if source.config.get("quantization_config") else None)
    if sign:
        raise MergeError(
            f"{source.name} is quantised (`{sign}`), and its deltas would be noise: "
            "choose the model in bf16 or fp16."
        )


def _is_packed(name: str, info: TensorInfo) -> bool:
    return name.endswith(".weight") and not info.dtype.is_floating_point


def _contradictions(source: Source) -> Iterator[tuple[str, Any, Any]]:
    """Keys of the config whose numbers the headers do not bear out, with both numbers."""
    config, tensors = source.config, source.tensors
    there, more = layers(tensors), config.get("num_nextn_predict_layers")
    allowed = {there, there - more} if isinstance(more, int) else {there}
    yield from ((k, v, there) for k, v, n in _numbers(config, COUNTS) if n not in allowed)
    if has := rows(source):
        sizes = _numbers(config, ("vocab_size",))
        yield from ((k, v, has) for k, v, n in sizes if not 0 < n <= has)
    width = next((i.shape[1] for n, i in tensors.items()
                  if EMBEDDING.search(n) and len(i.shape) == 2), None)  # fmt: skip
    if width is not None and not any(config.get(key) for key in OTHERS):
        yield from ((k, v, width) for k, v, n in _numbers(config, WIDTHS) if n != width)
    most = max((d for info in tensors.values() for d in info.shape), default=0)
    parts = _numbers(config, PARTS)
    yield from ((k, v, f"{most} at most") for k, v, n in parts if not 0 <= n <= most)


def _numbers(config: Mapping[str, Any], keys: Sequence[str]) -> Iterator[tuple[str, Any, int]]:
    """What stands under these keys, if anything, and its number: -1 if it is no whole number."""
    for key in keys:
        value = config.get(key)
        if value is not None and not isinstance(value, list | dict):
            whole = isinstance(value, int) and not isinstance(value, bool)
            yield key, value, value if whole else -1
