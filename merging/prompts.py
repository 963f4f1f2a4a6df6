"""What a model is given to read for a conversation: the text that its template makes of it.

It needs a model's small files, and no weights: what a merge would be given is known before it is
made. Who talks, and where that is shown, it does not know.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.companions import copy_companions, write_companions
from merging.conversation import Message, context, prompt
from merging.errors import MergeError
from merging.loading import Loaded
from merging.plan import Plan
from merging.sources import Source

OWN, PLAIN = "its own template", "no template of its own: a plain one"


@dataclass(frozen=True)
class Prompt:
    """`text` is what is read, special tokens and all, in `tokens` of the `context` it may take.

    `template` says what made it. It is not `whole` where the oldest questions were left out.
    """

    text: str
    tokens: int
    context: int
    template: str
    whole: bool


def of_parent(source: Source, messages: Sequence[Message]) -> Prompt:
    """What a model is given as it is. Raises MergeError where its template refuses."""
    with tempfile.TemporaryDirectory() as folder:
        copy_companions(source, Path(folder))
        return _prompt(source.name, folder, messages)


def of_merge(plan: Plan, messages: Sequence[Message]) -> Prompt:
    """What a merge is given. Raises MergeError where its template refuses."""
    with tempfile.TemporaryDirectory() as folder:
        write_companions(plan, Path(folder))
        return _prompt("the merge", folder, messages, plan.recipe.chat_template)


@dataclass(frozen=True)
class _Unloaded:
    """A model before its weights: its prompt depends on its config alone."""

    config: Any


def _prompt(
    name: str, folder: str, messages: Sequence[Message], chosen: str | None = None
) -> Prompt:
    from transformers import AutoConfig, AutoTokenizer

    try:
        model = _Unloaded(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise MergeError(f"{name} cannot be read ({first}): choose another.") from error
    ids, whole = prompt(name, Loaded(model, tokenizer, 0), messages)
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Prompt(text, len(ids), context(model), _template(tokenizer.chat_template, chosen), whole)


def _template(own: Any, chosen: str | None) -> str:
    if chosen not in (None, "auto"):
        return "the recipe's template" if "{" in chosen else f"the recipe's template, {chosen}"
    if isinstance(own, dict):  # several, by name
        own = own.get("default")
    return OWN if own else PLAIN
