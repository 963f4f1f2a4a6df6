"""Noun phrases in English and in French: articles, agreement, the adjective's place."""

Noun = tuple[str, str, str]
Adjective = tuple[str, str, str, bool]
Phrase = tuple[str, Adjective, Noun]

ARTICLES = ("the", "a", "my")


def french(article: str, adjective: Adjective | None, noun: Noun) -> str:
    """The French noun phrase; an English word in the noun's place keeps the French gender."""
    _, word, gender = noun
    parts = [word]
    if adjective:
        agreed = adjective[1] if gender == "m" else adjective[2]
        parts = [agreed, word] if adjective[3] else [word, agreed]
    if not article:
        return " ".join(parts)
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
    return " ".join(filter(None, [shown, adjective and adjective[0], noun[0]]))
