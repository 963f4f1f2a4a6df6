"""What this machine keeps of merges stays within its bounds, least use going first."""

from __future__ import annotations

import multiprocessing
import os
import time
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from merging.blocks import returned
from merging.errors import MergeError
from merging.merge import merge
from merging.plan import plan
from merging.recipe import Recipe
from merging.sinks import Folder
from merging.ui import jobs, kept
from merging.ui.jobs import Made
from merging.ui.routes import downloads
from merging.ui.visitor import Visitor
from tests.conftest import recipe
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub
from tests.ui.models import DEMO

OLD = 2 * kept.HALF
"""Seconds ago, for what nobody writes any longer."""


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
    """So that there are `AT_MOST` with those to come, however lately all were used."""
    merges(home, 5, 4, 3, 2, 1)
    kept.make_room(0)
    assert left(home / "merges") == ["m2", "m3", "m4"]


def test_files_make_way_on_a_short_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the room is lacking for, the least recently used first; or it is said."""
    merges(home, 3, 2, 1)
    monkeypatch.setattr(kept.hub, "disk", lambda at: (0, 40 - 10 * len(left(at))))
    kept.make_room(15)
    assert left(home / "merges") == ["m1", "m2"]
    with pytest.raises(MergeError, match=r"need 0\.0 GB and the disk has 0\.0 GB free"):
        kept.make_room(100)


@pytest.mark.parametrize(("same", "stay"), [(True, ["m2"]), (False, ["m0", "m1", "m2"])])
def test_files_make_way_for_models(
    home: Path, same: bool, stay: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as a download lacks the room for, unless the cache lies on another disk."""
    merges(home, 3, 2, 1)
    free = lambda: 40 - 10 * len(left(home / "merges"))  # noqa: E731  # said once
    monkeypatch.setattr(kept.hub, "disk", lambda at=None: (50 if at or same else 90, free()))
    kept.give_way(10)
    assert left(home / "merges") == ["m0", "m1", "m2"]
    kept.give_way(25)
    assert left(home / "merges") == stay


@pytest.mark.usefixtures("home")
def test_whoever_fetches_asks_for_room(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge and a question, before the first byte, for what is not here yet."""
    hub.add("org/a", DEMO / "a")
    hub.add("org/b", DEMO / "b")
    asked: list[int] = []
    monkeypatch.setattr(kept, "give_way", asked.append)
    returned(jobs.at_hand({"a": "org/a"}, Visitor()))
    text = "merge_method: linear\nmodels: [org/a, org/b]\nparameters: {weight: 0.5}\n"
    returned(jobs.make(Recipe.from_yaml(text), Visitor()))
    assert asked == [(DEMO / name / "model.safetensors").stat().st_size for name in "ab"]


def test_files_that_are_downloaded_stay_until_then(home: Path) -> None:
    """However long that takes; while it is all that are kept, no others are made."""
    merges(home, *[OLD] * kept.AT_MOST)
    streams = {path: kept.zipped(path) for path in sorted((home / "merges").iterdir())}
    for path in streams:
        used(path, OLD)
    with pytest.raises(MergeError, match=r"Files of 4 merges are being .* try again"):
        kept.make_room(0)
    (first, whole), (second, broken), *_ = streams.items()
    with ZipFile(BytesIO(b"".join(whole))) as found:
        assert found.read("model.safetensors") == b"weights"
    kept.make_room(0)
    assert not first.exists() and second.exists()
    merges(home / "more", OLD)
    (home / "more" / "merges" / "m0").rename(first)
    used(second, 2 * OLD)
    del streams[second], broken  # its visitor is gone
    kept.make_room(0)
    assert first.exists() and not second.exists()
    with pytest.raises(FileNotFoundError):
        kept.zipped(second)


def test_a_download_by_its_address(home: Path) -> None:
    """The files as one ZIP, or in a sentence that there are none."""
    text = "merge_method: linear\nmodels: [{model: assets/demo/a, parameters: {weight: 1}}]\n"
    kept.keep(Made("m0", text, "Linear", ("a",), {}))
    site = TestClient(Starlette(routes=[downloads(lambda _: True)]))
    assert site.get("/merged/m0.zip").status_code == 404
    merges(home, OLD)
    answer = site.get("/merged/m0.zip")
    assert answer.headers["content-disposition"].endswith('filename="merge-m0.zip"')
    assert ZipFile(BytesIO(answer.content)).namelist() == ["model.safetensors"]
    assert time.time() - (home / "merges" / "m0").stat().st_mtime < OLD / 2
    assert "press" in site.get("/merged/m1.zip").text


def test_a_download_ends_although_a_child_was_forked_meanwhile(home: Path) -> None:
    """A worker that lives on does not hold what its parent has let go."""
    merges(home, *[1] * kept.AT_MOST)
    pieces = kept.zipped(home / "merges" / "m0")
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    try:
        assert b"".join(pieces)
        used(home / "merges" / "m0", 2)
        kept.make_room(0)
    finally:
        process.kill()
        process.join()
    assert left(home / "merges") == ["m1", "m2", "m3"]


def test_files_that_are_written_stay(home: Path, pico: dict[str, Path]) -> None:
    """What a killed run left does not."""
    decided = plan(recipe("linear", [pico["a"], pico["c"]]))
    merges(home, *[1] * kept.AT_MOST)
    going = merge(decided, Folder(home / "merges" / "m9"))
    next(going)
    (partial,) = (home / "merges").glob("m9.partial-*")
    killed = partial.with_name("m8.partial-0")
    killed.mkdir()
    for path in (partial, killed):
        used(path, OLD)
    kept.make_room(0)
    assert partial.exists() and not killed.exists() and len(left(home / "merges")) == 3
    for _ in going:
        pass
    assert (home / "merges" / "m9" / "model.safetensors").is_file()
