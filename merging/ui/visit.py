"""What one visitor's page has beyond its form: merges, what was said, votes. It shows nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from merging import gpu
from merging.chat import Reply
from merging.conversation import with_system
from merging.errors import MergeError
from merging.inside import Inside
from merging.ui.blind import Ballot, Vote
from merging.ui.following import Part, follow
from merging.ui.jobs import Made
from merging.ui.transcript import MOST, Exchange

PARENTS = ("a", "b", "c")
PINNED = "pinned"
"""The column of an earlier merge, beside the last."""
CLEARED = "cleared"
"""Among the stops: what was said is forgotten, and is not to be written down any more."""


@dataclass(frozen=True)
class Visit:
    """The last merge, which `took` seconds, an earlier one `pinned` beside it, and what was said.

    `said` has each column's messages, `replies` the last answers, `models` who gave them; `asked`
    is the last question; `coming` are those still to be put one by one. `running` are columns that
    answer just now, and those put into their `stops` end; `asking` while a question waits for its
    models, `merging` while a merge is made. `parts` are answers of the merged model in pieces, by
    question and text. While there is a `ballot`, nobody may see which column is whose. `inside` is
    what the last merge did to the weights, if that is known.
    """

    made: Made | None = None
    took: float = 0.0
    pinned: Made | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    asked: str = ""
    coming: tuple[str, ...] = ()
    replies: Mapping[str, Reply] = field(default_factory=dict)
    running: tuple[str, ...] = ()
    stops: set[str] = field(default_factory=set)
    asking: bool = False
    merging: bool = False
    parts: Mapping[tuple[str, str], tuple[Part, ...]] = field(default_factory=dict)
    ballot: Ballot | None = None
    votes: tuple[Vote, ...] = ()
    log: tuple[Exchange, ...] = ()
    inside: Inside | None = None

    def idle(self) -> "Visit":
        """Itself. Raises MergeError while columns answer or a merge is made: each writes down what
        came of it at its end, over what the other wrote meanwhile."""
        if self.running or self.asking:
            raise MergeError("The models are still answering: wait for them, or press Stop.")
        return self.ready()

    def ready(self) -> "Visit":
        """Itself. Raises MergeError while a merge is made, but not while columns answer."""
        if self.merging:
            raise MergeError("A merge is being made: wait for it, or press Stop.")
        return self

    def title(self, slot: str) -> str:
        """Who answers in a column."""
        made = self.merges.get(slot)
        if slot == PINNED and made:
            return f"{made.title} {made.identity[:8]}"
        return made.title if made else self.models.get(slot, "…")

    @property
    def merges(self) -> Mapping[str, Made]:
        """The merges that can be asked, by column."""
        known = {gpu.MERGED: self.made, PINNED: self.pinned}
        return {slot: made for slot, made in known.items() if made}

    def pin(self) -> "Visit":
        """Keep the last merge, with what it said, in a column of its own."""
        said = {**self.said, PINNED: self.said.get(gpu.MERGED, ())}
        replies = {slot: reply for slot, reply in self.replies.items() if slot != PINNED}
        if gpu.MERGED in replies:
            replies[PINNED] = replace(replies[gpu.MERGED], column=PINNED)
        return replace(self, pinned=self.made, said=said, replies=replies)

    def beside(self, made: Made) -> "Visit":
        """Another merge in that column, which has said nothing yet; the last one has."""
        if self.made and made.identity == self.made.identity:
            return self.pin()
        visit = self.unpin()
        return replace(visit, pinned=made, said={**visit.said, PINNED: ()})

    def unpin(self) -> "Visit":
        """Without that column."""
        said = {slot: messages for slot, messages in self.said.items() if slot != PINNED}
        replies = {slot: reply for slot, reply in self.replies.items() if slot != PINNED}
        return replace(self, pinned=None, said=said, replies=replies)

    def merged(self, made: Made) -> "Visit":
        """A new merge, whose column is empty; what was asked blind was about another one."""
        replies = {slot: r for slot, r in self.replies.items() if slot != gpu.MERGED}
        said = {**self.said, gpu.MERGED: ()}
        return replace(
            self, made=made, inside=None, said=said, replies=replies, ballot=None, parts={},
            merging=False, stops=set(),
        )  # fmt: skip

    def put(self, exchange: Exchange, slots: tuple[str, ...], ballot: Ballot | None) -> "Visit":
        """A question that has just been put to columns: their conversations have it by now."""
        question = {"role": "user", "content": exchange.question}
        same = [s for s in slots if self.models.get(s) == exchange.models.get(s)]
        said = {s: (*(_worded(self.said.get(s, ())) if s in same else ()), question) for s in slots}
        return replace(
            self, models={**self.models, **exchange.models}, said={**self.said, **said},
            replies={s: r for s, r in self.replies.items() if s not in slots}, running=slots,
            stops=set(), asked=exchange.question, ballot=ballot, log=(*self.log, exchange)[-MOST:],
            asking=False,
        )  # fmt: skip

    def went_on(self) -> "Visit":
        """With the next question of a talk, if all have answered the last one."""
        if not (self.coming and self._answered()):
            return self
        exchange = replace(self.log[-1], question=self.coming[0], replies={})
        visit = self.put(exchange, self.running, self.ballot)
        parts = self._followed()
        return replace(visit, coming=self.coming[1:], stops=self.stops, parts=parts)

    def replied(self, reply: Reply) -> "Visit":
        """A column's answer has grown, or ended."""
        said = self.said[reply.column]
        kept = said[:-1] if said[-1]["role"] == "assistant" else said
        answer = {"role": "assistant", "content": reply.text}
        last = self.log[-1]
        exchange = replace(last, replies={**last.replies, reply.column: reply})
        return replace(
            self, said={**self.said, reply.column: (*kept, answer)},
            replies={**self.replies, reply.column: reply}, log=(*self.log[:-1], exchange),
        )  # fmt: skip

    def ended(self) -> "Visit":
        """Nothing is under way any longer: who had not ended was stopped."""
        visit = self
        for slot in self.running:
            reply = self.replies.get(slot) or Reply(slot, "", 0, None, 0.0)
            if reply.ended is None:
                visit = visit.replied(replace(reply, ended="stopped"))
        asked = self.coming[-1] if self.coming else self.asked
        parts = visit._followed()
        return replace(
            visit, running=(), coming=(), asked=asked, asking=False, merging=False, parts=parts
        )

    def ended_by_all(self) -> "Visit":
        """Ended, if every column that was asked has ended and nothing more is to be asked."""
        return self.ended() if self._answered() and not self.coming else self

    def _answered(self) -> bool:
        last = [self.replies.get(slot) for slot in self.running]
        return all(reply and reply.ended for reply in last)

    def failed(self, before: "Visit") -> "Visit":
        """What a job that failed leaves: columns that had no reply yet are as they were before."""
        silent = [slot for slot in self.running if slot not in self.replies]
        said = {slot: before.said.get(slot, ()) for slot in silent}
        models = {**self.models, **{s: m for s, m in before.models.items() if said.get(s)}}
        if silent and len(silent) == len(self.running):
            return replace(before, models=models, said={**before.said, **said})
        answering = tuple(slot for slot in self.running if slot not in silent)
        visit = replace(self, running=answering, ballot=None).ended()
        replies = {slot: reply for slot, reply in before.replies.items() if slot in silent}
        return replace(
            visit, models=models, said={**visit.said, **said},
            replies={**visit.replies, **replies},
        )  # fmt: skip

    def before(self, slots: Iterable[str]) -> "Visit":
        """As it was before these columns were last asked."""
        said = {s: _before(m) if s in slots else m for s, m in self.said.items()}
        return replace(self, said=said)

    def until(self, slot: str, place: int) -> "Visit":
        """As it was before a column was asked what stands at a place of its conversation."""
        messages = self.said.get(slot, ())
        asked = [n for n, message in enumerate(messages) if message["role"] == "user"]
        if place not in asked:
            raise MergeError("This question is not there any longer: ask it below.")
        return replace(self, said={**self.said, slot: messages[:place]})

    def withdrawn(self) -> "Visit":
        """Without the last question in what is saved: nobody voted on it, and it is put again."""
        return replace(self, log=self.log[:-1])

    def last(self, slot: str) -> str:
        """What a column was last asked, or nothing."""
        questions = [m["content"] for m in self.said.get(slot, ()) if m["role"] == "user"]
        return questions[-1] if questions else ""

    def talk(self) -> tuple[str, ...]:
        """The questions up to the last one, in the first column that was asked it."""
        found = (
            tuple(m["content"] for m in self.said.get(slot, ()) if m["role"] == "user")
            for slot in (*PARENTS, *self.said)
        )
        return next((asked for asked in found if asked[-1:] == (self.asked,)), (self.asked,))

    def length(self) -> tuple[int, int]:
        """How many questions a merge would answer, and the characters of the longest column."""
        columns = [sum(len(m["content"]) for m in said) for said in self.said.values()]
        return len(self.talk()) if self.asked else 0, max(columns, default=0)

    def given(self, slot: str, system: str = "") -> tuple[Mapping[str, str], ...]:
        """What a column was given with its last question, nothing if it was asked none.

        The system prompt is that of then; `system` where that is no longer known.
        """
        messages, made = self.said.get(slot, ()), self.merges.get(slot)
        asked = [n for n, message in enumerate(messages) if message["role"] == "user"]
        for each in reversed(self.log):
            if slot in each.models or slot in each.merges or made in each.merges.values():
                system = each.settings.get("system", "")
                break
        return with_system(system, messages[: asked[-1] + 1]) if asked else ()

    def _followed(self) -> Mapping[tuple[str, str], tuple[Part, ...]]:
        """The merged model's last answer beside those of the parents who were asked the same."""
        merged, question = self.replies.get(gpu.MERGED), self.last(gpu.MERGED)
        if merged is None or merged.failed:
            return self.parts
        own = self.made.columns if self.made else ()  # others are no parents of this merge
        asked = [s for s in PARENTS if self.models.get(s) in own]
        said = {slot: text for slot in asked if (text := self._said_to(slot, question))}
        if not said or not {*said, gpu.MERGED} & {*self.running}:  # asked something else, and alone
            return self.parts
        return {**self.parts, (question, merged.text): follow(merged.text, said)}

    def _said_to(self, slot: str, question: str) -> str:
        """What a column last answered to a question, if it was asked that; nothing if it failed."""
        reply, messages = self.replies.get(slot), self.said.get(slot, ())
        if reply and reply.failed and self.last(slot) == question:
            return ""
        answers = (
            answer["content"] for asked, answer in pairwise(messages)
            if (asked["role"], asked["content"], answer["role"]) == ("user", question, "assistant")
        )  # fmt: skip
        return next(reversed([*answers]), "")


def _worded(messages: tuple[Mapping[str, str], ...]) -> tuple[Mapping[str, str], ...]:
    """Without a last question that got no words: templates may refuse an answer without any."""
    return messages if not messages or messages[-1]["content"] else _before(messages)


def _before(messages: tuple[Mapping[str, str], ...]) -> tuple[Mapping[str, str], ...]:
    asked = [n for n, message in enumerate(messages) if message["role"] == "user"]
    return messages[: asked[-1]] if asked else messages
