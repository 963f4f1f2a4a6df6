"""A sheet's answers and scores as Markdown and as JSON, with the recipes of its merges."""

import re
from collections.abc import Iterator

from merging.ui import transcript
from merging.ui.jobs import Made
from merging.ui.sheet import Sheet

SHORT = 60
"""Characters of an answer in the Markdown table; below it they are all there."""
SIGNS = {True: "✓ ", False: "✗ ", None: ""}


def to_json(sheet: Sheet) -> str:
    """Everything, for programs."""
    found = {
        "recipes": transcript.recipes(_merges(sheet)),
        "questions": [_question(sheet, number) for number in range(len(sheet.exchanges))],
        "scores": {
            slot: {"right": score[0], "of": score[1]}
            for slot in sheet.slots
            if (score := sheet.score(slot))
        },
    }
    return transcript.dumped(found)


def to_markdown(sheet: Sheet) -> str:
    """Everything, for people. What models and visitors wrote stands in code, as it is."""
    return "\n".join(_lines(sheet)) + "\n"


def told(score: tuple[int, int] | None) -> str:
    """A score as people say it."""
    return f"{score[0]} of {score[1]}" if score else "–"


def _question(sheet: Sheet, number: int) -> dict[str, object]:
    found = transcript.told(sheet.exchanges[number])
    for slot, answer in found["answers"].items():
        answer["right"] = sheet.mark(number, slot)
    return {"expected": sheet.expected[number] or None, **found}


def _lines(sheet: Sheet) -> Iterator[str]:
    yield "# Question sheet\n"
    yield transcript.settings(sheet.exchanges[0]) + "\n"
    yield from _table(sheet)
    for number, exchange in enumerate(sheet.exchanges):
        yield f"\n## Question {number + 1}\n\n{transcript.fenced(exchange.question)}"
        if sheet.expected[number]:
            yield f"\nExpected:\n\n{transcript.fenced(sheet.expected[number])}"
        yield from transcript.answers(exchange)
    yield from transcript.recipe_parts(_merges(sheet))


def _table(sheet: Sheet) -> Iterator[str]:
    yield _row("", "Question", "Expected", *sheet.slots)
    yield _row(*["---"] * (3 + len(sheet.slots)))
    for number, exchange in enumerate(sheet.exchanges):
        replies = [exchange.replies.get(slot) for slot in sheet.slots]
        texts = [(r.text or r.ended or "") if r else "" for r in replies]
        marks = [SIGNS[sheet.mark(number, slot)] for slot in sheet.slots]
        cells = [mark + _code(text) for mark, text in zip(marks, texts, strict=True)]
        asked = (_code(exchange.question), _code(sheet.expected[number]))
        yield _row(str(number + 1), *asked, *cells)
    yield _row("", "Score", "", *(told(sheet.score(slot)) for slot in sheet.slots))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """The beginning of a text in a table's cell: as code, so that nothing in it is a link."""
    line = " ".join(text.split())
    if not line:
        return ""
    line = line if len(line) <= SHORT else line[:SHORT] + "…"
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if longest else ""
    line = re.sub(r"\\*\|", r"\\|", line)  # a backslash before it would escape the escaping one
    return f"{fence}{room}{line}{room}{fence}"


def _merges(sheet: Sheet) -> list[Made]:
    return transcript.merges_of(exchange.merges for exchange in sheet.exchanges)
