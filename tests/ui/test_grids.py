"""The drawing of steps, without a browser: what is in it for one model, for none that changed, and
for names that hold anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from merging import plan
from merging.stepwise import look, offered, usual
from merging.ui import arrows, grids
from tests.conftest import changed, recipe

Pico = dict[str, Path]


def drawn(models: list[Path], base: Path) -> str:
    found = plan(recipe("ties", models, base_model=base, parameters={"density": 0.5}))
    view = look(found, usual(offered(found)))
    assert arrows.drawn(view) == ""
    return grids.drawn(view)


def test_one_model_has_grids_of_its_own(pico: Pico) -> None:
    """Its deltas, trimmed, and kept, beside what is one for all: the sign and the merged change."""
    found = drawn([pico["a"]], pico["base"])
    assert found.count('class="mark a"') == 3 + 64  # three grids, and each entry's way
    assert found.count('class="cells"') == 5
    assert found.count("nobody votes") > 0


def test_a_model_that_changed_nothing(pico: Pico, tmp_path: Path) -> None:
    """All is 0, nobody votes, and the weight stays; a name with a tag in it stays a name."""
    same = changed(pico["base"], tmp_path / "<img src=x>")
    found = drawn([same], pico["base"])
    assert "<img" not in found and "&lt;img" in found
    assert not re.search(r'class="(plus|minus)[^"]*" style="--v:\d+%" title', found)
    assert found.count("nobody votes") == 2 * 64
    weights = re.findall(r"</b> ([+−\d.]+) becomes ([+−\d.]+)", found)
    assert len(weights) == 64 and all(before == after for before, after in weights)
