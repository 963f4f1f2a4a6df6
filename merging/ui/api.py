"""The app's three named endpoints for programs: /check, /merge and /chat, each with one JSON.

The same limits and the same rules about folders hold as on the page, whose places in the queue
programs leave alone. What one of them asks for is done one after the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import wraps
from typing import Any

import gradio as gr

from merging import gpu
from merging.blocks import returned
from merging.chat import Question, Reply
from merging.errors import AccessError, MergeError
from merging.merge import Progress
from merging.recipe import Recipe
from merging.sanity import Verdict
from merging.ui import jobs, kept
from merging.ui.pending import Pending
from merging.ui.turn import waiting
from merging.ui.visitor import Visitor, visitor

LIMITS = {"check": 8, "merge": 4, "chat": 16}
"""Programs at once, by endpoint; of merges and questions as many as of the page's."""


def endpoints(private: Callable[[gr.Request], bool], pending: Pending) -> None:
    """Add the endpoints to the Blocks at hand; `private`: this machine alone can reach them.

    `pending` is the page's: an account's programs and tabs take turns.
    """

    def check(recipe: str, login: gr.OAuthToken | None, request: gr.Request) -> dict:  # type: ignore[type-arg]  # gradio reads it, and knows no more
        """The plan of a recipe in YAML: {"ok", "notes", "columns", …}. Reads no weights."""
        return _check(recipe, visitor(private(request), login))

    def merge(  # type: ignore[misc]  # a stream of dicts to gradio
        recipe: str,
        login: gr.OAuthToken | None,
        profile: gr.OAuthProfile | None,
        request: gr.Request,
    ) -> dict:  # type: ignore[type-arg]  # gradio reads it, and knows no more
        """Merge: progress, then {"merge": id, "recipe": pinned YAML, "seconds", "sanity"}.

        "sanity" is {"ok", "text", "figures"}, or null where the check itself failed.
        """
        who = visitor(private(request), login, None, profile, request.session_hash)
        with pending.request(who, waits=True) as (others, _):
            yield from _merge(recipe, who, waiting(others))

    def chat(  # type: ignore[misc]  # noqa: PLR0913  # a stream of dicts; five by contract, three gradio's
        merge: str,
        message: str,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        login: gr.OAuthToken | None = None,
        profile: gr.OAuthProfile | None = None,
        request: gr.Request = None,  # always given, after the contract's defaults
    ) -> dict:  # type: ignore[type-arg]  # gradio reads it, and knows no more
        """Ask a merge (its id, or a pinned recipe) and its parents: {column: text}, growing."""
        question = Question({}, max_new_tokens, temperature, seed)
        who = visitor(private(request), login, None, profile, request.session_hash)
        with pending.request(who, waits=True) as (others, _):
            yield from _chat(merge, message, question, who, waiting(others))

    for name, called in (("check", check), ("merge", _plainly(merge)), ("chat", _plainly(chat))):
        gr.api(called, api_name=name, concurrency_limit=LIMITS[name])


def _check(text: str, who: Visitor) -> dict[str, Any]:
    try:
        recipe = Recipe.from_yaml(text)
        decided, notes = jobs.check(recipe, who)
    except MergeError as error:
        return {"ok": False, "notes": [{"level": "red", "text": str(error)}], "columns": []}
    return {
        "ok": not any(note.level == "red" for note in notes),
        "notes": [{"level": note.level, "text": note.text} for note in notes],
        "columns": [*decided.columns, gpu.MERGED],
        "merge": decided.identity,
        "recipe": decided.recipe.to_yaml(),
        "bytes": decided.size,
        "missing": decided.missing,
    }


def _merge(text: str, who: Visitor, turn: Iterator[str]) -> Iterator[dict[str, Any]]:
    recipe = Recipe.from_yaml(text)
    for told in turn:
        yield _progress(Progress(told, stage="wait"))
    making = jobs.make(recipe, who)
    try:
        while True:
            yield _progress(next(making))
    except StopIteration as end:
        made, job = end.value
    kept.keep(made)
    last = {"merge": made.identity, "recipe": made.recipe, "seconds": 0.0, "sanity": None}
    for event in jobs.run(replace(job, check=True)):
        if isinstance(event, Progress):
            yield _progress(event)
        elif isinstance(event, gpu.Merged):
            last["seconds"] = round(event.seconds, 3)
        elif isinstance(event, Verdict):
            last["sanity"] = asdict(event)
    yield last


def _progress(at: Any) -> dict[str, Any]:
    return {
        "progress": round(at.share, 4),
        "tensor": at.tensor,
        "gb_per_s": round(at.gb_per_s, 4),
        "seconds_left": round(at.seconds_left, 2),
    }


def _chat(
    merge: str, message: str, options: Question, who: Visitor, turn: Iterator[str]
) -> Iterator[dict[str, str]]:
    job = _job(merge, who)
    texts = dict.fromkeys(job.answering, "")
    said = ({"role": "user", "content": message},)
    question = Question(
        dict.fromkeys(texts, said), options.max_new_tokens, options.temperature, options.seed
    )
    for _ in turn:
        yield dict(texts)
    for event in jobs.run(replace(job, questions=(question,))):
        if isinstance(event, Reply):
            texts[event.column] = event.ended or "" if event.failed else event.text
            yield dict(texts)


def _job(merge: str, who: Visitor) -> gpu.Job:
    """The job of asking a merge, by its id or its recipe, and its parents."""
    names: tuple[str, ...] | None = None
    known = isinstance(merge, str) and merge.strip().isalnum()
    if known:
        merge, names = kept.recipe(merge.strip())
    recipe = Recipe.from_yaml(merge)
    try:
        made, _ = returned(jobs.make(recipe, who))
        columns = zip(names or made.columns, recipe.listed(), strict=True)
        job = returned(jobs.job_of(dict(columns), {gpu.MERGED: made}, who))
    except AccessError as error:
        if known:  # an id is no secret, the models' names may be
            raise MergeError(
                "This merge is made of a model that you may not read: log in as one who may."
            ) from error
        raise
    return job


def _plainly(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """What the user can mend reaches the client as its sentence."""

    @wraps(endpoint)
    def shown(*args: Any, **kwargs: Any) -> Any:
        try:
            yield from endpoint(*args, **kwargs)
        except MergeError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return shown
