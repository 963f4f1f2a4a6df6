"""Measures merges of synthetic models into a folder; knows the command line and no formula.

    python tests/bench/merge_speed.py [--millions 135] [--mergekit PYTHON] [--method NAME ...]
    python tests/bench/merge_speed.py --mistral LAYERS ... [--folder FOLDER]

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

With --mistral, the table is of memory: Mistral-7B's shapes in so many layers (the model has 32),
random and the same in each layer, merged by TIES with its start values, on a disk, which is in the
seconds. Model a has two tokens more than the others, as a fine-tune for ChatML has, so that
vocabularies are united; tokenizers are BPE with 32,000 made-up pieces and 60,000 merges. Peaks
that are equal show that memory does not grow with the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
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
MEMORY_COLUMNS = ("layers", "merged GB", "rows", "seconds", "GB/s", "peak MB above idle")
CHATML = ("<|im_start|>", "<|im_end|>")
SPECIAL = ("<unk>", "<s>", "</s>")
PIECE, LENGTH = 1 << 20, 1 << 26
"""Bytes copied at a time, and by one task."""


@dataclass(frozen=True)
class Shape:
    """A Llama. `width` of its layers, `inner` of their MLPs, `rows` of its embeddings and head."""

    width: int
    inner: int
    heads: int
    key_heads: int
    layers: int
    rows: int = VOCABULARY
    tied: bool = True

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
        yield from self.outside()
        for i in range(self.layers):
            yield from self.layer(i)

    def outside(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (self.rows, self.width)
        yield "model.norm.weight", (self.width,)
        if not self.tied:
            yield "lm_head.weight", (self.rows, self.width)

    def layer(self, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{norm}.weight", (self.width,)
        for name, shape in self.matrices().items():
            yield f"model.layers.{i}.{name}.weight", shape

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "torch_dtype": "bfloat16", "vocab_size": self.rows, "tie_word_embeddings": self.tied,
            "hidden_size": self.width, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
        }  # fmt: skip


def make(root: Path, shape: Shape) -> int:
    """Write the three models; returns the parameters of one."""
    base = _random(shape.tensors())
    for name in NAMES:
        tensors = base if name == "base" else {n: _tuned(t) for n, t in base.items()}
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
        (root / name / "config.json").write_text(json.dumps(shape.config()))
    return sum(t.numel() for t in base.values())


def _random(shapes: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    return {name: torch.randn(shape).mul_(0.05).bfloat16() for name, shape in shapes}


def _tuned(base: Tensor) -> Tensor:
    """Changes of a fine-tune's kind: small, and most of them near zero."""
    noise = torch.randn(base.shape)
    return (base + noise.mul_(noise.abs()).mul_(0.002)).bfloat16()


def make_mistral(root: Path, shape: Shape) -> None:
    """Write the three models, layer by layer: here, too, memory does not grow with their number."""
    outside, layer = _random(shape.outside()), _random(shape.layer(0))
    for name in NAMES:
        folder, more = root / name, CHATML if name == "a" else ()
        folder.mkdir()
        own = replace(shape, rows=shape.rows + len(more))
        (folder / "config.json").write_text(json.dumps(own.config()))
        tokenizer(shape.rows, more).save(str(folder / "tokenizer.json"))
        tuned = name != "base"
        about = {n: _grown(_tuned(t) if tuned else t, len(more)) for n, t in outside.items()}
        _save(
            folder,
            shape.layers,
            about,
            {n: _tuned(t) for n, t in layer.items()} if tuned else layer,
        )


def _grown(tensor: Tensor, rows: int) -> Tensor:
    """Further rows for embeddings and head, as random as the others."""
    if tensor.dim() == 1 or not rows:
        return tensor
    return torch.cat([tensor, _tuned(torch.zeros(rows, tensor.shape[1]))])


def _save(folder: Path, layers: int, outside: dict[str, Tensor], layer: dict[str, Tensor]) -> None:
    """A file for each layer, equal but for its number, and one for what is outside them."""
    files = {}
    for i in range(layers + 1):
        file = f"model-{i + 1:05}-of-{layers + 1:05}.safetensors"
        own = {n.replace(".0.", f".{i - 1}."): t for n, t in layer.items()} if i else outside
        save_file(own, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tokenizer(rows: int, more: Sequence[str]) -> Tokenizer:
    """BPE whose pieces are all short strings of letters, each made of two others in two ways."""
    words = chain.from_iterable(product(string.ascii_lowercase, repeat=n) for n in range(1, 5))
    pieces = ["".join(word) for word in islice(words, rows - len(SPECIAL))]
    cuts = [(p[:at], p[at:]) for p in pieces if len(p) > 1 for at in {1, len(p) - 1}]
    vocab = {piece: i for i, piece in enumerate((*SPECIAL, *pieces))}
    found = Tokenizer(models.BPE(vocab, cuts, unk_token=SPECIAL[0]))
    found.add_special_tokens([*SPECIAL, *more])
    return found


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


def memory_row(layers: int, folder: Path) -> list[str]:
    """One line of the table of memory; what was made for it is gone afterwards."""
    shape = _mistral(layers)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root, file = Path(name), Path(name, "recipe.yaml")
        make_mistral(root, shape)
        file.write_text(recipe(methods()["ties"], root))
        os.sync()  # what making them has left to write is not the merge's
        seen = merge_watched([file, root / "out", "--device", "cpu"])
        size = sum(f.stat().st_size for f in (root / "out").glob("*.safetensors"))
        rows = json.loads((root / "out" / "config.json").read_text())["vocab_size"]
    return [
        f"{layers}", f"{size / 1e9:.2f}", f"{rows:,}", f"{seen.merge:.1f}",
        f"{size * 4 / seen.merge / 1e9:.2f}", f"{seen.peak / 1e6:.0f}",
    ]  # fmt: skip


def _mistral(layers: int) -> Shape:
    return Shape(4096, 14336, 32, 8, layers, 32_000, tied=False)


def speed(given: argparse.Namespace, folder: Path) -> None:
    """The table of all methods."""
    shape = Shape.of(given.millions)
    columns = COLUMNS + (PEER_COLUMNS if given.mergekit else ())
    parameters = make(folder, shape)
    print(f"{parameters / 1e6:.1f} M parameters, {os.cpu_count()} cores, "
          f"in {folder.parent}, torch {torch.__version__}\n")  # fmt: skip
    print(line(columns), line(["---"] * len(columns)), sep="\n")
    importing = imports(given.mergekit) if given.mergekit else 0.0
    for method in methods().values():
        if method.models[0] <= 2 <= method.models[1] and method.name in (given.method or methods()):
            cells = row(method, folder, parameters, given.mergekit, importing)
            print(line(cells), flush=True)


def memory(given: argparse.Namespace, folder: Path) -> None:
    """The table of memory."""
    print(f"Mistral-7B's shapes, TIES, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print(line(MEMORY_COLUMNS), line(["---"] * len(MEMORY_COLUMNS)), sep="\n")
    for layers in given.mistral:
        print(line(memory_row(layers, folder)), flush=True)


def needed(given: argparse.Namespace) -> float:
    """Bytes of the three models and the merged one, of the largest where there are several."""
    if not given.mistral:
        return float(given.millions * 1e6 * 2 * 4)
    tensors = _mistral(max(given.mistral)).tensors()
    return 2.0 * 4 * sum(torch.Size(shape).numel() for _, shape in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", type=float, default=135, help="parameters of a model")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="one with mergekit 0.1.5")
    parser.add_argument("--method", nargs="*", help="these alone; all that take two models if none")
    parser.add_argument("--mistral", nargs="+", type=int, metavar="LAYERS", help="memory instead")
    parser.add_argument("--folder", type=Path, help="where models are made, and removed after")
    given = parser.parse_args()
    ram = "/dev/shm" if Path("/dev/shm").is_dir() and not given.mistral else None
    with tempfile.TemporaryDirectory(dir=given.folder or ram) as folder:
        free = shutil.disk_usage(folder).free
        if needed(given) > free:
            parser.error(f"{needed(given) / 1e9:.1f} GB needed, {free / 1e9:.1f} free in {folder}")
        (memory if given.mistral else speed)(given, Path(folder))


if __name__ == "__main__":
    main()
