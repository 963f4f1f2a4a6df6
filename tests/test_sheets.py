"""Sheets of questions in files: what is read of them, and what is refused with its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from merging.conversation import MAX_CHARACTERS
from merging.errors import MergeError
from merging.sheets import open_sheet, read
from merging.yaml_text import MAX_BYTES

ASKED = (("What is 38 + 27?", "65"), ('Say "a, b".', ""))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one.tsv", 'What is 38 + 27?\t65\r\n\n"Say ""a, b""."\n'),
        ("one.CSV", 'What is 38 + 27?, 65\n"Say ""a, b"".",\n'),
        ("one.csv", '\ufeffWhat is 38 + 27?,65,more\n"Say ""a, b""."'),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert open_sheet(path) == ASKED


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("one.txt", b"a\tb\n", "is no sheet: name a .tsv or .csv"),
        ("one.tsv", b"\xff\xfe\n", "no table in UTF-8"),
        ("one.tsv", b"\n\n", "no question in the sheet"),
        ("one.tsv", b"a\tb\n\tc\n", "Row 2 expects an answer and has no question"),
        ("one.tsv", b"a" * (MAX_CHARACTERS + 1), "Row 1 has a text of 16,001 characters"),
        ("one.tsv", b"a\n" * 1001, "1001 questions, and 1000 fit"),
        ("one.tsv", b"a\n" * MAX_BYTES, "larger than"),
    ],
)
def test_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MergeError, match=words):
        open_sheet(path)
    with pytest.raises(MergeError, match="is no sheet"):
        open_sheet(tmp_path / "other.tsv")


def test_as_many_as_fit() -> None:
    with pytest.raises(MergeError, match="2 questions, and 1 fit"):
        read(ASKED, 1)
