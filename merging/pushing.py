"""Publishes a merge while it is made: each shard goes to the Hub and then off the disk.

It knows which files a merge has and what others may see of them; hub/publish.py knows the Hub.
"""

import json
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from torch import Tensor

from merging import container
from merging.card import IDENTITY, public_names
from merging.companions import write_companions
from merging.errors import MergeError
from merging.hub import Token
from merging.hub.publish import Sending, Target, begin, commit
from merging.inside import whole
from merging.merge import Progress, Samples, fetched, merge
from merging.plan import Plan
from merging.samples import Sample, summed
from merging.sinks import Folder, told_if_full

if TYPE_CHECKING:
    from merging.pairing import Step

SHARD = 10**9
"""Bytes in one file at most: one is on disk while it is sent, and the next while it is merged."""
AT_ONCE = 2
"""Shards on disk at one time."""
PATHS = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""What libraries write into config files of where a model lay when it was saved."""


def target(plan: Plan, name: str, *, token: Token, public: bool = False) -> Target:
    """The repo for a merge, checked and made if there is none, before anything is fetched.

    `name` is `user/name`, or a bare name for the user's own. Raises MergeError where the merge may
    not be published so: without a login that may write, in another's name, over something else, or
    `public` where a parent is not.
    """
    closed = next((s.name for s in plan.sources if s.gated), None)
    if public and closed:
        raise MergeError(
            f"{closed} is gated or private, and so must be what is made of it: "
            "push without --public, into a private repo."
        )
    return begin(name, (IDENTITY, plan.identity), private=not public, token=token)


def push(
    plan: Plan, to: Target, *, shard: int = SHARD, device: str = "cpu"
) -> Generator[Progress, None, str]:
    """Merge and publish; returns the repo's URL. Raises MergeError.

    At most two shards are on disk. Yields stages `fetch`, `measure` and, for merging and sending as
    one, `push`, whose `done` and `total` are bytes sent. Nothing appears in the repo before the
    end; closed early, this leaves nothing on disk, and what was sent is not sent again.
    """
    if to.published:
        return to.url
    here = yield from fetched(plan, token=to.token)
    folder = f"{shard}.partial-{here.identity}"  # as Folder calls it
    with _room(to, keep=folder) as room:
        shards = _Shards(room / f"{shard}", shard)
        with closing(_Way(to, here.size)) as way:
            yield from _merging(here, shards, way, device)
            yield from way.send(_companions(room / folder))
            return way.commit(here)


def push_folder(
    plan: Plan, to: Target, folder: Path, samples: Mapping[str, Sample] | None = None
) -> Generator[Progress, None, str]:
    """Publish a merge that `Folder` wrote, with a card and a recipe that name no local paths.

    `samples` are what was taken while it was written. Returns the repo's URL. Yields the stage
    `push`. Raises MergeError.
    """
    if to.published:
        return to.url
    with _room(to) as room, closing(_Way(to, plan.size, keep=True)) as way:
        for path in sorted(folder.glob("*.safetensors")):
            yield from way.send([path])
        for path in folder.glob("*.safetensors.index.json"):
            shutil.copyfile(path, room / path.name)
        write_public_companions(plan, room, samples or {})
        yield from way.send(_companions(room))
        return way.commit(plan)


def clean(but: str = "") -> None:
    """Remove what killed pushes left on the disk, `but` for one to a repo of that key."""
    for path in (container.home() / "pushes").glob("*.lock"):
        if path.stem != but:
            with suppress(MergeError, OSError), _alone(path, ""):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)


def holds(folder: Path, plan: Plan) -> bool:
    """Whether a folder is this very merge, from a run whose push did not end."""
    card = folder / "README.md"
    told = card.read_text("utf-8", "replace") if card.is_file() else ""
    return f'{IDENTITY}: "{plan.identity}"\n' in told


def write_public_companions(plan: Plan, folder: Path, samples: Mapping[str, Sample]) -> None:
    """What stands beside the weights, without the paths of local folders."""
    names = public_names(s.name for s in (plan.donor, *plan.sources))
    public = _renamed(plan, names)
    write_companions(public, folder, whole(public, summed(samples)))
    for path in folder.glob("*config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if key not in PATHS}
        if kept != content:
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _renamed(plan: Plan, names: Mapping[str, str]) -> Plan:
    words = plan.vocabulary
    return replace(
        plan,
        recipe=plan.recipe.renamed(names),
        sources=tuple(replace(source, name=names[source.name]) for source in plan.sources),
        donor=replace(plan.donor, name=names[plan.donor.name]),
        vocabulary=words and replace(words, donor=names.get(words.donor, words.donor)),
    )


def _companions(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".safetensors")


def _merging(plan: Plan, shards: "_Shards", way: "_Way", device: str) -> Iterator[Progress]:
    """Shards are sent while the next ones are merged; merging waits where sending is slower."""
    with closing(merge(plan, shards, samples=shards.samples, device=device)) as steps:  # type: ignore[type-var]
        for at in steps:
            yield at if at.stage == "measure" else way.at(at)
            while shards.ready:
                yield from way.wait()
                way.start([shards.ready.popleft()])


class _Shards:
    """A sink whose files can be taken as soon as they are whole."""

    def __init__(self, path: Path, shard: int) -> None:
        self.samples: Samples = {}
        self.folder = Folder(path, shard=shard, at_once=AT_ONCE, samples=self.samples)
        self.ready: deque[Path] = deque()

    def begin(self, plan: Plan) -> None:
        """Goes on from one shard that a killed run left whole; there is no room for two."""
        partial = self.folder.path.with_name(f"{self.folder.path.name}.partial-{plan.identity}")
        for path in sorted(partial.glob("*.safetensors"))[1:]:
            path.unlink()
        self.folder.begin(plan)
        whole = {self.folder.file_of[name] for name in self.folder.complete}
        self.ready.extend(self.folder.partial / file for file in whole)

    def has(self, name: str) -> bool:
        return self.folder.has(name)

    def part(self, name: str) -> str:
        return self.folder.part(name)

    def place(self, step: "Step") -> Tensor:
        return self.folder.place(step)

    def done(self, name: str) -> None:
        self.folder.done(name)
        file = self.folder.file_of[name]
        if file not in self.folder.shards:
            self.ready.append(self.folder.partial / file)

    def finish(self) -> None:
        with told_if_full(self.folder.path):
            self.folder.write_index()
            write_public_companions(self.folder.plan, self.folder.partial, self.samples)
        self.folder.let_go()

    def abandon(self, *, keep: bool) -> None:  # noqa: ARG002  # merging again costs less than disk
        self.folder.abandon(keep=False)


@dataclass
class _Way:
    """What was sent, what is being sent, and how far that is; `keep`: files stay on the disk."""

    to: Target
    total: int
    keep: bool = False
    sendings: list[Sending] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    tally: Mapping[str, int] = field(default_factory=dict)

    def send(self, paths: Sequence[Path]) -> Iterator[Progress]:
        yield from self.wait()
        self.start(paths)
        yield from self.wait()

    def start(self, paths: Sequence[Path]) -> None:
        self.sendings.append(Sending(self.to, paths))

    def wait(self) -> Iterator[Progress]:
        """Until all is sent; what the commit does not read then goes."""
        for sending in self.sendings[-1:]:
            while not sending.wait(0.1):
                yield self._progress(sending.paths[0].name)
            for path in sending.release():
                if not self.keep:
                    path.unlink()
            yield self._progress(sending.paths[0].name)

    def at(self, step: Progress) -> Progress:
        """How far the push is, while a step of the merge is the news."""
        self.tally = step.tally
        return self._progress(step.tensor, step.seconds_left)

    def _progress(self, name: str, left: float = 0.0) -> Progress:
        done = min(self.total, sum(sending.done for sending in self.sendings))
        share, elapsed = done / (self.total or 1), max(time.monotonic() - self.began, 1e-6)
        left = elapsed / share * (1 - share) if share else left
        speed = done / elapsed / 1e9
        return Progress(name, done, self.total, share, speed, left, "push", self.tally)

    def commit(self, plan: Plan) -> str:
        return commit(self.to, self.sendings, f"{plan.method.title} merge {plan.identity}")

    def close(self) -> None:
        for sending in self.sendings:
            sending.close()


@contextmanager
def _room(to: Target, keep: str = "") -> Iterator[Path]:
    """A folder for files on their way, for this push alone; `keep` is taken over from a killed one.

    What killed pushes to other repos left goes, too.
    """
    pushes, key = container.home() / "pushes", to.id.replace("/", "--")
    try:
        pushes.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{pushes} cannot be written ({error.strerror})"
        raise MergeError(f"{why}: point MERGING_HOME to a folder that can.") from error
    clean(but=key)
    said = f"A merge is being pushed to {to.id} just now: wait for its end, or push to another."
    with _alone(pushes / f"{key}.lock", said):
        room = pushes / key
        room.mkdir(exist_ok=True)
        for path in room.iterdir():
            if path.name != keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)


@contextmanager
def _alone(path: Path, said: str) -> Iterator[None]:
    """Holds a lock, which ends with the process, and removes its file. MergeError if it is held."""
    lock = FileLock(path, timeout=0, thread_local=False)  # the page goes on in any thread
    try:
        lock.acquire()
    except Timeout as error:
        raise MergeError(said) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()
