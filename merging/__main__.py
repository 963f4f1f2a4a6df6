"""The command line: check, run, methods, inspect, sweep, compare.

It turns errors into one line and exit code 2.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from merging import costs, elsewhere, pushing
from merging.errors import MergeError
from merging.hub import own_login
from merging.hub.publish import Target
from merging.inspecting import inspected
from merging.library import budget, spare
from merging.merge import Progress, Samples, default_device, fetched, merge
from merging.methods import Number, methods, variants
from merging.plan import Plan, plan
from merging.recipe import Recipe
from merging.samples import summed
from merging.shards import SHARD
from merging.sinks import Folder
from merging.sources import open_folder, open_source
from merging.yaml_text import MAX_BYTES

MARKS = {"green": "ok", "amber": "note", "red": "stop"}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 for anything that the user can mend."""
    try:
        given = _parsed(arguments)
        given.command(given)
    except MergeError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("Stopped.")
        return 2
    return 0


def check(given: argparse.Namespace) -> None:
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


def run(given: argparse.Namespace) -> None:
    """Merge into a folder, onto the Hub, or both; or elsewhere, onto the Hub."""
    if given.job:
        _run_elsewhere(given)
    else:
        _run_here(given)


def _run_here(given: argparse.Namespace) -> None:
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


def _check_use(given: argparse.Namespace) -> None:
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


def _run_elsewhere(given: argparse.Namespace) -> None:
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


def _push(
    given: argparse.Namespace, decided: Plan, to: Target, device: str, samples: Samples
) -> None:
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


def show_methods(given: argparse.Namespace) -> None:  # noqa: ARG001  # every command takes them
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


def inspect(given: argparse.Namespace) -> None:
    """Print how the deltas lie to each other and what becomes of them, over all elements."""
    found, _ = _watched(inspected(_fetch(_plan(given))))
    _print(json.dumps(found, indent=None if given.json else 2))


def sweep(given: argparse.Namespace) -> None:
    """Print how the merge and its parents score as one number moves."""
    from merging import ratings, sweep  # with transformers, as in `_judge`
    from merging.knobs import Knob, along

    decided = _fetch(_plan(given))
    pinned = dict(zip(decided.columns, decided.recipe.listed(), strict=True))
    knob = Knob(given.parameter, given.model and pinned.get(given.model, given.model))
    recipes = along(decided.recipe, knob, given.low, given.high, given.steps)
    called = _called(decided, given)
    curve = ratings.Curve(knob, {name: called[name] for name in sweep.parents_of(decided.recipe)})
    for event in _tried(partial(sweep.sweep, recipes), decided, given):
        curve = curve.scored(event)
    table = ratings.table(*ratings.swept_rows(curve))
    _print(json.dumps(ratings.swept(curve)) if given.json else table)


def compare(given: argparse.Namespace) -> None:
    """Print how all methods score, each at its own length of step and all at the same."""
    from merging import fair, ratings

    decided = _fetch(_plan(given))
    called = _called(decided, given)
    rows = [*_tried(partial(fair.compare, decided.recipe), decided, given)]
    table = ratings.compared_table(rows, called)
    _print(json.dumps(ratings.compared(rows, called)) if given.json else table)


def _tried(start: Callable[..., Iterator[Any]], decided: Plan, given: argparse.Namespace) -> Any:
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


def _called(decided: Plan, given: argparse.Namespace) -> dict[str, str]:
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


def _plan(given: argparse.Namespace) -> Plan:
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


def _bytes(text: str) -> int:
    """A size as `5GB`, `200MB` or a number of bytes."""
    number, unit = text.strip().upper().rstrip("B"), 1
    for name, factor in UNITS.items():
        if number.endswith(name[0]):
            number, unit = number[:-1], factor
    try:
        size = int(float(number) * unit)
    except ValueError:
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text} is no size: write 5GB, say")
    return size


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise MergeError(f"{message}: see `{self.prog} --help`.")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    given, more = parser.parse_known_args(arguments)
    # argparse overlooks an OUT_DIR behind options, since it may be left out
    if getattr(given, "out", "") is None and len(more) == 1 and not more[0].startswith("-"):
        given.out = more.pop()
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    return given


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m merging", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: object, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help)
        command.set_defaults(command=function)
        return command

    recipe = "a file in mergekit's YAML"
    add("check", check, "the plan and its notes, no weights read").add_argument(
        "recipe", help=recipe
    )
    command = add("run", run, "merge into a folder, onto the Hub, or both")
    command.add_argument("recipe", help=recipe)
    command.add_argument("out", metavar="OUT_DIR", nargs="?", help="a folder that does not exist")
    command.add_argument("--push-to", metavar="NAME", help="a repo of yours, private unless …")
    command.add_argument("--public", action="store_true", help="… it is to be for all")
    command.add_argument("--job", metavar="FLAVOR", help="as a Hugging Face Job, such as cpu-basic")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--seed", type=int, help="in place of the recipe's random_seed")
    command.add_argument("--max-shard-size", type=_bytes, help="such as 5GB")
    command.add_argument("--replace", action="store_true", help="replace OUT_DIR if it exists")
    command.add_argument("--sanity", action="store_true", help="say whether the merge works")
    add("methods", show_methods, "names, parameters, ranges, defaults")
    command = add("inspect", inspect, "figures of the deltas, and of what becomes of them")
    command.add_argument("recipe", help=recipe)
    command.add_argument("--json", action="store_true", help="on one line, for programs")
    _add_scoring(add)
    return parser


def _add_scoring(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that have models answer questions."""
    swept = add("sweep", sweep, "scores as one number of the recipe moves, beside the parents'")
    compared = add("compare", compare, "scores of all methods at one length of step")
    for command in (swept, compared):
        command.add_argument("recipe", help="a file in mergekit's YAML")
        command.add_argument("--sheet", metavar="FILE", help="a .tsv or .csv: question, expected")
        command.add_argument("--json", action="store_true", help="on one line, for programs")
    swept.add_argument("--parameter", required=True, help="such as lambda, t or density")
    swept.add_argument("--model", help="whose value it is; of all models without it")
    swept.add_argument("--from", dest="low", type=float, required=True, metavar="NUMBER")
    swept.add_argument("--to", dest="high", type=float, required=True, metavar="NUMBER")
    swept.add_argument("--steps", type=int, default=13, help="how many values")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # also in a pipe, a job's log is to be seen line by line


def _say(text: str) -> None:
    sys.stderr.write(" ".join(text.split()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
