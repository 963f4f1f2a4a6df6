"""What a container leaves a process, read from made-up trees of files such as the kernel shows."""

from __future__ import annotations

import math
import os
import shutil
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from merging import container, threads
from merging.errors import MergeError
from merging.hub import disk, kept_state
from merging.library import budget
from merging.memory import SHARE
from merging.merge import merge
from merging.plan import plan
from merging.sinks import Folder
from tests.conftest import recipe

Pico = dict[str, Path]

GB = 10**9
OWN = "kubepods/pod1/own"
MANY = "9223372036854771712"
"""Bytes that are no limit, as version 1 says."""


def within(root: Path, groups: str) -> Path:
    """A system that says which groups the process is in."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    return root


def write(root: Path, group: str, **files: object) -> None:
    """A group's files; two underscores in their names are a dot."""
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_least_that_any_group_leaves(tmp_path: Path) -> None:
    """Of the own group and those around it; what was read of files makes way by itself."""
    root = within(tmp_path, f"0::/{OWN}\n")
    assert container.memory(root) == math.inf
    write(root, OWN, memory__max="max", memory__current=3 * GB, memory__stat="anon 5")
    assert container.memory(root) == math.inf
    stat = f"anon {4 * GB}\nfile {2 * GB}\ninactive_file {GB}"
    write(root, "kubepods/pod1", memory__max=16 * GB, memory__current=6 * GB, memory__stat=stat)
    assert container.memory(root) == 11 * GB
    write(root, "kubepods", memory__max=64 * GB, memory__current=60 * GB, memory__stat=stat)
    assert container.memory(root) == 5 * GB
    write(root, OWN, memory__max=2 * GB)
    assert container.memory(root) == 0


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    """Each controller has a tree; a container's own group may be mounted as the outermost."""
    root = within(
        tmp_path, "5:cpu,cpuacct:/docker/12\n4:memory:/docker/12\n1:name=systemd:/\n0::/\n"
    )
    stat = f"inactive_file 7\ntotal_inactive_file {GB}"
    usage = {"memory__usage_in_bytes": 3 * GB, "memory__stat": stat}
    write(root, "memory", memory__limit_in_bytes=MANY, **usage)
    assert container.memory(root) > 10**18
    write(root, "memory", memory__limit_in_bytes=16 * GB)
    assert container.memory(root) == 14 * GB
    write(root, "memory/docker/12", memory__limit_in_bytes=8 * GB, **usage)
    assert container.memory(root) == 6 * GB
    write(root, "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    write(root, "cpu/docker/12", cpu__cfs_quota_us=250_000, cpu__cfs_period_us=100_000)
    assert container.cores(root) == 2.5


def test_a_quota_of_processor_time(tmp_path: Path) -> None:
    root = within(tmp_path, f"0::/{OWN}\n")
    write(root, OWN, cpu__max="max 100000")
    write(root, "kubepods", cpu__max="50000 100000")
    assert container.cores(root) == 0.5


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert container.memory(tmp_path) == container.cores(tmp_path) == math.inf


def test_models_have_a_share_of_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or of what the machine has free, where that is less."""
    monkeypatch.setattr(container, "memory", lambda: 10**6)
    assert budget("cpu") == int(SHARE * 10**6)
    monkeypatch.setenv("MERGING_MEMORY_GB", "0.0005")
    assert budget("cpu") == 500_000
    monkeypatch.setenv("MERGING_MEMORY_GB", "2")
    assert budget("cpu") == int(SHARE * 10**6)
    monkeypatch.setenv("MERGING_MEMORY_GB", "much")
    with pytest.raises(MergeError, match="MERGING_MEMORY_GB is 'much': set it to a number of GB"):
        budget("cpu")
    monkeypatch.delenv("MERGING_MEMORY_GB")
    monkeypatch.setattr(container, "memory", lambda: math.inf)
    assert 10**6 < budget("cpu") < psutil.virtual_memory().total


@pytest.mark.parametrize(("quota", "count"), [(math.inf, 4), (9.0, 4), (1.5, 2), (0.1, 1)])
def test_as_many_threads_as_cores(
    quota: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a core is worth a thread too."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(container, "cores", lambda: quota)
    assert threads.cores() == count


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Space's home, on a machine with a terabyte of which half is free."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000 * GB, 500 * GB, 500 * GB))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(container, "ROOT", tmp_path)
    for name, value in {"MERGING_HOME": tmp_path / "home", "SPACE_ID": "org/space"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("ACCELERATOR", "MERGING_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("accelerator", "said", "size"),
    [(None, None, 50), ("none", "20", 50), ("l4x1", None, 400), ("h200x1", "120", 120),
     ("a100-large", "2000", 1000)],
)  # fmt: skip
def test_a_space_has_its_own_part_of_a_disk(
    accelerator: str | None, said: str | None, size: int, space: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Not the whole machine's: what its hardware has, or what its owner lets the cache take."""
    for name, value in {"ACCELERATOR": accelerator, "MERGING_CACHE_GB": said}.items():
        if value:
            monkeypatch.setenv(name, value)
    assert disk() == disk(space / "any") == (size * GB, min(size, 500) * GB)
    assert kept_state().budget == (int(said) * GB if said else int(0.7 * size * GB))


def test_what_a_space_has_written_is_not_free(
    space: Path, pico: Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads and merges share its part; once that is full, a merge is refused at once."""
    monkeypatch.setitem(container.DISKS, "small", 0.001)
    monkeypatch.setenv("ACCELERATOR", "small")
    for folder in ("hub/models--a--b/blobs", "home/merges/0"):
        (space / folder).mkdir(parents=True)
        (space / folder / "weights").write_bytes(bytes(4096 * 100))
    (space / "hub/models--a--b/weights").symlink_to("blobs/weights")
    (space / "elsewhere").write_bytes(bytes(4096 * 100))
    total, free = disk()
    assert total == 10**6 and total - 2 * 4096 * 102 < free <= total - 2 * 4096 * 100
    monkeypatch.setitem(container.DISKS, "small", 0.0008)
    decided = plan(recipe("linear", [pico["a"], pico["c"]]))
    with pytest.raises(MergeError, match=r"the disk has 0\.00 GB free"):
        next(merge(decided, Folder(space / "home" / "merges" / "1")))


def test_a_bucket_is_a_disk_of_its_own(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ROOT", Path("/proc"))
    assert disk(space / "data" / "hub") == (1000 * GB, 500 * GB)


def test_elsewhere_the_disk_is_what_it_is(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID")
    assert disk(space / "any") == (1000 * GB, 500 * GB)
    assert kept_state().budget is None
