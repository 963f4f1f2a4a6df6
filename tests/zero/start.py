"""Runs a program as on a ZeroGPU Space, over the fake device: `start.py app.py`."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.zero import device

    device.start()  # before the program imports `spaces`
    runpy.run_path(sys.argv[1], run_name="__main__")
