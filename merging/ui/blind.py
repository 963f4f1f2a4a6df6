"""Blind rounds: which answer stands where, and what was voted. It knows no components."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from merging.gpu import MERGED
from merging.ui.jobs import Made

TIE, BAD = "tie", "all bad"
"""Votes for nobody."""


@dataclass(frozen=True)
class Ballot:
    """One question's columns in the order in which they stand unnamed, and what shuffled them."""

    seed: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class Vote:
    """What was chosen: a column, TIE or BAD.

    `models` are the names of those that answered, `merges` those that are merges, by column.
    """

    question: str
    choice: str
    ballot: Ballot
    models: Mapping[str, str]
    merges: Mapping[str, Made]


@dataclass(frozen=True)
class Tally:
    """The votes on one merge and what stood beside it: how often each won, by name."""

    made: Made | None
    wins: Mapping[str, int]


def ballot(columns: Sequence[str], seed: int) -> Ballot:
    """The columns shuffled. The seed is drawn anew for each question, and known to nobody yet."""
    places = sorted(columns)
    Random(seed).shuffle(places)
    return Ballot(seed, tuple(places))


def tallies(votes: Sequence[Vote]) -> tuple[Tally, ...]:
    """The votes counted, a tally for each merge, in the order of their first vote."""
    found: dict[str, tuple[Made | None, dict[str, int]]] = {}
    for vote in votes:
        made = vote.merges.get(MERGED)
        wins = found.setdefault(made.identity if made else "", (made, {}))[1]
        for name in (*(vote.models[slot] for slot in sorted(vote.ballot.places)), TIE, BAD):
            wins.setdefault(name, 0)
        wins[vote.models.get(vote.choice, vote.choice)] += 1
    return tuple(Tally(made, wins) for made, wins in found.values())
