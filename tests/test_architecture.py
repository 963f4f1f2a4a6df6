"""The direction in which files may import each other, as `.importlinter` has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lint(contracts: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [tool, "--config", contracts, "--no-cache"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(cwd), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_flow_goes_one_way() -> None:
    """Every contract of .importlinter is kept by the package as it is."""
    done = lint(ROOT / ".importlinter")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    """The linter is no rubber stamp: a file that imports upwards breaks the first contract."""
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "high.py").write_text("")
    (package / "low.py").write_text("import pack.high\n")
    contracts = tmp_path / ".importlinter"
    contracts.write_text(
        "[importlinter]\nroot_package = pack\n[importlinter:contract:flow]\nname = flow\n"
        "type = layers\nlayers =\n    pack.high\n    pack.low\n"
    )
    done = lint(contracts, tmp_path)
    assert done.returncode == 1 and "pack.low -> pack.high" in done.stdout
