"""A class at work on one app: many clients merge and ask at once; knows the endpoints, no page.

    python tests/bench/class_load.py [--clients 30] [--merges 500] [--questions 2000]
                                     [--picture assets/class.svg]

The app is started on the embedded models, with memory for a few of the merges only: most that are
asked for have left by then and are made anew, while others chat. Beforehand one client alone puts
each merge's questions, so that it is known what must come, greedily. Then one client alone does
some of the work, to compare with, and at last all begin together, with merges and questions drawn
for each.

Printed: merges asked for and made; answers, those refused and those otherwise than alone (of
another's merge, or to another's question); seconds to the first word of an answer, median and 95th
percentile; answers a minute; and the app's memory, that of no file, at ten moments on the way, and
as a picture.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.bench.drawing import drawing
from tests.slow.memory import anonymous
from tests.ui.models import TIES
from tests.ui.running import App, connected, running

TOKENS = 16
MEMORY = "0.06"
"""Gigabytes for models, of which one here takes 2 MB."""
LAMBDAS = tuple(round(0.5 + 0.005 * n, 3) for n in range(120))
"""Of as many merges: four times as many as have room."""
ASKED = {
    scale: tuple(f"What is {10 + 7 * n % 90} + {10 + 13 * n % 90}?" for n in (at, at + 5))
    for at, scale in enumerate(LAMBDAS)
}
"""Questions to each merge."""

Answer = dict[str, str]


@dataclass
class Counts:
    """What has come so far; `firsts` are seconds to an answer's first word."""

    merges: int = 0
    made: int = 0
    answers: int = 0
    refused: list[str] = field(default_factory=list)
    wrong: int = 0
    firsts: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def recipe(scale: float) -> str:
    text = TIES.replace("lambda: 1.0", f"lambda: {scale}")
    if text == TIES and scale != 1.0:
        raise RuntimeError("The preset has no `lambda: 1.0` to change: adapt this bench.")
    return text


def merge(client: Client, scale: float) -> tuple[str, bool]:
    """Its id, and whether it had to be made."""
    found = client.predict(recipe(scale), api_name="/merge")
    return found["merge"], found["seconds"] > 0


def ask(client: Client, made: str, question: str) -> tuple[Answer, float]:
    """Every column's answer, and seconds until the first of them had a word."""
    start, first = time.monotonic(), None
    job = client.submit(made, question, TOKENS, api_name="/chat")
    while not job.done():  # to iterate over a job that fails never ends
        if first is None and any(any(said.values()) for said in job.outputs()):
            first = time.monotonic() - start
        time.sleep(0.01)
    return job.result(), first if first is not None else time.monotonic() - start


def alone(app: App) -> dict[tuple[float, str], Answer]:
    """What must be answered."""
    known = {}
    with connected(app) as client:
        for scale, questions in ASKED.items():
            made, _ = merge(client, scale)
            known |= {(scale, each): ask(client, made, each)[0] for each in questions}
    return known


def work(
    app: App, seed: int, merges: int, questions: int, counts: Counts,
    known: dict[tuple[float, str], Answer],
) -> None:  # fmt: skip
    """One client's share, in an order of its own; it asks about the merge that it made last."""
    random = Random(seed)
    asks = sorted(random.randrange(merges) for _ in range(questions))
    with connected(app) as client:
        for number in range(merges):
            scale = random.choice(LAMBDAS)
            try:
                made, anew = merge(client, scale)
                with counts.lock:
                    counts.merges += 1
                    counts.made += anew
                for _ in range(asks.count(number)):
                    question = random.choice(ASKED[scale])
                    said, first = ask(client, made, question)
                    with counts.lock:
                        counts.answers += 1
                        counts.firsts.append(first)
                        counts.wrong += said != known[scale, question]
            except AppError as error:
                with counts.lock:
                    counts.refused.append(str(error))


def watched(app: App, threads: Sequence[threading.Thread]) -> Iterator[tuple[float, int]]:
    """Seconds and bytes of memory, while any thread works."""
    start = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        yield time.monotonic() - start, anonymous(app.process.pid)
        time.sleep(1)


HEADS = (
    "clients", "merges", "made", "answers", "refused", "wrong", "first word s", "95 % s",
    "answers/min",
)  # fmt: skip


def report(clients: int, counts: Counts, seconds: float) -> list[object]:
    """A row of the table, printed as well."""
    late = quantiles(counts.firsts, n=20)[-1] if len(counts.firsts) > 1 else 0.0
    cells = [
        clients, counts.merges, counts.made, counts.answers, len(counts.refused), counts.wrong,
        f"{median(counts.firsts):.2f}", f"{late:.2f}", f"{60 * counts.answers / seconds:.0f}",
    ]  # fmt: skip
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return cells


def measure(
    app: App, clients: int, merges: int, questions: int, known: dict[tuple[float, str], Answer]
) -> tuple[Counts, float, list[tuple[float, int]]]:
    counts, start = Counts(), time.monotonic()
    shares = (max(1, merges // clients), max(1, questions // clients))
    threads = [
        threading.Thread(target=work, args=(app, seed, *shares, counts, known))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    curve = list(watched(app, threads))
    for thread in threads:
        thread.join()
    return counts, time.monotonic() - start, curve


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--merges", type=int, default=500, help="of all clients together")
    parser.add_argument("--questions", type=int, default=2000, help="of all clients together")
    parser.add_argument("--picture", type=Path, help="an SVG to draw the memory into")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        running(Path(home), MERGING_MEMORY_GB=MEMORY) as app,
    ):
        known = alone(app)
        print(f"| {' | '.join(HEADS)} |", f"|{' --- |' * len(HEADS)}", sep="\n")
        single, seconds, _ = measure(app, 1, 10, 40, known)
        rows = [HEADS, report(1, single, seconds)]
        many, seconds, curve = measure(app, given.clients, given.merges, given.questions, known)
        rows.append(report(given.clients, many, seconds))
        print("\nMemory:", ", ".join(
            f"{size / 1e6:.0f} MB at {at:.0f} s" for at, size in curve[:: max(1, len(curve) // 10)]
        ))  # fmt: skip
        for said in sorted(set(many.refused)):
            print("refused:", said)
    if given.picture:
        title = f"Memory of the app while {given.clients} clients merge and ask at once"
        shown = [(at, size / 1e6) for at, size in curve if size]
        given.picture.write_text(drawing(title, shown, rows), encoding="utf-8")
    return 1 if many.refused or many.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
