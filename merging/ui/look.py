"""How things look: marks, small pieces of HTML, the theme. It knows no events and no models.

Whatever comes from users or models is escaped here, where it becomes HTML.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape

import gradio as gr

from merging.chat import Reply
from merging.hub import Kept
from merging.merge import Progress
from merging.notes import Note
from merging.sanity import Verdict
from merging.ui.blind import Tally
from merging.ui.following import Part
from merging.ui.jobs import Made
from merging.ui.pictures import Picture

MARKS = {"base": "○", "a": "◆", "b": "●", "c": "▲", "merged": "✦", "pinned": "✧"}
EMBEDDED = {"assets/demo/base": "Mini", "assets/demo/a": "Ada", "assets/demo/b": "Bruno"}
"""What the embedded models call themselves."""
NEAR = {
    "A": "#2563eb", "B": "#b45309", "C": "#0d9488", "all": "#64748b", "neither": "#be123c",
    "not comparable": "#94a3b8",
}  # fmt: skip
"""Colours of a token by the parents to whom the merged model is near; each is named beside it."""
SIGNS = {"green": "✓", "amber": "!", "red": "✕"}
CHECKING = '<p class="hint">Checking whether it works …</p>'
"""Beneath a new merge, until its verdict is there."""
HELD = '<p class="hint" role="status"></p>'
"""Where the browser says that what was pressed waits for what is under way."""
UNJUDGED = ("", "", None)
"""A merge's identity, its line and whether it works, before there is a verdict."""
UNPRICED = '<p class="hint">What clicks ask of your GPU time is known after a check.</p>'
"""Where the page tells it, before there is one."""
HEAD = """<div class="top"><h1>Merge playground</h1>
<p>Merge two or three models, then ask all of them at once.</p></div>"""


def theme() -> gr.themes.Base:
    """Neutral and calm, with the system's own fonts: nothing is fetched."""
    font = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    return gr.themes.Base(
        primary_hue="slate", neutral_hue="slate", radius_size="lg", font=font,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )  # fmt: skip


def step(number: int, title: str, aside: str = "") -> str:
    return f'<h2 class="step"><i>{number}</i>{title}<span>{escape(aside)}</span></h2>'


def notes(found: Sequence[Note]) -> str:
    """The plan's notes, worst first."""
    order = {"red": 0, "amber": 1, "green": 2}
    items = "".join(
        f'<li class="{n.level}"><b aria-label="{n.level}">{SIGNS[n.level]}</b>{_code(n.text)}</li>'
        for n in sorted(found, key=lambda n: order[n.level])
    )
    return f'<ul class="notes">{items}</ul>'


def failure(text: str) -> str:
    """An error that stays where the user is looking."""
    return f'<div class="failure" role="alert"><b>✕</b>{_code(text)}</div>'


def verdict(found: Verdict) -> str:
    """Whether a merge works, in a line."""
    level = "green" if found.ok else "red"
    sign = f'<b aria-label="{level}">{SIGNS[level]}</b>'
    return (
        f'<ul class="notes" role="status"><li class="{level}">{sign}{_code(found.text)}</li></ul>'
    )


def caption(picture: Picture) -> str:
    """What stands above a picture."""
    return (
        f"<h3>{escape(picture.title)}</h3><p>{escape(picture.look_for)}</p>"
        f'<p class="facts">{escape(picture.facts)}</p>'
    )


def hint(text: str) -> str:
    return f'<p class="hint">{_code(text)}</p>'


def about(text: str, paper: str) -> str:
    """What a method does, and where to read more."""
    link = f'<a href="{paper}" target="_blank" rel="noreferrer">paper</a>'
    return f'<p class="hint">{_code(text)} {link}</p>'


def bar(share: float, text: str, label: str = "Merge") -> str:
    width = f"{100 * min(1, max(0, share)):.0f}"
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{width}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-label="{label}"><i style="width:{width}%"></i></div>'
        f'<p class="hint" role="status">{_code(text)}</p>'
    )


def progress(at: Progress) -> str:
    if at.stage == "wait":
        left = f" · about {at.seconds_left:.0f} s" if at.seconds_left >= 1 else ""
        return bar(0, f"Waiting for {at.tensor}{left}")
    if at.stage in ("fetch", "push"):
        doing = {"fetch": "Fetching", "push": "Pushing"}[at.stage]
        unit, size = ("GB", 1e9) if at.total >= 1e9 else ("MB", 1e6)
        far = f"{at.done / size:.1f} of {at.total / size:.1f} {unit}"
        text = f"{doing} {at.tensor} · {far} · {1e3 * at.gb_per_s:.0f} MB/s"
    else:
        text = f"Merging {at.tensor} · {at.gb_per_s:.2f} GB/s"
    left = f" · {at.seconds_left:.0f} s left" if at.seconds_left >= 1 else ""
    return bar(at.share, text + left)


def download(path: str, size: int) -> str:
    name = f"merge-{path.rpartition('/')[2].removesuffix('.zip')[:8]}"
    return (
        f'<p class="hint"><a class="get" href="{escape(path)}" download>⤓ {escape(name)}.zip</a> '
        f"{amount(size)}: weights in safetensors, config, tokenizer, recipe and card.</p>"
    )


def offer(
    name: str, public: bool, size: int, licences: Mapping[str, str], closed: str | None
) -> str:
    """What a push would do, for its confirmation."""
    where = "a repo that everybody can see" if public else "a private repo"
    rows = "".join(f"<li>{_code(n)}: {escape(told)}</li>" for n, told in licences.items())
    warning = ""
    if len(set(licences.values())) > 1:
        warning = "The licences differ, and each may bind this merge: read them before you share."
    if closed:
        warning += f" {closed} is not open to all: share only with those who have access to it."
    warned = f'<p class="warned">{_code(warning.strip())}</p>' if warning else ""
    return (
        f'<div class="offer" role="alert"><p>Push <b>{amount(size)}</b> to '
        f"<b>{escape(name)}</b>, {where} of yours? Licences of its parents:</p>"
        f"<ul>{rows}</ul>{warned}</div>"
    )


def pushed(name: str, url: str) -> str:
    link = f'<a href="{escape(url)}" target="_blank" rel="noreferrer">{escape(name)}</a>'
    return f'<p class="hint" role="status">Pushed to {link}.</p>'


def foot(kept: Kept) -> str:
    """What the downloads take."""
    of = f" of {kept.budget / 1e9:.0f}" if kept.budget else ""
    models = f"{kept.count} model{'s' * (kept.count != 1)}"
    return (
        f'<p class="foot">Downloads: {models}, {kept.bytes / 1e9:.1f}{of} GB · '
        f"{kept.free / 1e9:.0f} GB of disk free</p>"
    )


def amount(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def slot_name(slot: str) -> str:
    return slot.upper() if len(slot) == 1 else slot


def column_head(slot: str, title: str, stats: str = "") -> str:
    name, own = slot_name(slot), f" · {escape(title)}" if title else ""
    return (
        f'<div class="head"><span class="mark {slot}">{MARKS[slot]}</span>'
        f'<b>{name[0].upper()}{name[1:]}<span class="title">{own}</span></b>'
        f'<span class="stats">{escape(stats)}</span></div>'
    )


def unnamed_head(number: int, state: str) -> str:
    """No name, and no figures by which one could be told."""
    return (
        f'<div class="head"><b>Answer {number}</b><span class="stats">{escape(state)}</span></div>'
    )


def followed(parts: Sequence[Part]) -> str:
    """An answer as it was written, each piece with a line for those whom it follows."""
    pieces = (_follows(p.follows, escape(p.text)) if p.follows else escape(p.text) for p in parts)
    return f'<div class="followed">{"".join(pieces)}</div>'


def legend(shares: Mapping[tuple[str, ...], float]) -> str:
    """What the lines mean, and the part of the words that follows each."""
    told = {
        who: f"{_who(who)} {share:.0%}" if who else f"nobody {share:.0%}"
        for who, share in shares.items()
    }
    if not any(told):
        return ""
    items = "".join(
        f"<li>{_follows(who, text) if who else text}</li>" for who, text in told.items()
    )
    return f'<ul class="legend" aria-label="Words that follow"><li>follows</li>{items}</ul>'


def _follows(who: tuple[str, ...], inner: str) -> str:
    kind = who[0] if len(who) == 1 else "several"
    return f'<span class="follows {kind}" title="follows {_who(who)}">{inner}</span>'


def _who(who: tuple[str, ...]) -> str:
    return " and ".join(f"{slot_name(slot)} {MARKS[slot]}" for slot in who)


def tally(tallies: Sequence[Tally]) -> str:
    """How often each won, merge by merge."""
    rows = "".join(
        f"<li><b>{_merge_name(t.made)}</b>: "
        + " · ".join(f"{escape(short(name))} {count}" for name, count in t.wins.items())
        + "</li>"
        for t in tallies
    )
    return f'<ul class="tally" aria-label="Blind votes">{rows}</ul>' if rows else ""


def _merge_name(made: Made | None) -> str:
    return f"{escape(made.title)} <code>{made.identity[:8]}</code>" if made else "no merge"


def stats(reply: Reply) -> str:
    """Time to the first token, tokens a second, and why it ended."""
    if reply.first is None:
        return "" if reply.failed else reply.ended or ""
    parts = [f"{reply.first:.2f} s", f"{reply.speed:.0f} tok/s" if reply.speed else ""]
    parts += [f"{reply.tokens} tokens" if reply.ended else "", reply.ended or ""]
    return " · ".join(part for part in parts if part)


def named(model: str) -> str:
    """A model as the pickers list it."""
    return f"{EMBEDDED[model]} · {model}" if model in EMBEDDED else model


def short(model: str) -> str:
    """A model's own name without its owner, folder or commit."""
    if model in EMBEDDED:
        return EMBEDDED[model]
    path, _, revision = model.partition("@")
    name = path.rstrip("/").rpartition("/")[2]
    return name if re.fullmatch(r"[0-9a-f]{40}|", revision) else f"{name}@{revision}"


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
