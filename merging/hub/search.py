"""Finds models on the Hub: by what their names contain, and by what they were made from.

It knows names, sizes and popularity, opens no file and pins nothing. Somebody is typing: an answer
comes within seconds or not at all, so the request is the client's list_models, which would wait and
try again for as long as it takes, without its patience.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlencode

from huggingface_hub import constants

from merging.errors import AccessError, MergeError
from merging.hub.client import Token, UnreachableError, get
from merging.hub.repo import check_names

SECONDS = 3.0  # of silence, after which nobody waits for suggestions any longer
QUIET = 15  # seconds for which a Hub that gave no answer, or a rate limit, is not asked again
REMEMBERED = 300  # seconds for which an answer that everybody may see is not asked for again
MOST = 500  # answers remembered
SHORTEST, LONGEST = 3, 96  # characters worth a question
LIMIT = 15
RELATIVES = 8
NAME = re.compile(r"[A-Za-z0-9][\w. -]*(/[\w. -]*)?", re.ASCII)
"""What may be part of a model's name; folders of this machine are nobody's business."""
PARENT = re.compile(r"base_model:(?:finetune|adapter):(.+)")
QUANTISED = ("4-bit", "8-bit", "awq", "bitsandbytes", "compressed-tensors", "fp8", "gptq", "mlx")
USELESS = frozenset((*QUANTISED, "custom_code"))
"""Tags of models that would be refused, the last for code of their own."""
EXPAND = ("downloads", "gated", "private", "safetensors", "tags")


@dataclass(frozen=True)
class Found:
    """A model on the Hub: `parameters` where they were counted, `gated` if not open to all."""

    id: str
    parameters: int | None
    downloads: int
    gated: bool


@dataclass(frozen=True)
class Lineage:
    """What a model was tuned from, nearest first, and other tunes of the nearest.

    The siblings of a model that names no base are its own tunes.
    """

    bases: tuple[str, ...] = ()
    siblings: tuple[Found, ...] = ()


def search(text: str, *, largest: int | None = None, token: Token = False) -> tuple[Found, ...]:
    """Models for text generation with all these words in their names, most downloaded first.

    None has more than `largest` parameters. Nothing is asked, and nothing found, for texts that
    are too short or no part of a name, and with HF_HUB_OFFLINE=1. Raises MergeError where the Hub
    gives no answer.
    """
    words = " ".join(text.split())
    if not SHORTEST <= len(words) <= LONGEST or not NAME.fullmatch(words):
        return ()
    asked = [("search", words), ("pipeline_tag", "text-generation")]
    if largest is not None:
        asked.append(("num_parameters", f"max:{-(-largest // 10**9)}B"))  # whole billions, for sure
    found = _listed(asked, token)
    fitting = (one for one in found if largest is None or (one.parameters or 0) <= largest)
    return tuple(fitting)[:LIMIT]


def lineage(id: str, *, token: Token = False) -> Lineage:
    """Where a model comes from, by its tags on the Hub; nothing with HF_HUB_OFFLINE=1.

    Raises MergeError for what is no name, and where the Hub gives no answer.
    """
    check_names(id, "main")
    bases = [base for base in _bases(id, token) if base != id][:1]
    with suppress(MergeError):  # a base's own base is a bonus
        bases += [base for one in bases for base in _bases(one, token) if base not in (id, one)][:1]
    siblings = _listed([("filter", f"base_model:finetune:{[*bases, id][0]}")], token)
    others = tuple(one for one in siblings if one.id not in (id, *bases))
    return Lineage(tuple(bases), others[:RELATIVES])


def _bases(id: str, token: Token) -> list[str]:
    told = _ask(f"api/models/{id}?expand=tags", token)
    tags = told.get("tags") if isinstance(told, dict) else None
    found = [PARENT.fullmatch(str(tag)) for tag in tags or ()]
    return [match[1] for match in found if match and _is_name(match[1])]


def _is_name(id: str) -> bool:
    try:
        check_names(id, "main")
    except MergeError:
        return False
    return True


def _listed(asked: list[tuple[str, str]], token: Token) -> tuple[Found, ...]:
    common = [("filter", "safetensors"), ("sort", "downloads"), ("limit", str(2 * LIMIT))]
    query = urlencode([*asked, *common, *(("expand", field) for field in EXPAND)])
    told = _ask(f"api/models?{query}", token)
    return tuple(_read(told if isinstance(told, list) else []))


def _read(told: list[Any]) -> Iterator[Found]:
    for one in told:
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            if USELESS.isdisjoint(one.get("tags") or ()) and _is_name(one["id"]):
                total = (one.get("safetensors") or {}).get("total")
                closed = bool(one.get("gated") or one.get("private"))
                parameters = int(total) if total else None
                yield Found(one["id"], parameters, int(one.get("downloads") or 0), closed)


@cache
def _answers() -> dict[str, tuple[float, Any]]:
    """What was answered to those without a login, by address, and until when that holds."""
    return {}


def _ask(path: str, token: Token) -> Any:
    """The Hub's JSON, [] with HF_HUB_OFFLINE=1. An expired login still sees what is public."""
    if constants.is_offline_mode():
        return []
    key, known = f"{constants.ENDPOINT}/{path}", _answers()
    if token:  # what a login may see is remembered for nobody
        with suppress(AccessError):
            return _try(path, token)
    until, answer = known.get(key, (0.0, None))
    if until < time.monotonic():
        answer = _try(path, False)
        if len(known) >= MOST:
            known.clear()
        known[key] = time.monotonic() + REMEMBERED, answer
    return answer


def _try(path: str, token: Token) -> Any:
    """Ask, unless the Hub has just been found out of reach."""
    known = _answers()
    until, said = known.get(constants.ENDPOINT, (0.0, None))
    if until > time.monotonic():
        raise UnreachableError(said)
    try:
        with get("the list of models", "main", path, token, timeout=SECONDS) as response:
            return json.loads(response.read())
    except AccessError:
        raise
    except MergeError as error:
        if isinstance(error, UnreachableError) or not token:
            known[constants.ENDPOINT] = time.monotonic() + QUIET, str(error)
        raise
