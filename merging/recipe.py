"""What a merge is to be, as a frozen value read from and written to mergekit's YAML.

It knows the grammar only: no files, no tensors, and not which methods or models exist.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from merging import yaml_text
from merging.errors import MergeError

ENGINE = "2"
"""Part of every identity: raised when the same recipe would give other bytes."""

KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "random_seed", "variant", "name",
)  # fmt: skip
REFUSED = {
    "modules": "`modules` merges the parts of a multimodal model, which are no chat models here: "
    "list language models under `models:`."
}
DTYPES = ("bfloat16", "float16", "float32", "float64")
WORDS = {
    "lam": "lambda", "scaling_coefficient": "lambda", "scaling_factor": "lambda",
    "merge_ratio": "t", "ratio": "t", "alpha": "t", "method": "merge_method", "base": "base_model",
    "seed": "random_seed", "torch_dtype": "dtype",
    "k": "density", "drop_rate": "density", "weights": "weight", "densities": "density",
}  # fmt: skip
"""What other tools call these keys, where spelling alone would not find the right one."""
MAX_LAYERS, MAX_MULTIPLE = 10_000, 65_536

Value = float | bool | str | list[Any]
"""A parameter as written: a number, a switch, a gradient over layers, or filters."""


@dataclass(frozen=True)
class ModelRef:
    """`path[@revision][+adapter[@revision]]`: a Hub id or a folder, pinned or not.

    >>> ModelRef.parse("org/name@main").revision
    'main'
    """

    path: str
    revision: str | None = None
    adapter: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        model, _, adapter = text.strip().partition("+")
        path, _, revision = model.partition("@")
        if not path or "+" in adapter or "@" in revision or text.strip().endswith(("@", "+")):
            raise MergeError(
                f"`{text}` is not a model's name: write `org/name`, `org/name@revision`, "
                "`org/name+adapter`, or a folder."
            )
        return cls(path, revision or None, adapter or None)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{revision}" + (f"+{self.adapter}" if self.adapter else "")


@dataclass(frozen=True)
class Input:
    """One entry of `models`, or of a slice's `sources`: a model as written, and its own parameters.

    `layer_range` is [first, last) of the model's layers, None for all of them.
    """

    model: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    layer_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """Layers of the merged model, made of as many layers of each source."""

    sources: tuple[Input, ...]
    parameters: Mapping[str, Value] = field(default_factory=dict)
    base_model: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A merge as written. Immutable; `from_yaml(to_yaml())` gives an equal recipe.

    It has either `models` or `slices`; `stacked` is the one way to read both.
    """

    merge_method: str
    models: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    base_model: str | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
    random_seed: int = 0
    variant: str = "mergekit"
    name: str | None = None

    @classmethod
    def from_yaml(cls, text: str) -> "Recipe":
        """Read mergekit's YAML. Checks structure only: any method and any model name is taken.

        Raises MergeError for what is no recipe, for keys that mergekit does not know, and for
        YAML that is too large, too deep or full of aliases.
        """
        raw = yaml_text.load(text)
        for key in REFUSED.keys() & raw.keys():
            raise MergeError(REFUSED[key])
        known_or_raise(raw, KEYS, "a recipe's keys")
        if not isinstance(raw.get("merge_method"), str):
            raise MergeError("The recipe has no `merge_method`: add `merge_method: ties`, say.")
        source, multiple = _tokenizer(raw)
        return cls(
            merge_method=raw["merge_method"].strip().lower(),
            **_models(raw),
            base_model=_model(raw["base_model"], "base_model") if raw.get("base_model") else None,
            parameters=_parameters(raw.get("parameters"), "parameters"),
            dtype=_one_of(raw, "dtype", DTYPES),
            out_dtype=_one_of(raw, "out_dtype", DTYPES),
            tokenizer_source=source,
            pad_to_multiple_of=multiple,
            chat_template=_text(raw, "chat_template"),
            random_seed=_seed(raw.get("random_seed")),
            variant=_text(raw, "variant") or "mergekit",
            name=_text(raw, "name"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe in mergekit's own order, without what is at its default."""
        source, multiple = self.tokenizer_source, self.pad_to_multiple_of
        padded = {"source": source or "union", "pad_to_multiple_of": multiple}
        out: dict[str, Any] = {"name": self.name, "merge_method": self.merge_method}
        out |= {"base_model": self.base_model, "models": [_written(m) for m in self.models] or None}
        out |= {"slices": [_written_slice(piece) for piece in self.slices] or None}
        out |= {"parameters": dict(self.parameters) or None}
        out |= {"dtype": self.dtype, "out_dtype": self.out_dtype}
        out |= {"tokenizer": padded} if multiple else {"tokenizer_source": source}
        out |= {"chat_template": self.chat_template, "random_seed": self.random_seed or None}
        out |= {"variant": None if self.variant == "mergekit" else self.variant}
        return {key: value for key, value in out.items() if value is not None}

    def to_yaml(self) -> str:
        return yaml_text.dump(self.to_dict())

    def stacked(self) -> tuple[Slice, ...]:
        """The slices, or one over all layers of `models`."""
        return self.slices or (Slice(self.models),)

    def listed(self) -> tuple[str, ...]:
        """The models of `models` or `slices` as written, once each, in order."""
        return tuple(dict.fromkeys(m.model for piece in self.stacked() for m in piece.sources))

    def names(self) -> tuple[str, ...]:
        """Every model as written, once each, in order; bases that are not listed come last."""
        bases = (self.base_model, *(piece.base_model for piece in self.slices))
        return tuple(dict.fromkeys((*self.listed(), *(base for base in bases if base))))

    def renamed(self, names: Mapping[str, str]) -> "Recipe":
        """The same recipe with models under other names, as `id@commit` for `id`."""

        def other(name: str | None) -> str | None:
            return names.get(name, name) if name else None

        def inputs(written: tuple[Input, ...]) -> tuple[Input, ...]:
            return tuple(replace(m, model=names.get(m.model, m.model)) for m in written)

        return replace(
            self,
            models=inputs(self.models),
            slices=tuple(
                replace(p, sources=inputs(p.sources), base_model=other(p.base_model))
                for p in self.slices
            ),
            base_model=other(self.base_model),
            tokenizer_source=other(self.tokenizer_source),
        )

    def seeded(self, seed: int) -> "Recipe":
        """The same recipe with another `random_seed`."""
        return replace(self, random_seed=_seed(seed))

    def identity(self, stamps: Iterable[str]) -> str:
        """16 hex digits: the same for the same recipe over the same parents (their `stamps`)."""
        canonical = self.to_dict()
        canonical.pop("name", None)
        text = json.dumps([ENGINE, canonical, sorted(stamps)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def known_or_raise(given: Iterable[str], known: Collection[str], what: str) -> None:
    """Refuse a key that nobody knows, naming the nearest that somebody does."""
    for key in given:
        if key in known:
            continue
        word = WORDS.get(str(key).lower())
        near = [word] if word in known else difflib.get_close_matches(str(key), known, 1, 0.6)
        hint = f"did you mean `{near[0]}`?" if near else f"{what} are {', '.join(known)}."
        raise MergeError(f"`{key}` is not known here: {hint}")


def _models(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`models` or `slices`, whichever the recipe has."""
    models, slices = raw.get("models"), raw.get("slices")
    if "models" in raw and "slices" in raw:
        raise MergeError("The recipe has both `models` and `slices`: keep one of them.")
    if "slices" in raw:
        if not isinstance(slices, list) or not slices:
            raise MergeError("`slices` must be a list, each entry with its `sources:`.")
        return {"slices": tuple(_slice(entry) for entry in slices)}
    if not isinstance(models, list) or not models:
        raise MergeError("The recipe has no `models`: list two or three, each as `- model: …`.")
    return {"models": tuple(_input(entry, "models", ("model", "parameters")) for entry in models)}


def _slice(entry: object) -> Slice:
    if not isinstance(entry, dict) or not isinstance(entry.get("sources"), list):
        raise MergeError("Each entry of `slices` is `- sources:` and a list of models with layers.")
    known_or_raise(entry, ("sources", "parameters", "base_model"), "a slice's keys")
    known = ("model", "layer_range", "parameters")
    sources = tuple(_input(source, "sources", known) for source in entry["sources"])
    ranges = [source.layer_range for source in sources]
    if not ranges or None in ranges:
        raise MergeError("Each source of a slice needs `layer_range: [first, last]`.")
    if len({stop - start for start, stop in filter(None, ranges)}) > 1:
        shown = " and ".join(str(list(found)) for found in ranges if found)
        raise MergeError(f"A slice's sources have `layer_range` {shown}: make them equally long.")
    base = _model(entry["base_model"], "base_model") if entry.get("base_model") else None
    return Slice(sources, _parameters(entry.get("parameters"), "parameters of a slice"), base)


def _input(entry: object, where: str, known: Collection[str]) -> Input:
    if isinstance(entry, str) and where == "models":
        return Input(_model(entry, "models"))
    if not isinstance(entry, dict) or "model" not in entry:
        raise MergeError(f"Each entry of `{where}` is `- model: org/name`, then its `parameters:`.")
    for key in entry:
        if key == "layer_range" and key not in known:
            raise MergeError("`layer_range` stands under `models`: write the models as `slices`.")
        if key not in known:
            raise MergeError(
                f"`{key}` stands beside `model: {entry['model']}`, where it has no effect: "
                f"move it under that model's `parameters:`."
            )
    model = _model(entry["model"], "model")
    parameters = _parameters(entry.get("parameters"), f"parameters of {model}")
    return Input(model, parameters, _range(entry.get("layer_range")))


def _range(written: object) -> tuple[int, int] | None:
    if written is None:
        return None
    match written:
        case [int(start), int(stop)] if 0 <= start < stop <= MAX_LAYERS:
            return start, stop
    raise MergeError(
        f"`layer_range: {str(written)[:40]}` must be [first, last], last not included, as [0, 8]."
    )


def _written(entry: Input) -> dict[str, Any]:
    out: dict[str, Any] = {"model": entry.model}
    out |= {"layer_range": list(entry.layer_range)} if entry.layer_range else {}
    return out | ({"parameters": dict(entry.parameters)} if entry.parameters else {})


def _written_slice(piece: Slice) -> dict[str, Any]:
    out: dict[str, Any] = {"sources": [_written(source) for source in piece.sources]}
    out |= {"base_model": piece.base_model} if piece.base_model else {}
    return out | ({"parameters": dict(piece.parameters)} if piece.parameters else {})


def _tokenizer(raw: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The source of the vocabulary, and what its size is to be a multiple of."""
    written, source = raw.get("tokenizer"), _text(raw, "tokenizer_source")
    if written is None:
        return source and source.removeprefix("model:"), None
    if source:
        raise MergeError("The recipe has both `tokenizer` and `tokenizer_source`: keep one.")
    if isinstance(written, str):
        raise MergeError(f"`tokenizer: {written[:80]}` has no `source`: write `tokenizer_source`.")
    if not isinstance(written, dict):
        raise MergeError("`tokenizer` must be `source:` and `pad_to_multiple_of:` lines.")
    known_or_raise(written, ("source", "pad_to_multiple_of", "tokens"), "the tokenizer's keys")
    if tokens := written.get("tokens"):
        some = next(iter(tokens)) if isinstance(tokens, dict | list) else tokens
        raise MergeError(
            f"`tokens` gives `{str(some)[:40]}` rows of its own, which is not supported: "
            "remove `tokens`; each token then takes its rows from the models that have it."
        )
    chosen, multiple = written.get("source") or "union", written.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or not 1 <= multiple <= MAX_MULTIPLE):
        raise MergeError(
            f"`pad_to_multiple_of: {str(multiple)[:40]}` must be a whole number such as 64."
        )
    return _model(chosen, "source").removeprefix("model:"), multiple


def _model(value: object, key: str) -> str:
    """A model's name, also where it is written as mergekit's mapping of its parts."""
    if isinstance(value, dict):
        value = _joined(value)
    if not isinstance(value, str) or len(value) > 512:
        raise MergeError(f"`{key}` must be a model's name, such as `org/name` or a folder.")
    return str(ModelRef.parse(value))


def _joined(parts: Mapping[Any, Any]) -> object:
    """`path`, `revision` and `lora`, as one name."""
    if isinstance(parts.get("model"), dict):
        adapter = parts.get("lora") and _joined(parts["lora"])
        return f"{_joined(parts['model'])}+{adapter}" if adapter else _joined(parts["model"])
    path, revision = parts.get("path"), parts.get("revision")
    return f"{path}@{revision}" if path and revision else path


def _parameters(value: object, where: str) -> dict[str, Value]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MergeError(f"The {where} must be `name: value` lines, not {type(value).__name__}.")
    for key, content in value.items():
        if content is None or (isinstance(content, dict) and "value" not in content):
            raise MergeError(
                f"`{key}` in the {where} must be a number, a list over the layers, "
                "or a list of `filter` and `value`."
            )
    return {str(key): _value(content) for key, content in value.items()}


def _value(written: Any) -> Value:
    """A parameter's value: one filter is a list of one, and `5e-1` a number, as in mergekit."""
    plain = _numbers(written)
    return [plain] if isinstance(plain, dict) else plain


def _numbers(written: Any) -> Any:
    if isinstance(written, list):
        return [_numbers(entry) for entry in written]
    if isinstance(written, dict):
        return {k: _numbers(v) if k == "value" else v for k, v in written.items()}
    if isinstance(written, str):
        with suppress(ValueError):
            return float(written)
    return written


def _one_of(raw: Mapping[str, Any], key: str, allowed: Collection[str]) -> str | None:
    value = raw.get(key)
    if value is None or value in allowed:
        return value
    raise MergeError(f"`{key}: {value}` is not one of {', '.join(allowed)}.")


def _text(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is None or isinstance(value, str):
        return value
    raise MergeError(f"`{key}` must be text, not {type(value).__name__}.")


def _seed(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise MergeError(f"`random_seed: {value}` must be a whole number from 0.")
