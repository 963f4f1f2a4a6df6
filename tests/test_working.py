"""A job within little memory: how its models share it, and what happens when it runs out."""

from __future__ import annotations

import gc
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merging import Recipe, gpu, plan, working
from merging import library as library_module
from merging.chat import Question, Reply, answer
from merging.errors import MergeError
from merging.exam import exam
from merging.knobs import Knob, along
from merging.library import Library, NoRoomError
from merging.loading import load_parent, size_of
from merging.memory import TOLD, ran_out
from merging.merge import Progress
from merging.nexttoken import Inspection
from merging.opening import open_folder
from merging.reading import Reader
from merging.sinks import Live
from merging.sweep import Scored
from merging.ui import look
from tests.conftest import changed
from tests.ui.models import DEMO, TIES

SLERP = (DEMO.parent / "recipes" / "02-demo-slerp.yaml").read_text(encoding="utf-8")
GB = 10**9
SIZE = size_of(open_folder(DEMO / "a", "a"), "cpu")
"""Of each of the demo models, and of their merge."""
SUMS = ("What is 38 + 27?", "What is 21 + 34?")


def asking(*texts: str, by: float = 1.0) -> gpu.Job:
    """Questions to a merge and its two models."""
    job = gpu.merge_job(plan(Recipe.from_yaml(TIES.replace("lambda: 1.0", f"lambda: {by}"))))
    columns = {name: name for name in ("assets/demo/a", "assets/demo/b")}
    talks = [({"role": "user", "content": text},) for text in texts or SUMS[:1]]
    asked = tuple(Question(dict.fromkeys((*columns, gpu.MERGED), talk), 8) for talk in talks)
    return replace(job, places=job.parents, columns=columns, questions=asked)


def room(models: float, spare: int = 0) -> Library:
    """A library of so many demo models' room."""
    return Library("cpu", int(models * SIZE.whole), spare)


def said(events: list[gpu.Event]) -> dict[tuple[int, str], str]:
    """What was answered, by question and column."""
    found, number = {}, 0
    for event in events:
        if isinstance(event, gpu.Asking):
            number = event.number
        elif isinstance(event, Reply):
            found[number, event.column] = event.text
    return found


@pytest.fixture(scope="module")
def whole() -> dict[tuple[int, str], str]:
    """What is answered where all have room."""
    found = said([*working.work(asking(*SUMS), room(9))])
    assert found[0, "merged"] == found[0, "assets/demo/a"] == "65" and len(found) == 6
    return found


@pytest.fixture(scope="module")
def first(whole: dict[tuple[int, str], str]) -> dict[tuple[int, str], str]:
    """The same of the first question."""
    return {key: text for key, text in whole.items() if key[0] == 0}


@pytest.mark.parametrize(
    ("models", "spare", "rounds"), [(3.1, 0, 1), (2.5, 0, 3), (1.5, 0, 3), (0.6, GB, 3)]
)
def test_with_less_and_less_room_the_answers_stay(
    models: float, spare: int, rounds: int, whole: dict[tuple[int, str], str]
) -> None:
    """All at once, the merge and parent by parent, one alone after the other, one in parts: each
    says to a sheet of questions what it says where all have room; and so the second time.
    """
    library = room(models, spare)
    for texts in (SUMS, SUMS[:1]):
        events = [*working.work(asking(*texts), library)]
        assert said(events) == {key: whole[key] for key in whole if key[0] < len(texts)}
        assert sum(isinstance(event, gpu.Asking) for event in events) == rounds * len(texts)
        assert sum(loaded.size for loaded in library.shelf.values()) <= library.budget
        assert not any(library.lent.values())
    again = [event for event in events if isinstance(event, gpu.Merged) and event.seconds]
    assert len(again) == (models < 2)  # only who stays is found again
    held = [p for loaded in library.shelf.values() for p in loaded.model.parameters()]
    assert any(p.device.type == "meta" for p in held) == (models < 1)


@pytest.mark.parametrize("models", [9, 1.5])
def test_a_talk_goes_on_from_its_own_answers(
    models: float, whole: dict[tuple[int, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is given with those before it and with what was said to them in this job."""
    given: list[Any] = []

    def watched(question: Question, *rest: Any) -> Iterator[Reply]:
        given.append([each["content"] for each in question.conversations[gpu.MERGED]])
        return answer(question, *rest)

    monkeypatch.setattr(working, "answer", watched)
    asked = [{"role": "user", "content": text} for text in SUMS]
    questions = tuple(Question({gpu.MERGED: asked[: n + 1]}, 8) for n in range(len(SUMS)))
    job = replace(asking(), questions=questions, columns={}, talk=True)
    assert said([*working.work(job, room(models))])[1, gpu.MERGED] == "55"
    assert given == [[SUMS[0]], [SUMS[0], whole[0, gpu.MERGED], SUMS[1]]]


def test_an_answer_without_words_is_left_out_of_a_talk() -> None:
    asked = [{"role": role, "content": role} for role in ("system", "user", "user", "user")]
    ended = {(0, "a"): "", (1, "a"): "words"}
    told = working._told(Question({"a": asked}), 2, ended).conversations["a"]
    assert [m["content"] for m in told] == ["system", "user", "words", "user"]


def test_several_merges_in_turn(whole: dict[tuple[int, str], str]) -> None:
    """Where only one of two merges fits they are made, and answer, one after the other."""
    one, other = asking(), asking(by=0.0)
    both = {"one": one.merges[gpu.MERGED], "other": other.merges[gpu.MERGED]}
    talk = ({"role": "user", "content": SUMS[0]},)
    job = gpu.Job(merges=both, questions=(Question(dict.fromkeys(both, talk), 8),))
    events = [*working.work(job, room(1.5))]
    kinds = [type(e) for e in events if isinstance(e, gpu.Merged) or getattr(e, "ended", None)]
    assert kinds == [gpu.Merged, Reply, gpu.Merged, Reply]
    assert said(events) == said([*working.work(job, room(9))])
    assert said(events)[0, "one"] == whole[0, "merged"]


def test_where_nothing_goes_the_machine_is_named() -> None:
    """What has no room alone is refused before anything is loaded, with what would do."""
    library = room(0.6)
    with pytest.raises(MergeError, match=r"A model takes 0.0 GB.*`cpu-basic` \(16 GB, .*would do"):
        list(working.work(asking(), library))
    assert not library.shelf


def waits(event: gpu.Event, thing: str = "others' answers") -> bool:
    return isinstance(event, Progress) and (event.stage, event.tensor) == ("wait", thing)


def others(library: Library) -> Mapping[str, AbstractContextManager[Any]]:
    """What may have the room: a question of somebody else's, and a sweep's merge."""
    other = open_folder(DEMO / "base", "someone's")
    return {"lent": library.parent(other), "swept": library.room(SIZE.whole)}


@pytest.mark.parametrize("how", ["lent", "swept"])
def test_who_needs_all_the_room_waits_for_others(
    how: str, first: dict[tuple[int, str], str]
) -> None:
    """It is waited for, with a sign of life, and nothing is held meanwhile."""
    library = room(1.5)
    with others(library)[how]:
        events = working.work(asking(), library)
        for _ in range(3):
            assert waits(next(events))
            assert library.lock.acquire(timeout=1) and not library.merging.waiting
            library.lock.release()
    assert said([*events]) == first


def test_who_waits_to_merge_knows_how_long() -> None:
    """How many come first, and what that takes by the last merge, once there was one. Of two who
    wait with the same merge one makes it, and the other finds it."""
    library = room(9)
    with library.merging.joined():
        one, other = (working.work(asking(), library) for _ in range(2))
        assert waits(next(one), "another merge") and waits(told := next(other), "2 other merges")
        assert "2 other merges<" in look.progress(told)
        library.merging.took = 40.0
        assert "2 other merges · about 80 s<" in look.progress(next(other))
    (made,), (found,) = ([e for e in work if isinstance(e, gpu.Merged)] for work in (one, other))
    assert made.seconds > 0 and found.seconds == 0
    assert 0 < library.merging.took < 40


@pytest.mark.parametrize("count", [1, 2, 3])
def test_room_that_others_take_meanwhile(count: int, first: dict[tuple[int, str], str]) -> None:
    """While somebody stands in the line to merge, others ask other models, which stay: what was to
    be answered at once is so one after the other, or once they give back. The merge is told once.
    """
    library, events = room(3.1), list[gpu.Event]()
    with ExitStack() as lent:
        with library.merging.joined():
            work = working.work(asking(), library)
            assert waits(next(work), "another merge")
            for number in range(count):
                other = open_folder(DEMO / "base", f"someone's {number}")
                lent.enter_context(library.parent(other))
        for event in work:
            events.append(event)
            if waits(event):
                assert count == 3
                lent.close()
    assert said(events) == first
    assert sum(isinstance(event, gpu.Merged) for event in events) == 1
    assert any(map(waits, events)) == (count == 3)
    assert not any(getattr(event, "notice", None) for event in events)


def test_what_has_answered_is_not_needed_again(
    first: dict[tuple[int, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last column lacked room it alone is loaded: not the merge, which has left."""
    library, loaded, lacking = room(2.5), list[str](), ["assets/demo/b"]
    parent, smaller = library.parent, working._smaller

    def lend(source: Any, **how: Any) -> Any:
        loaded.append(source.name)
        if source.name in lacking:
            lacking.remove(source.name)
            raise NoRoomError("others have it")
        return parent(source, **how)

    def without(run: Any) -> list[str]:
        library.free()
        return smaller(run)

    monkeypatch.setattr(library, "parent", lend)
    monkeypatch.setattr(working, "_smaller", without)
    events = [*working.work(asking(), library)]
    assert said(events) == first
    assert sum(isinstance(event, gpu.Merged) for event in events) == 1
    assert loaded == ["assets/demo/a", "assets/demo/b", "assets/demo/b"]


def test_a_merge_that_is_here_waits_for_nobody(first: dict[tuple[int, str], str]) -> None:
    """Nor do its parents: who asks it need not wait for those who merge."""
    library, events = room(9), list[gpu.Event]()
    assert said([*working.work(asking(), library)]) == first
    with library.merging.joined():
        for event in working.work(asking(), library):
            assert not waits(event, "another merge")
            events.append(event)
    assert said(events) == first


def test_a_merge_that_is_told_of_stays(first: dict[tuple[int, str], str]) -> None:
    """Others may need room as soon as it is there: what is lent already does not leave for them."""
    library, events = room(9), list[gpu.Event]()
    for _ in range(2):
        for event in working.work(asking(), library):
            events.append(event)
            if isinstance(event, gpu.Merged):
                library.free()
                assert library.has(event.identity)
        assert said(events) == first


@pytest.mark.parametrize("recipe", [TIES, SLERP])
def test_a_merge_on_its_way_has_its_room(recipe: str) -> None:
    """It counts while it is made, and once; memory that another lacks meanwhile is no harm."""
    library, kept = room(1.5), set[int]()
    for event in working.work(gpu.merge_job(plan(Recipe.from_yaml(recipe))), library):
        if isinstance(event, gpu.Merged):
            assert event.figures and kept == {library.shelf[event.identity].size}
            assert not library.aside.total()
            return
        kept.add(library.aside.total())
        with pytest.raises(NoRoomError):
            library.make_room(SIZE.whole)
        library.free()
    raise AssertionError


def sweeping() -> gpu.Job:
    """Three merges, and what they are made of, are scored on a question."""
    recipe = Recipe.from_yaml(TIES)
    texts = {v: r.to_yaml() for v, r in along(recipe, Knob("lambda"), 0, 1, 3).items()}
    places = gpu.merge_job(plan(recipe)).parents
    return gpu.Job(sweep=gpu.Sweeping(texts, places, exam([(SUMS[0], "65")], max_new_tokens=2)))


def test_a_sweep_waits_for_room() -> None:
    """For a parent's, and for its merges'; nothing is held meanwhile, nor scored again."""
    library, other = room(1.5), open_folder(DEMO / "base", "someone's")
    scored, waited = list[Scored](), list[int]()
    with ExitStack() as lent:
        lent.enter_context(library.parent(other))
        for event in working.work(sweeping(), library):
            if waits(event):
                waited.append(len(scored))
                assert not library.aside.total() and not library.merging.waiting
                lent.close()
            elif isinstance(event, Scored):
                scored.append(event)
                if len(scored) == 2:
                    lent.enter_context(library.parent(other))
    assert waited == [0, 2] and [s.value for s in scored] == [None, None, 0, 0.5, 1]


@pytest.mark.parametrize("spare", [0, GB])
def test_a_sweep_of_what_has_no_room_is_refused(spare: int) -> None:
    """Before anything is loaded, by the sentence that a merge is refused with."""
    library = room(0.6, spare)
    with pytest.raises(MergeError, match=r"A model takes 0.0 GB.*`cpu-basic` \(16 GB, .*would do"):
        list(working.work(sweeping(), library))
    assert not library.shelf


def test_a_sweep_whose_memory_runs_out_says_how_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    failing("merging", 10**6, in_python, monkeypatch)
    with pytest.raises(MergeError, match=f"ran out twice, though {TOLD['in turn']}"):
        list(working.work(sweeping(), room(9)))


def tied(folder: Path) -> Path:
    """Model a with its embeddings for a head, as it would not be trained."""
    config = {"tie_word_embeddings": True}
    return changed(DEMO / "a", folder, tensors={"lm_head.weight": None}, config=config)


@pytest.mark.parametrize("model", ["own head", "tied"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_in_parts_every_token_is_the_same(model: str, share: float, tmp_path: Path) -> None:
    """All scores are those of the model that is there as a whole."""
    source = open_folder(tied(tmp_path / "tied") if model == "tied" else DEMO / "a", "a")
    size = size_of(source, "cpu")
    given = size.least + int(share * (size.whole - size.least))
    models = [load_parent(source, "cpu"), load_parent(source, "cpu", given)]
    (first, second) = ([p for p in m.model.parameters() if p.device.type != "meta"] for m in models)
    assert sum(p.nbytes for p in second) <= given < sum(p.nbytes for p in first) == size.whole
    assert models[1].size == given and models[1].mould == ""
    ids = torch.randint(5, 200, (1, 30), generator=torch.Generator().manual_seed(0))
    readers = [Reader.of(loaded.model) for loaded in models]
    assert torch.equal(*(reader.read(ids, 30) for reader in readers))
    for _ in range(10):
        one, other = (reader.read(ids[:, :1]) for reader in readers)
        assert torch.equal(one, other)
        ids = one[:, -1].argmax(-1, keepdim=True)


def test_two_may_ask_a_model_in_parts() -> None:
    """Its blocks come and go for one at a time: many askers at once hear what each hears alone."""
    source = open_folder(DEMO / "a", "a")
    loaded = load_parent(source, "cpu", size_of(source, "cpu").least)
    heard: dict[int, str] = {}

    def ask(number: int) -> None:
        talk = ({"role": "user", "content": SUMS[number % 2]},)
        heard[number] = [*answer(Question({"x": talk}, 8), {"x": loaded})][-1].text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {number: ("65", "55")[number % 2] for number in range(6)}


def test_a_model_in_parts_goes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it leaves the library its memory is free at once, hooks and all; no files are left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    library, source = room(0.6, GB), open_folder(DEMO / "a", "a")
    with library.parent(source) as loaded:
        model = loaded.model
        held = [weakref.ref(model), *(weakref.ref(p) for p in model.parameters())]
        waiting = weakref.ref(model.lm_head._hf_hook.weights_map["weight"])
        del loaded, model
    assert waiting() is not None
    assert library.budget == sum(each.size for each in library.shelf.values())
    gc.disable()  # what goes, goes because it was let go
    try:
        library.make_room(library.budget)
    finally:
        gc.enable()
    assert waiting() is None and not any(ref() is not None for ref in held)
    assert not list(tmp_path.iterdir())


def too_much() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)  # more than there is, on any machine


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")


def in_python() -> None:
    raise MemoryError


WHERE: dict[str, tuple[Any, str, int]] = {
    "loading": (library_module, "load_parent", 0),
    "merging": (Live, "place", 12),
    "answering": (Reader, "read", 5),
}
"""What allocates, and how many calls of it go well before one fails."""


def failing(
    where: str, times: int, how: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """From a call on, so many calls find no memory; returns what counts them."""
    owner, name, first = WHERE[where]
    real, calls = getattr(owner, name), [0]

    def allocates(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if first < calls[0] <= first + times:
            how()
        return real(*given, **named)

    monkeypatch.setattr(owner, name, allocates)
    return calls


@pytest.mark.parametrize(
    ("where", "how"), [*zip(WHERE, (too_much, on_a_gpu, in_python), strict=True)]
)
def test_memory_that_runs_out_is_freed_and_told(
    where: str, how: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
    first: dict[tuple[int, str], str],
) -> None:  # fmt: skip
    """Somebody else's idle model goes, the job is done the next smaller way, and all its answers
    come, with a word of it.
    """
    library = room(9)
    with library.parent(open_folder(DEMO / "base", "idle")):
        pass
    failing(where, 1, how, monkeypatch)
    events = [*working.work(asking(), library)]
    assert said(events) == first
    notices = {e.notice for e in events if isinstance(e, gpu.Merged | Reply)} - {None}
    assert notices == {
        f"The memory ran out: what nobody used was let go, and now {TOLD['one by one']}."
    }
    assert isinstance(events[-1], Reply) and events[-1].notice
    asked = sum(isinstance(event, gpu.Asking) for event in events)
    assert asked in (2, 3, 4)  # by how many had ended before
    assert not any(key.startswith("idle") for key in library.shelf)
    assert not any(library.lent.values())


@pytest.mark.parametrize("where", WHERE)
def test_memory_that_runs_out_twice_is_a_sentence(
    where: str, monkeypatch: pytest.MonkeyPatch, first: dict[tuple[int, str], str]
) -> None:
    """The second time it ends; nothing is held, and the next job is done as if nothing had been."""
    library = room(9)
    failing(where, 10**6, on_a_gpu, monkeypatch)
    with pytest.raises(MergeError, match=r"The memory ran out twice, though .*: choose smaller"):
        list(working.work(asking(), library))
    assert not library.shelf and not any(library.lent.values()) and not library.pasts.kept
    monkeypatch.undo()
    assert said([*working.work(asking(), library)]) == first


def test_the_last_resort_is_in_parts(
    monkeypatch: pytest.MonkeyPatch, first: dict[tuple[int, str], str]
) -> None:
    """Where each model had all the room for itself, the second try has half of it."""
    library = room(1.5, GB)
    failing("merging", 1, too_much, monkeypatch)
    assert said([*working.work(asking(), library)]) == first
    (loaded,) = library.shelf.values()
    assert loaded.size == library.budget // 2
    assert any(p.device.type == "meta" for p in loaded.model.parameters())


def test_what_has_ended_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, whole: dict[tuple[int, str], str]
) -> None:
    """Memory that runs out at the second question leaves the answers to the first."""
    real, armed = Reader.read, [False]

    def read(reader: Reader, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        if armed[0]:
            armed[0] = False
            in_python()
        return real(reader, ids, keep)

    monkeypatch.setattr(Reader, "read", read)
    asked, events = [], []
    for event in working.work(asking(*SUMS), room(9)):
        if isinstance(event, gpu.Asking):
            asked.append(event.number)
            armed[0] = asked == [0, 1]
        events.append(event)
    assert asked == [0, 1, 1, 1, 1] and said(events) == whole


def test_other_errors_are_not_of_memory() -> None:
    """A size that does not fit, or a bug, is none."""
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")):
        assert not ran_out(error)
    assert ran_out(RuntimeError("CUDA error: out of memory"))


def test_events_hold_nothing_of_the_device() -> None:
    """All that comes out of a job is text and numbers, down to the last field."""
    job = replace(asking(), check=True)
    inspection = Inspection(job.questions[0].conversations, "65", gpu.MERGED)
    looking = replace(job, questions=(), inspection=inspection)
    kinds = set()
    for each in (job, looking):
        for event in working.work(each, room(9)):
            kinds.add(type(event).__name__)
            assert not [leaf for leaf in leaves(event) if not isinstance(leaf, PLAIN)]
    assert kinds >= {"Progress", "Merged", "Asking", "Reply", "Verdict", "NextTokens"}


PLAIN = (str, int, float, bool, type(None))


def leaves(value: Any) -> Iterator[Any]:
    """What a value is made of."""
    if hasattr(value, "__dataclass_fields__"):
        yield from leaves(vars(value))
    elif isinstance(value, dict):
        yield from leaves([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from leaves(each)
    else:
        yield value
