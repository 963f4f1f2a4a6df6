"""What this machine keeps of merges stays within its bounds, least use going first."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from merging.errors import MergeError
from merging.ui import kept
from merging.ui.jobs import Made

OLD = 2 * kept.IN_USE
"""Seconds ago, for what nobody uses any longer."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGING_HOME", str(tmp_path))
    (tmp_path / "recipes").mkdir()
    return tmp_path


def used(path: Path, ago: float) -> None:
    os.utime(path, (time.time() - ago,) * 2)


def keep(home: Path, name: str, ago: float) -> None:
    kept.keep(Made(name, f"merge_method: {name}\n", "TIES", ("a", "b"), {}))
    used(home / "recipes" / f"{name}.yaml", ago)


def merges(home: Path, *ages: float) -> None:
    """Files of merges, the first the oldest."""
    for number, ago in enumerate(ages):
        folder = home / "merges" / f"m{number}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        used(folder, ago)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_recipes_are_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not asked for longest goes, not the one that was made first."""
    monkeypatch.setattr(kept, "RECIPES", 3)
    for number, name in enumerate("abc"):
        keep(home, name, OLD - number)
    assert kept.recipe("a") == ('# columns: ["a", "b"]\nmerge_method: a\n', ("a", "b"))
    keep(home, "d", 0)
    assert left(home / "recipes") == ["a.yaml", "c.yaml", "d.yaml"]
    with pytest.raises(MergeError, match="No merge b is known"):
        kept.recipe("b")


def test_what_killed_runs_left_goes(home: Path) -> None:
    """A half-written recipe, unless it may be another app's that is being written now."""
    keep(home, "a", OLD)
    for name, ago in (("a.1.draft", OLD), ("b.2.draft", 1)):
        (home / "recipes" / name).write_text("half")
        used(home / "recipes" / name, ago)
    kept.clean()
    assert left(home / "recipes") == ["a.yaml", "b.2.draft"]


def test_files_beyond_their_number_go(home: Path) -> None:
    """So that there are `AT_MOST` with those to come; what is in use stays."""
    merges(home, OLD + 2, OLD + 1, OLD, OLD - 1, 1)
    kept.make_room(0)
    assert left(home / "merges") == ["m2", "m3", "m4"]
    for path in (home / "merges").iterdir():
        used(path, 1)
    merges(home / "more", 1, 1)
    for path in (home / "more" / "merges").iterdir():
        path.rename(home / "merges" / f"n{path.name}")
    kept.make_room(0)
    assert len(left(home / "merges")) == 5


def test_files_make_way_on_a_short_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the room is lacking for, the least recently used first, and none in use."""
    merges(home, OLD + 1, OLD, 1)
    free = {3: 10, 2: 20, 1: 30}

    class Usage:
        def __init__(self, folder: Path) -> None:
            self.free = free[len(left(folder))]

    monkeypatch.setattr(kept.shutil, "disk_usage", Usage)
    kept.make_room(15)
    assert left(home / "merges") == ["m1", "m2"]
    kept.make_room(100)
    assert left(home / "merges") == ["m2"]
