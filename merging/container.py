"""What is left to this process of the machine, by its container or its owner: memory, cores, disk,
and a folder of its own.

It reads what the system and a Space say of themselves, and does not know what any of it is for.
"""

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from merging.errors import MergeError

ROOT = Path("/")
MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""What control groups of version 2 and 1 call a limit, what is used, and in `memory.stat` what of
that makes way by itself: files that were read, and not lately. Kubernetes counts the same way."""
DISK = 50
DISKS = {
    "t4-medium": 100, "a10g-small": 110, "a10g-large": 200, "l40sx1": 380, "l4x1": 400,
    "a100-large": 1000,
}  # fmt: skip
"""GB that a Space has, by its ACCELERATOR; all others have DISK. As documented in August 2026."""


def home() -> Path:
    """Where recipes, merges and what is on its way out are kept."""
    return Path(os.environ.get("MERGING_HOME") or Path.home() / ".cache" / "merging")


def told(name: str) -> int | None:
    """Bytes that a variable of the environment, in GB, lets something take; None if it is not set.

    Raises MergeError if it is no number.
    """
    said = os.environ.get(name, "").strip()
    if not said:
        return None
    try:
        value = float(said)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise MergeError(f"{name} is {said!r}: set it to a number of GB, such as 40.")
    return int(value * 1e9)


def memory(root: Path = ROOT) -> float:
    """Bytes that the control groups leave this process; infinite where none has a limit."""
    left = math.inf
    for group in _groups("memory", root):
        stat = dict(line.split() for line in _text(group / "memory.stat").splitlines())
        for limit, usage, files in MEMORY:
            with suppress(ValueError):  # of the other version, or no limit
                used = int(_text(group / usage)) - int(stat.get(files, 0))
                left = min(left, int(_text(group / limit)) - used)
    return max(0, left)


@cache  # it is asked for at every token
def cores(root: Path = ROOT) -> float:
    """How many cores' time the control groups let this process have; infinite without a limit."""
    share = math.inf
    for group in _groups("cpu", root):
        older = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        with suppress(ValueError):  # no limit, or no such files
            quota, period = map(int, (_text(group / "cpu.max") or " ".join(older)).split())
            share = min(share, quota / period) if quota > 0 else share
    return share


def disk(folder: Path, ours: Iterable[Path] = (), least: int = 0) -> tuple[int, int]:
    """Bytes of the disk where a folder lies, or will lie: all, and those free.

    A Space is shown the whole machine's disk, and ended where it takes more than its own part. That
    has at `least` so many bytes, and free are those that the folders in `ours` do not take. What is
    mounted into a Space, such as a storage bucket, counts as it is.
    """
    usage = shutil.disk_usage(_there(folder))
    if not os.environ.get("SPACE_ID") or not on_root(folder):
        return usage.total, usage.free
    ours = [each for each in ours if on_root(each)]
    part = max(least, 10**9 * DISKS.get(os.environ.get("ACCELERATOR", ""), DISK))
    return min(usage.total, part), min(usage.free, max(0, part - sum(map(_size, ours))))


def on_root(folder: Path) -> bool:
    """Whether a folder lies, or will lie, on the system's own disk."""
    return _there(folder).stat().st_dev == ROOT.stat().st_dev


def _there(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those around it, in both versions.

    Some do not exist: a container may see its own group as the outermost one.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / (controller if controllers else "")
            group = mount / path.lstrip("/")
            yield from (at for at in (group, *group.parents) if at.is_relative_to(mount))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _size(folder: Path) -> int:
    """Bytes of disk that the files in a folder take."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone meanwhile
                total += 512 * Path(at, name).lstat().st_blocks
    return total
