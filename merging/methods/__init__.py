"""Merge methods: a file in this folder that uses `@method` is one. Nothing else lists them."""

import importlib
import pkgutil

from merging.methods._method import Method, Number, Parameter, Switch, registered

__all__ = ["Method", "Number", "Parameter", "Switch", "methods", "variants"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    if not _module.name.rpartition(".")[2].startswith("_"):
        importlib.import_module(_module.name)


def methods() -> dict[str, Method]:
    """Every method by its name in a recipe's `merge_method`."""
    return dict(sorted(registered.items()))


def variants(name: str) -> dict[str, Method]:
    """The definitions that go by one name in `merge_method`, by `variant`, mergekit's first."""
    return {"mergekit": registered[name]}
