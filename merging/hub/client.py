"""Speaks to the Hub: time-outs on every call, patience, and each failure as one sentence.

It knows no cache and no files; who may read what is the Hub's own answer.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import huggingface_hub
from huggingface_hub import constants

from merging.errors import AccessError, MergeError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
Token = str | Literal[False]  # False: anonymous; never None, the client's word for its own login

ATTEMPTS = 6  # connections for a file, each taking up where the last broke off
PAUSE = 0.25  # seconds before the second, doubled before each further one
SILENCE = 30  # seconds without a byte, after which a call that has no time-out of its own ends
LEAST, WINDOW = 10_000, 20  # bytes and seconds: a connection that brings fewer is given up
SHORT = 5  # seconds that an API call waits at a rate limit: people wait for the answer


class UnreachableError(MergeError):
    """The Hub gave no answer of its own: the cache, or asking again, may help."""


class LimitError(MergeError):
    """The Hub's rate limit, for so many `seconds`; None where it does not say."""

    def __init__(self, seconds: float | None) -> None:
        when = "in a few minutes" if seconds is None else f"in {math.ceil(seconds)} s"
        super().__init__(f"The Hub's rate limit is reached: try again {when}, or log in.")
        self.seconds = seconds


def own_login() -> Token:
    """The machine's own login, for the CLI and a page that only this machine can open."""
    return huggingface_hub.get_token() or False


def api() -> huggingface_hub.HfApi:
    """The client's calls, none of which may wait for ever (by default, most of them would)."""
    hooks = huggingface_hub.get_session().event_hooks
    if _end_in_time not in hooks["request"]:
        hooks["request"].append(_end_in_time)
    return huggingface_hub.HfApi(endpoint=constants.ENDPOINT, token=False)


def _end_in_time(request: Any) -> None:
    """Puts a time-out where a call of the client has none, or asks for none, as many do."""
    asked = request.extensions.get("timeout", {})
    each = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {key: asked.get(key) or SILENCE for key in each}


@contextmanager
def get(
    id: str, ref: str, path: str, token: Token, span: str = "", timeout: float | None = None
) -> Iterator[Any]:
    """The open answer, an httpx Response; `span` is a Range header, `timeout` of silence."""
    headers = {"Accept-Encoding": "identity"}  # packed bytes can be neither counted nor resumed
    headers |= {"Range": span} if span else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    url, timeout = f"{constants.ENDPOINT}/{path}", timeout or constants.HF_HUB_DOWNLOAD_TIMEOUT
    client = huggingface_hub.get_session()
    with (
        plainly(id, ref),
        client.stream("GET", url, headers=headers, timeout=timeout) as response,
    ):
        if response.is_error:
            response.read()
        huggingface_hub.hf_raise_for_status(response)
        yield response


def pieces(response: Any, id: str) -> Iterator[bytes]:
    """The bytes of an open answer as they come. UnreachableError where they but trickle."""
    since, came = time.monotonic(), 0
    for piece in response.iter_bytes():
        came += len(piece)
        if came >= LEAST:
            since, came = time.monotonic(), 0
        elif time.monotonic() - since > WINDOW:
            what = f"The Hub sends {id} too slowly (less than {LEAST / 1000:g} kB in {WINDOW:g} s)"
            raise UnreachableError(f"{what}: try again later.")
        yield piece


def patiently(
    attempt: Callable[[], T],
    stop: threading.Event | None = None,
    attempts: int = ATTEMPTS,
    longest: float = SHORT,
) -> T:
    """What `attempt` returns, tried again where the Hub could not be reached or asks to wait.

    `longest`: seconds of a wait that is asked for. Raises CancelledError once `stop` is set.
    """
    waiting, failures = stop or threading.Event(), 0
    while True:
        try:
            return attempt()
        except (UnreachableError, LimitError) as error:
            failures += 1
            if waiting.wait(pause(error, failures, attempts, longest)):
                raise CancelledError from None


def pause(error: MergeError, failures: int, attempts: int, longest: float = SHORT) -> float:
    """Seconds to wait after so many failures; raises `error` if it is time to give up."""
    seconds = (error.seconds if isinstance(error, LimitError) else 0) or 0
    if failures >= attempts or seconds > longest:
        raise error
    return float(seconds + PAUSE * 2 ** (failures - 1))


@contextmanager
def plainly(id: str, ref: str) -> Iterator[None]:
    """Turns every error of the client into one sentence."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # lazily there

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refusal(error, id, ref) from error
    except (httpx.RequestError, json.JSONDecodeError) as error:
        what = f"The connection to the Hub failed on {id} ({type(error).__name__})"
        raise UnreachableError(f"{what}: check the network, then try again.") from error


def _refusal(error: HfHubHTTPError, id: str, ref: str) -> MergeError:
    status, login = error.response.status_code, "log in with a token that may read it"
    if status == 429:
        return LimitError(_wait(error.response.headers))
    # where files are stored knows no users: a refusal there is a link that has expired
    if status >= 500 or not str(error.response.url).startswith(constants.ENDPOINT):
        return UnreachableError(f"The Hub fails on {id} (error {status}): try again in a minute.")
    said: dict[str | int, str] = {
        "GatedRepoError": f"{id} is gated: accept its terms on huggingface.co/{id}, then {login}.",
        "RepositoryNotFoundError": f"{id} is not on the Hub, or is private: check it, or {login}.",
        "RevisionNotFoundError": f"{id} has no branch, tag or commit {ref}: try main.",
        "DisabledRepoError": f"{id} is disabled on the Hub: choose another model.",
        401: f"The Hub refuses this login on {id}, it may have expired: log in again.",
        403: f"This login may not read {id}: {login}.",
    }
    other = f"The Hub answers {status} on {id} ({error.server_message}): choose another revision."
    kind = type(error).__name__
    denied = kind in ("GatedRepoError", "RepositoryNotFoundError") or status in (401, 403)
    return (AccessError if denied else MergeError)(said.get(kind) or said.get(status) or other)


def _wait(headers: Mapping[str, str]) -> float | None:
    """The seconds after which the Hub may be asked again, if it says."""
    if told := re.search(r"\br=0;\s*t=(\d+)", headers.get("RateLimit", "")):
        return float(told[1])
    after = headers.get("Retry-After", "")
    if after.isdecimal():
        return float(after)
    try:
        return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without a zone
        return None
