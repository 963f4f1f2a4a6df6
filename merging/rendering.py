"""The process in which chat templates run: a request a line in, an answer a line out.

It knows transformers' renderer and its own limits. It imports nothing of this project, whose
package would load torch; `templates` starts it, and restarts it when a template has ended it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 2
"""Seconds of processor time a template: a busy machine does not shorten it, and none can sleep."""
MEMORY = 256
"""MiB that templates may take beside what the process has at its start."""
CHARACTERS = 200_000
"""Characters that a template may add to what was said."""
OUT_OF_MEMORY = 3
"""The process's exit status."""

_KEPT = 32 * 2**20
"""Bytes by which the process may have grown between two templates: compiled ones are kept."""


def main() -> None:
    """Answer until the other side closes: `{}` when ready, then `text`, `refused` or `long`."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # whatever is printed is no answer
    from transformers.utils.chat_template_utils import render_jinja_template

    at_start = _size()
    _limit(at_start + MEMORY * 2**20)
    answers.write(b"{}\n")
    answers.flush()
    for request in sys.stdin.buffer:
        _clock(SECONDS)
        answer = _answer(request, render_jinja_template)
        _clock(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        if _size() > at_start + _KEPT:
            return


def _answer(request: bytes, render: Callable[..., Any]) -> dict[str, Any]:
    try:
        asked = json.loads(request)
        texts, _ = render(
            [asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=True,
            **asked["tokens"],
        )
        text: str = texts[0]
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # there may be none left for an answer
    except Exception as error:  # noqa: BLE001  # whatever a template does wrong is its own answer
        said = str(error).strip() or type(error).__name__
        return {"refused": said.splitlines()[0][:200]}
    added = len(text) - sum(len(message.get("content", "")) for message in asked["messages"])
    return {"text": text} if added <= CHARACTERS else {"long": added}


def _clock(seconds: int) -> None:
    """Have the system end this process after `seconds` of work, even inside one call; 0 disarms."""
    if sys.platform != "win32":
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit(size: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        size = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _size() -> int:
    """Bytes of address space in use, as the limit counts them."""
    if sys.platform != "linux":
        return 0
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
