"""Where an answer follows others: cases by hand, and what holds for any texts."""

from __future__ import annotations

import random

from merging.ui.following import SEVERAL, Part, follow, shares


def _signs(answer: str, **others: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(part.text, part.follows) for part in follow(answer, others)]


def test_runs_of_either_and_of_nobody() -> None:
    """Each run is given to the one who says it, and what stands between to nobody."""
    found = _signs(
        "The sum is 65, and la porte blanche ends it.",
        a="the sum is 65",
        b="It is la porte blanche.",
    )
    assert found == [
        ("The sum is 65", ("a",)),
        (", and ", ()),
        ("la porte blanche", ("b",)),
        (" ends it.", ()),
    ]


def test_what_both_say() -> None:
    """Words that both say in a run follow both; what goes on with one alone follows that one."""
    found = _signs(
        "one two three four five six",
        a="one two three four five six",
        b="well one two three",
    )
    assert found == [("one two three", ("a", "b")), (" ", ()), ("four five six", ("a",))]


def test_a_word_or_two_are_no_sign() -> None:
    """Common words in common do not count."""
    assert _signs("the cat of the house", a="the dog of the garden") == [
        ("the cat of the house", ())
    ]


def test_a_whole_answer_is_a_sign_however_short() -> None:
    """An answer of one word that is the other's whole answer follows it."""
    assert _signs("65", a="65.", b="55") == [("65", ("a",))]
    assert _signs("65", a="it is 65") == [("65", ())]


def test_signs_written_without_spaces() -> None:
    """A script without spaces is compared sign by sign, or every sentence would be one word."""
    assert _signs("白い扉です。はい", a="それは白い扉です。")[0] == ("白い扉です", ("a",))


def test_shares_are_of_words() -> None:
    """Three words of four follow A."""
    assert shares(follow("one two three nine", {"a": "one two three"})) == {("a",): 0.75, (): 0.25}
    assert shares(follow("…", {"a": "…"})) == {}


def _text(chance: random.Random, words: str) -> str:
    gaps = [" ", ", ", "\n\n", " <& ", "… ", "  - "]
    count = chance.randrange(40)
    return "".join(chance.choice(words) + chance.choice(gaps) for _ in range(count))


def _said(part: Part) -> list[str]:
    """Words of these tests' alphabet, which are letters."""
    return [letter for letter in part.text if letter.isalnum()]


def test_any_texts() -> None:
    """The pieces make up the answer; each run is long enough and stands in what it follows."""
    chance = random.Random(0)
    seen = set()
    for _ in range(400):
        answer = _text(chance, "xyz")
        others = {name: _text(chance, "xyzw") for name in ("a", "b")}
        parts = follow(answer, others)
        assert "".join(part.text for part in parts) == answer
        for name, text in others.items():
            _check_runs(parts, name, _said(Part(text)))
        seen |= {part.follows for part in parts}
        total = sum(shares(parts).values())
        assert not parts or abs(total - 1) < 1e-9 or not any(part.words for part in parts)
    assert seen == {(), ("a",), ("b",), ("a", "b")}


def _check_runs(parts: tuple[Part, ...], name: str, other: list[str]) -> None:
    """Each unbroken stretch that follows `name` is made of runs that stand in its answer."""
    stretch: list[str] = []
    for part in (*parts, Part("end")):
        if name in part.follows:
            stretch += _said(part)
        elif stretch and (part.words or part.text == "end"):
            assert _cut(tuple(stretch), "".join(other)), (stretch, other)
            stretch = []


def _cut(stretch: tuple[str, ...], other: str) -> bool:
    """Whether a stretch can be cut into runs of several words that stand in `other` in order.

    A whole answer that is the other's may be shorter.
    """
    if "".join(stretch) == other:
        return True
    ends = {0}
    for end in range(SEVERAL, len(stretch) + 1):
        if any("".join(stretch[s:end]) in other for s in ends if end - s >= SEVERAL):
            ends.add(end)
    return len(stretch) in ends


def test_nobody_to_follow() -> None:
    """Without others, or without words, there is one piece or none."""
    assert follow("", {"a": "x"}) == ()
    assert follow("? !", {"a": "? !"}) == (Part("? !"),)
    assert follow("x y z", {}) == (Part("x y z", (), 3),)


def test_long_answers_are_quick() -> None:
    """A degenerate answer, one word over and over, takes no minute."""
    answer = "the " * 2000
    assert follow(answer, {"a": answer, "b": "the end"})[0].follows == ("a",)
