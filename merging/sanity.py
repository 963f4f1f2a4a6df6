"""Whether a merged model works, beside its parents; if not, the likely cause and what to try.

It judges by what `trials` measures, and names what `causes` finds; who merged it does not know.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import exp, isfinite
from typing import Any

from merging.blocks import returned
from merging.causes import OVERFLOW, UNFIT, Cause, Signs, cause, lengthy, signs, strangers, thin
from merging.inside import whole
from merging.library import Library, budget
from merging.loading import Loaded
from merging.plan import Plan
from merging.samples import Sums
from merging.sources import Local, Remote
from merging.trials import PROMPTS, Saying, lost_token, not_finite, read, say

KNOWN = 2.0
"""Nats a byte: a parent above it knows no more of the text than which letters are common."""
WORSE = 0.4
"""Nats a byte beyond the better parent: half as much perplexity again. Of the embedded models the
good merges are within 0.01, TIES with a lambda of 3 is 0.7 beyond, task arithmetic with 2 1.1."""
LOOP = 0.5
"""Share of all three tokens in a row that stood there before: up to 0.12 of SmolLM2's answers."""
MORE = 0.25
"""The same beyond the parents': some of them go round in circles by themselves."""


@dataclass(frozen=True)
class Verdict:
    """Whether a merge works, a sentence that says why not and what to try, and the numbers."""

    ok: bool
    text: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class _Parent:
    """A model of the merge, if there is room for it.

    `did` caches, for the next merge of it, nats a byte by text (None if its tokenizer does not know
    it) and, under "said", what its answers are like.
    """

    name: str
    loaded: Loaded | None
    did: dict[str, Any]


def judged(plan: Plan, written: Local, sums: Mapping[str, Sums], device: str = "cpu") -> Verdict:
    """Judge a merge that was written, on `device`; the plan's parents must be here."""
    library = Library(device, budget(device))
    models = plan.sources[: len(plan.sources) - plan.based]
    parents = [source for source in models if not isinstance(source, Remote)]
    found = signs(plan, sums, whole(plan, sums)) if sums else Signs()
    with library.parent(written) as merged:
        return returned(check(library, merged, parents, found))


def check(
    library: Library, merged: Loaded, sources: Sequence[Local], found: Signs
) -> Generator[None, None, Verdict]:
    """Judge a merge beside the models it was made of; yields now and then, and can be closed.

    Parents for which the library has no room beside other models are left out. What they read is
    kept there, so that the next merge of them pays for its own reading alone.
    """
    broken = not_finite(merged.model)
    if broken:
        what = f"`{broken}` holds values that are not finite"
        return _verdict(what, OVERFLOW, {"finite": False})
    with ExitStack() as stack:
        parents = []
        for source in sources:
            key = f"did {source.name} {source.stamp}"
            lent = stack.enter_context(library.beside(source))
            parents.append(_Parent(source.name, lent, library.known.get(key) or {}))
            library.note(key, parents[-1].did)  # what it does from now on is kept as well
        return (yield from _judged(library, merged, parents, found))


def _judged(
    library: Library, merged: Loaded, parents: Sequence[_Parent], found: Signs
) -> Generator[None, None, Verdict]:
    known: dict[str, Any] = {"finite": True, **_told(found)}
    lent = [parent.loaded for parent in parents if parent.loaded]
    known["without"] = [_short(p.name) for p in parents if not (p.loaded or p.did)]
    problem = lost_token(merged, lent)
    known["tokens"] = problem is None
    if problem:
        return _verdict(problem, UNFIT, known)
    what = yield from _reads_worse(library, merged, parents, known)
    if what is None:
        saying = yield from say(merged, library)
        known |= {"repeated": saying.repeated, "ended": saying.ended, "asked": len(PROMPTS)}
        what = yield from _says_worse(saying, parents, library)
    if what:
        return _verdict(what, cause(found, merged, lent, finite=known["finite"]), known)
    # it may read well and yet be no merge: hardly more than its base, or than one of the models
    if why := strangers(found):
        return _verdict("It cannot have what each of its models learnt", why, known)
    if known["best"] is None and (why := lengthy(found)):
        alone = len(known["without"]) == len(parents)
        reason = "could be read beside it" if alone else "knows the test texts"
        return _verdict(f"It may not work (none of its models {reason})", why, known)
    if faint := thin(found):
        return _verdict(f"It has hardly anything of {_short(faint[0])}", faint[1], known)
    return _good(known)


def _verdict(what: str, why: Cause, known: Mapping[str, Any]) -> Verdict:
    because = "perhaps because" if why.name == "unknown" else "probably because"
    return Verdict(False, f"{what}, {because} {why.why}.", {**known, "cause": why.name})


def _good(known: Mapping[str, Any]) -> Verdict:
    if known["text"]:
        own, best = known["perplexity"]["merged"], known["best"]
        beside = f" (the better parent's {best:.2f})" if best else ""
        reads = f"perplexity {own:.2f} a byte{beside}"
    else:
        reads = "the test text says nothing of models that do not know it"
    said = f"{known['ended']} of {known['asked']} answers end, {known['repeated']:.0%} repeated"
    alone = f"; judged without {', '.join(known['without'])}" if known["without"] else ""
    works = "Not compared with its models" if alone and known["best"] is None else "It works"
    return Verdict(
        True, f"{works}: {reads}, {said}, weights finite, special tokens come back{alone}.",
        {**known, "cause": None},
    )  # fmt: skip


def _told(found: Signs) -> dict[str, Any]:
    """The signs as figures."""
    return {
        "apart": found.apart,
        "apart_rows": found.rows,
        "step": found.step,
        "kept": dict(found.kept) if found.kept else None,
    }


def _reads_worse(
    library: Library, merged: Loaded, parents: Sequence[_Parent], known: dict[str, Any]
) -> Generator[None, None, str | None]:
    """Compare on prose, or on the lines where no parent knows prose, as small models do not."""
    known |= {"text": None, "perplexity": {}, "best": None}
    for kind in ("prose", "lines"):
        if _unknown(parents, kind):
            continue
        own = yield from _all_read(library, merged, parents, kind)
        if own is None or _unknown(parents, kind):
            continue
        if not isfinite(own):
            known["finite"] = False
            return "Its scores are not finite"
        read = {parent.name: parent.did.get(kind) for parent in parents}
        others = {name: nats for name, nats in read.items() if nats is not None and isfinite(nats)}
        if not others and own > KNOWN and kind == "prose":  # a small model may know the lines
            continue
        best = min(others.values(), default=None)
        told = {_short(name): _perplexity(nats) for name, nats in others.items()}
        known |= {"text": kind, "perplexity": {"merged": _perplexity(own), **told}}
        known["best"] = None if best is None else _perplexity(best)
        if own <= (KNOWN if best is None else best + WORSE):
            return None
        if best is None:
            return f"It makes nothing of the test text (perplexity {_perplexity(own):,.2f} a byte)"
        return (
            f"It reads much worse than its better parent (perplexity {_perplexity(own):,.2f} a "
            f"byte, the parent's {_perplexity(best):.2f})"
        )
    return None


def _unknown(parents: Sequence[_Parent], kind: str) -> bool:
    """Whether all parents that are here have read a text, and none knows it."""
    found = [p.did.get(kind, 0.0) for p in parents if p.loaded or kind in p.did]
    return bool(found) and all(nats is None or not nats <= KNOWN for nats in found)


def _all_read(
    library: Library, merged: Loaded, parents: Sequence[_Parent], kind: str
) -> Generator[None, None, float | None]:
    """How the merge reads; the parents that are here and have not read yet read beside it."""
    new = [(p, p.loaded) for p in parents if p.loaded and kind not in p.did]
    models = [merged, *(loaded for _, loaded in new)]
    own, *others = yield from read(models, kind, library.turns)
    for (parent, _), nats in zip(new, others, strict=True):
        parent.did[kind] = nats
    return own


def _perplexity(nats: float) -> float:
    return exp(min(nats, 50.0))


def _says_worse(
    own: Saying, parents: Sequence[_Parent], library: Library
) -> Generator[None, None, str | None]:
    """Only a merge that gives cause for it has its parents asked, until one is found no better."""
    if own.repeated <= LOOP and own.ended:
        return None
    circles, endless = own.repeated > LOOP, not own.ended
    asked = [parent for parent in parents if parent.loaded or "said" in parent.did]
    for parent in asked:
        if parent.loaded and "said" not in parent.did:
            parent.did["said"] = yield from say(parent.loaded, library)
        other: Saying = parent.did["said"]
        circles = circles and own.repeated > other.repeated + MORE
        endless = endless and other.ended > 1
        if not (circles or endless):
            return None
    if circles and (asked or own.repeated > LOOP + MORE):
        return f"It goes round in circles ({own.repeated:.0%} of its answers is repeated)"
    return "None of its answers ends, as its parents' do" if endless and asked else None


def _short(name: str) -> str:
    """A model's name without the commit at which it is pinned."""
    return name.partition("@")[0]
