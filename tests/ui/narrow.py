"""The app, which takes one question of the page's at a time: the next stands in the queue."""

import runpy

import spaces  # noqa: F401  # before torch

from merging.ui import turn
from tests.ui.running import ROOT

if __name__ == "__main__":
    turn.ASKING["concurrency_limit"] = 1
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
