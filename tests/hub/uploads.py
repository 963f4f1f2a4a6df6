"""What the test Hub does with uploads: new repos, branches, large files over LFS, commits; no Xet.

The client's order is: repos/create, validate-yaml, preupload (which files are large?), LFS batch
(which of those are missing?), a PUT and a verify for each, then one commit that names them all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .access import MODEL, commit_of, hub_of, own_repo_of, refuse, signed_in
from .repos import Entry, Stored, Tree, entry, git_oid, in_lfs, large

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


async def create(request: Request) -> Response:
    """A new repo in the sender's own name, with the file that git needs for large ones."""
    hub, user, asked = hub_of(request), signed_in(request), await request.json()
    owner = asked.get("organization") or user.name
    id = f"{owner}/{asked['name']}"
    if owner != user.name or not user.writes:
        text = f'You don\'t have the rights to create a model under the namespace "{owner}"'
        raise refuse(403, text)
    told = {"url": f"{hub.url}/{id}", "name": id}
    if id in hub.repos:
        return JSONResponse({"error": "You already created this model repo"} | told, 409)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    hub.repos[id] = Stored(id, private=private)
    hub.repos[id].commit({".gitattributes": kept(hub.storage, ATTRIBUTES)}, "main")
    return JSONResponse(told)


async def delete(request: Request) -> Response:
    asked = await request.json()
    owner = asked.get("organization") or signed_in(request).name
    request.path_params.update(owner=owner, name=asked["name"])
    del hub_of(request).repos[own_repo_of(request).id]
    return Response()


async def branch(request: Request) -> Response:
    """A new branch at what main is."""
    repo, name = own_repo_of(request), request.path_params["branch"]
    if name in repo.refs:
        raise refuse(409, f"Reference already exists: {name}")
    repo.refs[name] = repo.refs["main"]
    return Response()


async def delete_branch(request: Request) -> Response:
    repo, name = own_repo_of(request), request.path_params["branch"]
    if name not in repo.refs or name == "main":
        raise refuse(404 if name != "main" else 403, f"No such branch to delete: {name}")
    del repo.refs[name]
    return Response()


async def preupload(request: Request) -> Response:
    """Which files go to LFS, and the checksum of what the repo has in their places."""
    repo, asked = own_repo_of(request), await request.json()
    tree = repo.commits[commit_of(request, repo)]
    told = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if in_lfs(file["path"], file["size"]) else "regular",
            "shouldIgnore": False,
            "oid": tree[file["path"]].etag if file["path"] in tree else None,
        }
        for file in asked["files"]
    ]
    return JSONResponse({"files": told})


async def batch(request: Request) -> Response:
    """Where each large file goes; nowhere if its content is stored already."""
    own_repo_of(request)
    hub, asked = hub_of(request), (await request.json())["objects"]
    return JSONResponse({"transfer": "basic", "objects": [place(hub, one) for one in asked]})


def place(hub: Any, asked: dict[str, Any]) -> dict[str, Any]:
    told = {"oid": asked["oid"], "size": asked["size"]}
    if asked["oid"] in hub.blobs:
        return told
    hrefs = {
        "upload": f"{hub.lfs}/{asked['oid']}",
        "verify": f"{hub.url}/lfs/{asked['oid']}/verify",
    }
    return told | {"actions": {name: {"href": href} for name, href in hrefs.items()}}


async def put(request: Request) -> Response:
    """Keeps a large file if it came whole; on another origin, where no token may arrive."""
    if "authorization" in request.headers:
        raise refuse(400, "Only one auth mechanism allowed")
    hub, oid = hub_of(request), request.path_params["oid"]
    part, sha256 = hub.storage / f"{oid}.part", hashlib.sha256()
    try:
        with part.open("wb") as file:
            async for piece in request.stream():
                file.write(piece)
                sha256.update(piece)
        if sha256.hexdigest() != oid:
            raise refuse(400, "The content has another sha256 than its name.")
        hub.blobs[oid] = part.rename(hub.storage / oid)
    except ClientDisconnect:
        return Response(status_code=400)
    finally:
        part.unlink(missing_ok=True)
    return Response()


async def verify(request: Request) -> Response:
    signed_in(request)
    file, asked = hub_of(request).blobs.get(request.path_params["oid"]), await request.json()
    return Response(status_code=200 if file and file.stat().st_size == asked["size"] else 404)


async def commit(request: Request) -> Response:
    """Adds and removes files, all or nothing; answers the new commit's hash."""
    hub, repo = hub_of(request), own_repo_of(request)
    old, branch = commit_of(request, repo), request.path_params["revision"]
    lines = [json.loads(line) for line in (await request.body()).splitlines()]
    tree = dict(repo.commits[old])
    for line in lines:
        value = line["value"]
        if line["key"] == "header":
            if not old.startswith(value.get("parentCommit") or ""):
                raise refuse(412, "A commit has happened since. Please refresh and try again.")
        elif line["key"] in ("file", "lfsFile"):
            tree[value["path"]] = added(hub, value)
        else:
            tree = without(tree, value["path"])
    new = repo.commit(tree, branch)
    url = f"{hub.url}/{repo.id}/commit/{new}"
    return JSONResponse({"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""})


def added(hub: Any, value: dict[str, Any]) -> Entry:
    if ".." in Path(value["path"]).parts:
        raise refuse(400, f"Not a path in a repo: {value['path']}")
    if "content" in value:
        return kept(hub.storage, base64.b64decode(value["content"]))
    if value["oid"] not in hub.blobs:
        raise refuse(400, f"LFS pointer to a file that does not exist: {value['oid']}")
    file = hub.blobs[value["oid"]]
    return large(file, file.stat().st_size, value["oid"])


def kept(storage: Path, content: bytes) -> Entry:
    """A small file, written where its name in git says."""
    file = storage / git_oid(content)
    file.write_bytes(content)
    return entry(file)


def without(tree: Tree, path: str) -> Tree:
    folder = path.rstrip("/") + "/"
    return {p: it for p, it in tree.items() if p != path and not p.startswith(folder)}


ROUTES = [
    Route("/api/repos/create", create, methods=["POST"]),
    Route("/api/repos/delete", delete, methods=["DELETE"]),
    Route(MODEL + "/branch/{branch}", branch, methods=["POST"]),
    Route(MODEL + "/branch/{branch}", delete_branch, methods=["DELETE"]),
    Route(MODEL + "/preupload/{revision:path}", preupload, methods=["POST"]),
    Route("/{owner}/{name}.git/info/lfs/objects/batch", batch, methods=["POST"]),
    Route("/lfs/{oid}", put, methods=["PUT"]),
    Route("/lfs/{oid}/verify", verify, methods=["POST"]),
    Route(MODEL + "/commit/{revision:path}", commit, methods=["POST"]),
]
