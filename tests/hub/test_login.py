"""Sign in with the test Hub, from an app of the real gradio that takes it for the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.hub import LocalHub
from tests.hub.login import SCOPES
from tests.hub.visiting import visitor
from tests.ui.running import App, running


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    """A Hub with two users, one of whom has two tokens."""
    with LocalHub() as hub:
        hub.user("hf_old", name="alice")
        hub.user("hf_alice", name="alice")
        hub.user("hf_bob", name="bob")
        yield hub


@pytest.fixture(scope="module")
def space(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app in its own process, which takes itself for a Space."""
    home = tmp_path_factory.mktemp("space")
    settings = hub.space() | {"GRADIO_ANALYTICS_ENABLED": "False"}
    with running(home, ("tests/hub/space.py",), **settings) as started:
        yield started


def told(client: httpx.Client, app: App) -> str:
    """What the app's function says to this visitor."""
    url = f"{app.url}/gradio_api/call/who"
    event = client.post(url, json={"data": []}).json()["event_id"]
    answer = client.get(f"{url}/{event}").text
    (text,) = json.loads(answer.partition("data: ")[2].strip())
    return str(text)


def test_two_visitors_are_two_users(hub: LocalHub, space: App) -> None:
    """Each visitor's cookie chooses the user; the app gets that user's newest token and scopes."""
    with visitor(hub, "alice") as alice, visitor(hub, "bob") as bob, visitor(hub) as other:
        for client in (alice, bob):
            assert told(client, space) == "nobody"
            assert client.get(f"{space.url}/login/huggingface").url.path == "/"
        assert told(alice, space) == f"alice, hf_alice, {SCOPES}"
        assert told(bob, space) == f"bob, hf_bob, {SCOPES}"
        assert told(other, space) == "nobody"
        alice.get(f"{space.url}/logout")
        assert told(alice, space) == "nobody"


def test_a_default_user_and_a_no(hub: LocalHub, space: App) -> None:
    """Without a cookie the default user signs in; where there is none, nobody does."""
    hub.login_as(None)
    with visitor(hub) as client:
        assert client.get(f"{space.url}/login/huggingface").status_code == 500
    hub.login_as("hf_bob")
    with visitor(hub) as client:
        client.get(f"{space.url}/login/huggingface")
        assert told(client, space).startswith("bob, hf_bob")


def test_a_session_ends_in_time(hub: LocalHub, space: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is told to have no time left is none."""
    monkeypatch.setattr(hub.login, "lifetime", -1)
    with visitor(hub, "bob") as client:
        client.get(f"{space.url}/login/huggingface")
        assert told(client, space) == "nobody"


def test_the_app_must_know_its_secret(hub: LocalHub) -> None:
    """A code is worth nothing without the app's secret, and can be used once."""
    back = "http://127.0.0.1:1/login/callback"
    query = {"client_id": hub.login.client, "response_type": "code", "redirect_uri": back}
    query |= {"scope": "openid", "state": "s", "nonce": "n"}
    with httpx.Client(base_url=hub.url, cookies={"who": "alice"}) as client:
        sent = client.get("/oauth/authorize", params=query)
        code = httpx.URL(sent.headers["location"]).params["code"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back}
        wrong = client.post("/oauth/token", data=form, auth=(hub.login.client, "wrong"))
        assert (wrong.status_code, wrong.json()) == (401, {"error": "invalid_client"})
        right = (hub.login.client, hub.login.secret)
        first, second = (client.post("/oauth/token", data=form, auth=right) for _ in "12")
        assert first.json()["access_token"] == "hf_alice"
        assert (second.status_code, second.json()) == (400, {"error": "invalid_grant"})
        head = {"Authorization": "Bearer hf_alice"}
        told = client.get("/oauth/userinfo", headers=head).json()
        assert (told["preferred_username"], told["name"]) == ("alice", "Alice")
        query["redirect_uri"] = "http://127.0.0.1:1/elsewhere"
        assert client.get("/oauth/authorize", params=query).status_code == 400


@pytest.mark.browser
def test_two_browsers(hub: LocalHub, space: App) -> None:
    """The button signs each browser in as the user whose cookie it has, over http://127.0.0.1."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "/usr/bin/chromium",
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        for name in ("alice", "bob"):
            context = browser.new_context()
            context.add_cookies([{"name": "who", "value": name, "url": hub.url}])
            page = context.new_page()
            page.goto(space.url)
            expect(page.get_by_label("You are")).to_have_value("nobody", timeout=15_000)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("button", name=f"Logout ({name})")).to_be_visible()
            expect(page.get_by_label("You are")).to_have_value(f"{name}, hf_{name}, {SCOPES}")
        browser.close()
