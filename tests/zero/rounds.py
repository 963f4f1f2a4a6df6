"""Jobs one after the other whose workers are killed now and then; `start.py` runs it over the fake
device. Prints who was killed, what was said of it, and what came in the end.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from random import Random
from typing import Any

from merging import Recipe, gpu, plan
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.loading import prepare

ROOT = Path(__file__).parents[2]
TIES = (ROOT / "assets" / "recipes" / "01-demo-ties.yaml").read_text(encoding="utf-8")
ROUNDS = 8
TRIES = 5


def job(number: int) -> gpu.Job:
    """One of three merges, made or found, with all of its columns asked."""
    scale = (1.0, 0.9, 0.8)[number % 3]
    decided = plan(Recipe.from_yaml(TIES.replace("lambda: 1.0", f"lambda: {scale}")))
    made = gpu.merge_job(decided)
    columns = {p.name: p.name for p in made.parents if not p.name.endswith("base")}
    asked = ({"role": "user", "content": "What is 38 + 27?"},)
    question = Question(dict.fromkeys((*columns, gpu.MERGED), asked), 8)
    return gpu.Job(made.parents, made.merges, columns, (question,))


def ran(asked: gpu.Job, kill_at: int | None) -> dict[str, str]:
    """What was answered; the workers are killed before that event."""
    said = {}
    for number, event in enumerate(gpu.run(asked)):
        PIDS.update(child.pid for child in multiprocessing.active_children())
        if number == kill_at:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        if isinstance(event, Reply):
            said[event.column] = event.text
    return said


PIDS: set[int | None] = set()
"""Of the workers seen so far."""


def main() -> dict[str, Any]:
    random, told, rounds = Random(7), [], []
    for number in range(ROUNDS):
        for attempt in range(TRIES):
            kill_at = random.randrange(4) if attempt == 0 and number % 2 else None
            try:
                rounds.append(ran(job(number), kill_at))
                break
            except MergeError as error:
                told.append(str(error))
    return {"rounds": rounds, "told": told, "pids": len(PIDS)}


if __name__ == "__main__":
    prepare()
    sys.stdout.write("\n" + json.dumps(main()))
