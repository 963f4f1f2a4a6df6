"""A model reads tokens on from what it has read; its keys and values may be kept for the next time.

It knows models by their forward, and transformers' caches; no prompts, and not who asks.
"""

import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

CACHES = ("cache", "past_key_values")
"""What forwards call their cache: since transformers 5.24, and before."""
FEW = 4
"""Tokens that are read together as fast in bf16 as in float32."""


class Upcast(TorchFunctionMode):
    """Linear layers in float32 whatever their weights are, rounded to the weights' type at the end.

    Where a CPU has no units for bf16, a prompt is read four times as fast so; a single token, which
    costs a pass over the weights and little arithmetic, is not.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not linear or kwargs or args[0][..., 0].numel() <= FEW:
            return function(*args, **kwargs)
        rows, weight, *bias = args
        wide = [t if t is None else t.float() for t in bias]
        return linear(rows.float(), weight.float(), *wide).to(rows.dtype)


def _slow(model: Any) -> bool:
    """Whether several tokens at once are slow in the type of the model's weights."""
    bf16 = model.device.type == "cpu" and model.dtype is torch.bfloat16
    return bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass
class Reader:
    """A model with the keys and values of the tokens that it has read, `count` of them."""

    model: Any
    cache: Any
    count: int = 0

    def __post_init__(self) -> None:
        forward = inspect.signature(self.model.forward).parameters
        self.called = next((n for n in CACHES if n in forward), CACHES[-1])
        self.narrow = "logits_to_keep" in forward

    @classmethod
    def of(cls, model: Any) -> "Reader":
        """One that has read nothing."""
        from transformers import DynamicCache

        return cls(model, DynamicCache(config=model.config))

    def read(self, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """The scores, in float32, of what may follow each of the last `keep` of these tokens.

        `ids` is one row. What is raised on the way leaves a reader of no further use.
        """
        extra = {"logits_to_keep": keep} if self.narrow else {}
        cache = {self.called: self.cache}
        with Upcast() if ids.shape[1] > FEW and _slow(self.model) else nullcontext():
            out = self.model(input_ids=ids, use_cache=True, **cache, **extra)
        self.cache = getattr(out, self.called)
        self.count += ids.shape[1]
        scores: torch.Tensor = out.logits[:, -keep:].float()
        return scores

    def goes_on(self) -> bool:
        """Whether it may read several tokens after others, as not every kind of layer can."""
        from transformers import cache_utils

        known = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)
        return type(self.cache) is cache_utils.DynamicCache and all(
            type(layer) in known for layer in self.cache.layers
        )


@dataclass(frozen=True)
class Past:
    """The tokens that a model has read, and its keys and values. Never changed: readers copy it."""

    tokens: tuple[int, ...]
    cache: Any

    def size(self) -> int:
        held = (t for layer in self.cache.layers for t in (layer.keys, layer.values))
        return sum(t.numel() * t.itemsize for t in held if t is not None)

    def shared(self, tokens: Sequence[int]) -> int:
        """How many of the first tokens are these; the last one is to be read in any case."""
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        alike = next((i for i, (own, other) in enumerate(pairs) if own != other), None)
        return min(len(self.tokens), len(tokens) - 1) if alike is None else alike

    def upto(self, count: int) -> Any | None:
        """A cache of its first `count` tokens; None where layers have let go of them.

        Layers replace their tensors as they grow and never write into them: a copy may share them.
        """
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        if count < len(self.tokens):
            if any(_let_go(layer) for layer in cache.layers):
                return None
            cache.crop(count - len(self.tokens))
        return cache


def _let_go(layer: Any) -> bool:
    """Whether a layer holds a window's tokens alone, behind which it cannot be cropped."""
    return bool(layer.is_sliding and layer.get_seq_length() >= layer.sliding_window)


@dataclass
class Pasts:
    """What models have read, within `room` bytes; what was not used for longest goes.

    It holds no model: what a model has read is of no use without it, and goes when it has gone.
    """

    room: int
    kept: "OrderedDict[tuple[weakref.ref[Any], tuple[int, ...]], Past]" = field(
        default_factory=OrderedDict
    )
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reader(self, model: Any, tokens: Sequence[int]) -> Reader:
        """One that has read as many of the first tokens as are known, and none beyond them."""
        own = weakref.ref(model)
        with self.lock:
            found = [(past.shared(tokens), key) for key, past in self.kept.items() if key[0] == own]
            for count, key in sorted(found, key=lambda pair: pair[0], reverse=True):
                cache = self.kept[key].upto(count) if count else None
                if cache is not None:
                    self.kept.move_to_end(key)
                    return Reader(model, cache, count)
        return Reader.of(model)

    def clear(self) -> None:
        with self.lock:
            self.kept.clear()

    def keep(self, reader: Reader, tokens: Sequence[int]) -> None:
        """Keep what a reader has read, of these tokens; shorter beginnings of it go."""
        past = Past(tuple(tokens[: reader.count]), reader.cache)
        if not (reader.count and reader.goes_on() and past.size() <= self.room):
            return
        own = weakref.ref(reader.model)
        with self.lock:
            for ref, known in list(self.kept):
                beginning = ref == own and known == past.tokens[: len(known)]
                if beginning or ref() is None:
                    del self.kept[ref, known]
            self.kept[own, past.tokens] = past
            while sum(kept.size() for kept in self.kept.values()) > self.room:
                self.kept.popitem(last=False)
