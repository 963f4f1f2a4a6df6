"""Merge methods: a file in this folder that uses `@method` is one. Nothing else lists them."""

import importlib
import pkgutil

from merging.methods._method import STANDARD, Method, Number, Parameter, Switch, registered

__all__ = ["Method", "Number", "Parameter", "Switch", "methods", "variants"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    if not _module.name.rpartition(".")[2].startswith("_"):
        importlib.import_module(_module.name)


def methods() -> dict[str, Method]:
    """Every method by its name in a recipe's `merge_method`, as mergekit defines it."""
    return {name: m for (name, variant), m in sorted(registered.items()) if variant == STANDARD}


def variants(name: str) -> dict[str, Method]:
    """The definitions that go by one name in `merge_method`, by `variant`, mergekit's first."""
    found = [m for (other, _), m in registered.items() if other == name]
    found.sort(key=lambda m: (m.variant != STANDARD, m.variant))
    return {m.variant: m for m in found}
