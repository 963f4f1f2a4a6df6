"""What happens to a model's scores before a token is chosen: the steps of transformers' `generate`.

It knows a model's settings and no model.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

DEFAULTS = {"top_k": 50}
"""What `generate` does where a model's own settings do not say."""

Rule = tuple[str, Any, Callable[[Any], Any]]
"""A setting, the value at which it changes nothing, and the step that it asks for."""


def steps(settings: Any, temperature: float, prompt: Tensor, ends: Tensor) -> LogitsProcessorList:
    """The model's own settings in the order of `generate`; only the temperature is the user's.

    `prompt` are token numbers, one row, and `ends` those that end an answer, on the same device.
    Left out is what no chat needs: beams, guidance, watermarks, and tokens forced at an end.
    Raises TypeError or ValueError for a value that transformers refuses.
    """
    found = LogitsProcessorList(_asked(settings, _always(prompt, ends)))
    if temperature > 0:
        found.append(TemperatureLogitsWarper(float(temperature)))
        found += _asked(settings, _sampled(ends))
    return found


def _asked(settings: Any, rules: Sequence[Rule]) -> Iterator[Any]:
    for name, without, step in rules:
        own = getattr(settings, name)
        value = DEFAULTS.get(name) if own is None else own
        if value is not None and value != without:
            yield step(value)


def _always(prompt: Tensor, ends: Tensor) -> Sequence[Rule]:
    read, at = prompt.shape[1], str(ends.device)
    fewest = partial(MinNewTokensLengthLogitsProcessor, read, eos_token_id=ends)
    fading = partial(ExponentialDecayLengthPenalty, eos_token_id=ends, input_ids_seq_length=read)
    begins = partial(SuppressTokensAtBeginLogitsProcessor, begin_index=read, device=at)
    return (
        ("sequence_bias", None, SequenceBiasLogitsProcessor),
        ("repetition_penalty", 1.0, RepetitionPenaltyLogitsProcessor),
        ("no_repeat_ngram_size", 0, NoRepeatNGramLogitsProcessor),
        ("bad_words_ids", None, partial(NoBadWordsLogitsProcessor, eos_token_id=ends)),
        ("min_length", 0, partial(MinLengthLogitsProcessor, eos_token_id=ends)),
        ("min_new_tokens", 0, fewest),
        ("exponential_decay_length_penalty", None, fading),
        ("suppress_tokens", None, partial(SuppressTokensLogitsProcessor, device=at)),
        ("begin_suppress_tokens", None, begins),
    )


def _sampled(ends: Tensor) -> Sequence[Rule]:
    return (
        ("top_h", None, TopHLogitsWarper),
        ("top_k", 0, TopKLogitsWarper),
        ("top_p", 1.0, TopPLogitsWarper),
        ("min_p", None, MinPLogitsWarper),
        ("typical_p", 1.0, TypicalLogitsWarper),
        ("epsilon_cutoff", 0.0, EpsilonLogitsWarper),
        ("eta_cutoff", 0.0, partial(EtaLogitsWarper, device=str(ends.device))),
    )
