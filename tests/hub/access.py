"""Who sends a request, and which repo it may read or write; refusals as the Hub words them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request

from .repos import Stored
from .users import User

if TYPE_CHECKING:
    from .server import LocalHub

MODEL = "/api/models/{owner}/{name}"
UNKNOWN = "Invalid credentials in Authorization header"


def refuse(status: int, text: str, code: str = "", **headers: str) -> HTTPException:
    """An answer that the client turns into the error which `code` names."""
    named = {"X-Error-Code": code} if code else {}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTPException(status, text, headers | named | {"X-Error-Message": text})


def hub_of(request: Request) -> LocalHub:
    hub: LocalHub = request.app.state.hub
    return hub


def sender(request: Request) -> User | None:
    """Whose token was sent, which must be known and not expired; None is anonymous."""
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not sent:
        return None
    user = hub_of(request).users.get(sent)
    if user is None:
        raise refuse(401, UNKNOWN)
    if user.expired:
        raise refuse(401, f'User Access Token "{user.name}" is expired')
    return user


def signed_in(request: Request) -> User:
    user = sender(request)
    if user is None:
        raise refuse(401, "Invalid username or password.")
    return user


def visible(repo: Stored, user: User | None) -> bool:
    return not repo.private or (user is not None and user.may_read(repo.id))


def repo_of(request: Request, content: bool = False) -> Stored:
    """The repo asked for; the listing of a gated one is open to all, its content is not."""
    user, id = sender(request), "{owner}/{name}".format(**request.path_params)
    repo = hub_of(request).repos.get(id)
    if repo is None or not visible(repo, user):
        raise refuse(404 if user else 401, "Repository not found", "RepoNotFound")
    if content and repo.gated and not (user and user.may_read(id)):
        text = f"Access to model {id} is restricted."
        raise refuse(403 if user else 401, text, "GatedRepo")
    return repo


def own_repo_of(request: Request) -> Stored:
    """The repo asked for, which must be the sender's to write."""
    repo, user = repo_of(request, content=True), signed_in(request)
    if not (user.writes and user.owns(repo.id)):
        raise refuse(403, f"You don't have the rights to write to {repo.id}")
    return repo


def commit_of(request: Request, repo: Stored) -> str:
    asked = request.path_params.get("revision", "main")
    sha = repo.refs.get(asked, asked)
    if sha not in repo.commits:
        raise refuse(404, f"Invalid rev id: {asked}", "RevisionNotFound")
    return sha
