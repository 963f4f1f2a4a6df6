"""A class at work on one app: many clients merge and ask at once; knows the endpoints, no page.

    python tests/bench/class_load.py [--clients 30] [--merges 500] [--questions 2000]
                                     [--picture assets/class.svg]

The app is started on the embedded models, with memory for a few of the merges only: most that are
asked for have left by then and are made anew, while others chat. Beforehand one client alone puts
each merge's questions, so that it is known what must come, greedily. Then one client alone does
some of the work, to compare with, and at last all begin together, with merges and questions drawn
for each.

Printed: merges that came, and those of them made anew; answers, those lost (of all that were to be
asked), and those otherwise than alone (of another's merge, or to another's question); seconds to
the first word of an answer, median and 95th percentile; answers a minute; and the app's memory,
that of no file, at ten moments on the way, and as a picture. It ends with 1 if anything was lost or
wrong, or if the memory went on growing.
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
FLAT = 1.15
"""By what the memory of the last quarter may be above that of the second: the first is warming."""

Answer = dict[str, str]


@dataclass
class Counts:
    """What has come so far; `firsts` are seconds to an answer's first word."""

    merges: int = 0
    made: int = 0
    answers: int = 0
    failures: list[str] = field(default_factory=list)
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
            except Exception as error:  # noqa: BLE001  # whatever it is, it is counted
                with counts.lock:
                    counts.failures.append(f"{type(error).__name__}: {error}")


def watched(app: App, threads: Sequence[threading.Thread]) -> Iterator[tuple[float, int]]:
    """Seconds and bytes of memory, while any thread works."""
    start = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        yield time.monotonic() - start, anonymous(app.process.pid)
        time.sleep(1)


HEADS = (
    "clients", "merges", "made", "answers", "lost", "wrong", "first word s", "95 % s",
    "answers/min",
)  # fmt: skip


def report(clients: int, counts: Counts, lost: int, seconds: float) -> list[object]:
    """A row of the table, printed as well."""
    late = quantiles(counts.firsts, n=20)[-1] if len(counts.firsts) > 1 else 0.0
    cells = [
        clients, counts.merges, counts.made, counts.answers, lost, counts.wrong,
        f"{median(counts.firsts):.2f}", f"{late:.2f}", f"{60 * counts.answers / seconds:.0f}",
    ]  # fmt: skip
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return cells


def measure(
    app: App, clients: int, merges: int, questions: int, known: dict[tuple[float, str], Answer]
) -> tuple[Counts, float, list[tuple[float, int]]]:
    counts, start = Counts(), time.monotonic()
    shares = zip(_shared(merges, clients), _shared(questions, clients), strict=True)
    threads = [
        threading.Thread(target=work, args=(app, seed, *share, counts, known))
        for seed, share in enumerate(shares)
    ]
    for thread in threads:
        thread.start()
    curve = list(watched(app, threads))
    for thread in threads:
        thread.join()
    return counts, time.monotonic() - start, curve


def _shared(number: int, clients: int) -> list[int]:
    """A number in as many parts, as equal as they can be."""
    return [number // clients + (n < number % clients) for n in range(clients)]


def growth(curve: Sequence[tuple[float, int]]) -> float:
    """The memory of the last quarter as a multiple of the second's."""
    sizes = [size for _, size in curve if size]
    quarter = max(1, len(sizes) // 4)
    return median(sizes[-quarter:]) / median(sizes[quarter : 2 * quarter] or sizes)


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
        rows = [HEADS, report(1, single, 40 - single.answers, seconds)]
        many, seconds, curve = measure(app, given.clients, given.merges, given.questions, known)
        lost = given.questions - many.answers + given.merges - many.merges
        rows.append(report(given.clients, many, lost, seconds))
        print("\nMemory:", ", ".join(
            f"{size / 1e6:.0f} MB at {at:.0f} s" for at, size in curve[:: max(1, len(curve) // 10)]
        ))  # fmt: skip
        print(f"In the last quarter it is {growth(curve):.2f} times that in the second.")
        for said in sorted({*single.failures, *many.failures}):
            print("failed:", said)
    if given.picture:
        title = f"Memory of the app while {given.clients} clients merge and ask at once"
        shown = [(at, size / 1e6) for at, size in curve if size]
        given.picture.write_text(drawing(title, shown, rows), encoding="utf-8")
    failed = single.failures or many.failures or single.wrong or many.wrong or lost
    return 1 if failed or growth(curve) > FLAT else 0


if __name__ == "__main__":
    sys.exit(main())
