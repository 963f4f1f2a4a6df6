"""Jobs one after the other, of which every third kills its worker; `start.py` runs it over the fake
device. Prints what was said of each death, and who did the other jobs and what came of them.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from merging import Recipe, gpu, plan
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.library import Library
from merging.loading import prepare
from merging.working import work

ROOT = Path(__file__).parents[2]
TIES = (ROOT / "assets" / "recipes" / "01-demo-ties.yaml").read_text(encoding="utf-8")
ROUNDS = 6


@dataclass(frozen=True)
class Fatal(gpu.Job):
    """A job whose worker dies before the event of the number `at`, or at its end."""

    at: int = 0


def job(merge: int) -> gpu.Job:
    """One of two merges, made or found, with all of its columns asked."""
    scale = (1.0, 0.9)[merge]
    decided = plan(Recipe.from_yaml(TIES.replace("lambda: 1.0", f"lambda: {scale}")))
    made = gpu.merge_job(decided)
    columns = {p.name: p.name for p in made.parents if not p.name.endswith("base")}
    asked = ({"role": "user", "content": "What is 38 + 27?"},)
    question = Question(dict.fromkeys((*columns, gpu.MERGED), asked), 8)
    return gpu.Job(made.parents, made.merges, columns, (question,))


def working(job: gpu.Job, library: Library) -> Iterator[Any]:
    """What a worker does: it says who it is, and works until it has to die."""
    yield os.getpid()
    for number, event in enumerate(work(job, library)):
        if isinstance(job, Fatal) and number == job.at:
            break
        yield event
    if isinstance(job, Fatal):
        os.kill(os.getpid(), signal.SIGKILL)


def ran(job: gpu.Job) -> tuple[dict[str, Any], int]:
    """Who did a job, what came of it, and after how many events."""
    worker, *events = gpu.run(job)
    (seconds,) = (event.seconds for event in events if isinstance(event, gpu.Merged))
    said = {event.column: event.text for event in events if isinstance(event, Reply)}
    return {"worker": worker, "seconds": seconds, "said": said}, len(events)


def main() -> dict[str, Any]:
    random, longest, runs, deaths = Random(3), 0, [], []
    for number in range(ROUNDS):
        asked = job(number % 2)
        try:
            ran(Fatal(**vars(asked), at=random.randrange(longest + 1)))
        except MergeError as error:
            deaths.append(str(error))
        for _ in range(2):
            run, events = ran(asked)
            longest = max(longest, events)
            runs.append({"merge": number % 2, **run})
    return {"runs": runs, "deaths": deaths}


if __name__ == "__main__":
    gpu.work = working  # which all workers have
    prepare()
    sys.stdout.write("\n" + json.dumps(main()))
