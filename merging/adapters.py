"""What a LoRA adapter does to the tensors of its base: PEFT's arithmetic, a tensor at a time.

It reads adapter_config.json's content, names and shapes; it knows no files and no model classes.
Whatever PEFT's `merge_and_unload` does in a way that is not repeated here is refused by its name.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merging.errors import MergeError
from merging.names import EMBEDDING, head, prefix

Shape = tuple[int, ...]

ROOT = "base_model.model."
"""What PEFT puts before a module's own name."""
HEAD = "lm_head.weight"
"""What an output head is called that a tied base has no tensor for."""
PIECE = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(weight|bias))?"
)
COPY = re.compile(r"\.(original_module|modules_to_save)\.")
"""Copies that are saved beside the values themselves where the vocabulary was resized."""
LINEAR, LOOKUP = {"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""How A and B may have begun; the other ways change the base's weights as well."""
HARMLESS = (
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "load_in_4bit", "load_in_8bit",
    "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "quantization_config", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
)  # fmt: skip
"""Keys of adapter_config.json that are read here, or that only training needs."""
PATTERN = re.compile(r"[\w.^$|\\\[\]-]{1,200}", re.ASCII)
"""Names and simple patterns. Strangers write them: those with repeats could run for hours."""
PATTERNS = 2000
QUANTISED = re.compile(
    r"(?i)(?<![a-z0-9])(bnb|gptq|awq|aqlm|gguf|nf4|fp8|int[48]|w4a16|[248]-?bit)(?![a-z0-9])"
)
INSTEAD = "merge it into its base with PEFT's `merge_and_unload`, and name the result"


@dataclass(frozen=True)
class Low:
    """A change of low rank: the names of its tensors in the adapter's file, and its scale.

    `kind` is linear, conv1d (a linear layer stored the other way round), embedding, or bias, which
    has `b` alone. With a `magnitude` it is DoRA, which scales the changed rows to that length.
    """

    kind: str
    a: str
    b: str
    scale: float
    magnitude: str | None = None

    def on(self, weight: Tensor, read: Callable[[str], Tensor]) -> Tensor:
        """The changed tensor in `weight`'s dtype, from float32; rounded where PEFT rounds."""
        high = torch.promote_types(weight.dtype, torch.float32)
        b = read(self.b).to(high)
        if self.kind == "bias":
            return (b * self.scale).add_(weight).to(weight.dtype)
        turned = self.kind != "linear"
        delta = b @ read(self.a).to(high)
        delta = (delta.T if turned else delta).mul_(self.scale)
        if self.magnitude is None:
            rounded = delta.to(weight.dtype) if self.kind == "embedding" else delta
            return rounded.add_(weight).to(weight.dtype)
        changed = weight + delta  # laid out as the weight is, on which sums along rows depend
        rows = changed.T if turned else changed
        factor = read(self.magnitude).to(high) / torch.linalg.norm(rows, dim=1)
        return changed.mul_(factor if turned else factor.view(-1, 1)).to(weight.dtype)


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor: the base's `start`, or the adapter's `replaced` in its place,
    then what is added, in this order.
    """

    start: str
    shape: Shape
    replaced: str | None = None
    added: tuple[Low, ...] = ()

    def apply(
        self, dtype: torch.dtype, base: Callable[[str], Tensor], own: Callable[[str], Tensor]
    ) -> Tensor:
        """The tensor in `dtype`, contiguous; `base` and `own` read the two files by name."""
        weight = (own(self.replaced) if self.replaced else base(self.start)).to(dtype)
        for low in self.added:
            weight = low.on(weight, own).contiguous()
        return weight


def quantised(config: Mapping[str, Any]) -> str | None:
    """The quantised model on which an adapter was trained, if its config says so."""
    base = str(config.get("base_model_name_or_path") or "its base")
    signs = ("quantization_config", "load_in_4bit", "load_in_8bit")
    said = any(config.get(key) for key in signs)
    return base if said or QUANTISED.search(base) else None


def changes(
    name: str,
    config: Mapping[str, Any],
    own: Mapping[str, Shape],
    base: Mapping[str, Shape],
    *,
    ties: bool = False,
) -> dict[str, Change]:
    """What the adapter `name` makes of its base, by the names of the tensors that change.

    `own` and `base` are the shapes in both files; `ties` is the base's `tie_word_embeddings`.
    A base without a head of its own may get one. Raises MergeError for what PEFT would do in
    another way, and for what does not fit.
    """
    _check_config(name, config)
    lora = _Lora(name, config, own, base)
    named = (*lora.full, *(f"{module}.weight" for module in lora.pieces))
    ends = [n for n in named if EMBEDDING.search(n) or head(n)]
    if ends and lora.tied and config.get("ensure_weight_tying"):
        raise _inexact(name, "ensure_weight_tying")
    if ends and ties and not lora.tied:
        raise MergeError(
            f"{name} changes `{ends[0]}`, and its base ties that and stores it twice: {INSTEAD}."
        )
    found = lora.changes()
    _check_vocabulary(name, found, base)
    return found


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise MergeError(f"{name} is an adapter of type {str(kind)[:40]}, not LoRA: {INSTEAD}.")
    start = config.get("init_lora_weights")
    if start not in STARTS:
        raise _inexact(name, f"init_lora_weights: {str(start)[:40]}")
    for key, value in config.items():
        counts = isinstance(value, int | float) and not isinstance(value, bool)
        if value and not counts and key not in HARMLESS:  # a number alone switches nothing on
            raise _inexact(name, str(key)[:40])


def _inexact(name: str, what: str) -> MergeError:
    return MergeError(f"{name} uses `{what}`, which is not reproduced here: {INSTEAD}.")


def _check_vocabulary(name: str, found: Mapping[str, Change], base: Mapping[str, Shape]) -> None:
    """Embeddings and head may be longer than the base's, both by as much."""
    shapes = {**base, **{tensor: change.shape for tensor, change in found.items()}}
    sizes = {n: s[0] for n, s in shapes.items() if (EMBEDDING.search(n) or head(n)) and s}
    if len(set(sizes.values())) > 1 and any(n in found for n in sizes):
        told = ", ".join(f"`{n}` {size}" for n, size in sizes.items())
        raise MergeError(f"{name}: {told} rows do not fit each other: choose another adapter.")


class _Lora:
    """An adapter's tensors, sorted by what they change."""

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        own: Mapping[str, Shape],
        base: Mapping[str, Shape],
    ) -> None:
        self.name, self.config, self.own, self.base = name, config, own, base
        self.ranks = _Pattern(name, config, "rank_pattern", "r")
        self.alphas = _Pattern(name, config, "alpha_pattern", "lora_alpha")
        self.pieces: dict[str, dict[str, str]] = {}
        self.full: dict[str, str] = {}
        self._sort()
        self.bare = not prefix(base)
        self.embedding = next((n for n in base if EMBEDDING.search(n)), "")
        self.tied = bool(self.embedding) and not any(head(n) for n in base)
        heads = (n for n in (*self.full, *(f"{m}.weight" for m in self.pieces)) if head(n))
        self.head = next(heads, HEAD)
        self.apart = any(map(self._is_copied, (self.embedding, self.head)))

    def _sort(self) -> None:
        """Low-rank pieces by module; whole tensors by the name of what they replace."""
        for key in self.own:
            plain = key.removeprefix(ROOT)
            if match := PIECE.fullmatch(plain):
                module, piece, leaf = match.groups()
                what = f"{piece}.bias" if leaf == "bias" else piece
                self.pieces.setdefault(module, {})[what] = key
            elif not (COPY.search(plain) and COPY.sub(".", key) in self.own):
                self.full[plain] = key
        for plain in self.full:
            module = plain.rpartition(".")[0]
            inside = module.removesuffix(".base_layer") in self.pieces
            if module.endswith(".base_layer") != inside or "lora_" in plain or COPY.search(plain):
                raise MergeError(f"{self.name}: `{plain}` is not known in LoRA: {INSTEAD}.")
        self.full = {n.replace(".base_layer.", "."): key for n, key in self.full.items()}

    def changes(self) -> dict[str, Change]:
        """By the name of what changes. The head's come last, since what is tied gets both."""
        found: dict[str, Change] = {}
        for there, key in sorted(self.full.items(), key=lambda item: head(item[0])):
            start, place = self._where(there)
            found[place] = Change(start, self._replacing(start, key), key)
        for there, low in sorted(self._low(), key=lambda item: head(item[0])):
            start, place = self._where(there)
            found[place] = self._added(found.get(place) or Change(start, self.base[start]), low)
        if self.tied and self.apart and self.head not in found:
            found[self.head] = Change(self.embedding, self.base[self.embedding])
        return found

    def _where(self, there: str) -> tuple[str, str]:
        """The base's tensor that PEFT changes under this name, and which it is in the result.

        Embeddings and a head that is tied to them are one, unless one was copied to be trained.
        """
        if self.tied and head(there):
            return self.embedding, self.head if self.apart else self.embedding
        start = self._find(there)
        return start, start

    def _is_copied(self, there: str) -> bool:
        """Whether PEFT trained a copy of the module, which parts it from what it was tied to."""
        module = there.rpartition(".")[0]
        saved = self.config.get("modules_to_save")
        return isinstance(saved, list) and any(module.endswith(str(end)) for end in saved)

    def _find(self, there: str) -> str:
        """The base's name for a tensor: some bases are saved without the model's own prefix."""
        if ".experts." in there:
            raise _inexact(self.name, "experts")
        for name in (there, there.partition(".")[2] if self.bare else there):
            if name in self.base:
                return name
        raise MergeError(
            f"{self.name} changes `{there}`, which its base lacks: name the base on which it was "
            "trained."
        )

    def _replacing(self, start: str, key: str) -> Shape:
        shape, before = self.own[key], self.base[start]
        resized = EMBEDDING.search(start) or head(start)
        if shape[1:] != before[1:] or (shape != before and not resized):
            raise self._misfit(start, shape, before)
        return shape

    def _misfit(self, there: str, shape: Sequence[int], before: Sequence[int]) -> MergeError:
        said = [" × ".join(map(str, s)) or "a scalar" for s in (shape, before)]
        return MergeError(
            f"{self.name}: `{there}` is {said[0]} in the adapter and {said[1]} in its base: "
            "name the base on which it was trained."
        )

    def _added(self, before: Change, low: Low) -> Change:
        shape = self._shape(low)
        if low.kind == "linear" and len(before.shape) == 2 and self._is_conv1d(before.start):
            low = replace(low, kind="conv1d")
            shape = shape[::-1]
        if shape != before.shape:
            raise self._misfit(before.start, shape, before.shape)
        return replace(before, added=(*before.added, low))

    def _shape(self, low: Low) -> Shape:
        """What the change is the size of."""
        b = self.own[low.b]
        if low.kind == "bias":
            return b
        a = self.own[low.a]
        length = self.own[low.magnitude] if low.magnitude else b[:1]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or length != b[:1]:
            raise MergeError(f"{self.name}: `{low.a}` and `{low.b}` do not fit: fetch it again.")
        return (a[1], b[0]) if low.kind == "embedding" else (b[0], a[1])

    def _is_conv1d(self, start: str) -> bool:
        """Whether the weight is stored inputs first, which its bias tells, or for square ones the
        biases of the others do.
        """
        sides = self._sides(start)
        if sides is None or sides[0] != sides[1]:
            return sides is not None and sides[2] == sides[1]
        others = filter(None, map(self._sides, self.base))
        return any(first != last == bias for first, last, bias in others)

    def _sides(self, weight: str) -> tuple[int, int, int] | None:
        """Both sides of a matrix and the length of its bias, if it has one."""
        shape, bias = self.base[weight], self.base.get(f"{weight.removesuffix('.weight')}.bias")
        return (*shape, bias[0]) if len(shape) == 2 and bias and len(bias) == 1 else None

    def _low(self) -> Iterator[tuple[str, Low]]:
        """The low-rank changes, with the tensor that each is for."""
        for module, pieces in self.pieces.items():
            lookup = bool(LOOKUP & pieces.keys())
            self._check_pieces(module, pieces, lookup)
            a, b = sorted(LOOKUP if lookup else LINEAR)
            rank, there = self.ranks.of(module), self.own[pieces[a]][:1]
            if there != (rank,):
                raise MergeError(
                    f"{self.name}: `{module}` has rank {there[0] if there else 0} in its file and "
                    f"{rank} in its adapter_config.json: fetch it again."
                )
            alpha = self.alphas.of(module)
            scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
            kind = "embedding" if lookup else "linear"
            magnitude = pieces.get("lora_magnitude_vector")
            yield f"{module}.weight", Low(kind, pieces[a], pieces[b], scale, magnitude)
            if bias := pieces.get("lora_B.bias"):
                yield f"{module}.bias", Low("bias", "", bias, scale)

    def _check_pieces(self, module: str, pieces: Mapping[str, str], lookup: bool) -> None:
        wanted = set(LOOKUP if lookup else LINEAR)
        wanted |= {"lora_magnitude_vector"} if self.config.get("use_dora") else set()
        wanted |= {"lora_B.bias"} if self.config.get("lora_bias") and not lookup else set()
        if odd := sorted(wanted ^ pieces.keys()):
            verb = "lacks" if odd[0] in wanted else "has"
            raise MergeError(
                f"{self.name}: `{module}` {verb} {odd[0]}, against its adapter_config.json: "
                "fetch it again, or choose another adapter."
            )
        targets = self.config.get("target_modules")
        if isinstance(targets, list) and not any(f".{module}".endswith(f".{t}") for t in targets):
            raise MergeError(
                f"{self.name}: `{module}` is none of its `target_modules`, so that PEFT leaves it "
                "out: fetch it again, or choose another adapter."
            )


class _Pattern:
    """A number by module: by the first pattern that fits its name's end, as in PEFT."""

    def __init__(self, name: str, config: Mapping[str, Any], key: str, default: str) -> None:
        written = config.get(key) or {}
        numbers = [*(written.values() if isinstance(written, dict) else [""]), config.get(default)]
        if not all(map(_is_number, numbers)):
            raise MergeError(f"{name}: its `{default}` or `{key}` is no number: fetch it again.")
        if len(written) > PATTERNS or not all(PATTERN.fullmatch(p) for p in written):
            raise _inexact(name, f"{key} with repeats")
        self.default: float = config[default]
        try:
            self.patterns = [(re.compile(rf"(.*\.)?({p})$"), n) for p, n in written.items()]
        except re.error as error:
            raise MergeError(f"{name}: `{key}` holds no pattern ({error}): {INSTEAD}.") from error

    def of(self, module: str) -> float:
        return next((n for pattern, n in self.patterns if pattern.match(module)), self.default)


def _is_number(value: object) -> bool:
    """Whether it can be a rank or an alpha: 0 is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < abs(value) < 1e9
