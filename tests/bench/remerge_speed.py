"""Measures how soon a merge can chat again after one value has moved; knows the page's jobs alone.

    python tests/bench/remerge_speed.py [--folder FOLDER] [--repeats 5] [--method NAME ...]

SmolLM2-135M and two changed copies of it (tests/slow/smol.py, which says what it needs) are merged
in memory as the page does it, by `gpu.run` of the plan's job, on the GPU if there is one. The
imports that the page makes at its start, and one merge, come before all that is timed.

- plan: from the recipe's text to the plan, the median. The job makes it once more, within its time.
- job: the job's own seconds, until the model could be asked; fastest and median of the repeats.
- CPU: seconds that cores worked for the job, the median. By the number of cores they are what a job
  takes at least; where the clock says far more, the cores were at other work.
- target: what a job may take, in seconds; none for a first merge.
- from nothing: the median of the same recipes, each in a library that has no former merge and no
  number kept. Only imports, the tokenizers' contents and the parents' files in memory are left.
- ratio: that by the job's median, over 1 where what was kept saved time.
- fresh memory: seconds in which all cores together write once into memory, new to the process, of
  the merged model's size; the slowest of three, right after the jobs. Only on a CPU.

Every merge is another one, since a recipe that was carried out is found: the value moves a little
further each time, the weight and the density those of the first model. One former merge at most is
kept while the next one is made; others go, as they do where memory is short, and what they leave
is used again. Still the first touch of memory may dominate all else: a virtual machine that was
started lately has to be given each page by its host, many times as slowly as a kernel clears one
that it has. On such a machine `fresh memory` is far from even, and a second run says more than the
first. Whatever else the machine does meanwhile is in the figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from merging import Recipe, gpu, plan
from merging.loading import prepare
from merging.threads import cores
from tests.slow import smol

COLUMNS = (
    "method", "moved", "plan s", "job s, fastest", "job s, median", "job CPU s", "target s",
    "from nothing s", "ratio", "fresh memory s",
)  # fmt: skip
START = {
    "linear": {"weight": 1.0},
    "slerp": {"t": 0.5},
    "ties": {"weight": 1.0, "lambda": 1.0, "density": 0.5},
}
"""The page's own values."""
TARGETS = (
    ("linear", "", None), ("linear", "weight", 1),
    ("slerp", "", None), ("slerp", "t", 1),
    ("ties", "", None), ("ties", "weight", 2), ("ties", "lambda", 2), ("ties", "density", 5),
)  # fmt: skip
"""What moves, and the seconds that a merge may take then; where nothing does, it is a first one."""
PER_MODEL = ("weight", "density")
STEP = 0.01
"""How far a value moves from one repeat to the next."""
KEPT = 1
"""Former merges that stay while the next one is made."""
PIECE = 1 << 24
"""Bytes of fresh memory that one task writes into."""


@dataclass(frozen=True)
class Seen:
    """Seconds of the plan, of the job as it says itself, and of all cores' work for it."""

    plan: float
    job: float
    cpu: float


def recipe(method: str, models: Mapping[str, Path], moved: str, steps: int) -> str:
    """Start values, but for one of the first model's, or of both models', that moved by steps."""
    values = START[method]
    now = values | ({moved: values[moved] - STEP * steps} if moved else {})
    entries = []
    for name, own in (("a", now), ("b", values)):
        each = {key: own[key] for key in values if key in PER_MODEL}
        entries.append({"model": str(models[name]), "parameters": each})
    both = {key: value for key, value in now.items() if key not in PER_MODEL}
    written = {"merge_method": method, "models": entries, "parameters": both}
    if method != "linear":
        written["base_model"] = str(models["original" if method == "ties" else "a"])
    return yaml.safe_dump(written)


def once(text: str) -> Seen:
    """Plan and merge as the page does. Raises RuntimeError if the merge was there already."""
    start = time.monotonic()
    job = gpu.merge_job(plan(Recipe.from_yaml(text)))
    planned, before = time.monotonic() - start, time.process_time()
    *_, last = gpu.run(job)
    if not isinstance(last, gpu.Merged) or not last.seconds:
        raise RuntimeError(f"no merge was made: {last}")
    spent = time.process_time() - before
    _make_short()
    return Seen(planned, last.seconds, spent)


def _make_short() -> None:
    """Leave the library no room but for the merge under way and KEPT former ones."""
    library = gpu._library()
    library.budget = (2 * KEPT + 3) * max(m.size for m in library.shelf.values()) // 2


def forget() -> None:
    """The next merge finds a library as after a start."""
    gpu._library.cache_clear()


def moved_merges(method: str, moved: str, models: Mapping[str, Path], repeats: int) -> list[Seen]:
    """Re-merges, the first merge before them unseen."""
    forget()
    once(recipe(method, models, moved, 0))
    return [once(recipe(method, models, moved, step)) for step in range(1, repeats + 1)]


def first_merges(
    method: str, moved: str, models: Mapping[str, Path], repeats: int
) -> Iterator[Seen]:
    """The same recipes, nothing known of any before; one recipe again and again if none moved."""
    for step in range(1, repeats + 1):
        forget()
        yield once(recipe(method, models, moved, step))


def fresh(size: int) -> float:
    """Seconds to write into memory that the process did not have, all cores together."""
    room = np.empty(size, np.uint8)
    start = time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(lambda at: room[at : at + PIECE].fill(1), range(0, size, PIECE)):
            pass
    return time.monotonic() - start


def row(
    method: str, moved: str, target: float | None, models: Mapping[str, Path], repeats: int
) -> list[str]:
    """One line of the table."""
    anew = list(first_merges(method, moved, models, repeats))
    jobs = moved_merges(method, moved, models, repeats) if moved else anew
    taken, nothing = [seen.job for seen in jobs], median(seen.job for seen in anew)
    library = gpu._library()
    size = max(m.size for m in library.shelf.values())
    touched = f"{max(fresh(size) for _ in range(3)):.2f}" if library.device == "cpu" else ""
    return [
        method, moved or "first merge", f"{median(seen.plan for seen in jobs):.2f}",
        f"{min(taken):.2f}", f"{median(taken):.2f}", f"{median(seen.cpu for seen in jobs):.2f}",
        f"{target:.0f}" if target else "", f"{nothing:.2f}",
        f"{nothing / median(taken):.1f}" if moved else "", touched,
    ]  # fmt: skip


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(models: Mapping[str, Path], repeats: int, chosen: Sequence[str]) -> None:
    prepare()
    start = time.monotonic()
    once(recipe("linear", models, "weight", -1))
    taken, library = time.monotonic() - start, gpu._library()
    parameters = sum(p.numel() for m in library.shelf.values() for p in m.model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters on {library.device}, {os.cpu_count()} cores, "
          f"torch {torch.__version__}; the process's first merge took {taken:.2f} s\n")  # fmt: skip
    print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n")
    for method, moved, target in TARGETS:
        if method in chosen:
            print(line(row(method, moved, target, models, repeats)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keeps the models for the next run, 0.8 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--method", nargs="*", choices=START, default=[*START], help="these alone")
    given = parser.parse_args()
    if reason := smol.lacking():
        parser.error(reason)
    with tempfile.TemporaryDirectory() as folder:
        cache = (given.folder or Path(folder)) / "smollm2"  # the rest of the folder stays as it is
        cache.mkdir(parents=True, exist_ok=True)
        table(smol.build(cache), given.repeats, given.method)


if __name__ == "__main__":
    main()
