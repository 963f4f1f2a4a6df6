"""What ZeroGPU says when it grants no GPU, or loses one: a sentence each, with what to do.

It knows the errors of `spaces` by their texts (0.51: zero/client.py, zero/wrappers.py), not the
package; nor what was asked of it.
"""

import re
from queue import Empty

SMALLER = "choose smaller models, shorter answers or fewer questions"
LOGIN = "log in at huggingface.co and open this page there"
LOST = "The GPU did not finish"

QUOTA = re.compile(
    r"(Pro |free )?ZeroGPU quota \((\d+)s requested vs\. (-?\d+)s left\)\. "
    r"Try again in (?:(\d+) days?, )?(\d+):(\d+)"
)
GRADIO = {
    r"runs limit": "ZeroGPU grants you no more runs for now: wait a while, then press again.",
    r"Space app has reached its GPU limit":
        "ZeroGPU does not know who you are, and what such visitors share is used up: "
        f"{LOGIN}, then press again.",
    r"duration \((\d+)s\) is larger than the maximum":
        "This asks for {} s of GPU time at once, which is more than you may have: "
        f"{SMALLER}; or {LOGIN}.",
    r"too many ZeroGPU credits":
        "Requests of yours that are still running hold your GPU time: wait for them, then press "
        "again.",
    r"No GPU was available": "No GPU was free: press again in a minute.",
    r"Expired ZeroGPU proxy token":
        "This page was open for too long for ZeroGPU to know you: reload it, then press again.",
    r"GPU task aborted":
        f"{LOST}: it was lost, or the time asked for was over. Press again; if it happens twice, "
        f"{SMALLER}.",
    r"^OutOfMemoryError$": f"The GPU's memory ran out: {SMALLER}.",
    r"^(\w+)$":
        f"{LOST}: the app failed there ({{}}), and its log says why. Press again, or choose other "
        "models.",
    r"(?s)^(.*?)[.\s]*$": f"{LOST}: {{}}.",
}  # fmt: skip
"""Sentences by what stands in a gradio error. The first that fits counts."""
RUNTIME = {
    r"end of stream|queue disconnect":
        "The connection broke while this waited for a GPU: press again.",
    r"closed by visitor": "The page was closed while it waited for a GPU: press again.",
    r"/schedule error: (\d+)": "ZeroGPU failed to find a GPU ({}): press again in a minute.",
}  # fmt: skip
"""By what stands in a RuntimeError of `spaces`; any other is one of our own."""


def told(error: Exception) -> str | None:
    """The sentence for an error that came out of a call on ZeroGPU; None for a bug."""
    known = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if "gradio" in known:
        # as `str`: formatted as it is, a queue's message would be the HTML of its toast
        text = str(getattr(error, "message", error))
        return _spent(text) or _sentence(text, GRADIO)
    if "httpx" in known:
        return "ZeroGPU could not be reached: press again in a minute."
    if isinstance(error, RuntimeError):
        return _sentence(str(error), RUNTIME)
    if isinstance(error, Empty):
        return f"{LOST}: nothing came of it for 20 minutes. Press again, or {SMALLER}."
    return None


def _sentence(text: str, known: dict[str, str]) -> str | None:
    for pattern, sentence in known.items():
        if found := re.search(pattern, text):
            return sentence.format(*found.groups())
    return None


def _spent(text: str) -> str | None:
    """A quota that is used up: how much is left, and how long to wait."""
    if not (found := QUOTA.search(text)):
        return None
    account, asked, left, days, hours, minutes = found.groups()
    whole = 24 * int(days or 0) + int(hours)
    wait = f"wait {whole} h {int(minutes)} min" if whole else f"wait {int(minutes) + 1} min"
    ways = [*([] if account else [LOGIN]), *([SMALLER] if int(left) > 0 else []), wait]
    return (
        f"This asks for {asked} s of GPU time, and {max(0, int(left))} s of yours are left: "
        f"{'; or '.join(ways)}."
    )
