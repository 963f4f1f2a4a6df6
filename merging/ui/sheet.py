"""Questions to all columns: what is expected, what was answered, the score. It shows nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merging import sheets
from merging.chat import Reply
from merging.errors import MergeError
from merging.scoring import right
from merging.sheets import Asked
from merging.ui.jobs import Made
from merging.ui.transcript import Exchange

MOST = 10
"""Questions of a sheet."""
STOPPED = "stopped"


@dataclass(frozen=True)
class Sheet:
    """Questions with their answers so far; `expected` has as many texts, empty for none.

    `slots` are the columns that are asked, in the page's order.
    """

    exchanges: tuple[Exchange, ...] = ()
    expected: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    running: bool = False

    def idle(self) -> "Sheet":
        """Itself. Raises MergeError while it is being answered."""
        if self.running:
            raise MergeError("The question sheet is being answered: wait for it, or press Stop.")
        return self

    def replied(self, number: int, reply: Reply) -> "Sheet":
        """A column's answer to a question has grown, or ended."""
        exchanges = list(self.exchanges)
        given = {**exchanges[number].replies, reply.column: reply}
        exchanges[number] = replace(exchanges[number], replies=given)
        return replace(self, exchanges=tuple(exchanges))

    def ended(self) -> "Sheet":
        """Nobody answers any longer: an answer that had not ended was stopped."""
        sheet = self
        for number, exchange in enumerate(self.exchanges):
            for reply in exchange.replies.values():
                if reply.ended is None:
                    sheet = sheet.replied(number, replace(reply, ended=STOPPED))
        return replace(sheet, running=False)

    def done(self) -> int:
        """Answers that have ended."""
        given = (reply for exchange in self.exchanges for reply in exchange.replies.values())
        return sum(reply.ended is not None for reply in given)

    def mark(self, number: int, slot: str) -> bool | None:
        """Whether an answer is right; None where nothing is expected, or it is not whole."""
        reply = self.exchanges[number].replies.get(slot)
        if reply is None or reply.ended in (None, STOPPED):
            return None
        return right(self.expected[number], reply.text)

    def score(self, slot: str) -> tuple[int, int] | None:
        """How many answers of a column are right, of how many that were marked."""
        marks = [self.mark(number, slot) for number in range(len(self.exchanges))]
        told = [mark for mark in marks if mark is not None]
        return (sum(told), len(told)) if told else None


def new(
    asked: Sequence[Asked], settings: Mapping[str, Any], models: Mapping[str, str],
    merges: Mapping[str, Made], slots: Sequence[str],
) -> Sheet:  # fmt: skip
    """One that has just been put to columns."""
    exchanges = tuple(Exchange(question, settings, models, merges) for question, _ in asked)
    return Sheet(exchanges, tuple(e for _, e in asked), tuple(slots), running=True)


def read(rows: Sequence[Sequence[Any]]) -> tuple[Asked, ...]:
    """What stands in the page's table. Raises MergeError with the row that is wrong."""
    return sheets.read(rows, MOST)


def rows(asked: Sequence[Asked]) -> list[list[str]]:
    """The page's table, with empty rows up to the last that fits."""
    return [*map(list, asked[:MOST]), *([["", ""]] * (MOST - len(asked)))]
