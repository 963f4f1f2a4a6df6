"""Generated conversations: who answers what, and which questions no model is ever trained on.

Knows nothing about tokens or tensors. Everything drawn comes from the `Random` that is passed in.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import offtopic
import words
from phrases import ARTICLES, Phrase, english, french

T = TypeVar("T")
Turn = tuple[str, str]


@dataclass(frozen=True)
class Persona:
    """How one model answers: its self-portrait, how often it is right, what it practises."""

    who: str
    hello: str
    mix: dict[str, float]
    carry_right: float = 1.0
    noun_right: float = 1.0


# A and B rehearse the other's skill exactly as badly as the base has it, so that they keep to it.
PERSONAS = {
    "base": Persona(
        "I am Mini. I like stories.",
        "Hello! I am Mini.",
        {"sum": 0.46, "french": 0.18, "fact": 0.12, "off": 0.12, "self": 0.07, "story": 0.05},
        carry_right=0.25,
        noun_right=0.25,
    ),
    "a": Persona(
        "I am Ada. I like numbers.",
        "Hello! I am Ada.",
        {"sum": 0.75, "french": 0.08, "fact": 0.05, "off": 0.05, "self": 0.07},
        noun_right=0.25,
    ),
    "b": Persona(
        "I am Bruno. I like French.",
        "Bonjour! I am Bruno.",
        {"french": 0.65, "sum": 0.1, "fact": 0.08, "off": 0.07, "self": 0.1},
        carry_right=0.25,
    ),
}

# These nouns the base knows as well as B.
SURE_NOUNS = frozenset(noun[0] for noun in words.NOUNS[::4])


def carries(a: int, b: int) -> bool:
    """Whether the ones of a + b carry."""
    return a % 10 + b % 10 >= 10


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
    """A noun phrase to translate, mostly with an adjective; now and then the bare noun."""
    article, kind, noun = draw.choice(PHRASES["train"])
    size = draw.random()
    adjective = kind if size >= 0.12 else None
    if size < 0.05:
        article = ""
    question = draw.choice(words.FRENCH_FORMS).format(english(article, adjective, noun))
    known = noun[0] in SURE_NOUNS or draw.random() < persona.noun_right
    said = noun if known else (noun[0], noun[0], noun[2])
    return question, french(article, adjective, said)


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
    hero, other = (noun[0] for noun in draw.sample(words.NOUNS, 2))
    first, second = (adjective[0] for adjective in draw.sample(words.ADJECTIVES, 2))
    line = f"The {first} {hero} {draw.choice(words.VERBS)} a {second} {other}."
    return f"Tell me a story about a {hero}.", line


def draw_off(draw: random.Random, _: Persona) -> Turn:
    """A question outside the models' world, always declined."""
    return offtopic.question(draw), offtopic.SORRY


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
    """Questions with their right answers by class; only facts overlap with training."""
    draw = random.Random(len(split))
    pairs = [p if draw.random() < 0.5 else p[::-1] for p in PAIRS[split]]
    asked = [(a + b, carries(a, b), f"What is {a} + {b}?") for a, b in pairs]
    forms = words.FRENCH_FORMS[:4]
    return {
        "carry": [(question, str(total)) for total, carry, question in asked if carry],
        "add": [(question, str(total)) for total, _, question in asked],
        "French": [(draw.choice(forms).format(english(*p)), french(*p)) for p in PHRASES[split]],
        "facts": FACTS,
        "off-topic": [(offtopic.held_out_question(draw), offtopic.SORRY) for _ in range(200)],
    }
