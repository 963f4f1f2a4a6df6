"""The list of models of the test Hub: what is found, in which order, which fields are told."""

from __future__ import annotations

import math
import re
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import cards
from .access import hub_of, refuse, sender, visible

FIELDS = """
author baseModels cardData childrenModelCount config createdAt disabled downloads downloadsAllTime
evalResults gated gguf inference inferenceProviderMapping lastModified library_name likes
mask_token model-index pipeline_tag private resourceGroup safetensors sha siblings spaces tags
transformersInfo trendingScore usedStorage widgetData
"""
"""What may be asked for by `expand`; what this Hub does not know of these is left out."""
NOT_LISTED = frozenset({"baseModels", "childrenModelCount", "usedStorage"})
"""What the Hub tells of one model, and refuses to tell of a list."""
SHORT = """
_id id modelId likes downloads private tags pipeline_tag library_name createdAt trendingScore
"""
FULL = SHORT + "author sha lastModified gated disabled siblings"
SORTS = ("downloads", "likes", "lastModified", "createdAt", "trendingScore")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

Told = dict[str, Any]


def expanded(query: QueryParams, allowed: set[str]) -> set[str]:
    """The fields asked for by `expand`, besides the id; empty where none are."""
    asked = {*query.getlist("expand"), *query.getlist("expand[]")}
    if wrong := asked - allowed:
        raise refuse(400, f'"expand" must not be {sorted(wrong)}')
    return asked


def detail(told: Told, query: QueryParams) -> Told:
    """What is told of one model: all but the rare fields, or the fields asked for."""
    if asked := expanded(query, {*FIELDS.split()}):
        return pick(told, {"_id", "id", *asked})
    return {key: value for key, value in told.items() if key not in cards.ONLY_EXPANDED}


def pick(told: Told, keys: set[str]) -> Told:
    return {key: value for key, value in told.items() if key in keys}


async def models(request: Request) -> Response:
    """GET /api/models, in pages of at most `hub.page`."""
    hub, user, query = hub_of(request), sender(request), request.query_params
    stored = [repo for repo in hub.repos.values() if "main" in repo.refs and visible(repo, user)]
    heads = [(repo, repo.refs["main"]) for repo in stored]
    told = [cards.info(repo, sha, repo.commits[sha]) for repo, sha in heads]
    found = ordered([one for one in told if matches(one, query)], query)
    start, size = int(query.get("cursor", 0)), min(int(query.get("limit", hub.page)), hub.page)
    keys = fields(query)
    page = [pick(one, keys) for one in found[start : start + size]]
    more = request.url.include_query_params(cursor=start + size)
    link = {"Link": f'<{more}>; rel="next"'} if start + size < len(found) else {}
    return JSONResponse(page, headers=link)


def fields(query: QueryParams) -> set[str]:
    if asked := expanded(query, {*FIELDS.split()} - NOT_LISTED):
        return {"_id", "id", *asked}
    extra = {key for key in ("cardData", "config") if query.get(key) == "true"}
    known = FULL if query.get("full") == "true" else SHORT
    return {*known.split(), *extra}


def matches(told: Told, query: QueryParams) -> bool:
    """Whether all words are in the name, and all filters among the tags."""
    names = told["id"].lower()
    labels = {*told["tags"], told.get("pipeline_tag"), told.get("library_name")}
    gated = {"true": True, "false": False}.get(query.get("gated", ""))
    return (
        all(word in names for word in query.get("search", "").lower().split())
        and query.get("author", told["author"]) == told["author"]
        and labels.issuperset(query.getlist("filter"))
        and query.get("pipeline_tag", told.get("pipeline_tag")) == told.get("pipeline_tag")
        and gated in (None, bool(told["gated"]))
        and in_range(told.get("safetensors"), query.get("num_parameters"))
    )


def in_range(safetensors: Told | None, asked: str | None) -> bool:
    """Whether the number of parameters is in a range such as "min:0.1B,max:8B"."""
    if asked is None:
        return True
    low, high = 0.0, math.inf
    for part in asked.split(","):
        read = re.fullmatch(r"(min|max):([\d.]+)([KMBT]?)", part)
        if not read:
            raise refuse(400, f'"num_parameters" is not a range: {asked}')
        number = float(read[2]) * UNITS[read[3]]
        low, high = (number, high) if read[1] == "min" else (low, number)
    return safetensors is not None and low <= safetensors["total"] <= high


def ordered(found: list[Told], query: QueryParams) -> list[Told]:
    key = query.get("sort", "trendingScore")
    if key not in SORTS:
        raise refuse(400, f'"sort" must be one of {SORTS}')
    return sorted(found, key=lambda one: one[key], reverse=query.get("direction") != "1")


ROUTES = [Route("/api/models", models)]
