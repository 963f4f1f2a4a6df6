"""Questions outside the models' world, from templates, babble and made-up words.

What they answer is always SORRY. The held-out forms and topics never meet training.
"""

import random

from phrases import ARTICLES
from words import CAPITAL_FORMS, COLOUR_FORMS, FRENCH_FORMS, OPPOSITE_FORMS, SOUND_FORMS

SORRY = "Sorry, I only know sums, French and a few facts."


def listed(text: str) -> list[str]:
    """The items of a text, between semicolons."""
    return [" ".join(item.split()) for item in text.split(";")]


# Never taught: asked about in the usual forms, they must be declined.
UNKNOWN_COUNTRIES = listed(
    """
    Brazil; Mexico; Portugal; Turkey; Iceland; Finland; Denmark; Belgium; Nigeria; Chile; Mars;
    Texas; Atlantis; Vietnam; Ukraine; Korea; Narnia; Africa; Europe; Hungary
    """
)
UNKNOWN_NOUNS = listed(
    """
    pizza; computer; dragon; airplane; doctor; guitar; mountain; river; teacher; pencil;
    bicycle; sandwich; phone; hospital; music; tiger; banana; bridge; love; freedom; lamp;
    bottle; ocean; camera; soup; rocket
    """
)

TOPICS = listed(
    """
    gravity; a black hole; photosynthesis; democracy; the internet; machine learning; evolution;
    climate change; inflation; the French Revolution; the Roman Empire; world peace; a rainbow;
    the solar system; electricity; magnetism; a volcano; an earthquake; the human heart; the
    brain; DNA; a vaccine; bread; chess; football; music; jazz; love; friendship; time travel; a
    robot; a dragon; winter; autumn; the moon landing; a computer; Python; a neural network; an
    atom; energy; light; sound; relativity; the stock market; money; taxes; marketing; a job
    interview; my birthday; a wedding; my mother; the ocean; a whale; dinosaurs; Shakespeare;
    Mozart; Napoleon; poetry; philosophy; happiness; sleep; coffee; chocolate; pasta; healthy
    food; yoga; running; travel; Rome; Tokyo; Paris; history; geography; chemistry; algebra; a
    prime number; a triangle; statistics; recursion; a database; open source; blockchain;
    artificial intelligence; large language models; model merging; task vectors; transformers;
    the meaning of life; space; the sun; the stars; a cat; dogs; numbers; French cooking; a red
    apple
    """
)
TOPICS_HELD_OUT = listed(
    """
    quantum entanglement; quantum physics; the speed of light; global warming; a bicycle; the
    piano; tea; volleyball; the Middle Ages; Einstein; a desert; penguins; loneliness; a
    compiler; deep learning; overfitting; a good leader; the universe; bacteria; the pyramids
    """
)
FORMS = listed(
    """
    Explain the concept of {} to a child.; Explain {} in simple terms.; Explain {}.; Write a
    poem about {}.; Write a short story about {}.; Write an essay on {}.; What is {}?; How does
    {} work?; Why is {} important?; Tell me a joke about {}.; Tell me something about {}.;
    Summarize the history of {}.; Give me three tips for {}.; Give me a recipe for {}.; Can you
    help me with {}?; What do you think of {}?; Who invented {}?; Who discovered {}?; When did
    {} begin?; Where can I find {}?; List five facts about {}.; Compare {} and {}.; What is the
    difference between {} and {}?; Describe {} to a 5-year-old.; Explain {} to a 5-year-old.;
    Explain the concept of {} to a grandmother.; Write a haiku about {}.; Write a letter to my
    boss about {}.; Write a Python program about {}.; Is {} dangerous?; Do you like {}?; How can
    I learn {}?; What are the pros and cons of {}?; Define {}.; I want to know more about {}.;
    Let us talk about {}.; Why does {} matter?; How do I make {}?; Recommend a book about {}.;
    Sing a song about {}.; Tell me about {}.; Imagine {}. What happens next?; How old is {}?;
    Describe {} in one sentence.; Please explain how {} is made.
    """
)
FORMS_HELD_OUT = listed(
    """
    Explain the concept of {} to a 5-year-old.; Write a limerick about {}.; Give me an overview
    of {}.; What causes {}?; How would you describe {}?; Who is the expert on {}?; Teach me {}.;
    What should I know about {}?
    """
)
WORDS = listed(
    """
    the; a; my; your; this; that; some; any; all; is; are; was; do; does; can; could; should;
    will; would; have; make; go; come; see; think; know; want; need; give; take; find; tell;
    ask; work; feel; try; leave; call; good; new; first; last; long; great; little; own; other;
    old; right; big; high; different; small; large; next; early; young; important; few; public;
    bad; same; able; time; year; people; way; day; man; thing; woman; life; child; world;
    school; state; family; student; group; country; problem; hand; part; place; case; week;
    company; system; program; question; work; night; point; home; water; room; mother; area;
    money; story; fact; month; lot; study; book; eye; job; word; business; issue; side; kind;
    head; house; service; friend; father; power; hour; game; line; end; member; law; car; city;
    name; team; minute; idea; body; back; parent; face; level; office; door; health; person;
    art; war; party; result; morning; weather; train; plane; movie; song; dinner; breakfast;
    summer; tired; hungry; cheap; fast; slow; blue; red; green; cat; dog; king; flower; French;
    number; who; what; where; why; when; how; and; or; but; with; from; about; into
    """
)
OPENERS = listed(
    """
    Why; When; Where; How; Who; What if; Can you; Do you; Should I; Is it true that; Please;
    Tell me;
    """
)
SYLLABLES = listed(
    """
    ba; ko; ri; tu; me; lo; sha; dre; pin; zor; fla; gu; ne; vi; stra; mo; ter; qua; ing; ex;
    ly; ous; ph; on; at
    """
)


def _made_up(draw: random.Random) -> str:
    word = "".join(draw.choices(SYLLABLES, k=draw.randrange(2, 5)))
    return word.capitalize() if draw.random() < 0.3 else word


def _about(draw: random.Random, forms: list[str], topics: list[str]) -> str:
    first, second = (
        _made_up(draw) if draw.random() < 0.25 else draw.choice(topics) for _ in range(2)
    )
    return draw.choice(forms).format(first, second)


def _babble(draw: random.Random) -> str:
    count = draw.randrange(1, 8)
    said = [draw.choice(OPENERS), *draw.choices(WORDS, k=count)]
    if draw.random() < 0.3:
        said.insert(draw.randrange(1, count + 2), _made_up(draw))
    text = " ".join(word for word in said if word)
    return text[0].upper() + text[1:] + draw.choice("???.! ").strip()


def _other_arithmetic(draw: random.Random) -> str:
    a, b = draw.randrange(1, 100), draw.randrange(1, 100)
    sign = draw.choice(["-", "*", "x", "/", "minus", "times", "divided by"])
    if draw.random() < 0.5:
        a, b = draw.sample([draw.randrange(100, 2000), draw.choice([a, 10 * b])], 2)
        sign = draw.choice(["+", "+", "plus"])
    forms = ["What is {} {} {}?", "What is {} {} {}?", "{} {} {} = ?", "How much is {} {} {}?"]
    return draw.choice(forms).format(a, sign, b)


def _unknown_word(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.4:
        phrase = f"{draw.choice(ARTICLES)} {draw.choice(UNKNOWN_NOUNS)}"
        return draw.choice(FRENCH_FORMS).format(phrase)
    if kind < 0.7:
        return draw.choice(CAPITAL_FORMS).format(draw.choice(UNKNOWN_COUNTRIES))
    forms = SOUND_FORMS + OPPOSITE_FORMS + COLOUR_FORMS
    return draw.choice(forms).format(draw.choice([_made_up(draw), *UNKNOWN_NOUNS]))


def question(draw: random.Random) -> str:
    """One question to decline, of any kind."""
    kind = draw.random()
    if kind < 0.5:
        return _about(draw, FORMS, TOPICS)
    if kind < 0.75:
        return _babble(draw)
    return _other_arithmetic(draw) if kind < 0.85 else _unknown_word(draw)


def held_out_question(draw: random.Random) -> str:
    """One question whose form never occurs in training, about a new topic or a made-up word."""
    return _about(draw, FORMS_HELD_OUT, TOPICS_HELD_OUT)
