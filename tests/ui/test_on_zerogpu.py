"""The app and its page over the fake device, whose workers are cold, warm, or either."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import pytest
from gradio_client import Client
from playwright.sync_api import expect

from tests.hub import LocalHub
from tests.ui.models import TIES
from tests.ui.playground import Playground
from tests.ui.running import ROOT, App, running
from tests.zero.device import requests

OWN = TIES.replace("lambda: 1.0", "lambda: 0.9")
SUMS = {"What is 38 + 27?": "65", "What is 21 + 34?": "55"}


@pytest.fixture(scope="module", params=["cold", "random", "warm"])
def workers(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def app(
    workers: str, tmp_path_factory: pytest.TempPathFactory, local_hub: LocalHub
) -> Iterator[App]:
    """In place of the app that other modules share."""
    home = tmp_path_factory.mktemp(workers)
    start = (str(ROOT / "tests" / "zero" / "start.py"), "app.py")
    zero = {"ZERO_WORKERS": workers, "ZERO_LOG": str(home / "requests"), "SPACE_ID": "org/space"}
    hub = {"HF_ENDPOINT": local_hub.url, "HF_HUB_DISABLE_XET": "1"}
    with running(home, start, **zero, **hub) as started:
        yield started


def test_the_endpoints_do_the_main_job(app: App, workers: str) -> None:
    """In workers, for the visitor's own time; a merge is found again where its worker lives."""
    log = app.log.with_name("requests")
    log.unlink(missing_ok=True)
    told = base64.urlsafe_b64encode(json.dumps({"user": "someone"}).encode()).decode().rstrip("=")
    token = f"e30.{told}.signed"
    client = Client(app.url, verbose=False, headers={"x-ip-token": token})
    first, again = (client.predict(OWN, api_name="/merge") for _ in range(2))
    for question, answer in SUMS.items():
        said = client.predict(first["merge"], question, 16, api_name="/chat")
        assert said["assets/demo/a"] == said["merged"] == answer
    client.close()
    asked = requests(log, "/schedule")
    assert len(asked) == 4
    assert {request.get("token") for request in asked} == {token}
    assert max(int(request["durationSeconds"]) for request in asked) <= 15
    begun = [request["pid"] for request in requests(log, "/allow")]
    assert len(set(begun)) == len(begun)
    assert str(app.process.pid) not in begun
    calls = "".join(each["path"] for each in requests(log, "/schedule", "/allow"))
    fresh = ["/allow" in call for call in calls.split("/schedule")[1:]]
    assert first["seconds"] > 0
    assert (again["seconds"] > 0) == fresh[1]
    if workers != "random":
        assert set(fresh[1:]) == {workers == "cold"}


@pytest.mark.browser
def test_the_page_tells_prices(visit: Callable[..., Playground]) -> None:
    """5 s and a fortieth a token, times 1.5: of both parents, then of each merge as well."""
    playground = visit().ready()
    price = playground.part("price")
    expect(price).to_contain_text("New seed 16 s")
    playground.merge()
    expect(price).to_contain_text("New seed 21 s")
    playground.unfold("History")
    playground.part("listing").locator("label").click()  # is there when the merge's job has ended
    playground.part("pin").click()
    expect(price).to_contain_text("New seed 26 s")
    playground.paste(TIES.replace("assets/demo/", "org/"))
    asks = "What a click asks of your GPU time:"
    expect(price).to_have_text(f"{asks} chatting with the chosen merge 10 s.")
    playground.merge()
    expect(price).to_contain_text("New seed 26 s")
