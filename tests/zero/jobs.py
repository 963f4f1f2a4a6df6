"""Jobs through `gpu.run`, for `start.py` to run over the fake device; prints what came."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merging import Recipe, chat, gpu, plan
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.loading import prepare

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "assets" / "recipes" / "01-demo-ties.yaml").read_text(encoding="utf-8")


def asking(words: str, tokens: int = 8) -> gpu.Job:
    """The default preset merged, and all of its columns asked."""
    decided = plan(Recipe.from_yaml(RECIPE))
    job = gpu.merge_job(decided)
    columns = {place.name: place.name for place in job.parents if not place.name.endswith("base")}
    asked = ({"role": "user", "content": words},)
    question = Question(dict.fromkeys((*columns, gpu.MERGED), asked), tokens)
    return gpu.Job(job.parents, job.merges, columns, (question,))


def events(job: gpu.Job) -> Iterator[Any]:
    for event in gpu.run(job):
        PIDS.update(child.pid for child in multiprocessing.active_children())
        yield event


PIDS: set[int | None] = set()
"""Of the workers seen while a job ran; none of them is this process."""


def main_job() -> dict[str, Any]:
    """Merge, then ask twice: three calls, three workers."""
    decided = plan(Recipe.from_yaml(RECIPE))
    kinds = [type(event).__name__ for event in events(gpu.merge_job(decided))]
    first, second = ({e.column: e.text for e in events(asking(q)) if isinstance(e, Reply)}
                     for q in ("What is 38 + 27?", "Who are you?"))  # fmt: skip
    made = gpu._library.cache_info().currsize
    return {"kinds": kinds, "first": first, "second": second, "pids": len(PIDS), "made": made}


def killed() -> dict[str, Any]:
    """The worker dies in the middle of an answer; the next call is answered all the same."""
    tick, chat.TICK = chat.TICK, 2.0  # so that it is not done before this process has seen a word
    try:
        for event in events(asking("Who are you?")):
            if isinstance(event, Reply):
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGKILL)
        said = ""
    except MergeError as error:
        said = str(error)
    chat.TICK = tick
    after = {e.column: e.text for e in events(asking("What is 38 + 27?")) if isinstance(e, Reply)}
    return {"said": said, "after": after}


def closed() -> dict[str, Any]:
    """Closing the generator ends the worker's task."""
    running = gpu.run(asking("Who are you?", 1024))
    for event in running:
        if isinstance(event, Reply):
            break
    start = time.monotonic()
    running.close()  # type: ignore[attr-defined]  # it is a generator
    return {"seconds": time.monotonic() - start}


def failed() -> dict[str, Any]:
    """A MergeError of the worker arrives as itself."""
    job = asking("Who are you?")
    missing = tuple(gpu.Place(p.name, p.folder + "-gone", p.stamp) for p in job.parents)
    try:
        recipe = job.merges[gpu.MERGED].recipe
        list(gpu.run(gpu.Job(merges={gpu.MERGED: gpu.Merging(recipe, "other", missing)})))
    except MergeError as error:
        return {"said": str(error)}
    return {"said": ""}


if __name__ == "__main__":
    prepare()
    sys.stdout.write("\n" + json.dumps({
        "main": main_job(), "killed": killed(), "failed": failed(), "closed": closed(),
    }))  # fmt: skip
