"""The paths of the test Hub: who may read what, and what each call answers."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from . import faults, repos

MODEL = "/api/models/{owner}/{name}"


def refuse(status: int, code: str, text: str) -> HTTPException:
    headers = {"X-Error-Code": code} if code else {}
    return HTTPException(status, text, headers | {"X-Error-Message": text})


async def say(_: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def token(request: Request) -> str:
    """The token sent, which must be known; "" is anonymous."""
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if sent and sent not in request.app.state.hub.users:
        raise refuse(401, "", "Invalid credentials in Authorization header")
    return sent


def repo_of(request: Request, content: bool = False) -> repos.Stored:
    """The repo asked for; the listing of a gated one is open to all, its content is not."""
    hub, sent = request.app.state.hub, token(request)
    id = "{owner}/{name}".format(**request.path_params)
    repo, reads = hub.repos.get(id), hub.users.get(sent, ())
    if repo is None or (repo.private and id not in reads):
        raise refuse(404 if sent else 401, "RepoNotFound", "Repository not found")
    if content and repo.gated and id not in reads:
        raise refuse(403 if sent else 401, "GatedRepo", f"Access to model {id} is restricted.")
    return repo


def commit_of(request: Request, repo: repos.Stored) -> str:
    asked = request.path_params.get("revision", "main")
    sha = repo.refs.get(asked, asked)
    if sha not in repo.commits:
        raise refuse(404, "RevisionNotFound", f"Invalid rev id: {asked}")
    return sha


async def model(request: Request) -> Response:
    repo = repo_of(request)
    sha = commit_of(request, repo)
    return JSONResponse(repos.info(repo, sha, "blobs" in request.query_params))


async def tree(request: Request) -> Response:
    repo = repo_of(request)
    files = repo.commits[commit_of(request, repo)]
    return JSONResponse([repos.node(path, entry) for path, entry in files.items()])


async def paths_info(request: Request) -> Response:
    repo = repo_of(request)
    files = repo.commits[commit_of(request, repo)]
    asked = (await request.body()).decode()
    return JSONResponse([repos.node(p, e) for p, e in files.items() if p in asked])


async def auth_check(request: Request) -> Response:
    repo_of(request, content=True)
    return Response()


async def whoami(request: Request) -> Response:
    if not token(request):
        raise refuse(401, "", "Invalid credentials in Authorization header")
    return JSONResponse({"type": "user", "name": "someone", "fullname": "Someone", "orgs": []})


async def resolve(request: Request) -> Response:
    """A small file itself; for a large one, where the CDN has it."""
    repo = repo_of(request, content=True)
    sha, path = commit_of(request, repo), request.path_params["path"]
    headers = {"X-Repo-Commit": sha}
    entry = repo.commits[sha].get(path)
    if entry is None:
        raise refuse(404, "EntryNotFound", "Entry not found")
    if not entry.lfs:
        return faults.send(request, entry.file, headers | {"ETag": f'"{entry.etag}"'})
    headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size)}
    return RedirectResponse(f"{request.app.state.hub.cdn}/{entry.sha256}", 302, headers)


async def cdn(request: Request) -> Response:
    """The content of large files, on another origin, where no token may arrive."""
    if "authorization" in request.headers:
        raise refuse(400, "", "Only one auth mechanism allowed")
    stored = request.app.state.hub.repos.values()
    trees = (files for repo in stored for files in repo.commits.values())
    entries = (entry for files in trees for entry in files.values())
    entry = next(e for e in entries if e.sha256 == request.path_params["sha256"])
    return faults.send(request, entry.file, {"ETag": f'"{entry.etag}"'})


def build(hub: Any) -> Starlette:
    app = Starlette(
        routes=[
            Route("/api/whoami-v2", whoami),
            Route(MODEL, model),
            Route(MODEL + "/revision/{revision:path}", model),
            Route(MODEL + "/tree/{revision}", tree),
            Route(MODEL + "/paths-info/{revision}", paths_info, methods=["POST"]),
            Route(MODEL + "/auth-check", auth_check),
            Route("/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
            Route("/cdn/{sha256}", cdn),
        ],
        exception_handlers={HTTPException: say},
    )
    app.state.hub = hub
    return app
