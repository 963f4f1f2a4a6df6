"""Speaks to the Hub: time-outs on every call, patience, and each failure as one sentence.

It knows no cache and no files; who may read what is the Hub's own answer.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import huggingface_hub
from huggingface_hub import constants

from merging.errors import MergeError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
Token = str | Literal[False]  # False: anonymous; never None, the client's word for its own login

ATTEMPTS = 6  # connections for a file, each taking up where the last broke off
PAUSE = 0.25  # seconds before the second, doubled before each further one
SILENCE = 30  # seconds without a byte, after which a call that has no time-out of its own ends


class UnreachableError(MergeError):
    """The Hub gave no answer of its own: the cache, or asking again, may help."""


class LoginError(MergeError):
    """The Hub does not know this login, or no longer: it would refuse public repos as well."""


def own_login() -> Token:
    """The machine's own login, for the CLI and a page that only this machine can open."""
    return huggingface_hub.get_token() or False


def api() -> huggingface_hub.HfApi:
    """The client's calls, none of which may wait for ever (by default, most of them would)."""
    huggingface_hub.get_session().timeout = SILENCE
    return huggingface_hub.HfApi(endpoint=constants.ENDPOINT, token=False)


@contextmanager
def get(id: str, ref: str, path: str, token: Token, span: str = "") -> Iterator[Any]:
    """The open answer, an httpx Response; `span` is a Range header."""
    headers = {"Accept-Encoding": "identity"}  # packed bytes can be neither counted nor resumed
    headers |= {"Range": span} if span else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    url, timeout = f"{constants.ENDPOINT}/{path}", constants.HF_HUB_DOWNLOAD_TIMEOUT
    client = huggingface_hub.get_session()
    with (
        plainly(id, ref),
        client.stream("GET", url, headers=headers, timeout=timeout) as response,
    ):
        if response.is_error:
            response.read()
        huggingface_hub.hf_raise_for_status(response)
        yield response


def patiently(
    attempt: Callable[[], T], stop: threading.Event | None = None, attempts: int = ATTEMPTS
) -> T:
    """What `attempt` returns, tried again where the Hub could not be reached."""
    waiting = stop or threading.Event()
    for failures in range(1, attempts):
        try:
            return attempt()
        except UnreachableError:
            if waiting.wait(PAUSE * 2 ** (failures - 1)):
                raise CancelledError from None
    return attempt()


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
    status, seconds = error.response.status_code, re.search(r"Retry after (\d+)", str(error))
    when = f"in {seconds[1]} s" if seconds else "in a few minutes"
    login = "log in with a token that may read it"
    if status >= 500:
        return UnreachableError(f"The Hub fails on {id} (error {status}): try again in a minute.")
    said: dict[str | int, str] = {
        "GatedRepoError": f"{id} is gated: accept its terms on huggingface.co/{id}, then {login}.",
        "RepositoryNotFoundError": f"{id} is not on the Hub, or is private: check it, or {login}.",
        "RevisionNotFoundError": f"{id} has no branch, tag or commit {ref}: try main.",
        "DisabledRepoError": f"{id} is disabled on the Hub: choose another model.",
        401: f"The Hub refuses this login on {id}, it may have expired: log in again.",
        403: f"This login may not read {id}: {login}.",
        429: f"The Hub's rate limit is reached: try again {when}, or log in.",
    }
    other = f"The Hub answers {status} on {id} ({error.server_message}): choose another revision."
    kind = type(error).__name__
    sort = LoginError if status == 401 and kind not in said else MergeError
    return sort(said.get(kind) or said.get(status) or other)
