"""The app over the fake device: `python tests/zero/app.py` is `python app.py` on a ZeroGPU Space."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.zero import device  # noqa: E402  # after the path is set

device.start()
runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
