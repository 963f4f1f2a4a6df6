"""Where tensors come from: headers read without values, and files that are not to be trusted."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from merging import MergeError
from merging.headers import TensorInfo, read_header
from merging.opening import APP, RESERVED, open_source
from merging.sources import Checkpoint
from tests.conftest import WEIGHTS, changed

Pico = dict[str, Path]
GOOD = save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})


def header(data: bytes) -> dict[str, TensorInfo]:
    return read_header(lambda start, stop: data[start:stop], len(data), "f", "model")


def made(entries: Any, body: int = 0) -> bytes:
    return written(json.dumps(entries), body=body)


def written(text: str, encoding: str = "utf-8", body: int = 4) -> bytes:
    """A file whose header is this very text."""
    data = text.encode(encoding)
    return struct.pack("<Q", len(data)) + data + bytes(body)


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_folder_is_known_by_its_headers(pico: Pico) -> None:
    """Names, shapes, dtypes and config are there at once; values when asked, as they are stored."""
    source = open_source(str(pico["a"]))
    stored = load_file(pico["a"] / WEIGHTS)
    assert isinstance(source, Checkpoint) and source.missing == 0
    assert source.config["num_hidden_layers"] == 2
    assert {n: (i.dtype, i.shape) for n, i in source.tensors.items()} == {
        n: (t.dtype, tuple(t.shape)) for n, t in stored.items()
    }
    assert all(torch.equal(source.read(name), t) for name, t in stored.items())


def test_the_stamp_tells_versions_apart(pico: Pico, tmp_path: Path) -> None:
    """Two looks at a folder agree; a file that grew, or is new, is seen."""
    folder = changed(pico["a"], tmp_path / "a")
    stamps = [open_source(str(folder)).stamp for _ in range(2)]
    (folder / "chat_template.jinja").write_text("x")
    stamps.append(open_source(str(folder)).stamp)
    (folder / "chat_template.jinja").write_text("xy")
    stamps.append(open_source(str(folder)).stamp)
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3


def test_embedded_models_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserved names lead beside the app whatever the working directory, folders or not."""
    monkeypatch.chdir(tmp_path)
    for name in RESERVED:
        source = open_source(name, folders=False)
        assert source.folder == APP / name and source.name == name


@pytest.mark.parametrize("name", ["{folder}", "./x", "../x", "~/x", "/etc", "a/b/c", "\\\\x\\y"])
def test_folders_can_be_forbidden(name: str, pico: Pico) -> None:
    """Where folders are not allowed, no path is looked at, and the error says where they are."""
    with pytest.raises(MergeError, match="your own machine"):
        open_source(name.format(folder=pico["a"]), folders=False)


TWICE = f"""{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}"""
"""Which of the two counts is the reader's choice."""


def test_a_good_header() -> None:
    """The reader agrees with the official writer."""
    assert header(GOOD) == {
        "a": TensorInfo(torch.float32, (2, 3), "f"),
        "b": TensorInfo(torch.bfloat16, (4,), "f"),
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 30_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        made({"a": entry()}),
        made({"a": entry()}, 5),
        made({"a": entry(offsets=(0, 8))}, 8),
        made({"a": entry(offsets=(4, 8))}, 8),
        made({"a": entry(), "b": entry()}, 4),
        made({"a": entry(), "b": entry(offsets=(8, 12))}, 12),
        made({"a": entry(shape=(-1, -1))}, 4),
        made({"a": entry(shape=("1",))}, 4),
        made({"a": entry(shape=(2**40, 2**40))}, 4),
        made({"a": entry(dtype="C64", offsets=(0, 8))}, 8),
        made({"a": entry(offsets=(0, 2, 4))}, 4),
        made({"a": entry(offsets=("0", "4"))}, 4),
        made({"a": entry(offsets=(0.0, 4.0))}, 4),
        made({"a": entry(offsets=(-4, 0))}),
        made({"a": entry(offsets=(4, 0))}, 4),
        made({"a": entry(offsets=(2**70, 2**70 + 4))}, 4),
        made({"a": entry(), "b": entry(offsets=(2, 6))}, 6),
        made({"a": entry(), "b": entry(offsets=(-4, 0))}, 4),
        made({"a": entry(), "b": entry(shape=(0,), offsets=(2, 2))}, 4),
        made({"a": entry(), "b": entry(shape=(0,), offsets=(9, 9))}, 4),
        made({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}),
        made({"a": entry(shape=(0, 2**63), offsets=(0, 0))}),
        made({"a": entry(shape=(True,))}, 4),
        made({"a": entry(shape=None)}, 4),
        made({"a": entry(shape=(9,) * 2_000_000)}, 4),
        made({"a": entry(dtype="BF16")}, 4),
        made({"a": entry(dtype="I64")}, 4),
        made({"a": entry(), "__metadata__": {"format": 1}}, 4),
        made({"a": entry(), "__metadata__": ["pt"]}, 4),
        written(TWICE),
        written(TWICE.replace('"a"', '"__metadata__"')),
        written(json.dumps({"a": entry()}).replace('"shape"', '"dtype": "F32", "shape"')),
        written("\ufeff" + json.dumps({"a": entry()})),
        written(json.dumps({"a": entry()}), "utf-16"),
        made({"a": 3}, 4),
        GOOD[:-1],
        GOOD + b"x",
    ],
)
def test_a_bad_header(data: bytes) -> None:
    """Headers that lie about sizes, places, types or themselves are told with the file's name."""
    with pytest.raises(MergeError, match=r"model: f .*[Ff]etch it again"):
        header(data)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"a": entry() | {"more": float("nan")}}),
        json.dumps({"a": entry()}).replace("[0,", "[-0,"),
        json.dumps({"\ud800": entry()}),
    ],
)
def test_what_only_safetensors_minds(text: str, tmp_path: Path) -> None:
    """Python's JSON lets it through: reading the tensor tells it by the same sentence."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(written(text))
    source = open_source(str(tmp_path))
    assert isinstance(source, Checkpoint)
    with pytest.raises(MergeError, match=rf"{WEIGHTS} cannot be read .*: fetch it again"):
        source.read(next(iter(source.tensors)))


def test_a_file_that_is_cut_after_the_plan(pico: Pico, tmp_path: Path) -> None:
    """Its header was whole when the merge was decided: reading it says so, in one sentence."""
    folder = changed(pico["a"], tmp_path / "a")
    source = open_source(str(folder))
    assert isinstance(source, Checkpoint)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(MergeError, match=rf"{WEIGHTS} cannot be read .*: fetch it again"):
        source.read("model.norm.weight")


def test_quantised_types_are_named() -> None:
    """Eight-bit floats are no damage: the model is quantised, and the sentence says so."""
    with pytest.raises(MergeError, match=r"model: f holds weights in F8_E4M3: .*bf16 or fp16"):
        header(made({"a": entry(dtype="F8_E4M3", offsets=(0, 1))}, 1))


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_no_byte_breaks_the_reader(at: int, value: int) -> None:
    """Any one byte changed gives tensors that fit the file, or a MergeError."""
    data = bytearray(GOOD)
    data[at] = value
    try:
        found = header(bytes(data))
    except MergeError:
        return
    assert sum(i.size * i.dtype.itemsize for i in found.values()) <= len(data)
