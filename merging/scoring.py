"""Whether an answer has what was expected of it. It knows two texts, and no models."""

from itertools import takewhile
from unicodedata import category, normalize


def right(expected: str, answer: str) -> bool | None:
    """Whether one of the answers that are accepted, which `|` parts, occurs as whole words.

    Case, runs of whitespace and punctuation at its ends do not count. A number is whole with its
    sign and its decimals. None where nothing is expected.

    >>> right("65 | sixty-five", "It is 65."), right("65", "165 or 65.5")
    (True, False)
    """
    accepted = [core for part in expected.split("|") if (core := _core(_plain(part)))]
    said = _plain(answer)
    return any(_occurs(words, said) for words in accepted) if accepted else None


def _plain(text: str) -> str:
    whole = normalize("NFC", normalize("NFC", text).casefold())
    return " ".join(whole.replace("−", "-").split())


def _core(text: str) -> str:
    """Without punctuation at its ends, unless it is nothing else; a number keeps its sign."""
    end = len(text) - len(list(takewhile(_loose, reversed(text))))
    start = len(list(takewhile(_loose, text)))
    if text[start : start + 1].isdigit() and text[start - 1 : start] in ("-", "."):
        start -= 1
    return text[start:end].strip() or text


def _loose(character: str) -> bool:
    return category(character).startswith("P") or character == " "


def _occurs(words: str, said: str) -> bool:
    start = said.find(words)
    while start >= 0:
        if not _joined(said, start) and not _joined(said, start + len(words)):
            return True
        start = said.find(words, start + 1)
    return False


def _joined(text: str, at: int) -> bool:
    """Whether what meets here is one word, or one number."""
    before, here, then = (
        text[max(0, at - 2) : at].rjust(2),
        text[at : at + 1],
        text[at + 1 : at + 2],
    )
    if _of_word(before[1]) and _of_word(here):
        return True
    if here.isdigit() and before[1] in ".,":
        return before[0].isdigit()
    if here.isdigit() and before[1] == "-":
        return not _of_word(before[0])
    return before[1].isdigit() and here in (".", ",") and then.isdigit()


def _of_word(character: str) -> bool:
    return character.isalnum() or character == "_" or category(character or " ").startswith("M")
