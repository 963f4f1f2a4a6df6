"""Runs the command line many times at the cost of one import, and kills it where it is told to.

It knows processes and the calls that change a folder; it knows no recipes. One process imports all
and computes nothing, so that it has no threads, and forks for each run:

    with Forks() as forks:
        forks.run(["run", recipe, out], watched=out, seconds=0.02)
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
CALLS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open", "mmap.__new__")
"""As Python's audit hooks name them; each is told before it is done."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, or minus a signal; seconds since its first change, None if it
    made none; how many calls changed what was watched.
    """

    status: int
    seconds: float | None
    calls: int


class Forks:
    """The process that forks."""

    def __enter__(self) -> Forks:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=ROOT, text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._answer() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        self.process.communicate()

    def _answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def run(
        self,
        arguments: Sequence[str | Path],
        watched: Path,
        *,
        seconds: float | None = None,
        call: int | None = None,
    ) -> Ended:
        """One run; killed so many seconds after its first change of `watched` and what is beside
        it under longer names, or before its change number `call`.
        """
        asked = {
            "arguments": [*map(str, arguments)], "watched": str(watched),
            "seconds": seconds, "call": call,
        }  # fmt: skip
        assert self.process.stdin
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Ended(**self._answer())


def _changes(name: str, given: Sequence[Any], watched: str) -> bool:
    """Whether a call changes the watched folder: opening to read does not. What removes a folder
    names what is in it without a path.
    """
    if name not in CALLS:
        return False
    if name == "mmap.__new__" or (name == "os.remove" and not Path(given[0]).is_absolute()):
        return True
    if name == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
        return False
    return str(given[0]).startswith(watched)


def _watch(asked: dict[str, Any], told: int) -> None:
    """Tell of each change by a byte, and end before the one that was asked for."""
    done = 0

    def hook(name: str, given: tuple[Any, ...]) -> None:
        nonlocal done
        if _changes(name, given, asked["watched"]):
            done += 1
            os.write(told, b".")
            if done == asked["call"]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _child(asked: dict[str, Any], told: int) -> None:
    from merging.__main__ import main

    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(silent, stream)
    _watch(asked, told)
    os._exit(main(asked["arguments"]))


def _parent(asked: dict[str, Any], child: int, told: int) -> Ended:
    first = os.read(told, 1)
    start = time.monotonic()
    if first and asked["seconds"] is not None:
        time.sleep(asked["seconds"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start if first else None
    more = b""
    while select.select([told], [], [], 0)[0] and (part := os.read(told, 1 << 16)):
        more += part
    return Ended(os.waitstatus_to_exitcode(status), seconds, len(first + more))


def _serve() -> None:
    import merging.__main__  # noqa: F401  # what takes seconds

    out = os.dup(1)  # a run's own output goes elsewhere
    os.write(out, b'"ready"\n')
    for line in sys.stdin:
        asked = json.loads(line)
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            _child(asked, tell)
        os.close(tell)
        ended = _parent(asked, child, told)
        os.close(told)
        os.write(out, (json.dumps(asdict(ended)) + "\n").encode())


if __name__ == "__main__":
    _serve()
