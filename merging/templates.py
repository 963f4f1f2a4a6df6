"""Renders chat templates, which are programs of strangers, where they can neither hang nor explode.

It knows templates, conversations and the process that renders them; no model, no tokenizer.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from merging import rendering
from merging.errors import MergeError

START = 60.0
"""Seconds within which the process must be ready; it takes about one."""
WALL = 10.0
"""Seconds after which a render is given up, however little of them it could work."""


class RefusedError(MergeError):
    """The template itself said no, as some do to a system prompt: the text is its reason alone."""


def start() -> None:
    """Start the process, a second of work, without waiting for it. Again it does nothing."""
    _renderer(os.getpid()).start()


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    tokens: Mapping[str, str],
    name: str = "this model",
) -> str:
    """What transformers' `apply_chat_template` writes, ready for the model's answer.

    `tokens` are the tokenizer's special tokens by name; `name` is whose template it is. Any number
    of threads may call it; they take turns. Raises RefusedError for an error of the template's
    own, and MergeError where it takes more time, memory or text than a template needs.
    """
    listed = [dict(message) for message in messages]
    request = json.dumps({"template": template, "messages": listed, "tokens": dict(tokens)})
    answer = _renderer(os.getpid()).ask(request.encode() + b"\n")
    if "refused" in answer:
        raise RefusedError(answer["refused"])
    if "text" not in answer:
        most = f"{rendering.CHARACTERS:,}"
        what = answer.get("ended") or f"adds {answer['long']:,} characters, of at most {most}"
        raise MergeError(
            f"The chat template of {name} {what}: choose `chat_template: chatml` in the recipe, "
            "or another model."
        )
    text: str = answer["text"]
    return text


@cache
def _renderer(process: int) -> "_Renderer":  # noqa: ARG001  # it is the key
    """This process's own: a ZeroGPU worker, forked from the page, must not share pipes with it."""
    return _Renderer()


@dataclass
class _Renderer:
    """One child at a time, one render at a time; a new child follows where one has ended."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    child: "_Child | None" = None

    def start(self) -> None:
        with self.lock:
            self._running()

    def ask(self, request: bytes) -> Mapping[str, Any]:
        """The child's answer, or `ended` with what the template did to it.

        Raises RuntimeError if no child can be started.
        """
        with self.lock:
            for _ in range(2):  # a second time where it ended for reasons of its own
                child = self._running()
                answer = child.ask(request)
                if answer is not None:
                    return answer
                why = child.end()
                self._running()  # at once, for whoever comes next
                if why:
                    return {"ended": why}
        if not child.ready:
            raise RuntimeError("The process that renders chat templates did not start.")
        return {"ended": "crashes what renders it"}

    def _running(self) -> "_Child":
        if self.child is None or self.child.process.poll() is not None:
            self.child = _Child(_popen())
        return self.child


def _popen() -> subprocess.Popen[bytes]:
    """The child, which finds the modules that this process finds, and is told nothing else."""
    kept = {k: os.environ[k] for k in ("PATH", "LANG", "SYSTEMROOT") if k in os.environ}
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HF_HUB_OFFLINE": "1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy's: each thread takes address space, which is capped
    }
    return subprocess.Popen(
        [sys.executable, "-P", rendering.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=kept | own,
        start_new_session=True,  # Ctrl-C is the page's; the child ends when its stdin is closed
    )


class _Child:
    """A process that renders, and ends with this object or with the process that started it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.ready = self.late = False
        self._end = weakref.finalize(self, _end, process)

    def ask(self, request: bytes) -> Mapping[str, Any] | None:
        """Its answer, or None where it has ended or had to be killed."""
        if not self.ready:
            if not self._line(b"", 1_000, START):
                return None
            self.ready = True
        line = self._line(request, 12 * (rendering.CHARACTERS + len(request)), WALL)
        answer: Mapping[str, Any] | None = json.loads(line) if line else None
        return answer

    def end(self) -> str | None:
        """End it; what the template did to it, None where the template is not known to be why."""
        self._end()
        ends = {
            -getattr(signal, "SIGPROF", 99): f"works for over {rendering.SECONDS} seconds",
            rendering.OUT_OF_MEMORY: f"takes over {rendering.MEMORY} MB of memory",
        }
        late = f"is not done after {WALL:.0f} seconds" if self.late and self.ready else None
        return late or ends.get(self.process.returncode)

    def _line(self, request: bytes, longest: int, seconds: float) -> bytes:
        """Send a line and read the next one, killing the process after `seconds`; b"" if none."""
        assert self.process.stdin and self.process.stdout
        timer = threading.Timer(seconds, self._kill)
        timer.start()
        try:
            self.process.stdin.write(request)
            self.process.stdin.flush()
            line = self.process.stdout.readline(longest)
        except OSError:  # it has ended
            return b""
        finally:
            timer.cancel()
            timer.join()
        return line if line.endswith(b"\n") else b""

    def _kill(self) -> None:
        self.late = True
        self.process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # a request that nobody has read
            if pipe:
                pipe.close()
