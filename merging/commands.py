"""What each command of the command line does, and prints; it knows no arguments' grammar."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from merging import costs, elsewhere, pushing
from merging.errors import MergeError
from merging.hub import own_login
from merging.hub.publish import Target
from merging.inspecting import inspected
from merging.library import budget, spare
from merging.merge import Progress, Samples, default_device, fetched, merge
from merging.methods import Number, methods, variants
from merging.opening import open_folder, open_source
from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.samples import summed
from merging.shards import SHARD
from merging.sinks import Folder
from merging.yaml_text import MAX_BYTES

MARKS = {"green": "ok", "amber": "note", "red": "stop"}


def check(given: Namespace) -> None:
    """Print what the merge would do; no weights are read."""
    decided = _plan(given)
    _print(f"{decided.method.title} of {', '.join(s.name for s in decided.sources)}")
    device = default_device()
    spent = costs.costs(decided, room=budget(device), device=device, spare=spare(device))
    for note in [*decided.notes, *costs.notes(spent)]:
        _print(f"{MARKS[note.level]:>5}  {note.text}")
    _print(
        f"{len(decided.steps)} tensors, {decided.size / 1e9:.3f} GB, identity {decided.identity}"
    )


def run(given: Namespace) -> None:
    """Merge into a folder, onto the Hub, or both; or elsewhere, onto the Hub."""
    if given.job:
        _run_elsewhere(given)
    else:
        _run_here(given)


def _run_here(given: Namespace) -> None:
    _check_use(given)
    decided = _plan(given)
    _print_notes(decided)
    device = default_device() if given.device == "auto" else given.device
    to = given.push_to and pushing.target(
        decided, given.push_to, token=own_login(), public=given.public
    )
    samples: Samples = {}
    if given.out and not (to and not given.replace and pushing.holds(Path(given.out), decided)):
        shard = given.max_shard_size or SHARD
        sink = Folder(given.out, replace=given.replace, shard=shard, samples=samples)
        _, tally = _watched(merge(_fetch(decided), sink, samples=samples, device=device))
        _print_summary(given.out, decided, tally)
    if to:
        _push(given, decided, to, device, samples)
    if given.sanity:
        _judge(given.out, _fetch(decided), samples, device)


def _check_use(given: Namespace) -> None:
    """Raises MergeError for options that do not go together."""
    if not (given.out or given.push_to):
        raise MergeError("OUT_DIR is missing: name a new folder, or push with --push-to NAME.")
    if given.public and not given.push_to:
        raise MergeError("--public goes with --push-to: add it, or leave --public out.")
    if given.sanity and not given.out:
        raise MergeError("--sanity reads OUT_DIR: name a new folder, or leave --sanity out.")


def _judge(out: str, decided: Plan, samples: Samples, device: str) -> None:
    """Load what was written, and print whether it works. It is there in either case."""
    from merging import sanity  # it brings transformers: a second that nobody else waits for

    try:
        verdict = sanity.judged(decided, open_folder(Path(out), out), summed(samples), device)
    except MergeError as error:
        _print(f"not checked: {error}")
    else:
        _print(f"{'green' if verdict.ok else 'red'}: {verdict.text}")


def _run_elsewhere(given: Namespace) -> None:
    if not given.push_to:
        raise MergeError("--job goes with --push-to: add the NAME of a repo to push the merge to.")
    unfit = {"OUT_DIR": given.out, "--replace": given.replace, "--public": given.public,
             "--sanity": given.sanity}  # fmt: skip
    for word in (word for word, said in unfit.items() if said):
        raise MergeError(
            f"{word} does not go with --job, which pushes into a private repo: leave it out."
        )
    decided, token = _plan(given), own_login()
    _print_notes(decided)
    on = elsewhere.machine(given.job, decided, token=token, say=_print)
    to = pushing.target(decided, given.push_to, token=token)
    options = ["--device", given.device]
    if given.max_shard_size:
        options += ["--max-shard-size", str(given.max_shard_size)]
    url = elsewhere.run(decided, to, on, options, _print)
    if to.published:
        _print(f"{to.id} holds this merge already.")
    _print(url)


def _print_notes(decided: Plan) -> None:
    for note in decided.notes:
        if note.level != "green":
            _print(f"{MARKS[note.level]}: {note.text}")  # stderr is for the one line of an error


def _push(given: Namespace, decided: Plan, to: Target, device: str, samples: Samples) -> None:
    if given.out:
        url, _ = _watched(pushing.push_folder(decided, to, Path(given.out), samples))
    else:
        shard = given.max_shard_size or pushing.SHARD
        url, tally = _watched(pushing.push(decided, to, shard=shard, device=device))
        if not to.published:
            _print_summary(to.id, decided, tally)
    if to.published:
        _print(f"{to.id} holds this merge already.")
    _print(url)


def _print_summary(where: str, decided: Plan, tally: Mapping[str, int]) -> None:
    counts = ", ".join(f"{count} {what}" for what, count in tally.items())
    _print(f"{where}: {len(decided.steps)} tensors, {decided.size / 1e9:.3f} GB, "
           f"identity {decided.identity}{f' ({counts})' if counts else ''}")  # fmt: skip


def show_methods(given: Namespace) -> None:  # noqa: ARG001  # every command takes them
    """Print names, parameters, ranges and defaults."""
    for method in [each for name in methods() for each in variants(name).values()]:
        low, high = method.models
        variant = f" (variant {method.variant})" if len(variants(method.name)) > 1 else ""
        count = f"{low}" if low == high else f"{low} to {high}"
        takes = f"Takes {count} model{'s' * (high > 1)}, base {method.base}."
        _print(f"{method.name}{variant}: {method.help} {takes}")
        for parameter in method.parameters:
            control = parameter.control
            shown = f"default {control.default:g}" if isinstance(control, Number) else (
                f"default {str(control.default).lower()}"
            )  # fmt: skip
            if isinstance(control, Number):
                shown += f", slider {control.low:g} to {control.high:g} from {control.start:g}"
            each = "a model" if parameter.per_model else "in all"
            _print(f"    {parameter.name} ({each}): {control.help}; {shown}")


def inspect(given: Namespace) -> None:
    """Print how deltas or weights lie to each other and what becomes of them, over all elements."""
    found, _ = _watched(inspected(_fetch(_plan(given))))
    _print(json.dumps(found, indent=None if given.json else 2))


def sweep(given: Namespace) -> None:
    """Print how the merge and its parents score as one number moves."""
    from merging import ratings, sweep  # with transformers, as in `_judge`
    from merging.knobs import Knob, along, parents_of

    decided = _fetch(_plan(given))
    pinned = dict(zip(decided.columns, decided.recipe.listed(), strict=True))
    knob = Knob(given.parameter, given.model and pinned.get(given.model, given.model))
    recipes = along(decided.recipe, knob, given.low, given.high, given.steps)
    called = _called(decided, given)
    curve = ratings.Curve(knob, {name: called[name] for name in parents_of(decided.recipe)})
    for event in _tried(partial(sweep.sweep, recipes), decided, given):
        curve = curve.scored(event)
    table = ratings.table(*ratings.swept_rows(curve))
    _print(json.dumps(ratings.swept(curve)) if given.json else table)


def compare(given: Namespace) -> None:
    """Print how all methods score, each at its own length of step and all at the same."""
    from merging import fair, ratings

    decided = _fetch(_plan(given))
    called = _called(decided, given)
    rows = [*_tried(partial(fair.compare, decided.recipe), decided, given)]
    table = ratings.compared_table(rows, called)
    _print(json.dumps(ratings.compared(rows, called)) if given.json else table)


def _tried(start: Callable[..., Iterator[Any]], decided: Plan, given: Namespace) -> Any:
    """What comes of scoring models on the sheet, or on what they say to questions of our own."""
    from merging import exam, sheets, trials
    from merging.library import Library

    asked = sheets.open_sheet(Path(given.sheet)) if given.sheet else [
        (question, "") for question in (*trials.PROMPTS, *trials.LINES)
    ]  # fmt: skip
    texts = not any(expected for _, expected in asked)
    device = default_device()
    sources = {source.name: source for source in decided.sources}
    for event in start(sources, exam.exam(asked, texts=texts), Library(device, budget(device))):
        if isinstance(event, Progress):
            _show(event)
        else:
            yield event


def _called(decided: Plan, given: Namespace) -> dict[str, str]:
    """Pinned names, as they were written, for people without folders and owners where that does."""
    written = {name: name.partition("@")[0] for name in decided.recipe.names()}
    written |= dict(zip(decided.recipe.listed(), decided.columns, strict=True))
    short = {name: own.rstrip("/").rpartition("/")[2] for name, own in written.items()}
    return written if given.json or len({*short.values()}) < len(short) else short


def _fetch(decided: Plan) -> Plan:
    """Bring the parents here, with the machine's own login for gated ones."""
    here: Plan
    here, _ = _watched(fetched(decided, token=own_login()))
    return here


def _watched(steps: Iterator[Progress]) -> tuple[Any, Mapping[str, int]]:
    """Shows all steps; what they return, and the last tally."""
    tally: Mapping[str, int] = {}
    try:
        while True:
            at = next(steps)
            tally = at.tally
            _show(at)
    except StopIteration as end:
        return end.value, tally


def _show(at: Progress) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{at.share:4.0%} {at.stage} {at.tensor[:50]:50}")


def _plan(given: Namespace) -> Plan:
    path = Path(given.recipe)
    if not path.is_file():
        raise MergeError(f"{path} is not a file: name a recipe in mergekit's YAML.")
    if path.stat().st_size > MAX_BYTES:
        raise MergeError(f"{path} is larger than {MAX_BYTES // 1024} KB: that is no recipe.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MergeError(f"{path} is not text: name a recipe in mergekit's YAML.") from error
    recipe = Recipe.from_yaml(text)
    seed = getattr(given, "seed", None)
    find = partial(open_source, token=own_login())
    return plan(recipe if seed is None else recipe.seeded(seed), find=find)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # also in a pipe, a job's log is to be seen line by line
