"""What a merge is to be, as a frozen value read from and written to mergekit's YAML.

It knows the grammar only: no files, no tensors, and not which methods or models exist.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from merging.errors import MergeError

ENGINE = "1"
"""Part of every identity: raised when the same recipe would give other bytes."""

KEYS = (
    "merge_method", "base_model", "models", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "chat_template", "random_seed", "variant", "name",
)  # fmt: skip
LATER = {
    "slices": "list whole models under `models:` instead",
    "modules": "merge the language model alone, under `models:`",
    "tokenizer": "use `tokenizer_source: union`, `base` or a model's name",
}
DTYPES = ("bfloat16", "float16", "float32", "float64")
VARIANTS = ("mergekit",)
WORDS = {
    "lam": "lambda", "scaling_coefficient": "lambda", "scaling_factor": "lambda",
    "merge_ratio": "t", "ratio": "t", "alpha": "t", "method": "merge_method", "base": "base_model",
    "tokenizer": "tokenizer_source", "seed": "random_seed", "torch_dtype": "dtype",
    "k": "density", "drop_rate": "density", "weights": "weight", "densities": "density",
}  # fmt: skip
"""What other tools call these keys, where spelling alone would not find the right one."""
MAX_BYTES, MAX_DEPTH, MAX_ALIASES = 65_536, 20, 20

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
    """One entry of `models`: a model as written, and its own parameters."""

    model: str
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A merge as written. Immutable; `from_yaml(to_yaml())` gives an equal recipe."""

    merge_method: str
    models: tuple[Input, ...]
    base_model: str | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
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
        raw = _load(text)
        for key, instead in LATER.items():
            if key in raw:
                raise MergeError(f"`{key}` is not supported here: {instead}.")
        known_or_raise(raw, KEYS, "a recipe's keys")
        if not isinstance(raw.get("merge_method"), str):
            raise MergeError("The recipe has no `merge_method`: add `merge_method: ties`, say.")
        models = raw.get("models")
        if not isinstance(models, list) or not models:
            raise MergeError("The recipe has no `models`: list two or three, each as `- model: …`.")
        return cls(
            merge_method=raw["merge_method"].strip().lower(),
            models=tuple(_input(entry) for entry in models),
            base_model=_model(raw["base_model"], "base_model") if raw.get("base_model") else None,
            parameters=_parameters(raw.get("parameters"), "parameters"),
            dtype=_one_of(raw, "dtype", DTYPES),
            out_dtype=_one_of(raw, "out_dtype", DTYPES),
            tokenizer_source=_text(raw, "tokenizer_source"),
            chat_template=_text(raw, "chat_template"),
            random_seed=_seed(raw.get("random_seed", 0)),
            variant=_one_of(raw, "variant", VARIANTS) or "mergekit",
            name=_text(raw, "name"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe in mergekit's own order, without what is at its default."""
        models = [
            {"model": m.model, **({"parameters": dict(m.parameters)} if m.parameters else {})}
            for m in self.models
        ]
        out: dict[str, Any] = {"name": self.name, "merge_method": self.merge_method}
        out |= {"base_model": self.base_model, "models": models}
        out |= {"parameters": dict(self.parameters) or None}
        out |= {key: getattr(self, key) for key in ("dtype", "out_dtype", "tokenizer_source")}
        out |= {"chat_template": self.chat_template, "random_seed": self.random_seed or None}
        out |= {"variant": None if self.variant == "mergekit" else self.variant}
        return {key: value for key, value in out.items() if value is not None}

    def to_yaml(self) -> str:
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        return text

    def names(self) -> tuple[str, ...]:
        """Every model as written, once each, in order; a base that is not listed comes last."""
        written = [m.model for m in self.models] + ([self.base_model] if self.base_model else [])
        return tuple(dict.fromkeys(written))

    def renamed(self, names: Mapping[str, str]) -> "Recipe":
        """The same recipe with models under other names, as `id@commit` for `id`."""
        source = self.tokenizer_source
        return replace(
            self,
            models=tuple(replace(m, model=names.get(m.model, m.model)) for m in self.models),
            base_model=names.get(self.base_model, self.base_model) if self.base_model else None,
            tokenizer_source=names.get(source, source) if source else None,
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


def _input(entry: object) -> Input:
    if isinstance(entry, str):
        return Input(_model(entry, "models"))
    if not isinstance(entry, dict) or "model" not in entry:
        raise MergeError("Each entry of `models` is `- model: org/name`, then its `parameters:`.")
    for key in entry:
        if key not in ("model", "parameters"):
            raise MergeError(
                f"`{key}` stands beside `model: {entry['model']}`, where it has no effect: "
                f"move it under that model's `parameters:`."
            )
    parameters = _parameters(entry.get("parameters"), f"parameters of {entry['model']}")
    return Input(_model(entry["model"], "model"), parameters)


def _model(value: object, key: str) -> str:
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        value = value["path"]
    if not isinstance(value, str) or len(value) > 512:
        raise MergeError(f"`{key}` must be a model's name, such as `org/name` or a folder.")
    return str(ModelRef.parse(value))


def _parameters(value: object, where: str) -> dict[str, Value]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MergeError(f"The {where} must be `name: value` lines, not {type(value).__name__}.")
    for key, content in value.items():
        if content is None or isinstance(content, dict):
            raise MergeError(
                f"`{key}` in the {where} must be a number, a list over the layers, "
                "or a list of `filter` and `value`."
            )
    return {str(key): content for key, content in value.items()}


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
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise MergeError(f"`random_seed: {value}` must be a whole number from 0.")


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    keys = [loader.construct_object(key, deep=True) for key in own]
    twice = [key for key in keys if isinstance(key, str) and keys.count(key) > 1]
    if twice:
        raise MergeError(f"`{twice[0]}` is written twice in the recipe: keep one of them.")
    found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _load(text: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise MergeError("The recipe must be text in mergekit's YAML: start from a preset.")
    if len(text.encode()) > MAX_BYTES:
        raise MergeError(f"The recipe is larger than {MAX_BYTES // 1024} KB: that is no recipe.")
    try:
        _refuse_bombs(text)
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = re.sub(r"\s+", " ", str(getattr(error, "problem", None) or "syntax error"))
        raise MergeError(f"The recipe is not valid YAML{where}: {problem}.") from error
    except ValueError as error:  # a month 13, or a number of ten thousand digits
        raise MergeError(f"The recipe holds what YAML cannot read ({error}).") from error
    if not isinstance(raw, dict):
        raise MergeError("The recipe is not a list of `key: value` lines: start from a preset.")
    return {str(key): value for key, value in raw.items()}


def _refuse_bombs(text: str) -> None:
    """Count aliases and depth before anything is built out of them."""
    aliases = depth = 0
    for event in yaml.parse(text, _Loader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if aliases > MAX_ALIASES:
            raise MergeError(f"The recipe has over {MAX_ALIASES} YAML aliases: write values out.")
        if depth > MAX_DEPTH:
            raise MergeError(f"The recipe is nested over {MAX_DEPTH} deep: that is no recipe.")
