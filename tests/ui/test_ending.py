"""The app ends in the middle of its work, and goes on where it was when it is started again."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from merging import Recipe, plan
from tests.ui.models import TIES
from tests.ui.running import connected, running

SUM = "What is 38 + 27?"
OTHER = TIES.replace("lambda: 1.0", "lambda: 0.9")
"""Just being merged, or about to be."""


def children(process: int) -> list[int]:
    """Its children, and theirs."""
    own = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [number for child in map(int, own) for number in (child, *children(child))]


def alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle_of_an_answer_and_a_merge(
    tmp_path: Path, long_recipe: str, how: signal.Signals
) -> None:
    """It is gone within seconds with its helpers, leaves nothing half written, and a merge's id, or
    the recipe that a link carries, still brings the merge back."""
    with running(tmp_path) as app, connected(app) as client, connected(app) as another:
        made = client.predict(TIES, api_name="/merge")["merge"]
        said = client.predict(made, SUM, 8, api_name="/chat")
        long = client.predict(long_recipe, api_name="/merge")["merge"]
        job = client.submit(long, SUM, 1024, api_name="/chat")
        while not job.outputs():
            time.sleep(0.1)
        helpers = children(app.process.pid)
        assert helpers
        another.submit(OTHER, api_name="/merge")
        app.process.send_signal(how)
        app.process.wait(10)
        end = time.monotonic() + 10
        while any(map(alive, helpers)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(alive, helpers))
    left = {path.name for path in (tmp_path / "merging").rglob("*") if path.is_file()}
    other = plan(Recipe.from_yaml(OTHER)).identity
    assert {n for n in left if not n.startswith(other)} == {f"{made}.yaml", f"{long}.yaml"}
    pushed = tmp_path / "merging" / "pushes" / "alice--killed"  # as of a push under way
    pushed.mkdir(parents=True)
    pushed.with_suffix(".lock").touch()
    with running(tmp_path) as app, connected(app) as client:
        assert not pushed.exists()
        assert client.predict(made, SUM, 8, api_name="/chat") == said
        assert client.predict(TIES, api_name="/merge")["merge"] == made
        assert client.predict(OTHER, api_name="/merge")["merge"] == other
