"""What a merge costs on this machine, in disk, memory and time, before anything is paid.

It knows plans and this machine, and times a method on made-up numbers; it reads no weights.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from merging import elsewhere, hub
from merging.blocks import BLOCK, NotFiniteError, Work, slices, whole
from merging.loading import chat_dtype, size_of
from merging.machines import advice
from merging.memory import TOLD, Size, size, ways
from merging.notes import Note
from merging.pairing import Step
from merging.plan import Plan
from merging.threads import cores, pooled

SMALL = 1024
"""Elements of a tensor that costs no more than its handling."""
ROUNDS, ENOUGH = 3, 0.03
"""Times that each method is timed at most, and seconds after which it is timed no more."""
BUFFERS = 4
"""Blocks in float32 that a thread holds beside the parents', about."""


@dataclass(frozen=True)
class Costs:
    """Bytes, but for `seconds`, None where it was not measured, and `fitting`.

    `missing` is to be fetched, and the cache's disk has room for `disk`. Models may take `room` on
    the device, and `spare` in the memory beside it. Models of `fitting` parameters each would all
    fit. `job` is the command line by which the merge would run elsewhere, None where it could not.
    """

    missing: int
    disk: int
    merge: Size
    parents: tuple[Size, ...]
    seconds: float | None
    room: int
    fitting: int
    spare: int = 0
    job: str | None = None

    @property
    def together(self) -> int:
        """Of the merge and all its parents."""
        return self.merge.whole + sum(parent.whole for parent in self.parents)


def costs(plan: Plan, *, room: int, device: str, spare: int = 0) -> Costs:
    """What the merge would take, and a chat with it and its parents; a twentieth of a second.

    `room` is the device's budget for models. Seconds are for parents in memory or on a disk that
    keeps up, and are measured on a CPU only.
    """
    elements = sum(step.size for step in plan.steps)
    width = chat_dtype(device, getattr(torch, plan.config["dtype"])).itemsize
    merge = size({step.name: width * step.size for step in plan.steps})
    parents = tuple(size_of(source, device) for source in plan.sources)
    threads = cores() if device == "cpu" else 1
    under_way = 4 * BLOCK * (len(plan.sources) + BUFFERS) * threads
    each = room * elements // max(1, merge.whole + sum(parent.whole for parent in parents))
    return Costs(
        plan.missing, hub.room(), merge, parents,
        seconds(plan) if device == "cpu" else None, room, each, spare,
        elsewhere.offer(plan, merge.whole + under_way),
    )  # fmt: skip


def way(costs: Costs) -> str:
    """How the models answer here, as the device will have them: a key of `memory.TOLD`."""
    found = ways([costs.merge], costs.parents, costs.room, costs.spare)
    return found[0] if found else "nothing"


def notes(costs: Costs) -> tuple[Note, ...]:
    """One green line; what does not fit has a line of its own instead, with the way out."""
    fine, found = [], []
    if costs.missing > costs.disk:
        found.append(Note(
            "red", f"{_size(costs.missing)} to fetch, and room for {_size(costs.disk)} on "
            f"the disk: free {_size(costs.missing - costs.disk)}, or choose smaller models."
        ))  # fmt: skip
    elif costs.missing:
        fine.append(f"{_size(costs.missing)} to fetch, room for {_size(costs.disk)} on the disk")
    else:
        fine.append("Nothing to fetch")
    smaller = f"choose models of at most {_count(costs.fitting)} parameters each"
    free = f"{_size(costs.room)} of memory {'is' if costs.room < 2e9 else 'are'} free for models"
    answer = way(costs)
    if answer == "nothing":
        largest = max(each.whole for each in (costs.merge, *costs.parents))
        found.append(Note(
            "red", f"Each model needs room for itself, up to {_size(largest)} here, and {free}: "
            f"{advice([costs.merge], costs.parents)}; or merge into a folder with "
            "`python -m merging run`."
        ))  # fmt: skip
    elif answer != "all at once":
        found.append(Note(
            "amber", f"Parents and merged model take {_size(costs.together)} together, and "
            f"{free}: {TOLD[answer]}; to chat with all at once, {smaller}."
        ))  # fmt: skip
    else:
        fine.append(f"{_size(costs.together)} of memory, {_size(costs.room)} free")
    if costs.seconds is not None:
        fine.append(f"{_duration(costs.seconds)} to merge")
    return (*_offered(found, costs.job), *([Note("green", " · ".join(fine))] if fine else []))


def _offered(found: Sequence[Note], job: str | None) -> list[Note]:
    """The notes, with a job as the way out behind the last that stops the merge here."""
    stops = [note for note in found if note.level == "red"]
    way = (" Or have it done by a Hugging Face Job, on your account and bill: download the "
           f"recipe, then `{job}`.") if job else ""  # fmt: skip
    return [replace(n, text=n.text + way) if n in stops[-1:] else n for n in found]


def seconds(plan: Plan) -> float | None:
    """How long the merge takes on all cores, from the method's own speed on made-up tensors.

    None where its values are such that even these do not stay finite.
    """
    steps = [step for step in plan.steps if step.size and not step.copied]
    if not steps:
        return 0.0
    largest = max(steps, key=lambda step: step.size)
    block = min(BLOCK, largest.size)
    width = 1 if plan.method.whole else cores()
    with pooled("cpu") as pool:
        trial = _Trial(plan, largest, pool)
        try:
            handling = trial.best(SMALL)
            round = max(0.0, trial.best(block * width) - handling)
        except NotFiniteError:
            return None
    rounds = sum(step.size for step in steps) / (block * width)
    return handling * len(steps) / width + round * rounds


class _Trial:
    """A method on tensors like a step's, but made up: fine-tunes, near one another."""

    def __init__(self, plan: Plan, step: Step, pool: ThreadPoolExecutor) -> None:
        self.plan, self.step, self.pool = plan, step, pool
        reads = zip(step.sources, step.reads, strict=True)
        types = [plan.sources[n].tensors[read].dtype for n, read in reads]
        random = torch.Generator().manual_seed(0)
        common = torch.randn(BLOCK, generator=random)
        noise = common.roll(1)
        self.parents = [(common + noise * 0.02 * n).to(kind) for n, kind in enumerate(types)]

    def best(self, size: int) -> float:
        """The shortest of a few times: the rest is other programs'."""
        start = time.monotonic()
        found = [self.time(size)]
        while len(found) < ROUNDS and time.monotonic() - start < ENOUGH:
            found.append(self.time(size))
        return min(found)

    def time(self, size: int) -> float:
        """Seconds for a tensor of `size` elements, whose blocks are all alike."""
        side = int(size**0.5)
        shape = (side, side) if self.plan.method.whole else (size,)
        size = torch.Size(shape).numel()
        out = torch.empty(size, dtype=chat_dtype("cpu", self.step.dtype))
        work = Work(self.plan.method, self.step.values, self.plan.based, size, BLOCK, shape)

        def read(start: int, stop: int) -> list[torch.Tensor]:
            return slices(self.parents, 0, stop - start)

        start = time.perf_counter()
        whole(work, read, out, self.step.dtype, self.pool)
        return time.perf_counter() - start


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "under a second"
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"
