"""The form: pickers and controls drawn from the methods' declarations, to a recipe and back.

The recipe is the truth. What the form cannot show (gradients, filters, dtypes) stays in the recipe,
its control switched off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from merging.methods import Method, Number, Parameter, methods, variants
from merging.recipe import Input, Recipe
from merging.ui import look
from merging.ui.presets import offered

PARENTS = ("a", "b", "c")
Key = tuple[str, str, str]
"""Method, parameter, and the model's slot, or "" for one value for all."""


@dataclass(frozen=True)
class Form:
    """The components that say what to merge and how."""

    pickers: Mapping[str, gr.Dropdown]
    method: gr.Radio
    about: gr.HTML
    groups: Mapping[str, gr.Column]
    variants: Mapping[str, gr.Radio]
    controls: Mapping[Key, gr.Slider | gr.Checkbox]

    def inputs(self) -> set[Any]:
        chosen = {*self.pickers.values(), self.method, *self.variants.values()}
        return {*chosen, *self.controls.values()}

    def variant(self, method: str, values: Mapping[Any, Any]) -> str:
        """Which definition of the method is chosen."""
        radio = self.variants.get(method)
        return values[radio] if radio else "mergekit"

    def outputs(self) -> set[Any]:
        return {*self.inputs(), *self.groups.values(), self.about}


def listed() -> list[tuple[str, str]]:
    """What the pickers list while nobody types: labels and models."""
    return [(look.named(name), name) for name in offered()]


def pickers() -> dict[str, gr.Dropdown]:
    labels = {"base": "○ Base", "a": "◆ Model A", "b": "● Model B", "c": "▲ Model C (optional)"}
    names, found = listed(), {}
    for row in (("base", "a"), ("b", "c")):
        with gr.Row():
            for slot in row:
                found[slot] = gr.Dropdown(
                    names, label=labels[slot], allow_custom_value=True, min_width=140,
                    elem_id=f"pick-{slot}", elem_classes=["picker", slot],
                )  # fmt: skip
    return found


def method_controls(chosen: Mapping[str, gr.Dropdown]) -> Form:
    known = methods()
    names = sorted(known, key=lambda name: (name not in ("ties", "slerp"), name != "ties", name))
    radio = gr.Radio(
        [(known[name].title, name) for name in names],
        value=names[0], show_label=False, label="Merge method", container=False, elem_id="method",
    )  # fmt: skip
    about = gr.HTML(elem_id="about-method")
    groups: dict[str, gr.Column] = {}
    controls: dict[Key, gr.Slider | gr.Checkbox] = {}
    radios: dict[str, gr.Radio] = {}
    for method in known.values():
        visible = method.name == names[0]
        with gr.Column(visible=visible, elem_classes=["controls"], min_width=0) as group:
            for parameter in method.parameters:
                controls |= _parameter(method, parameter)
            if len(variants(method.name)) > 1:
                radios[method.name] = gr.Radio(
                    list(variants(method.name)), value="mergekit", label="variant",
                    info="whose definition it follows", elem_id=f"{method.name}-variant",
                    elem_classes=["variant"],
                )  # fmt: skip
        groups[method.name] = group
    return Form(chosen, radio, about, groups, radios, controls)


def _parameter(method: Method, parameter: Parameter) -> dict[Key, gr.Slider | gr.Checkbox]:
    slots = PARENTS if parameter.per_model else ("",)
    if parameter.per_model:
        gr.HTML(look.hint(f"{parameter.name}: {parameter.control.help}"))
    with gr.Row(elem_classes=["parameter"]):
        return {
            (method.name, parameter.name, slot): _control(method, parameter, slot) for slot in slots
        }


def _control(method: Method, parameter: Parameter, slot: str) -> gr.Slider | gr.Checkbox:
    control, key = parameter.control, (method.name, parameter.name, slot)
    label, id = _label(key), "-".join(part for part in key if part)
    if not isinstance(control, Number):
        return gr.Checkbox(control.default, label=label, info=control.help, elem_id=id, min_width=0)
    return gr.Slider(
        control.low, control.high, control.start, step=0.01, label=label, elem_id=id,
        info=None if slot else control.help,
        elem_classes=["number", slot or "all"], min_width=110, visible=slot != "c",
    )  # fmt: skip


def _label(key: Key) -> str:
    _, name, slot = key
    return f"{look.MARKS[slot]} {name} {slot.upper()}" if slot else name


def to_recipe(form: Form, values: Mapping[Any, Any], current: str) -> Recipe:
    """What the form says, over what the `current` text says beyond it."""
    old = Recipe.from_yaml(current)
    variant = form.variant(values[form.method], values)
    method = variants(values[form.method])[variant]
    same = old.merge_method == method.name
    picked = {slot: (values[p] or "").strip() for slot, p in form.pickers.items()}
    slots = [slot for slot in PARENTS if picked[slot]]
    if old.slices:
        return replace(_sliced(old, method, picked), variant=variant)
    written = {m.model: m.parameters for m in old.models} if same else {}
    models, common = [], {}
    for slot in slots:
        own = written.get(picked[slot], {})
        models.append(Input(picked[slot], {
            p.name: own[p.name] if isinstance(own.get(p.name), list)
            else values[form.controls[method.name, p.name, slot]]
            for p in method.parameters
            if p.per_model and not isinstance(old.parameters.get(p.name), list)
        }))  # fmt: skip
    for p in method.parameters:
        kept = old.parameters.get(p.name) if same else None
        if isinstance(kept, list):
            common[p.name] = kept
        elif not p.per_model:
            common[p.name] = values[form.controls[method.name, p.name, ""]]
    base = {"required": picked["base"], "first": picked["a"], "unused": ""}[method.base]
    return replace(
        old, merge_method=method.name, models=tuple(models), base_model=base or None,
        parameters=common, variant=variant,
    )  # fmt: skip


def _sliced(old: Recipe, method: Method, picked: Mapping[str, str]) -> Recipe:
    """Slices stay as they are written, with the models that were picked in place of theirs."""
    shown = pickers_of(old)
    names = {name: picked[slot] for slot, name in shown.items() if name and picked[slot]}
    found = replace(old.renamed(names), merge_method=method.name)
    base = picked["base"] if method.base == "required" else ""
    return replace(found, base_model=found.base_model or base or None)


def pickers_of(recipe: Recipe) -> dict[str, str | None]:
    """Which model each picker shows."""
    method = methods().get(recipe.merge_method)
    names = list(recipe.listed())
    listed = method.base if method and recipe.base_model in names else None
    if listed == "first":
        names.sort(key=lambda name: name != recipe.base_model)
    elif listed == "required":  # elsewhere it is merged like the others
        names = [name for name in names if name != recipe.base_model]
    shown = dict(zip(PARENTS, [*names, None, None, None][:3], strict=True))
    return {"base": None if listed == "first" else recipe.base_model} | shown


def fill(form: Form, recipe: Recipe) -> dict[Any, Any]:
    """Updates that make the form show a recipe; an unknown method leaves the controls alone."""
    method = methods().get(recipe.merge_method)
    shown = pickers_of(recipe)
    updates: dict[Any, Any] = {form.pickers[slot]: name for slot, name in shown.items()}
    if method is None:
        return updates
    updates |= show_method(form, method.name, recipe.variant, bool(shown["c"]))
    own = {m.model: m.parameters for m in recipe.models}
    for key, control in form.controls.items():
        if key[0] == method.name:
            given = own.get(shown.get(key[2]) or "", {})
            value = given.get(key[1], recipe.parameters.get(key[1]))
            value = [] if recipe.slices else value  # like every list, it is set in YAML
            updates[control] = _shown(method, key, value, bool(shown["c"]))
    return updates | _unused(form, method.name, recipe.variant)


def _shown(method: Method, key: Key, value: Any, three: bool) -> Any:
    control = next(p.control for p in method.parameters if p.name == key[1])
    if isinstance(value, list):
        return gr.update(interactive=False, label=f"{_label(key)} (set in YAML)")
    value = control.default if value is None else value
    if not isinstance(control, Number):
        return gr.update(value=bool(value), interactive=True, label=_label(key))
    return gr.update(
        value=value, minimum=min(control.low, value), maximum=max(control.high, value),
        interactive=True, label=_label(key), visible=key[2] != "c" or three,
    )  # fmt: skip


def _unused(form: Form, name: str, variant: str) -> dict[Any, Any]:
    """Switch off what a variant has no use for, saying so."""
    known = variants(name)
    used = {p.name for p in known.get(variant, methods()[name]).parameters}
    return {
        control: gr.update(interactive=False, label=f"{_label(key)} (not in {variant})")
        for key, control in form.controls.items()
        if key[0] == name and key[1] not in used
    }


def show_method(form: Form, name: str, variant: str, three: bool) -> dict[Any, Any]:
    """Show one method's controls, and say which methods three models rule out."""
    method = methods()[name]
    updates: dict[Any, Any] = {
        group: gr.update(visible=key == name) for key, group in form.groups.items()
    }
    short = [m for m in methods().values() if three and m.models[1] == 2]
    reason = "".join(
        f" {m.title} takes {m.models[1]} models: clear model C to use it." for m in short
    )
    updates[form.method] = gr.update(value=name, elem_classes=[f"no-{m.name}" for m in short])
    updates[form.about] = look.about(method.help + reason, method.paper)
    if name in form.variants:
        known = [*variants(name)]
        updates[form.variants[name]] = variant if variant in known else known[0]
    return updates
