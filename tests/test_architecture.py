"""The direction in which files may import each other, and the tree that README.md shows."""

from __future__ import annotations

import os
import re
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


def test_the_tree_of_the_readme_is_the_package() -> None:
    """Every file of the package has its line in README.md, in its folder, and no other has one."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1]
    block = tree.split("```")[1]
    told, folders = set[str](), list[str]()
    for indent, name in re.findall(r"^( *)([\w./]+)  +\S", block, re.M):
        folders = folders[: len(indent) // 2]
        if name.endswith("/"):
            folders.append(name)
        elif folders and folders[0] == "merging/":
            told.add("".join(folders) + name)
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "merging").rglob("*.py")}
    own = {path for path in told | there if path.endswith("__init__.py")}  # a folder's own line
    assert told - own == there - own
