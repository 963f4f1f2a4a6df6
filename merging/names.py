"""What decoders call their tensors: layers, heads, embeddings, prefixes; no list of architectures.

It knows names as text, and nothing of what stands behind them.
"""

import re
from collections.abc import Iterable

LAYER = re.compile(r"(?:^|(?<=\.))(?:layers|h|blocks|layer|block)\.(\d+)\.|(?<=\.)(\d+)\.")
"""A layer's number: the first number in a name, as in `model.layers.3.mlp` and `h.3.mlp`."""
HEAD = re.compile(r"^(.*\.)?(lm_head|embed_out)\.weight$|^output\.weight$")
"""Output heads, which a tied model leaves out: its embeddings stand in for them."""
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$"
)  # fmt: skip
FIRST = re.compile(r"(^|\.)(w[tp]e|embed(?!_out)\w*|(tok|word)_embeddings\w*)\.(weight|bias)$")
"""What comes before the layers: it belongs to the first slice, what comes after to the last."""
BUFFERS = (
    "rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias", ".attention.masked_bias",
    ".attention.bias",
)  # fmt: skip
"""Old checkpoints carry these, though the model computes them itself."""
ROUTER = re.compile(r"\.(gate|router|shared_expert_gate)\.(weight|bias)$")
"""What sends tokens to the experts of a mixture."""
NORM = re.compile(r"norm|(^|\.)ln(_|\.|$)")
"""What scales and shifts, between the modules."""
MODULES = ("q", "k", "v", "qkv", "o", "out", "gate", "up", "gate_up", "down")
"""The order in which text goes through a layer; what has other names comes after."""
PACKED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale\w*|weight_packed|absmax|quant_map|SCB)$"
    r"|\.quant_state\."
)
"""What quantised checkpoints keep beside or in place of a weight."""


def layer(name: str) -> int | None:
    """The number of the layer that a tensor belongs to, or None.

    >>> layer("model.layers.3.mlp.up_proj.weight"), layer("h.0.ln_1.bias"), layer("lm_head.weight")
    (3, 0, None)
    """
    match = LAYER.search(name)
    return int(match[1] or match[2]) if match else None


def layers(names: Iterable[str]) -> int:
    """How many layers these tensors are of."""
    return 1 + max((n for name in names if (n := layer(name)) is not None), default=-1)


def at_layer(name: str, number: int | None) -> str:
    """The name with another layer's number; unchanged outside the layers.

    >>> at_layer("model.layers.3.mlp.up_proj.weight", 7)
    'model.layers.7.mlp.up_proj.weight'
    """
    match = LAYER.search(name)
    if number is None or match is None:
        return name
    start, stop = match.span(1 if match[1] else 2)
    return f"{name[:start]}{number}{name[stop:]}"


def head(name: str) -> bool:
    """Whether a tensor is an output head."""
    return bool(HEAD.search(name))


def before_layers(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, as embeddings do."""
    return bool(FIRST.search(name))


def modules(names: Iterable[str]) -> dict[str, str]:
    """What each tensor is a part of: the last part of its name, with the one before where one word
    stands for several; `norm` for all that scale, `tokens` for embeddings and head.

    In the order in which text goes through a layer.

    >>> modules(["lm_head.weight", "layers.0.norm.weight", "layers.0.mlp.up_proj.weight"]).values()
    dict_values(['up', 'norm', 'tokens'])
    >>> modules(["h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight"]).values()
    dict_values(['attn.c', 'mlp.c'])
    """
    parts = {name: _parts(name) for name in names}
    owners: dict[str, set[str]] = {}
    for *_, owner, last in parts.values():
        owners.setdefault(last, set()).add(owner)
    found = {
        name: last if len(owners[last]) == 1 else f"{owner}.{last}"
        for name, (*_, owner, last) in parts.items()
    }
    return dict(sorted(found.items(), key=lambda pair: _rank(pair[1])))


def _parts(name: str) -> list[str]:
    if head(name) or before_layers(name):
        return ["", "tokens"]
    bare = re.sub(r"\.(weight|bias)$", "", name)
    if NORM.search(bare):
        return ["", "norm"]
    return ["", *(part for part in bare.removesuffix("_proj").split(".") if not part.isdigit())]


def _rank(module: str) -> tuple[int, str]:
    order = [*MODULES, "", "norm", "tokens"]
    last = module.rpartition(".")[2]
    return order.index(last if last in order else ""), module


def place(name: str) -> str:
    """The column of a map in which a tensor stands: its layer, or `in` before and `out` after all.

    >>> place("model.embed_tokens.weight"), place("model.layers.3.mlp.up_proj.weight")
    ('in', '3')
    """
    number = layer(name)
    if number is not None:
        return str(number)
    return "in" if before_layers(name) else "out"


def prefix(names: Iterable[str]) -> str:
    """What the model's own tensors begin with: some are saved without.

    >>> prefix(["lm_head.weight", "model.layers.0.mlp.up_proj.weight"]), prefix(["h.0.ln_1.bias"])
    ('model.', '')
    """
    for name in names:
        if (match := LAYER.search(name)) and match[1]:
            return name[: match.start()]
    return ""
