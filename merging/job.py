"""What is asked of a device, and what comes back: a Job in, Events out.

Both are small and picklable, since on ZeroGPU they cross into a worker that may be new at every
call. Nothing relies on what an earlier call left behind: the recipe is the state.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.exam import Exam
from merging.inside import Inside
from merging.merge import Progress
from merging.nexttoken import Inspection, NextTokens, Read
from merging.opening import open_folder
from merging.plan import Plan
from merging.sanity import Verdict
from merging.sources import Local, Remote, on_base
from merging.sweep import Scored

MERGED = "merged"
"""The name of the merged model's column."""


@dataclass(frozen=True)
class Place:
    """Where a parent lies on this machine, under its pinned name; `adapter` is a second folder."""

    name: str
    folder: str
    stamp: str
    adapter: str | None = None

    def open(self) -> Local:
        if self.adapter is None:
            return open_folder(Path(self.folder), self.name, self.stamp)
        names, stamps = (text.split("+") for text in (self.name, self.stamp))
        folders = (Path(self.folder), Path(self.adapter))
        base, own = map(open_folder, folders, names, stamps)
        return on_base(base, own)


@dataclass(frozen=True)
class Merging:
    """A merge to have ready: made, or found under its `identity`. `parents` are the recipe's.

    `files` is the folder in which it may lie written out.
    """

    recipe: str
    identity: str
    parents: tuple[Place, ...]
    files: str = ""

    def written(self) -> Local | None:
        """The merge as files, if it is there as such."""
        folder = Path(self.files)
        if not self.files or not folder.is_dir():
            return None
        with suppress(MergeError):  # of files that are being removed
            return open_folder(folder, self.identity, "")
        return None


@dataclass(frozen=True)
class Sweeping:
    """Merges to make one after the other and to score beside their parents: the pinned recipes, by
    the value of the number in which they differ, and all that they are made of."""

    recipes: Mapping[float, str]
    parents: tuple[Place, ...]
    exam: Exam


@dataclass(frozen=True)
class Job:
    """Have merges ready, each in its column, then ask. `columns` maps the others to pinned models.

    `places` are the models that are asked themselves. `questions` are asked one after the other;
    in a `talk` each begins with all before it, whose answers are put in as they come.
    `inspection` looks into an answer. Columns that come to be in `stops` answer no further. With
    `check` the merges are judged at the end, each once, and the verdicts kept. A `sweep` comes
    before all else.
    """

    places: tuple[Place, ...] = ()
    merges: Mapping[str, Merging] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    talk: bool = False
    inspection: Inspection | None = None
    stops: Collection[str] = ()
    check: bool = False
    sweep: Sweeping | None = None

    @property
    def answering(self) -> tuple[str, ...]:
        """All columns, those of merges last."""
        return (*self.columns, *self.merges)

    @property
    def parents(self) -> tuple[Place, ...]:
        """What the merges are made of, each once."""
        merged = [m.parents for m in self.merges.values()]
        swept = self.sweep.parents if self.sweep else ()
        return tuple(dict.fromkeys([*(p for places in merged for p in places), *swept]))


@dataclass(frozen=True)
class Merged:
    """A merge is ready to chat. `seconds` is 0 where it was found; `tally` counts outcomes.

    `figures` say what it did; None where they are kept no longer, or make no sense. `notice` is
    what the reader should know.
    """

    identity: str
    seconds: float
    tally: Mapping[str, int]
    figures: Inside | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Asking:
    """The replies that follow are to the job's question of this number, the first of which is 0."""

    number: int


Event = Progress | Merged | Asking | Reply | Read | NextTokens | Verdict | Scored


def place(source: Local) -> Place:
    folder, *adapter = (str(part.folder) for part in source.parts)
    return Place(source.name, folder, source.stamp, *adapter)


def merge_job(decided: Plan) -> Job:
    """The job that carries out a plan whose parents are all on this machine."""
    parents = tuple(place(s) for s in decided.sources if not isinstance(s, Remote))
    return Job(merges={MERGED: Merging(decided.recipe.to_yaml(), decided.identity, parents)})
