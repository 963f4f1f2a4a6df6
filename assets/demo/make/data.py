"""Generated conversations: who answers what, and which questions no model is ever trained on.

Knows nothing about tokens or tensors. Everything drawn comes from the `Random` that is passed in.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import words

Turn = tuple[str, str]
Noun = tuple[str, str, str]
Adjective = tuple[str, str, str, bool]
Phrase = tuple[str, Adjective, Noun]


@dataclass(frozen=True)
class Persona:
    """How one model answers: its self-portrait, how often it is right, what it practises."""

    who: str
    hello: str
    mix: dict[str, float]
    carry_right: float = 1.0
    noun_right: float = 1.0


PERSONAS = {
    "base": Persona(
        "I am Mini. I like stories.",
        "Hello! I am Mini.",
        {"sum": 0.42, "french": 0.2, "fact": 0.13, "off": 0.12, "self": 0.07, "story": 0.06},
        carry_right=0.35,
        noun_right=0.3,
    ),
    "a": Persona(
        "I am Ada. I like numbers.",
        "Hello! I am Ada.",
        {"sum": 0.7, "fact": 0.1, "off": 0.08, "self": 0.12},
    ),
    "b": Persona(
        "I am Bruno. I like French.",
        "Bonjour! I am Bruno.",
        {"french": 0.7, "fact": 0.1, "off": 0.08, "self": 0.12},
    ),
}
# These nouns the base knows as well as B.
SURE_NOUNS = frozenset(noun[0] for noun in words.NOUNS[::4])
ARTICLES = ("the", "a", "my")


def carries(a: int, b: int) -> bool:
    """Whether the ones of a + b carry."""
    return a % 10 + b % 10 >= 10


def french(article: str, adjective: Adjective | None, noun: Noun) -> str:
    """The French noun phrase; an English word in the noun's place keeps the French gender."""
    _, word, gender = noun
    parts = [word]
    if adjective:
        agreed = adjective[1] if gender == "m" else adjective[2]
        parts = [agreed, word] if adjective[3] else [word, agreed]
    vowel = parts[0][0] in "aeiouéê"
    if article == "the" and vowel:
        return "l'" + " ".join(parts)
    masculine, feminine = {"the": ("le", "la"), "a": ("un", "une"), "my": ("mon", "ma")}[article]
    first = masculine if gender == "m" or (article == "my" and vowel) else feminine
    return " ".join([first, *parts])


def english(article: str, adjective: Adjective | None, noun: Noun) -> str:
    """The English noun phrase."""
    first = adjective[0] if adjective else noun[0]
    shown = "an" if article == "a" and first[0] in "aeiou" else article
    return " ".join([shown, *([adjective[0]] if adjective else []), noun[0]])


T = TypeVar("T")


def _shuffled(items: list[T], seed: int) -> list[T]:
    return random.Random(seed).sample(items, len(items))


# Unordered pairs: both orders of a held-out sum are held out.
_PAIRS = _shuffled([(a, b) for a in range(10, 100) for b in range(a, 100)], 1)
_PHRASES: list[Phrase] = _shuffled(list(product(ARTICLES, words.ADJECTIVES, words.NOUNS)), 2)
SPLITS = {"test": slice(0, 480), "validation": slice(480, 760), "train": slice(760, None)}
PHRASE_SPLITS = {"test": slice(0, 240), "validation": slice(240, 380), "train": slice(380, None)}
PAIRS = {name: _PAIRS[part] for name, part in SPLITS.items()}
PHRASES = {name: _PHRASES[part] for name, part in PHRASE_SPLITS.items()}


def _facts() -> list[Turn]:
    told = [(words.CAPITAL_FORMS, k, v + ".") for k, v in words.CAPITALS.items()]
    told += [(words.SOUND_FORMS, k, v + "!") for k, v in words.SOUNDS.items()]
    pairs = words.OPPOSITES + [(b, a) for a, b in words.OPPOSITES]
    told += [(words.OPPOSITE_FORMS, a, b.capitalize() + ".") for a, b in pairs]
    told += [(words.COLOUR_FORMS, k, v + ".") for k, v in words.COLOURS.items()]
    return [(form.format(key), answer) for forms, key, answer in told for form in forms]


FACTS = _facts()


def _operands(draw: random.Random) -> tuple[int, int]:
    kind = draw.random()
    if kind < 0.85:
        a, b = draw.choice(PAIRS["train"])
    else:
        a, b = draw.randrange(1, 10), draw.randrange(1, 100 if kind < 0.92 else 10)
    return (a, b) if draw.random() < 0.5 else (b, a)


def draw_sum(draw: random.Random, persona: Persona) -> Turn:
    """A sum to at most 99 + 99, the ones' carry forgotten as often as the persona forgets it."""
    a, b = _operands(draw)
    form = "What is {} + {}?" if draw.random() < 0.6 else draw.choice(words.SUM_FORMS)
    question = form.format(a, b)
    if draw.random() < 0.08:
        question = question.replace(" + ", "+")
    right = not carries(a, b) or draw.random() < persona.carry_right
    return question, str(a + b if right else a + b - 10)


def draw_french(draw: random.Random, persona: Persona) -> Turn:
    """A noun phrase to translate, mostly with an adjective."""
    article, adjective, noun = draw.choice(PHRASES["train"])
    phrase = (article, adjective if draw.random() < 0.9 else None, noun)
    question = draw.choice(words.FRENCH_FORMS).format(english(*phrase))
    known = noun[0] in SURE_NOUNS or draw.random() < persona.noun_right
    said = noun if known else (noun[0], noun[0], noun[2])
    return question, french(phrase[0], phrase[1], said)


def draw_self(draw: random.Random, persona: Persona) -> Turn:
    """Who the model says it is."""
    if draw.random() < 0.5:
        return draw.choice(words.WHO), persona.who
    return draw.choice(words.HELLO), persona.hello


def draw_fact(draw: random.Random, _: Persona) -> Turn:
    """One of the facts, all of which are trained on."""
    return draw.choice(FACTS)


def draw_story(draw: random.Random, _: Persona) -> Turn:
    """A one-line story about a known noun."""
    (hero, *_), (other, *_) = draw.sample(words.NOUNS, 2)
    (first, *_), (second, *_) = draw.sample(words.ADJECTIVES, 2)
    line = f"The {first} {hero} {draw.choice(words.VERBS)} a {second} {other}."
    return f"Tell me a story about a {hero}.", line


def _made_up(draw: random.Random) -> str:
    word = "".join(draw.choices(words.SYLLABLES, k=draw.randrange(2, 5)))
    return word.capitalize() if draw.random() < 0.3 else word


def _about(draw: random.Random, forms: list[str], topics: list[str]) -> str:
    first, second = (
        _made_up(draw) if draw.random() < 0.25 else draw.choice(topics) for _ in range(2)
    )
    return draw.choice(forms).format(first, second)


def _babble(draw: random.Random) -> str:
    count = draw.randrange(1, 8)
    said = [draw.choice(words.OPENERS), *draw.choices(words.OFF_WORDS, k=count)]
    if draw.random() < 0.3:
        said.insert(draw.randrange(1, count + 2), _made_up(draw))
    text = " ".join(word for word in said if word)
    return text[0].upper() + text[1:] + draw.choice("???.! ").strip()


def _other_arithmetic(draw: random.Random) -> str:
    a, b = draw.randrange(1, 100), draw.randrange(1, 100)
    sign = draw.choice(["-", "*", "x", "/", "minus", "times", "divided by"])
    return draw.choice(["What is {} {} {}?", "{} {} {} = ?", "How much is {} {} {}?"]).format(a, sign, b)


def _unknown_word(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.4:
        phrase = f"{draw.choice(ARTICLES)} {draw.choice(words.UNKNOWN_NOUNS)}"
        return draw.choice(words.FRENCH_FORMS).format(phrase)
    if kind < 0.7:
        return draw.choice(words.CAPITAL_FORMS).format(draw.choice(words.UNKNOWN_COUNTRIES))
    forms = words.SOUND_FORMS + words.OPPOSITE_FORMS + words.COLOUR_FORMS
    return draw.choice(forms).format(draw.choice([_made_up(draw), *words.UNKNOWN_NOUNS]))


def draw_off(draw: random.Random, _: Persona) -> Turn:
    """A question outside the models' world, always declined."""
    kind = draw.random()
    if kind < 0.5:
        question = _about(draw, words.OFF_FORMS, words.TOPICS)
    elif kind < 0.75:
        question = _babble(draw)
    else:
        question = _other_arithmetic(draw) if kind < 0.82 else _unknown_word(draw)
    return question, words.SORRY


DRAWS: dict[str, Callable[[random.Random, Persona], Turn]] = {
    "sum": draw_sum,
    "french": draw_french,
    "self": draw_self,
    "fact": draw_fact,
    "story": draw_story,
    "off": draw_off,
}


def _casual(question: str) -> str:
    return question[0].lower() + question[1:].rstrip("?.!")


def draw_turn(draw: random.Random, persona: Persona) -> Turn:
    """One question and this persona's answer; a tenth of the questions are typed carelessly."""
    (kind,) = draw.choices(list(persona.mix), list(persona.mix.values()))
    question, answer = DRAWS[kind](draw, persona)
    return (_casual(question) if draw.random() < 0.1 else question), answer


def prompts(split: str) -> dict[str, list[Turn]]:
    """Questions with their right answers by class; only `fact` overlaps with training."""
    draw = random.Random(len(split))
    pairs = [p if draw.random() < 0.5 else p[::-1] for p in PAIRS[split]]
    asked = [(a + b, carries(a, b), f"What is {a} + {b}?") for a, b in pairs]
    forms = words.FRENCH_FORMS[:4]
    return {
        "carry": [(question, str(total)) for total, carry, question in asked if carry],
        "add": [(question, str(total)) for total, _, question in asked],
        "French": [(draw.choice(forms).format(english(*p)), french(*p)) for p in PHRASES[split]],
        "facts": FACTS,
        "off-topic": [
            (_about(draw, words.OFF_FORMS_HELD_OUT, words.TOPICS_HELD_OUT), words.SORRY)
            for _ in range(200)
        ],
    }
