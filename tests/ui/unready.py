"""The app, whose start has one more step, the first: it lasts until the file `READY` names exists.

Beforehand it writes into the file `SEEN` what had been imported when the page was about to be
served, and the processor's seconds that the page's own imports took.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import spaces  # noqa: F401  # before torch

import merging.ui  # noqa: F401  # what the page cannot do without
from merging import readiness
from tests.ui.running import ROOT

imported = time.process_time()
start = readiness.start


def later(steps: Mapping[str, Callable[[], object]]) -> None:
    seen = {"imports": imported, "modules": [*sys.modules]}
    Path(os.environ["SEEN"]).write_text(json.dumps(seen))
    start({"the test": wait, **steps})


def wait() -> None:
    while not Path(os.environ["READY"]).exists():
        time.sleep(0.05)


if __name__ == "__main__":
    readiness.start = later
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
