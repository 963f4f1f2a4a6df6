"""The app, with models that take seconds for each piece of an answer that they read, as large ones
do: a test has the time to press Stop.
"""

import runpy
import time

import spaces  # noqa: F401  # before torch

from merging import nexttoken
from tests.ui.running import ROOT

SECONDS = 4.0


class Slow(nexttoken.Read):
    """What a model says when it has read a piece, later."""

    def __init__(self, column: str, tokens: int, of: int) -> None:
        time.sleep(SECONDS)
        super().__init__(column, tokens, of)


if __name__ == "__main__":
    nexttoken.Read = Slow  # type: ignore[misc]
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
