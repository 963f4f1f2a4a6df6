"""Merges onto a disk that is full or fills up: told at once, in one sentence, and nothing lost.

The disk is a tmpfs of a few pages, which only root may mount; elsewhere these tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from mmap import PAGESIZE
from pathlib import Path

import pytest

from merging import merge, plan
from merging.__main__ import main
from merging.errors import MergeError, StalledError
from merging.plan import Plan
from merging.sinks import Folder
from tests.conftest import recipe, written
from tests.forks import Forks

PAGE = 4096
SHARD = 8_000
Pico = dict[str, Path]
Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts an empty disk of so many bytes."""
    root = tmp_path / "disk"
    root.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", root]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        return root

    if not shutil.which("mount") or PAGESIZE != PAGE:
        pytest.skip("no disk of a few pages of 4 KB can be mounted here")
    yield mount
    if root.is_mount():
        subprocess.run(["umount", "--lazy", root], check=True)


@pytest.fixture
def decided(pico: Pico) -> Plan:
    return plan(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"]))


@pytest.fixture
def command(pico: Pico, tmp_path: Path) -> list[str]:
    """A run of what is `decided`, OUT_DIR to be added."""
    path = tmp_path / "ties.yaml"
    path.write_text(written("ties", [pico["a"], pico["c"]], base_model=pico["base"]))
    return ["run", str(path), "--max-shard-size", str(SHARD)]


def take(root: Path, left: int) -> Path:
    """What another program writes: all of the disk but `left` bytes."""
    free = shutil.disk_usage(root).free
    filler = root / "filler"
    filler.write_bytes(bytes(max(0, free - left)))
    assert shutil.disk_usage(root).free <= left
    return filler


def kept(root: Path) -> dict[str, tuple[int, int]]:
    found = [(p.name, p.stat()) for p in root.glob("out*/*.safetensors")]
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found}


def filled(decided: Plan, root: Path, left: int) -> None:
    """Merge while another program takes the disk, but for `left` bytes."""
    steps = merge(decided, Folder(root / "out", shard=SHARD))
    next(steps)
    take(root, left)
    for _ in steps:
        pass


@pytest.mark.parametrize("more", [-5 * PAGE, 0], ids=["weights", "headers"])
def test_a_small_disk_is_refused_before_the_start(
    more: int, disk: Disk, decided: Plan, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No room for the weights, or for them and not for their headers: one sentence, exit code 2."""
    root = disk(-(-decided.size // PAGE) * PAGE + more)
    assert main([*command, str(root / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "free some space" in said.err and "GB" in said.err
    assert list(root.iterdir()) == []


def test_room_that_is_taken_meanwhile_was_the_merges_already(disk: Disk, decided: Plan) -> None:
    """Whatever another program writes after the start, the merge ends, with the same bytes."""
    root = disk(60 * PAGE)
    for _ in merge(decided, Folder(root.parent / "whole", shard=SHARD)):
        pass
    filled(decided, root, left=12 * PAGE)
    names = {path.name for path in (root.parent / "whole").iterdir()}
    assert {path.name for path in (root / "out").iterdir()} == names and len(names) > 10
    for name in names:
        assert (root / "out" / name).read_bytes() == (root.parent / "whole" / name).read_bytes()


@pytest.mark.parametrize("pages", range(7))
def test_no_room_for_the_small_files(
    pages: int, disk: Disk, decided: Plan, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """All weights are written and kept; when there is room they are not written again."""
    root = disk(60 * PAGE)
    with pytest.raises(StalledError, match=r"out has its weights.*run the same merge again\.$"):
        filled(decided, root, left=pages * PAGE)
    before = kept(root)
    assert len(before) == 8 and not (root / "out").exists()
    assert not list(root.glob("*/*.draft"))

    (root / "filler").unlink()
    filler = take(root, left=0)  # but for what the small files that are there give back
    assert main([*command, str(root / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and kept(root) == before

    filler.unlink()
    assert main([*command, str(root / "out")]) == 0
    assert kept(root) == before and (root / "out" / "config.json").is_file()
    assert [path.name for path in root.iterdir()] == ["out"]


def test_what_a_killed_run_had_taken_counts_as_free(
    disk: Disk, decided: Plan, command: list[str]
) -> None:
    """Its files under way hold the whole disk, and the next run starts them anew."""
    root = disk(26 * PAGE)
    with Forks() as forks:
        forks.run([*command, root / "out"], root / "out", call=12)
    assert len(list(root.glob("*/*.draft"))) == 8 and not kept(root)
    assert shutil.disk_usage(root).free < decided.size
    assert main([*command, str(root / "out")]) == 0
    assert len(kept(root)) == 8 and [path.name for path in root.iterdir()] == ["out"]


def test_a_disk_full_of_another_merge(disk: Disk, decided: Plan, pico: Pico) -> None:
    """A second merge beside a first one is refused while that is under way, not in its middle."""
    root = disk(26 * PAGE)
    first = merge(decided, Folder(root / "out", shard=SHARD))
    next(first)
    other = plan(recipe("linear", [pico["a"], pico["c"]]))
    with pytest.raises(MergeError, match=r"other needs 0\.00 GB and the disk has 0\.00 GB"):
        for _ in merge(other, Folder(root / "other")):
            pass
    for _ in first:
        pass
    assert [path.name for path in root.iterdir()] == ["out"]
