"""From a model's name to one commit of it, checked for the one who asks, each time anew."""

import time
from dataclasses import replace
from functools import cache

from huggingface_hub import constants

from merging.errors import AccessError, MergeError
from merging.hub.cache import cached_repo, not_cached
from merging.hub.client import LimitError, Token, UnreachableError, api, get, patiently, plainly
from merging.hub.repo import COMMIT, File, Repo, check_names

ATTEMPTS = 2  # people wait for the answer
REMEMBERED = 300  # seconds for which the listing of a commit, which cannot change, is not asked for


def pin(id: str, revision: str | None = None, *, token: Token = False) -> Repo:
    """The repo `org/name` at the commit that `revision` (branch, tag or commit) means now.

    Access is checked here, for the holder of `token`. Without a network, or with HF_HUB_OFFLINE=1,
    the cache answers, save for gated models, as access cannot be checked. Raises MergeError.
    """
    ref = revision or "main"
    check_names(id, ref)
    copy = cached_repo(id, ref)
    if constants.is_offline_mode():
        if copy and copy.gated:
            raise AccessError(
                f"{id} is gated, and with HF_HUB_OFFLINE access cannot be checked: unset it, or "
                "name the model's folder."
            )
        return copy or not_cached(f"{id} at {ref}")
    try:
        return _known(id, ref, token)
    except (UnreachableError, LimitError) as lost:
        if copy and copy.gated:
            raise AccessError(f"{lost} {id} is cached but gated: access must be checked.") from lost
        if copy:
            return copy
        raise


def _known(id: str, ref: str, token: Token) -> Repo:
    """The repo's listing; a login that has expired does not keep anybody from a public model."""
    listing = _listings()
    asked, repo = listing.get((constants.ENDPOINT, id, ref), (0.0, None))
    if repo is None or time.monotonic() - asked > REMEMBERED:
        try:
            repo = patiently(lambda: _ask(id, ref, token), attempts=ATTEMPTS)
        except AccessError as refused:
            if not token:
                raise
            repo, token = _public(id, ref, refused), False
    if repo.gated:  # the listing of a gated repo is open to all, its files are not
        _check_access(id, ref, token)
    return repo


def _public(id: str, ref: str, refused: AccessError) -> Repo:
    """The listing for anybody: over https, a login too old looks like a repo that is not there."""
    try:
        repo = patiently(lambda: _ask(id, ref, False), attempts=ATTEMPTS)
    except (UnreachableError, LimitError):
        raise
    except MergeError:
        raise refused from None
    if repo.gated:
        raise refused
    return repo


def _check_access(id: str, ref: str, token: Token) -> None:
    def check() -> None:
        with get(id, ref, f"api/models/{id}/auth-check", token):
            pass

    patiently(check, attempts=ATTEMPTS)


@cache
def _listings() -> dict[tuple[str, str, str], tuple[float, Repo]]:
    """Public listings by commit, and when they were asked for: a class would use up the rate."""
    return {}


def _ask(id: str, ref: str, token: Token) -> Repo:
    timeout = constants.HF_HUB_ETAG_TIMEOUT  # the client itself would wait for ever
    with plainly(id, ref):
        info = api().model_info(id, revision=ref, files_metadata=True, timeout=timeout, token=token)
    files = {
        s.rfilename: File(s.lfs.size, s.lfs.sha256) if s.lfs else File(s.size or 0, None, s.blob_id)
        for s in info.siblings or ()
    }
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise MergeError(f"The Hub names no commit of {id} at {ref}: choose another revision.")
    stated = info.card_data.get("license") if info.card_data else None
    license = ", ".join(map(str, stated)) if isinstance(stated, list) else stated and str(stated)
    parameters = info.safetensors.total if info.safetensors else None
    repo = Repo(
        id, commit, files, bool(info.gated or info.private), license or None, parameters, ref
    )
    if not info.private:
        _listings()[constants.ENDPOINT, id, commit] = time.monotonic(), replace(repo, ref=commit)
    return repo
