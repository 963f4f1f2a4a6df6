"""How long `python -m merging run` takes and how much memory it needs, seen from outside it.

It knows processes, and no models. Memory is Linux's count of resident pages that no file and no
shared folder stands behind: the mapped parents and the mapped result are not in it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAUSE = 0.005
"""Seconds between two looks."""
PAGE = 4096
CHILD = """
import resource, sys
from merging.__main__ import main
print(resource.getpagesize(), flush=True)
sys.stdin.readline()
sys.exit(main(["run", *sys.argv[1:]]))
"""
"""Imports all that a merge into a folder needs, then waits: there it is looked at idle."""


@dataclass(frozen=True)
class Seen:
    """Seconds of the merge and of the whole process, and of all cores' work for the latter; bytes
    at the peak above idle."""

    merge: float
    whole: float
    cpu: float
    peak: int


def spent() -> float:
    """Seconds that cores have worked for this process's children, those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def anonymous(process: int, page: int = PAGE) -> int:
    """Resident bytes that are neither a file's nor shared; 0 for a process that has ended."""
    try:
        resident, shared = Path(f"/proc/{process}/statm").read_text().split()[1:3]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(resident) - int(shared)) * page


def watched(process: subprocess.Popen[str], page: int = PAGE) -> int:
    """The peak of `anonymous` until the process ends."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid, page))
        time.sleep(PAUSE)
    return peak


def merge(arguments: Sequence[str | Path]) -> Seen:
    """Run one merge in a process of its own. Raises RuntimeError if it fails."""
    start, before = time.monotonic(), spent()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        page = int(process.stdout.readline() or PAGE)
        idle, ready = anonymous(process.pid, page), time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        peak = watched(process, page)
    end = time.monotonic()
    if process.returncode:
        raise RuntimeError(f"merging ended with {process.returncode}: its message is above.")
    return Seen(end - ready, end - start, spent() - before, peak - idle)
