"""The command line: its grammar, and its errors as one line and exit code 2."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from merging import commands
from merging.errors import MergeError

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
    parser = _Parser(
        "python -m merging", description="Merges language models by recipes of mergekit."
    )
    added = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: object, help: str) -> argparse.ArgumentParser:
        command = added.add_parser(name, help=help)
        command.set_defaults(command=function)
        return command

    recipe = "a file in mergekit's YAML"
    add("check", commands.check, "the plan and its notes, no weights read").add_argument(
        "recipe", help=recipe
    )
    command = add("run", commands.run, "merge into a folder, onto the Hub, or both")
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
    add("methods", commands.show_methods, "names, parameters, ranges, defaults")
    command = add("inspect", commands.inspect, "figures of the models, and of what becomes of them")
    command.add_argument("recipe", help=recipe)
    command.add_argument("--json", action="store_true", help="on one line, for programs")
    _add_scoring(add)
    return parser


def _add_scoring(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that have models answer questions."""
    swept = add(
        "sweep", commands.sweep, "scores as one number of the recipe moves, beside the parents'"
    )
    compared = add("compare", commands.compare, "scores of all methods at one length of step")
    for command in (swept, compared):
        command.add_argument("recipe", help="a file in mergekit's YAML")
        command.add_argument("--sheet", metavar="FILE", help="a .tsv or .csv: question, expected")
        command.add_argument("--json", action="store_true", help="on one line, for programs")
    swept.add_argument("--parameter", required=True, help="such as lambda, t or density")
    swept.add_argument("--model", help="whose value it is; of all models without it")
    swept.add_argument("--from", dest="low", type=float, required=True, metavar="NUMBER")
    swept.add_argument("--to", dest="high", type=float, required=True, metavar="NUMBER")
    swept.add_argument("--steps", type=int, default=13, help="how many values")


def _say(text: str) -> None:
    sys.stderr.write(" ".join(text.split()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
