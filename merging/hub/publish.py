"""Publishes files in a repo of the user's own: the only code that writes to the Hub.

It knows names, files and commits, and nothing of merges. Large files are sent one by one, and all
files appear in one commit at the end: until then the repo stays as it was, whatever breaks.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.utils import logging
from huggingface_hub.utils.tqdm import disable_progress_bars

from merging.errors import AccessError, MergeError
from merging.hub.client import (
    Token,
    api,
    patiently,
    plainly,
)
from merging.hub.repo import check_names

T = TypeVar("T")

BARE = frozenset({".gitattributes"})
"""What a repo holds that was just made."""
LONGEST = 300  # seconds for which a rate limit is waited out: the files are sent already
WRITE = "make a token that may write on huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Target:
    """A repo that the holder of `token` may write; `head` is the commit that it stands at.

    `mark` tells this content from any other, by a line `mark_key: mark` in the card's metadata;
    `published` is whether the repo holds it already.
    """

    id: str
    private: bool
    head: str | None
    mark: tuple[str, str]
    published: bool
    token: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{self.id}"


def begin(name: str, mark: tuple[str, str], *, private: bool, token: Token) -> Target:
    """The repo `name` (`user/name`, or a bare name for the user's own), made if there is none.

    One that exists must be as private as asked, and be empty or have `mark` in its card's metadata.
    Raises MergeError.
    """
    check_names(name if "/" in name else f"me/{name}", "main")
    if constants.is_offline_mode():
        raise MergeError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it.")
    if not token:
        raise AccessError(
            "There is no login to push with: run `hf auth login`, or set HF_TOKEN to a token that "
            "may write."
        )
    id = _owned(name, token)
    found = _look(id, token)
    if found is None:
        _ask(id, lambda: _create(id, private, token))
        found = _look(id, token)
    else:
        _ask(id, lambda: api().auth_check(id, write=True, token=token))
    if found is None:
        raise MergeError(f"There is a repo {id} that this login cannot see: choose another name.")
    return _checked(Target(id, private, found.sha, mark, _bears(found, mark), token), found)


class Sending:
    """Files on their way to a repo, in a thread of its own; `done` of `total` bytes are sent.

    Files that the Hub has already are not sent again. `close` when they are no longer needed.
    """

    def __init__(self, target: Target, paths: Sequence[Path]) -> None:
        self.target, self.paths, self.stop = target, tuple(paths), threading.Event()
        self.total = sum(path.stat().st_size for path in paths)
        self.files = {path: _File(path, self.stop) for path in paths}
        self.operations: list[CommitOperationAdd] = []
        self.outcome: Future[None] = Future()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def done(self) -> int:
        return self.total if self.outcome.done() else sum(f.sent for f in self.files.values())

    def wait(self, seconds: float) -> bool:
        """Whether all are sent, after so long at most. Raises MergeError where they cannot be."""
        if not wait([self.outcome], seconds).done:
            return False
        self.outcome.result()
        return True

    def release(self) -> list[Path]:
        """The files that the commit does not read again, which may go."""
        sent = {op.path_in_repo for op in self.operations if op.path_or_fileobj == b""}
        spare = [path for path in self.paths if path.name in sent]
        for path in spare:
            self.files[path].close()
        return spare

    def close(self) -> None:
        """Stops what is still under way; nothing is published."""
        self.stop.set()
        wait([self.outcome], 1)
        for file in self.files.values():
            file.close()

    def _run(self) -> None:
        try:
            self._send()
        except BaseException as error:  # noqa: BLE001  # `wait` raises it
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(None)

    def _send(self) -> None:
        self.operations = [
            CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=file)  # reads its checksum
            for path, file in self.files.items()
        ]
        for file in self.files.values():
            file.sending = True
        _ask(self.target.id, self._attempt, self.stop)

    def _attempt(self) -> None:
        for file in self.files.values():
            file.seek(0)  # a broken attempt leaves it where it broke
        target = self.target
        api().preupload_lfs_files(target.id, self.operations, token=target.token)


def commit(target: Target, sendings: Sequence[Sending], message: str) -> str:
    """Makes all files appear in the repo at once; returns its URL. Raises MergeError."""
    operations = [operation for sending in sendings for operation in sending.operations]
    _ask(target.id, lambda: _commit(target, operations, message))
    return target.url


def lend(target: Target, branch: str, name: str, content: bytes) -> None:
    """Put a file on a branch of its own, where nothing of the repo changes. Raises MergeError."""
    id, token = target.id, target.token
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)]
    _ask(id, lambda: api().create_branch(id, branch=branch, exist_ok=True, token=token))
    _ask(id, lambda: api().create_commit(
        id, added, commit_message=name, revision=branch, token=token,
    ))  # fmt: skip


def take_back(target: Target, branch: str) -> None:
    """Remove such a branch with its file, if it is there. Raises MergeError."""
    from huggingface_hub import errors

    def remove() -> None:
        try:
            api().delete_branch(target.id, branch=branch, token=target.token)
        except errors.HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise

    _ask(target.id, remove)


def arrived(target: Target) -> bool:
    """Whether the repo holds the content with the target's mark now. Raises MergeError."""
    found = _look(target.id, target.token)
    return found is not None and _bears(found, target.mark)


class _File(io.BufferedReader):
    """A file that tells how far it was sent, and breaks off when it is to stop.

    The client sends file objects by plain HTTP: Xet takes paths alone, and could not be stopped.
    """

    def __init__(self, path: Path, stop: threading.Event) -> None:
        super().__init__(path.open("rb", buffering=0))
        self.stop, self.sending, self.sent = stop, False, 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self.stop.is_set():
            raise CancelledError
        data = super().read(size)
        if self.sending:
            self.sent = self.tell()
        return data


def _owned(name: str, token: str) -> str:
    """The repo's whole name. Raises MergeError where it could not be this user's."""
    who = _ask(name, lambda: api().whoami(token=token))
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise AccessError(f"This login may only read: {WRITE}.")
    user, own = str(who["name"]), name.rpartition("/")[2]
    owner = name.rpartition("/")[0] or user
    if owner not in (user, *(org["name"] for org in who.get("orgs", []))):
        raise AccessError(f"This login is {user}'s and may not write to {owner}: push to {own}.")
    id = f"{owner}/{own}"
    check_names(id, "main")
    return id


def _look(id: str, token: str) -> huggingface_hub.ModelInfo | None:
    from huggingface_hub import errors

    def ask() -> huggingface_hub.ModelInfo | None:
        try:
            return api().model_info(id, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except errors.RepositoryNotFoundError:
            return None

    return _ask(id, ask)


def _create(id: str, private: bool, token: str) -> None:
    from huggingface_hub import errors

    try:
        api().create_repo(id, private=private, exist_ok=False, token=token)
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 409:  # else an answer was lost, or somebody was faster
            raise


def _bears(found: huggingface_hub.ModelInfo, mark: tuple[str, str]) -> bool:
    key, value = mark
    return found.card_data is not None and found.card_data.get(key) == value


def _checked(target: Target, found: huggingface_hub.ModelInfo) -> Target:
    """Raises MergeError for a repo that is not to be written to."""
    id, other = target.id, {s.rfilename for s in found.siblings or ()} - BARE
    if other and not target.published:
        raise MergeError(f"{id} holds something else ({min(other)}): choose another name.")
    if target.private and not found.private:
        raise MergeError(
            f"{id} is a public repo: make it private in its settings, or push to another."
        )
    if found.private and not target.private:
        raise MergeError(
            f"{id} is a private repo: make it public in its settings, or push to another."
        )
    return target


def _commit(target: Target, operations: Sequence[CommitOperationAdd], message: str) -> None:
    from huggingface_hub import errors

    try:
        api().create_commit(
            target.id, operations, commit_message=message, token=target.token,
            parent_commit=target.head,
        )  # fmt: skip
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        found = _look(target.id, target.token)  # it may be this commit, whose answer was lost
        if not found or not _bears(found, target.mark):
            what = f"{target.id} was changed by somebody else meanwhile"
            raise MergeError(f"{what}: push again, to another name.") from error


def _ask(id: str, call: Callable[[], T], stop: threading.Event | None = None) -> T:
    """What a call of the client returns, with patience; its failures as MergeError."""
    # The client's warnings would name links that are secrets for a while.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bars()

    def attempt() -> T:
        with plainly(id, "main"), _writing(id):
            return call()

    return patiently(attempt, stop, longest=LONGEST)


@contextmanager
def _writing(id: str) -> Iterator[None]:
    """Sentences for what only writing meets; leaves the rest to `plainly`."""
    from huggingface_hub import errors

    try:
        yield
    except (RuntimeError, ValueError, errors.HfHubHTTPError) as error:
        plain = _plain(error, id)
        if plain is error:
            raise
        raise plain from error


def _plain(error: Exception, id: str) -> BaseException:
    from huggingface_hub import errors

    if isinstance(error, RuntimeError):  # the client's wrapping of what an upload met
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if not isinstance(error, errors.HfHubHTTPError):
        if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
            return MergeError(f"{id} cannot take these files ({' '.join(str(error).split())}).")
        return error
    status, own = error.response.status_code, str(error.response.url).startswith(constants.ENDPOINT)
    said = f" ({error.server_message})" if error.server_message else ""
    if own and status == 403:
        return AccessError(f"This login may not write to {id}{said}: {WRITE}, or choose another.")
    if own and status in (400, 402, 409, 413, 422):
        return MergeError(f"The Hub does not take {id}{said}: mend that, or choose another name.")
    return error
