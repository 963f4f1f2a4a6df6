"""What was said between a user and a model, and its tokens by the model's own template.

It knows tokenizers and how much a model reads; not how it answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from merging import templates
from merging.errors import MergeError
from merging.loading import Loaded

MAX_CONTEXT = 4096
"""Tokens of prompt and answer together, whatever a model could take."""
MAX_CHARACTERS = 16_000
"""Characters of one message, at most."""
MAX_TURNS = 20
"""Questions of a history that are still read."""

Message = Mapping[str, str]
"""`role`, which is system, user or assistant, and `content`."""


def with_system(system: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages after a system prompt, if there is one."""
    if not (system or "").strip():
        return tuple(messages)
    return ({"role": "system", "content": str(system)}, *messages)


def check(messages: Sequence[Message]) -> None:
    """Raises MergeError where the last message is no question, or one of them too long."""
    if not all(isinstance(m["content"], str) for m in messages):
        raise MergeError("The question must be text: write something to ask.")
    longest = max((len(m["content"]) for m in messages), default=0)
    if longest > MAX_CHARACTERS:
        raise MergeError(
            f"A message has {longest:,} characters, and {MAX_CHARACTERS:,} are read: shorten it."
        )
    if not messages or not messages[-1]["content"].strip():
        raise MergeError("The question is empty: write something to ask.")


def context(model: Any) -> int:
    """Tokens that a model reads here, prompt and answer together."""
    return min(getattr(model.config, "max_position_embeddings", MAX_CONTEXT), MAX_CONTEXT)


def prompt(name: str, loaded: Loaded, given: Sequence[Message]) -> tuple[list[int], bool]:
    """Token numbers of a conversation, and whether it is whole: the oldest questions are left out
    where there are too many, or too little of the model's context would be left for an answer.
    """
    messages = list(given)
    while _turns(messages) > MAX_TURNS:
        messages = _without_oldest(messages)
    ids = tokens_of(name, loaded.tokenizer, messages)
    while _turns(messages) > 1 and len(ids) >= context(loaded.model) * 3 // 4:
        messages = _without_oldest(messages)
        ids = tokens_of(name, loaded.tokenizer, messages)
    return ids, len(messages) == len(given)


def tokens_of(name: str, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token numbers of a conversation by the model's own template, or a plain one.

    Raises MergeError where the template refuses it.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    if not template:
        lines = [f"{m['role'].capitalize()}: {m['content']}\n" for m in messages]
        return _ids(tokenizer("".join(lines) + "Assistant:"))
    tokens = tokenizer.special_tokens_map
    for attempt in (messages, _folded(messages)):
        try:
            text = templates.render(template, attempt, tokens=tokens, name=name)
        except templates.RefusedError as error:
            problem = error
        else:
            return _ids(tokenizer(text, add_special_tokens=False))
    raise MergeError(
        f"The chat template of {name} refuses this conversation ({problem}): start anew, "
        "choose `chat_template: chatml` in the recipe, or another model."
    )


def _ids(encoded: Any) -> list[int]:
    ids: list[int] = encoded["input_ids"]
    return ids


def _folded(messages: Sequence[Message]) -> list[Message]:
    """For templates without a system role: the system prompt at the head of the first question."""
    if not messages or messages[0]["role"] != "system" or len(messages) < 2:
        return list(messages)
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _turns(messages: Sequence[Message]) -> int:
    return sum(m["role"] == "user" for m in messages)


def _without_oldest(messages: Sequence[Message]) -> list[Message]:
    """The conversation without its first question and what was said to it."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    asked = [i for i, m in enumerate(messages) if m["role"] == "user"]
    return [*system, *messages[asked[1] :]]
