"""The app's named endpoints as programs call them: their grammar, their caps, their errors."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from merging.ui.api import LIMITS
from merging.ui.pending import MOST
from tests.ui.models import DEMO, TIES
from tests.ui.running import App, connected, running

SUM = "What is 38 + 27?"
HUB = TIES.replace("assets/demo/", "org/")


@pytest.fixture(scope="module")
def client(app: App) -> Iterator[Client]:
    with connected(app) as client:
        yield client


def stream(client: Client, *values: Any, api: str) -> list[Any]:
    """Everything an endpoint sends, in order."""
    return list(client.submit(*values, api_name=api))


def refusal(client: Client, *values: Any, api: str) -> str:
    """The sentence with which an endpoint refuses."""
    with pytest.raises(AppError) as refused:
        client.predict(*values, api_name=api)
    return str(refused.value)


def read(what: str | Request) -> str:
    with urlopen(what, timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("path", ["monitoring", "monitoring/summary", "monitoring/any/dashboard"])
def test_nobody_hears_how_the_app_is_used(app: App, path: str) -> None:
    """Gradio would serve the figures of all events to whoever asks."""
    with pytest.raises(HTTPError) as refused, urlopen(f"{app.url}/{path}"):
        pass
    assert refused.value.code in (403, 404)
    refused.value.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "upload"), ("POST", "process_recording"), ("POST", "run/check"),
        ("GET", "deep_link?session_hash=any"), ("GET", "file=https://host.invalid/a.png"),
        ("GET", "file=%68ttp://host.invalid/a.png"), ("HEAD", "file=HTTP://host.invalid/a.png"),
        ("GET", "%66ile/https://host.invalid/a.png"), ("GET", "/file=http://host.invalid/a.png"),
    ],
)  # fmt: skip
def test_routes_that_the_page_never_uses_are_closed(app: App, method: str, path: str) -> None:
    """Nobody leaves files here, has this machine fetch, or has an event at once without a queue."""
    host = urlsplit(app.url).netloc
    body = json.dumps({"data": [TIES]})
    with closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        headers = {"content-type": "application/json"}
        connection.request(method, f"/gradio_api/{path}", body, headers)
        assert connection.getresponse().status == 404


def test_exactly_three_endpoints(client: Client) -> None:
    """Programs see /check, /merge and /chat with their arguments and one JSON each, and no more."""
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert {name: [p["parameter_name"] for p in e["parameters"]] for name, e in named.items()} == {
        "/check": ["recipe"],
        "/merge": ["recipe"],
        "/chat": ["merge", "message", "max_new_tokens", "temperature", "seed"],
    }
    defaults = [p["parameter_default"] for p in named["/chat"]["parameters"]]
    assert defaults == [None, None, 256, 0.0, 0]
    assert all(len(endpoint["returns"]) == 1 for endpoint in named.values())


def test_check(client: Client) -> None:
    """/check says what a merge would be, with notes, and reads no weights."""
    found = client.predict(TIES, api_name="/check")
    assert found["ok"] is True
    assert found["columns"] == ["assets/demo/a", "assets/demo/b", "merged"]
    assert {note["level"] for note in found["notes"]} <= {"green", "amber", "red"}
    assert any("2 tokens" in note["text"] for note in found["notes"])


def test_check_refuses(client: Client) -> None:
    """A recipe that cannot be merged is no exception to /check, but a red note."""
    found = client.predict(
        TIES.replace("merge_method: ties", "merge_method: tis"), api_name="/check"
    )
    assert found["ok"] is False
    assert [note["level"] for note in found["notes"]] == ["red"]
    assert "ties" in found["notes"][0]["text"]


def test_merge_streams_progress_then_an_id(client: Client) -> None:
    """/merge sends shares that never fall, then the id, the pinned recipe and the seconds."""
    recipe = TIES.replace("lambda: 1.0", "lambda: 0.9")
    *progress, last = stream(client, recipe, api="/merge")
    shares = [at["progress"] for at in progress]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert set(progress[0]) == {"progress", "tensor", "gb_per_s", "seconds_left"}
    assert set(last) == {"merge", "recipe", "seconds", "sanity"}
    assert last["sanity"]["ok"] is True and last["sanity"]["text"].startswith("It works")
    assert last["sanity"]["figures"]["perplexity"]["merged"] < 2
    assert client.predict(recipe, api_name="/check")["merge"] == last["merge"]


def test_merge_says_what_is_wrong(client: Client) -> None:
    """A merge that went too far comes with its files' id and the likely cause."""
    last = client.predict(TIES.replace("lambda: 1.0", "lambda: 8.0"), api_name="/merge")
    assert last["merge"] and last["seconds"] >= 0  # 0 where somebody has made it before
    assert last["sanity"]["ok"] is False and "`lambda`" in last["sanity"]["text"]
    assert last["sanity"]["figures"]["cause"] == "step"


def test_chat_by_id(client: Client) -> None:
    """/chat sends growing texts of the recipe's models in their order, then of the merge."""
    made = client.predict(TIES, api_name="/merge")["merge"]
    said = stream(client, made, SUM, api="/chat")
    assert {tuple(texts) for texts in said} == {("assets/demo/a", "assets/demo/b", "merged")}
    for sooner, later in pairwise(said):
        assert all(later[column].startswith(text) for column, text in sooner.items())
    assert said[-1]["assets/demo/a"] == said[-1]["merged"] == "65"


def test_chat_by_pinned_recipe(client: Client) -> None:
    """A pinned recipe does as well as an id, even where nobody merged it before."""
    pinned = client.predict(TIES.replace("lambda: 1.0", "lambda: 0.8"), api_name="/check")["recipe"]
    said = client.predict(pinned, SUM, api_name="/chat")
    assert list(said) == ["assets/demo/a", "assets/demo/b", "merged"]
    assert all(said.values())


def test_columns_are_named_as_written(client: Client) -> None:
    """A Hub id is a column's name as the recipe had it, at every call, though it is pinned."""
    *_, made = stream(client, HUB, api="/merge")
    assert "org/a@" in made["recipe"]
    for _ in range(2):
        assert list(client.predict(made["merge"], SUM, api_name="/chat")) == [
            "org/a", "org/b", "merged",
        ]  # fmt: skip
    assert list(client.predict(HUB, SUM, api_name="/chat"))[:2] == ["org/a", "org/b"]


def test_same_seed_same_answer(client: Client) -> None:
    """With a temperature, the seed decides what is said."""
    ask = (TIES, SUM, 16, 1.5)
    one, again, other = (client.predict(*ask, seed, api_name="/chat") for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_length_is_capped(client: Client, long_recipe: str) -> None:
    """An answer is cut to what the server gives and to what is left of the model's context."""
    asked = "I am Ada. " * 120  # of 1024 tokens about 700 are taken
    last = client.predict(long_recipe, asked, 10**9, api_name="/chat")
    assert all(0 < len(text) < 4000 for text in last.values())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((TIES, "x" * 16_001), "16,001 characters"),
        ((TIES, "  "), "empty"),
        ((TIES, 5), "text"),
        ((TIES, SUM, "many"), "numbers"),
        ((TIES, SUM, 8, 9.0), "Temperature 9.0"),
        ((TIES, SUM, 8, 0.5, -1), "Seed -1"),
        (("feedc0de", SUM), "feedc0de"),
        (("../../etc/passwd", SUM), "recipe"),
        (("#" * 70_000, SUM), "64 KB"),
    ],
)
def test_chat_refuses(client: Client, values: tuple[Any, ...], said: str) -> None:
    """What the caller can mend comes back as its sentence."""
    assert said in refusal(client, *values, api="/chat")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("#" * 70_000, "64 KB"),
        ("", "recipe"),
        (7, "recipe"),
        (TIES.replace("merge_method", "method"), "method"),
        (TIES.replace("lambda: 1.0", "lam: 1.0"), "lambda"),
        (TIES.replace("assets/demo/b", "org/nobody"), "org/nobody"),
        (
            TIES.replace("merge_method: ties", "merge_method: slerp").replace(
                "lambda: 1.0", "t: 7"
            ),
            "t",
        ),
    ],
)
def test_merge_refuses(client: Client, recipe: Any, said: str) -> None:
    """Bad recipes come back as a sentence, and the next merge works."""
    assert said in refusal(client, recipe, api="/merge")
    assert client.predict(TIES, api_name="/merge")["merge"]


def test_requests_over_two_megabytes(app: App) -> None:
    """A body over the cap is refused before it is read."""
    host = urlsplit(app.url).netloc
    with closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        connection.putrequest("POST", "/gradio_api/call/check")
        connection.putheader("content-length", "2000001")
        connection.endheaders()  # and not a byte of the body
        assert connection.getresponse().status == 413


def test_id_survives_a_restart(app: App, client: Client) -> None:
    """An app started anew in the same home still knows a merge by its id."""
    made = client.predict(TIES.replace("lambda: 1.0", "lambda: 1.1"), api_name="/merge")["merge"]
    before = client.predict(made, SUM, api_name="/chat")
    with running(app.log.parent) as anew, connected(anew) as later:
        assert later.predict(made, SUM, api_name="/chat") == before


def test_many_merge_the_same_at_once(app: App) -> None:
    """What nobody has merged yet is made once for all programs that ask: the others find it."""
    recipe = TIES.replace("lambda: 1.0", "lambda: 1.2345")
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(app)) for _ in range(4)]
        jobs = [client.submit(recipe, api_name="/merge") for client in 2 * clients]
        made = [job.result(60) for job in jobs]
    assert len({each["merge"] for each in made}) == 1
    assert sum(each["seconds"] > 0 for each in made) == 1


def test_a_programs_requests_take_turns(app: App, client: Client, long_recipe: str) -> None:
    """The next wait for the first, those beyond a few are refused, and another is answered."""

    def ask() -> Any:
        return client.submit(long_recipe, SUM, 1024, api_name="/chat")

    def has_begun(job: Any) -> bool:
        return any(any(texts.values()) for texts in job.outputs())

    first = ask()
    while not has_begun(first):
        time.sleep(0.1)
    later = [ask() for _ in range(LIMITS["chat"])]
    while sum(job.done() for job in later) < len(later) - MOST + 1:
        time.sleep(0.1)
    refused = [job for job in later if job.done()]
    assert all("wait for one" in str(job.exception()) for job in refused)
    assert not any(map(has_begun, later))
    with connected(app) as other:
        assert other.predict(TIES, SUM, api_name="/chat")["merged"] == "65"
    first.cancel()  # and so, to gradio, all that this client asked for in the same way
    assert client.predict(TIES, api_name="/merge")["merge"]


def test_callers_without_a_session_are_strangers(app: App) -> None:
    """Each has its answer, however many there are."""
    body = json.dumps({"data": [TIES, SUM, 8, 0.0, 0]}).encode()
    call = f"{app.url}/gradio_api/call/chat"
    asking = [Request(call, body, {"content-type": "application/json"}) for _ in range(2 * MOST)]
    ids = [json.loads(read(each))["event_id"] for each in asking]
    assert all("event: complete" in read(f"{call}/{id}") for id in ids)


def test_cancelled_answers_end(app: App, client: Client, long_recipe: str) -> None:
    """A client that cancels frees the device at once."""
    job = client.submit(long_recipe, SUM, 1024, api_name="/chat")
    next(job)
    used = app.processor_seconds()
    job.cancel()
    time.sleep(8)
    assert app.processor_seconds() - used < 2.5  # the whole answer takes eleven


@pytest.mark.parametrize("where", [{"SPACE_ID": "org/space"}, {"GRADIO_SERVER_NAME": "0.0.0.0"}])
def test_folders_only_on_ones_own_machine(tmp_path: Path, where: dict[str, str]) -> None:
    """Where others reach the app, folders are refused and the embedded models still merge."""
    local = TIES.replace("assets/demo/a", str(DEMO / "a"))
    with running(tmp_path, **where) as app, connected(app) as client:
        assert client.predict(local, api_name="/check")["ok"] is False
        assert "folder" in refusal(client, local, api="/merge")
        assert "folder" in refusal(client, local, SUM, api="/chat")
        assert client.predict(TIES, SUM, api_name="/chat")["merged"] == "65"
