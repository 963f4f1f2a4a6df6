"""The paths by which the test Hub is read: models, their files, what each call answers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from . import cards, files, jobs, login, repos, search, uploads, validation
from .access import MODEL, commit_of, hub_of, own_repo_of, refuse, repo_of, signed_in
from .faults import kind_of

if TYPE_CHECKING:
    from .server import LocalHub


class Revision(StringConvertor):
    """A branch, tag or commit before more of a path: no slashes, but for pull requests."""

    regex = r"refs/(?:pr|convert)/[^/]+|[^/]+"


register_url_convertor("revision", Revision())


async def say(_: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def gone(*_: Any) -> Response:
    """For a client that left before it had sent all; nobody reads it."""
    return Response(status_code=400)


def spoilt(request: Request, entry: repos.Entry) -> repos.Entry:
    """The entry as it is told: a fault may give it checksums that are not its own."""
    wrong = {"sha256": "0" * 64, "oid": "0" * 40} if kind_of(request) == "wrong_etag" else {}
    return dataclasses.replace(entry, **wrong)


def files_of(request: Request, repo: repos.Stored) -> repos.Tree:
    tree = repo.commits[commit_of(request, repo)]
    return {path: spoilt(request, entry) for path, entry in tree.items()}


async def model(request: Request) -> Response:
    repo, query = repo_of(request), request.query_params
    told = cards.info(
        repo, commit_of(request, repo), files_of(request, repo), blobs="blobs" in query
    )
    return JSONResponse(search.detail(told, query))


async def tree(request: Request) -> Response:
    """A folder's files and folders; the root may be empty, another folder must be there."""
    repo = repo_of(request)
    folder = request.path_params.get("path", "")
    recursive = request.query_params.get("recursive", "").lower() == "true"
    told = repos.listing(files_of(request, repo), folder, recursive)
    if folder and not told:
        raise refuse(404, f"{folder} does not exist", "EntryNotFound")
    return JSONResponse(told)


async def paths_info(request: Request) -> Response:
    repo = repo_of(request)
    asked = (await request.form()).getlist("paths")
    tree = files_of(request, repo)
    return JSONResponse([repos.node(path, tree[path]) for path in asked if path in tree])


async def refs(request: Request) -> Response:
    repo = repo_of(request)
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
        for name, sha in repo.refs.items()
        if not name.startswith("refs/")
    ]
    return JSONResponse({"branches": branches, "tags": [], "converts": []})


async def headers(request: Request) -> Response:
    """The headers of all shards that an index names, on `main`."""
    repo, path = repo_of(request, content=True), request.path_params["path"]
    tree = repo.commits[commit_of(request, repo)]
    if path not in tree:
        raise refuse(404, "Entry not found", "EntryNotFound")
    index = cards.read_json(tree, path)
    shards = sorted(set(index.pop("weight_map", {}).values()))
    told = {name: cards.header(tree[name].file) for name in shards if name in tree}
    return JSONResponse({"index": index, "headers": told})


async def auth_check(request: Request) -> Response:
    repo_of(request, content=True)
    return Response()


async def auth_check_write(request: Request) -> Response:
    own_repo_of(request)
    return Response()


async def whoami(request: Request) -> Response:
    user, hub = signed_in(request), hub_of(request)
    role = {"type": "access_token", "accessToken": {"role": "write" if user.writes else "read"}}
    told = login.profile(hub.url, user)
    return JSONResponse(
        {
            "type": "user",
            "id": told["sub"],
            "name": user.name,
            "fullname": told["name"],
            "avatarUrl": told["picture"],
            "isPro": False,
            "orgs": [],
            "auth": role,
        }
    )


async def resolve(request: Request) -> Response:
    """A small file itself; for a large one, where the CDN has it."""
    repo = repo_of(request, content=True)
    sha, path = commit_of(request, repo), request.path_params["path"]
    headers = {} if kind_of(request) == "no_commit" else {"X-Repo-Commit": sha}
    entry = repo.commits[sha].get(path)
    if entry is None:
        raise refuse(404, "Entry not found", "EntryNotFound", X_Repo_Commit=sha)
    etag = f'"{spoilt(request, entry).etag}"'
    if not entry.lfs:
        return files.send(request, entry.file, headers | {"ETag": etag})
    headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(entry.size)}
    hub = hub_of(request)
    hub.blobs[entry.sha256] = entry.file  # others may have the same content, and lose it
    return RedirectResponse(f"{hub.cdn}/{entry.sha256}", 302, headers)


async def cdn(request: Request) -> Response:
    """The content of large files, on another origin, where no token may arrive."""
    if "authorization" in request.headers:
        raise refuse(400, "Only one auth mechanism allowed")
    sha256 = request.path_params["sha256"]
    file = hub_of(request).blobs.get(sha256)
    if file is None:
        raise refuse(404, "No such key")
    etag = "0" * 64 if kind_of(request) == "wrong_etag" else sha256
    return files.send(request, file, {"ETag": f'"{etag}"'})


READING = [
    Route("/api/whoami-v2", whoami),
    Route(MODEL, model),
    Route(MODEL + "/revision/{revision:path}", model),
    Route(MODEL + "/tree/{revision:revision}", tree),
    Route(MODEL + "/tree/{revision:revision}/{path:path}", tree),
    Route(MODEL + "/paths-info/{revision:path}", paths_info, methods=["POST"]),
    Route(MODEL + "/refs", refs),
    Route(MODEL + "/safetensors-metadata/{path:path}", headers),
    Route(MODEL + "/auth-check", auth_check),
    Route(MODEL + "/auth-check/write", auth_check_write),
    Route("/{owner}/{name}/resolve/{revision:revision}/{path:path}", resolve),
    Route("/cdn/{sha256}", cdn),
]


def build(hub: LocalHub) -> Starlette:
    app = Starlette(
        routes=[
            *READING,
            *search.ROUTES,
            *uploads.ROUTES,
            *validation.ROUTES,
            *login.ROUTES,
            *jobs.ROUTES,
        ],
        exception_handlers={HTTPException: say, ClientDisconnect: gone},
    )
    app.state.hub = hub
    return app
