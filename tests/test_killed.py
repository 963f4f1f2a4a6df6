"""`python -m merging run` killed with SIGKILL: OUT_DIR is not there or whole, and the next run goes
on from the complete shards. Knows files and moments; what is in them is tested elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.conftest import written
from tests.forks import Ended, Forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
Pico = dict[str, Path]
Bytes = dict[str, bytes]
MOMENTS = 50
END = 30
"""Calls, from the last shards to the removal of the former result."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as process:
        yield process


@dataclass
class Place:
    """A folder in which one recipe is merged into `out`, over a `former` result or none."""

    forks: Forks
    root: Path
    recipe: Path
    wanted: Path
    former: Path | None

    @property
    def out(self) -> Path:
        return self.root / "out"

    def run(self, *, seconds: float | None = None, call: int | None = None) -> Ended:
        command = ["run", self.recipe, self.out, "--max-shard-size", "8KB"]
        if self.former:
            command.append("--replace")
        return self.forks.run(command, self.out, seconds=seconds, call=call)

    def renew(self) -> None:
        """As it was before the first run."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        if self.former:
            shutil.copytree(self.former, self.out)

    def beside(self) -> set[str]:
        """What a run leaves beside OUT_DIR, without identities."""
        return {p.name.partition("-")[0] for p in self.root.iterdir() if p != self.out}

    def kept(self) -> dict[str, tuple[int, int]]:
        """The complete shards of a merge under way, by what tells them from rewritten ones."""
        found = [(p.name, p.stat()) for p in self.root.glob("out.partial-*/*.safetensors")]
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found}

    def finished(self) -> bool:
        return self.out.is_dir() and held(self.out) == held(self.wanted)

    def check(self) -> None:
        """OUT_DIR is the former result, the new one, or not there; no complete shard is wrong."""
        whole = [held(self.wanted), *([held(self.former)] if self.former else [])]
        assert not self.out.exists() or held(self.out) in whole
        assert self.beside() <= {"out.partial", "out.old"}
        for path in self.root.glob("out.partial-*/*.safetensors"):
            assert path.read_bytes() == whole[0][path.name], path.name

    def check_continued(self, before: dict[str, tuple[int, int]]) -> None:
        """What was complete before the last run has not been written again by it."""
        for name, was in before.items():
            [stat] = {p.stat() for p in self.root.glob(f"out*/{name}") if p.stat().st_ino == was[0]}
            assert (stat.st_ino, stat.st_mtime_ns) == was


def held(folder: Path) -> Bytes:
    """The files, the card without its figures: a run that goes on did not see all tensors."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    if card := found.get("README.md"):
        before, _, after = card.partition(b"What the merge did")
        found["README.md"] = before + after[after.find(b"The recipe, in") :] if after else before
    return found


@pytest.fixture(params=["new", "replaced"])
def place(request: pytest.FixtureRequest, forks: Forks, pico: Pico, tmp_path: Path) -> Place:
    models = [pico["a"], pico["c"]]
    texts = {
        "wanted": written("ties", models, base_model=pico["base"], parameters={"density": 0.5}),
        "former": written("linear", models),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        command = ["run", tmp_path / f"{name}.yaml", tmp_path / name, "--max-shard-size", "8KB"]
        assert forks.run(command, tmp_path / name).status == 0
    former = tmp_path / "former" if request.param == "replaced" else None
    found = Place(forks, tmp_path / "root", tmp_path / "wanted.yaml", tmp_path / "wanted", former)
    found.renew()
    return found


def test_fifty_random_moments(place: Place) -> None:
    """Killed again and again until it is through, from its first file to its last."""
    times = []
    for _ in range(2):
        ended = place.run()
        assert ended.status == 0 and ended.seconds and place.finished()
        times.append(ended.seconds)
        place.renew()
    random, killed, continued = Random(5), 0, 0
    while killed < MOMENTS:
        before = place.kept()
        ended = place.run(seconds=random.uniform(0, min(times)))
        place.check()
        place.check_continued(before)
        continued += bool(before)
        killed += ended.status == -9
        assert ended.status == -9 or (ended.status == 0 and place.finished())
        if place.finished() and not place.beside():
            place.renew()
    before = place.kept()
    assert place.run().status == 0 and continued
    place.check_continued(before)
    assert place.finished() and not place.beside()


@pytest.mark.parametrize("place", ["replaced"], indirect=True)
def test_every_moment_of_the_end(place: Place) -> None:
    """Before each call that makes, names or removes a file: most of the end, and some before it.
    Run again, the merge is whole, and neither its own files nor the former result's stay behind.
    """
    calls = place.run().calls
    seen = set()
    for call in [*Random(6).sample(range(1, calls - END), 10), *range(calls - END, calls + 1)]:
        place.renew()
        assert place.run(call=call).status == -9
        place.check()
        seen.add((place.out.exists(), place.finished(), *sorted(place.beside())))
        before = place.kept()
        assert place.run().status == 0
        place.check_continued(before)
        assert place.finished() and not place.beside(), call
    assert seen >= {
        (True, False, "out.partial"),
        (False, False, "out.old", "out.partial"),
        (True, True, "out.old"),
    }
