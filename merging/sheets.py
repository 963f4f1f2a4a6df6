"""Questions with what is expected of their answers, as rows of a table or of a file. No models."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merging.conversation import MAX_CHARACTERS
from merging.errors import MergeError
from merging.yaml_text import MAX_BYTES

MOST = 1000
"""Questions of a file."""
SEPARATORS = {".tsv": "\t", ".csv": ","}
Asked = tuple[str, str]
"""A question, and what is expected of its answer, or nothing."""


def read(rows: Sequence[Sequence[Any]], most: int = MOST) -> tuple[Asked, ...]:
    """The rows that have a question. Raises MergeError with the row that is wrong."""
    asked = []
    for number, row in enumerate(rows, 1):
        question, expected = (*map(_text, row), "", "")[:2]
        if expected and not question:
            raise MergeError(f"Row {number} expects an answer and has no question: write one.")
        for text in (question, expected):
            if len(text) > MAX_CHARACTERS:
                raise MergeError(
                    f"Row {number} has a text of {len(text):,} characters, and "
                    f"{MAX_CHARACTERS:,} are read: shorten it."
                )
        if question:
            asked.append((question, expected))
    if not asked:
        raise MergeError("There is no question in the sheet: write one, or paste some.")
    if len(asked) > most:
        raise MergeError(f"The sheet has {len(asked)} questions, and {most} fit: remove some.")
    return tuple(asked)


def open_sheet(path: Path) -> tuple[Asked, ...]:
    """The rows of a .tsv or .csv file, in UTF-8 and without a head. Raises MergeError."""
    separator = SEPARATORS.get(path.suffix.lower())
    if not path.is_file() or separator is None:
        raise MergeError(f"{path} is no sheet: name a .tsv or .csv file with a question a row.")
    if path.stat().st_size > MAX_BYTES:
        raise MergeError(f"{path} is larger than {MAX_BYTES // 1024} KB: remove some questions.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return read([*csv.reader(file, delimiter=separator)])
    except (UnicodeDecodeError, csv.Error) as error:
        raise MergeError(f"{path} is no table in UTF-8: save it as one.") from error


def _text(cell: Any) -> str:
    """A cell as it was written; an empty one is None, or no number."""
    return "" if cell is None or cell != cell else str(cell).strip()
