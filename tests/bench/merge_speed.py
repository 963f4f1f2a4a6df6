"""Measures merges of synthetic models into a folder; knows the command line and no formula.

    python tests/bench/merge_speed.py [--millions 135] [--mergekit PYTHON] [--method NAME ...]

A base and two fine-tunes of it, random bf16 weights in a Llama's shapes, lie in a folder in memory
(/dev/shm where there is one), and so does the result: no disk is measured. Each method merges them
with its start values, each time in a new process, one run each.

- seconds: from the end of the imports to the end of the process: plan, reading, arithmetic in
  float32, writing bf16, closing the file.
- floor: the seconds in which all cores together copy the bytes of the models read, once each, into
  a buffer, and as many as are written into a new file in the same folder.
- ns a parameter: these seconds by the parameters of one model.
- GB/s: bytes of the models read, once each, and of the one written, by these seconds.
- peak: resident memory that neither a file nor a shared folder stands behind, above that of the
  same process after its imports, looked at every 5 ms. Only on Linux.

With --mergekit, a Python that has mergekit 0.1.5, `mergekit-yaml --lazy-unpickle` carries out the
same recipe right after, in its default dtype. Ratios are mergekit's seconds by ours, over 1 where
ours is the faster: of the whole processes, and net of what either takes to import (mergekit's is
`mergekit-yaml --help`, the quickest of three). Whatever
else the machine does meanwhile is in the figures: they are for comparison within one run, and on a
busy machine the seconds that cores worked (CPU s, of whole processes) say more than the clock.
mergekit's peak is of its whole process, imports included, and so not above idle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from merging import methods
from merging.methods import Method, Number
from merging.threads import cores
from tests.slow.memory import Seen, spent, watched
from tests.slow.memory import merge as merge_watched

NAMES = ("base", "a", "b")
VOCABULARY = 49_152
COLUMNS = ("method", "seconds", "floor", "ns a parameter", "GB/s", "peak MB above idle")
PEER_COLUMNS = (
    "whole process s", "CPU s", "mergekit s", "mergekit CPU s", "mergekit peak MB", "ratio",
    "ratio net of imports",
)  # fmt: skip
PIECE, LENGTH = 1 << 20, 1 << 26
"""Bytes copied at a time, and by one task."""


@dataclass(frozen=True)
class Shape:
    """A Llama with tied heads. `width` of its layers, `inner` of their MLPs."""

    width: int
    inner: int
    heads: int
    key_heads: int
    layers: int

    @classmethod
    def of(cls, millions: float) -> Shape:
        """SmolLM2-135M's layers below a billion, Llama-3.2-1B's from there on."""
        wide = (576, 1536, 9, 3) if millions < 1000 else (2048, 8192, 32, 8)
        layer = sum(r * c for r, c in cls(*wide, 1).matrices().values())
        return cls(*wide, max(1, round((millions * 1e6 - VOCABULARY * wide[0]) / layer)))

    def matrices(self) -> dict[str, tuple[int, int]]:
        keys = self.width // self.heads * self.key_heads
        return {
            "self_attn.q_proj": (self.width, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, self.width),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (VOCABULARY, self.width)
        yield "model.norm.weight", (self.width,)
        for i in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"model.layers.{i}.{norm}.weight", (self.width,)
            for name, shape in self.matrices().items():
                yield f"model.layers.{i}.{name}.weight", shape

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "torch_dtype": "bfloat16", "vocab_size": VOCABULARY, "tie_word_embeddings": True,
            "hidden_size": self.width, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
        }  # fmt: skip


def make(root: Path, shape: Shape) -> int:
    """Write the three models; returns the parameters of one."""
    base = {n: torch.randn(s).mul_(0.05).bfloat16() for n, s in shape.tensors()}
    for name in NAMES:
        tensors = base if name == "base" else {n: _tuned(t) for n, t in base.items()}
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
        (root / name / "config.json").write_text(json.dumps(shape.config()))
    return sum(t.numel() for t in base.values())


def _tuned(base: Tensor) -> Tensor:
    """Changes of a fine-tune's kind: small, and most of them near zero."""
    noise = torch.randn(base.shape)
    return (base + noise.mul_(noise.abs()).mul_(0.002)).bfloat16()


def recipe(method: Method, root: Path) -> str:
    """The method with its start values, as mergekit reads it."""
    values = {p.name: _start(p.control) for p in method.parameters if not p.per_model}
    own = {p.name: _start(p.control) for p in method.parameters if p.per_model}
    models = [{"model": str(root / name), "parameters": own} for name in NAMES[1:]]
    written = {"merge_method": method.name, "models": models, "parameters": values}
    if method.base != "unused":
        written["base_model"] = str(root / ("base" if method.base == "required" else "a"))
    return yaml.safe_dump(written)


def _start(control: Any) -> float | bool:
    return control.start if isinstance(control, Number) else control.default


def peer(python: Path, recipe: Path, out: Path) -> Seen:
    """mergekit on the same recipe, as a whole process. Raises RuntimeError if it fails."""
    command = [python.with_name("mergekit-yaml"), recipe, out, "--lazy-unpickle", "--quiet"]
    with tempfile.TemporaryFile("w+") as said:
        start, before = time.monotonic(), spent()
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(command, env=offline, stdout=said, stderr=said, text=True) as process:
            peak = watched(process)
        seconds = time.monotonic() - start
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"mergekit ended with {process.returncode}:\n{said.read()[-2000:]}")
    return Seen(seconds, seconds, spent() - before, peak)


def imports(python: Path) -> float:
    """Seconds that mergekit takes before it does anything."""
    command, taken = [python.with_name("mergekit-yaml"), "--help"], []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.monotonic() - start)
    return min(taken)


def floor(files: list[Path], out: Path) -> float:
    """Seconds to read the files once and to write one of their size, on all cores."""
    size = files[0].stat().st_size
    out.write_bytes(b"")
    os.truncate(out, size)
    parts = range(0, size, LENGTH)
    start = time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        tasks = [pool.submit(_copied, f, None, at) for f in files for at in parts]
        tasks += [pool.submit(_copied, files[0], out, at) for at in parts]
        for task in tasks:
            task.result()
    seconds = time.monotonic() - start
    out.unlink()
    return seconds


def _copied(source: Path, target: Path | None, at: int) -> None:
    buffer = np.empty(PIECE, np.uint8)
    length = min(LENGTH, source.stat().st_size - at)
    read = np.memmap(source, np.uint8, "r", at, (length,))
    written = np.memmap(target, np.uint8, "r+", at, (length,)) if target else None
    for first in range(0, len(read), PIECE):
        piece = read[first : first + PIECE]
        if written is None:
            buffer[: len(piece)] = piece
        else:
            written[first : first + len(piece)] = buffer[: len(piece)]


def row(
    method: Method, root: Path, parameters: int, python: Path | None, importing: float
) -> list[str]:
    """One line of the table."""
    file, out = root / "recipe.yaml", root / "out"
    file.write_text(recipe(method, root))
    ours = merge_watched([file, out, "--device", "cpu"])
    shutil.rmtree(out)
    models = 3 + (method.base == "required")
    read = [root / name / "model.safetensors" for name in NAMES[4 - models :]]
    cells = [
        method.name, f"{ours.merge:.2f}", f"{floor(read, root / 'floor'):.2f}",
        f"{ours.merge / parameters * 1e9:.1f}",
        f"{parameters * 2 * models / ours.merge / 1e9:.2f}", f"{ours.peak / 1e6:.0f}",
    ]  # fmt: skip
    if python is None:
        return cells
    theirs = peer(python, file, out)
    shutil.rmtree(out)
    ratio = theirs.whole / ours.whole
    pairs = [f"{ours.whole:.2f}", f"{ours.cpu:.2f}", f"{theirs.whole:.2f}", f"{theirs.cpu:.2f}"]
    net = (theirs.whole - importing) / ours.merge
    return [*cells, *pairs, f"{theirs.peak / 1e6:.0f}", f"{ratio:.1f}", f"{net:.1f}"]


def line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", type=float, default=135, help="parameters of a model")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="one with mergekit 0.1.5")
    parser.add_argument("--method", nargs="*", help="these alone; all that take two models if none")
    given = parser.parse_args()
    ram = "/dev/shm" if Path("/dev/shm").is_dir() else None
    shape = Shape.of(given.millions)
    columns = COLUMNS + (PEER_COLUMNS if given.mergekit else ())
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        needed, free = given.millions * 1e6 * 2 * 4, shutil.disk_usage(folder).free
        if needed > free:
            parser.error(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} free in {folder}")
        parameters = make(Path(folder), shape)
        print(f"{parameters / 1e6:.1f} M parameters, {os.cpu_count()} cores, "
              f"{'in memory' if ram else 'on disk'}, torch {torch.__version__}\n")  # fmt: skip
        print(line(columns), line(["---"] * len(columns)), sep="\n")
        importing = imports(given.mergekit) if given.mergekit else 0.0
        for method in methods().values():
            if method.models[0] <= 2 <= method.models[1] and method.name in (
                given.method or methods()
            ):
                cells = row(method, Path(folder), parameters, given.mergekit, importing)
                print(line(cells), flush=True)


if __name__ == "__main__":
    main()
