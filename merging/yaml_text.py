"""Recipes as text: YAML in and out, safely. It knows plain data, and not what a recipe means."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from merging.errors import MergeError

MAX_BYTES, MAX_DEPTH, MAX_ALIASES = 65_536, 20, 20
FENCE = re.compile(r"^```\w*\n(.*?)\n```\s*\Z", re.DOTALL | re.MULTILINE)
"""The fence around a recipe that was copied out of a model card."""


class _Dumper(yaml.SafeDumper):
    """Lists of plain numbers on one line, as people write layer ranges and gradients."""


def _sequence(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    short = all(isinstance(item, int | float) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


_Dumper.add_representer(list, _sequence)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]  # noqa: ARG005


def dump(content: Mapping[str, Any]) -> str:
    """The text of a recipe, in the order of its keys."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


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


def load(text: str) -> dict[str, Any]:
    """The keys and values of a recipe's text.

    Raises MergeError for what is too large, too deep or full of aliases, and for what is no YAML.
    """
    if not isinstance(text, str):
        raise MergeError("The recipe must be text in mergekit's YAML: start from a preset.")
    if len(text.encode()) > MAX_BYTES:
        raise MergeError(f"The recipe is larger than {MAX_BYTES // 1024} KB: that is no recipe.")
    try:
        text = FENCE.sub(r"\1", text)
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
