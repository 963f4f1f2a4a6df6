"""Whether an answer has what was expected of it, over many answers."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from merging.scoring import right

WORDS = st.lists(st.text("abcdeéßç0123", min_size=1, max_size=4), min_size=1, max_size=6)
SPACE = st.text(" \n\t", min_size=1, max_size=3)
ENDS = st.text('.,!?"«»()…', max_size=3)
NUMBERS = st.one_of(
    st.integers(-120, 120).map(str),
    st.tuples(st.integers(-20, 20), st.integers(0, 99)).map(lambda n: f"{n[0]}.{n[1]}"),
    st.integers(1000, 1_099_999).map("{:,}".format),
)


@given(WORDS, st.data())
def test_words_of_the_answer_are_right(words: list[str], data: st.DataObject) -> None:
    """Any run of an answer's words is found, however it is written and wrapped."""
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    write = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
    expected = data.draw(SPACE).join(map(write, words[start:end]))
    expected = data.draw(ENDS) + data.draw(SPACE) + expected + data.draw(ENDS)
    answer = data.draw(ENDS) + data.draw(SPACE).join(words) + data.draw(ENDS)
    assert right(expected, answer) is True


@given(WORDS, st.text("abcdeéç0123", min_size=1, max_size=3))
def test_other_words_are_wrong(words: list[str], expected: str) -> None:
    """A word that is none of the answer's is not found, though it may be a part of one."""
    assume(expected.casefold() not in [word.casefold() for word in words])
    assert right(expected, " ".join(words)) is False


@given(st.lists(NUMBERS, min_size=1, max_size=5), NUMBERS, st.sampled_from([" ", ". ", ", ", "! "]))
def test_numbers_are_whole(numbers: list[str], expected: str, after: str) -> None:
    """A number is found if it is one of the answer's, with its sign, decimals and thousands."""
    assert right(expected, "".join(number + after for number in numbers)) is (expected in numbers)


@given(st.lists(st.sampled_from(["red", "blue", "65", "la porte", ""]), min_size=1, max_size=4))
def test_one_of_several_is_enough(accepted: list[str]) -> None:
    """Between `|` stand answers that are as good; nothing expected is neither right nor wrong."""
    answer = "It is 65, not blue."
    each = [right(one, answer) for one in accepted if one]
    assert right(" | ".join(accepted), answer) is (any(each) if each else None)


@pytest.mark.parametrize(
    ("expected", "answer", "found"),
    [
        ("65", "165", False),
        ("65", "6.5", False),
        ("5", "6.5", False),
        ("6", "6.5 m", False),
        ("65", "The sum is 65.", True),
        ("65", "38+27=65", True),
        ("-5", "It is −5.", True),
        ("5", "It is −5.", False),
        ("-5", "It is 5.", False),
        ("7", "3-7", True),  # a dash between, not a sign
        (".5", "0.5", False),
        ("Paris", "comparison", False),
        ("la porte blanche", "La  Porte\nblanche!", True),
        ("«Paris».", "**Paris**", True),
        ("école", "e\u0301cole", True),  # written in two characters
        ("e", "e\u0301", False),
        ("?", "Who?", True),
        ("?", "You.", False),
        ("C++", "in C++, so", True),
        ("yes", "", False),
        (" | ", "yes", None),
    ],
)
def test_known_cases(expected: str, answer: str, found: bool | None) -> None:
    assert right(expected, answer) is found
