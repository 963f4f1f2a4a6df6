"""Where one answer follows others, word by word; it knows texts, neither models nor pages.

A word alone is no sign: everybody says "the". A run of several words that stand in the same order
in another answer is one, and so is a whole answer that is the other's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

SEVERAL = 3
"""Words that a run needs to count."""
MOST = 1000
"""Words of an answer that are compared; the time grows with their square."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’-]\w+)*")
"""A word, or one sign of a script that is written without spaces."""


@dataclass(frozen=True)
class Part:
    """A piece of an answer, the names of those whom it follows, and how many words it has."""

    text: str
    follows: tuple[str, ...] = ()
    words: int = 0


def follow(answer: str, others: Mapping[str, str]) -> tuple[Part, ...]:
    """An answer in pieces, whose texts make it up again, each with those whom it follows."""
    found = [*_WORD.finditer(answer)][:MOST]
    words = [match[0].casefold() for match in found]
    shared = {name: _runs(words, _words(text)) for name, text in others.items()}
    signs = [tuple(name for name in others if n in shared[name]) for n in range(len(words))]
    parts: list[Part] = []
    start = at = 0
    while start < len(words):
        end = start + 1
        while end < len(words) and signs[end] == signs[start]:
            end += 1
        if signs[start]:
            first, last = found[start].start(), found[end - 1].end()
            parts += [Part(answer[at:first], (), 0)] if first > at else []
            parts.append(Part(answer[first:last], signs[start], end - start))
            at = last
        else:
            last = found[end].start() if end < len(words) else len(answer)
            parts.append(Part(answer[at:last], (), end - start))
            at = last
        start = end
    return (*parts, Part(answer[at:])) if at < len(answer) else tuple(parts)


def shares(parts: Sequence[Part]) -> dict[tuple[str, ...], float]:
    """The part of all words that follows each set of others, the largest first; () is nobody."""
    total = sum(part.words for part in parts)
    counted: dict[tuple[str, ...], int] = {}
    for part in parts:
        counted[part.follows] = counted.get(part.follows, 0) + part.words
    ordered = sorted(counted.items(), key=lambda item: -item[1])
    return {who: count / total for who, count in ordered if count}


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)[:MOST]]


def _runs(words: Sequence[str], other: Sequence[str]) -> set[int]:
    """Places of the words that lie in a run, the longest run first, as difflib finds them."""
    least = min(SEVERAL, len(words)) if words == other else SEVERAL
    blocks = SequenceMatcher(None, words, other, autojunk=False).get_matching_blocks()
    return {n for b in blocks if b.size >= least for n in range(b.a, b.a + b.size)}
