"""What was asked, answered and voted, as Markdown and as JSON, with the recipes of its merges."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merging.chat import Reply
from merging.ui.blind import Vote, tallies
from merging.ui.jobs import Made

TYPES = {"md": "text/markdown", "json": "application/json"}
MOST = 200
"""Questions that are remembered; the oldest go first."""


@dataclass(frozen=True)
class Exchange:
    """One question, how it was asked, and the answers so far, by column.

    `models` are those asked, as they were written; `merges` are the merges that were asked too.
    """

    question: str
    settings: Mapping[str, Any]
    models: Mapping[str, str]
    merges: Mapping[str, Made] = field(default_factory=dict)
    replies: Mapping[str, Reply] = field(default_factory=dict)


def file(name: str, kind: str, text: str) -> dict[str, str]:
    """A file of one of TYPES, as the page saves it."""
    return {"name": f"{name}.{kind}", "type": TYPES[kind], "text": text}


def to_json(log: Sequence[Exchange], votes: Sequence[Vote]) -> str:
    """Everything, for programs."""
    found = {
        "recipes": recipes(_made(log, votes)),
        "questions": [told(exchange) for exchange in log],
        "votes": [_vote(vote) for vote in votes],
        "tally": [{"merge": _identity(t.made), "wins": dict(t.wins)} for t in tallies(votes)],
    }
    return dumped(found)


def to_markdown(log: Sequence[Exchange], votes: Sequence[Vote]) -> str:
    """Everything, for people. What models and visitors wrote stands in fences, as it is."""
    return "\n".join(_lines(log, votes)) + "\n"


def _lines(log: Sequence[Exchange], votes: Sequence[Vote]) -> Iterator[str]:
    yield "# Models side by side"
    for exchange in log:
        yield f"\n## Question\n\n{fenced(exchange.question)}\n"
        yield settings(exchange)
        yield from answers(exchange)
    if votes:
        yield "\n## Blind votes\n"
    for tally in tallies(votes):
        told = ", ".join(f"{name} {count}" for name, count in tally.wins.items())
        title = f"{tally.made.title}, {tally.made.identity}" if tally.made else "no merge"
        yield f"- {title}: {told}"
    yield from recipe_parts(_made(log, votes))


def dumped(found: Mapping[str, Any]) -> str:
    """JSON that people can read as well."""
    return json.dumps(found, ensure_ascii=False, indent=2) + "\n"


def recipes(merges: Iterable[Made]) -> dict[str, Any]:
    """The merges by identity, for JSON."""
    return {made.identity: {"title": made.title, "recipe": made.recipe} for made in merges}


def recipe_parts(merges: Iterable[Made]) -> Iterator[str]:
    """The merges' recipes, for Markdown."""
    for made in merges:
        yield f"\n## Recipe of {made.title}, {made.identity}\n\n{fenced(made.recipe, 'yaml')}"


def settings(exchange: Exchange) -> str:
    return ", ".join(f"{what} {value!r}" for what, value in exchange.settings.items())


def answers(exchange: Exchange) -> Iterator[str]:
    """What every column said, for Markdown."""
    for slot, reply in exchange.replies.items():
        made = exchange.merges.get(slot)
        name = f"{made.title}, {made.identity}" if made else f"`{exchange.models.get(slot)}`"
        yield f"\n### {slot}: {name}\n\n{fenced(reply.text)}\n\n{_told(reply)}"


def told(exchange: Exchange) -> dict[str, Any]:
    """A question with its answers, for JSON."""
    given = {
        slot: {
            "model": exchange.models.get(slot),
            "merge": _identity(exchange.merges.get(slot)),
            "text": reply.text,
            "tokens": reply.tokens,
            "seconds_to_first_token": reply.first,
            "tokens_per_second": reply.speed,
            "ended": reply.ended,
        }
        for slot, reply in exchange.replies.items()
    }
    asked = {"question": exchange.question, "settings": dict(exchange.settings)}
    return {**asked, "answers": given}


def _vote(vote: Vote) -> dict[str, Any]:
    return {
        "question": vote.question,
        "choice": vote.choice,
        "order": list(vote.ballot.places),
        "seed": vote.ballot.seed,
        "models": dict(vote.models),
        "merges": {slot: made.identity for slot, made in vote.merges.items()},
    }


def _identity(made: Made | None) -> str | None:
    return made.identity if made else None


def _made(log: Sequence[Exchange], votes: Sequence[Vote]) -> list[Made]:
    return merges_of([*(each.merges for each in log), *(each.merges for each in votes)])


def merges_of(asked: Iterable[Mapping[str, Made]]) -> list[Made]:
    """Each merge once."""
    return list({made.identity: made for merges in asked for made in merges.values()}.values())


def _told(reply: Reply) -> str:
    ended = reply.ended or "not finished"
    return f"{reply.tokens} tokens, {reply.speed:.0f} tokens/s, {ended}"


def fenced(text: str, language: str = "") -> str:
    """A fence longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"
