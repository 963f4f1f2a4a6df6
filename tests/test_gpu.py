"""The seam to the device, run in this process: what a job gives, and what a failed one leaves."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from merging import Recipe, gpu, plan
from merging.chat import Question, Reply
from merging.errors import MergeError
from merging.merge import Progress, merge
from merging.nexttoken import Inspection, NextTokens
from merging.opening import open_source
from merging.plan import Plan
from merging.sinks import Folder
from merging.ui import jobs, kept
from merging.ui.visitor import Visitor
from tests.conftest import changed
from tests.ui.models import DEMO, TIES, WEIGHTS

SUM = "What is 38 + 27?"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A library that holds nothing yet, as in a process that just began."""
    gpu._library.cache_clear()
    yield
    gpu._library.cache_clear()


def decided(text: str = TIES) -> Plan:
    return plan(Recipe.from_yaml(text))


def asking(merge: Plan, words: str = SUM) -> gpu.Job:
    """The merge's job, then a question to its two models and to itself."""
    job = gpu.merge_job(merge)
    columns = {name: name for name in ("assets/demo/a", "assets/demo/b")}
    messages = ({"role": "user", "content": words},)
    question = Question(dict.fromkeys((*columns, gpu.MERGED), messages), 8)
    return replace(job, places=job.parents, columns=columns, questions=(question,))


def identity(job: gpu.Job) -> str:
    return job.merges[gpu.MERGED].identity


def beside(*values: float) -> gpu.Job:
    """A question to two merges of the same models with other values, and to nobody else."""
    texts = {f"at {x}": TIES.replace("lambda: 1.0", f"lambda: {x}") for x in values}
    merges = {n: gpu.merge_job(decided(text)).merges[gpu.MERGED] for n, text in texts.items()}
    question = Question(dict.fromkeys(merges, ({"role": "user", "content": SUM},)), 8)
    return gpu.Job(merges=merges, questions=(question,))


def answers(job: gpu.Job) -> dict[str, str]:
    return {event.column: event.text for event in gpu.run(job) if isinstance(event, Reply)}


def test_merges_then_answers() -> None:
    """One job merges with progress, says so, and then every column answers."""
    events = list(gpu.run(asking(decided())))
    kinds = [type(event) for event in events]
    ready = kinds.index(gpu.Merged)
    assert set(kinds[:ready]) == {Progress}
    assert kinds[ready + 1] == gpu.Asking
    assert set(kinds[ready + 2 :]) == {Reply}
    assert events[ready].seconds > 0
    last = {event.column: event.text for event in events[ready + 2 :]}
    assert last["assets/demo/a"] == last["merged"] == "65"


def test_found_the_second_time() -> None:
    """A merge that is there is not made again, and says the same, also of what it did."""
    gpu._library.cache_clear()
    job = asking(decided())
    first = answers(job)
    made = gpu._library().known[f"merged {identity(job)}"]
    events = list(gpu.run(job))
    assert not any(isinstance(event, Progress) for event in events)
    assert events[0] == replace(made, seconds=0.0) and made.seconds
    assert [*made.figures.whole["norm"]] == [*made.figures.models] and len(
        pickle.dumps(made)
    ) < 40_000
    assert answers(job) == first


def test_merged_again_where_it_is_gone() -> None:
    """The recipe is the state: in a new process the same job merges again and says the same."""
    job = asking(decided())
    first = answers(job)
    gpu._library.cache_clear()
    assert any(isinstance(event, Progress) for event in gpu.run(job))
    assert answers(job) == first


def test_a_merge_that_lies_here_as_files_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that does not have it; it says the same, and asks ZeroGPU for its own bytes
    alone. Files that are damaged or gone are none: it is merged again.
    """
    monkeypatch.setenv("MERGING_HOME", str(tmp_path))
    found = decided()
    job = replace(asking(found), places=(), columns={})
    made = [*jobs.run(job)]
    folder = kept.files(identity(job))
    for _ in merge(found, Folder(folder)):
        pass
    os.utime(folder, (0, 0))
    written = replace(job.merges[gpu.MERGED], files=kept.at_hand(identity(job)))
    assert folder.stat().st_mtime > time.time() - 60  # in use: it is not cleared away just now
    large = replace(written, parents=tuple(replace(p, folder=str(tmp_path)) for p in job.parents))
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.truncate(5 * 10**9)
    assert gpu.seconds(gpu.Job(merges={"m": large})) == 5
    assert gpu.seconds(gpu.Job(merges={"m": replace(large, files="")})) == 5 + 3 * 15

    def again() -> list[type]:
        gpu._library.cache_clear()
        events = [*jobs.run(job)]
        texts = [[e.text for e in each if isinstance(e, Reply)][-1] for each in (made, events)]
        assert texts[0] == texts[1] == "65"
        return [type(event) for event in events]

    assert Progress not in again()
    with (folder / WEIGHTS).open("r+b") as weights:
        weights.truncate(10_000)
    assert Progress in again()
    shutil.rmtree(folder)
    assert Progress in again()


def test_parents_alone() -> None:
    """Without a recipe nothing is merged, and the models that are named answer."""
    whole = asking(decided())
    question = Question({"a": ({"role": "user", "content": SUM},)}, 8)
    job = gpu.Job(whole.places, columns={"a": "assets/demo/a"}, questions=(question,))
    assert answers(job) == {"a": "65"}


def test_several_questions_one_after_the_other() -> None:
    """A job's questions are asked in turn, each by itself: as if each were its own job."""
    sums = {"What is 38 + 27?": "65", "What is 21 + 34?": "55", "What is 46 + 18?": "64"}
    job = asking(decided())
    job = replace(
        job, questions=tuple(q for words in sums for q in asking(decided(), words).questions)
    )
    said: dict[int, dict[str, str]] = {}
    for event in gpu.run(job):
        if isinstance(event, gpu.Asking):
            assert event.number == len(said)
            said[event.number] = {}
        elif isinstance(event, Reply):
            said[max(said)][event.column] = event.text
    assert [texts["assets/demo/a"] for texts in said.values()] == list(sums.values())
    for words, texts in zip(sums, said.values(), strict=True):
        assert texts == answers(asking(decided(), words))


def test_a_question_that_nobody_can_answer_ends_no_other(tmp_path: Path) -> None:
    """Where a template refuses one question, its replies say so and the next are answered; where
    it refuses all of them, so does the job.
    """
    template = "{% if 'no' in messages[-1].content %}{{ raise_exception('never') }}{% endif %}"
    template += (DEMO / "a" / "chat_template.jinja").read_text()
    folder = shutil.copytree(DEMO / "a", tmp_path / "a")
    (folder / "chat_template.jinja").write_text(template)
    place = gpu.place(open_source(str(folder)))
    asked = [Question({"a": ({"role": "user", "content": text},)}, 8) for text in ("no", SUM)]
    job = gpu.Job((place,), columns={"a": place.name}, questions=tuple(asked))
    *_, refused, second, answered = (e for e in gpu.run(job) if not isinstance(e, Reply) or e.ended)
    assert isinstance(refused, Reply) and refused.failed and "never" in (refused.ended or "")
    assert second == gpu.Asking(1)
    assert isinstance(answered, Reply) and answered.text == "65"
    with pytest.raises(MergeError, match="never"):
        list(gpu.run(replace(job, questions=(asked[0], asked[0]))))


def test_a_follow_up_reads_on() -> None:
    """What the columns read is kept beside their models, and a second question finds it there."""
    job = asking(decided())
    first = answers(job)
    library = gpu._library()
    assert len(library.pasts.kept) == len(first) == 3
    assert answers(job) == first
    assert len(library.pasts.kept) == 3


def test_looks_into_an_answer() -> None:
    """A job without a question has the models read an answer, in one event; the recipe decides."""
    job = asking(decided())
    looking = Inspection(job.questions[0].conversations, answers(job)[gpu.MERGED], gpu.MERGED)
    gpu._library.cache_clear()  # as on ZeroGPU, where nothing may be left
    *_, seen = gpu.run(replace(job, questions=(), inspection=looking))
    assert isinstance(seen, NextTokens)
    assert seen.choices.keys() == {*job.answering}
    assert seen.choices[gpu.MERGED][0].text == seen.tokens[0]
    assert seen.distances.keys() == job.columns.keys()
    assert pickle.loads(pickle.dumps(seen)) == seen


def test_jobs_and_events_pickle() -> None:
    """All that crosses into a worker and out of it survives the way, and is small."""
    job = asking(decided())
    assert pickle.loads(pickle.dumps(job)) == job
    assert len(pickle.dumps(job)) < 10_000
    for event in gpu.run(job):
        assert pickle.loads(pickle.dumps(event)) == event
        assert len(pickle.dumps(event)) < 10_000


def test_failed_merge_leaves_the_earlier_one(tmp_path: Path) -> None:
    """A parent with a NaN stops its merge with a sentence; what was merged before still chats."""
    good = asking(decided())
    before = answers(good)
    name = "model.layers.0.mlp.up_proj.weight"
    broken = load_file(DEMO / "a" / WEIGHTS)[name].clone()
    broken[3, 5] = float("nan")
    folder = changed(DEMO / "a", tmp_path / "nan", tensors={name: broken})
    bad = gpu.merge_job(decided(TIES.replace("assets/demo/a", str(folder))))
    with pytest.raises(MergeError, match="up_proj"):
        list(gpu.run(bad))
    assert answers(good) == before
    assert not any(isinstance(event, Progress) for event in gpu.run(good))


def test_stopped_merge_publishes_nothing() -> None:
    """A merge that is closed half-way is not there afterwards; merging again gives it whole."""
    job = gpu.merge_job(decided())
    running = gpu.run(job)
    next(running)
    running.close()  # type: ignore[attr-defined]  # it is a generator
    assert not gpu._library().has(identity(job))
    assert any(isinstance(event, gpu.Merged) for event in gpu.run(job))


def test_stopped_anywhere_gives_its_models_back() -> None:
    """Closed after any event, a job leaves no model lent, and is done in full the next time."""
    job = asking(decided())
    whole = answers(job)
    for point in range(1, 9):
        running = gpu.run(job)
        for _ in zip(range(point), running, strict=False):
            pass
        running.close()  # type: ignore[attr-defined]  # it is a generator
        assert not any(gpu._library().lent.values())
    assert answers(job) == whole


def test_other_values_other_merge() -> None:
    """Two merges of the same parents live side by side, each with its own answer."""
    one, other = (asking(decided(TIES.replace("lambda: 1.0", f"lambda: {x}"))) for x in (1.0, 0.0))
    first = answers(one)
    assert answers(other)["merged"] != first["merged"]
    assert answers(one) == first


def test_two_merges_answer_in_one_job() -> None:
    """Both are ready before anyone is asked, are asked together, and say what each says alone."""
    alone = [answers(beside(x))[f"at {x}"] for x in (1.0, 0.0)]
    gpu._library.cache_clear()
    both = list(gpu.run(beside(1.0, 0.0)))
    ready = [n for n, event in enumerate(both) if isinstance(event, gpu.Merged)]
    said = [event for event in both[ready[-1] + 1 :] if isinstance(event, Reply)]
    assert len(ready) == 2 and not any(isinstance(event, Reply) for event in both[: ready[-1]])
    ended = [n for n, reply in enumerate(said) if reply.ended]
    assert sum(isinstance(event, gpu.Asking) for event in both) == 1
    assert [said[n].text for n in sorted(ended, key=lambda n: said[n].column)] == alone[::-1]
    assert alone[0] == "65" != alone[1]


def test_a_stopped_column_is_not_heard_of_again() -> None:
    """A worker that cannot hear of it goes on; its next reply is the last, the others' all come."""
    stops: set[str] = set()

    def replies() -> Iterator[Reply]:
        for number in range(4):
            for column in "ab":
                yield Reply(column, "x" * number, number, 0.1, 1.0)
            stops.update({"b"} if number == 1 else ())

    heard = list(gpu._heeding(replies(), stops))
    assert [r.tokens for r in heard if r.column == "a"] == [0, 1, 2, 3]
    told = [(r.tokens, r.ended) for r in heard if r.column == "b"]
    assert told == [(0, None), (1, None), (2, "stopped")]


def test_each_question_of_a_talk_ends() -> None:
    """Of a column that was stopped, the end of every later question is heard of as well."""
    ended = [Reply("b", "", 0, None, 0.0, "stopped")] * 2
    events = [gpu.Asking(0), *ended, gpu.Asking(1), *ended]
    assert list(gpu._heeding(iter(events), {"b"})) == [events[0], ended[0], events[3], ended[0]]


def test_seconds_grow_with_work() -> None:
    """What is asked of ZeroGPU is small for the demo, more for more tokens, and capped."""
    job = asking(decided())
    (question,) = job.questions
    longer = replace(job, questions=(replace(question, max_new_tokens=1024),))
    assert gpu.seconds(job) <= 10 < gpu.seconds(longer) <= 120
    more = replace(job, questions=(replace(question, max_new_tokens=128),) * 10)
    single = replace(more, questions=more.questions[:1])
    assert gpu.seconds(more) - gpu.seconds(single) in (86, 87)  # nine times 128 tokens of three


def test_what_is_told_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where seconds are granted, the check of a recipe names those of its merge and of a question,
    as the jobs will ask for them; elsewhere none."""
    visitor, found = Visitor(folders=True), decided()
    assert not any("GPU" in note.text for note in jobs.check(found.recipe, visitor)[1])
    job = asking(found)
    longer = replace(job.questions[0], max_new_tokens=jobs.LENGTH)
    own = replace(longer, conversations={gpu.MERGED: longer.conversations[gpu.MERGED]})
    merge = replace(gpu.merge_job(found), questions=(own,), check=True)
    plain = gpu.seconds(merge)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    made, asked = gpu.seconds(merge), gpu.seconds(replace(job, questions=(longer,)))
    told = f"A merge asks for {made} s of your GPU time, a question to all for {asked} s, "
    (note,) = (note.text for note in jobs.check(found.recipe, visitor)[1] if "GPU" in note.text)
    assert note.startswith(told)
    assert made == round(1.5 * plain) <= asked < 30


def test_never_more_than_a_visitor_without_an_account_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three models of seven billion parameters, as `spaces` will count them and without it."""
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.truncate(45 * 10**9)
    job = gpu.Job((gpu.Place("a", str(tmp_path), "s"),))
    assert gpu.seconds(job) == gpu._asked(job) == 120
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert gpu.seconds(job) == 120 == 1.5 * gpu._asked(job)


def test_seconds_count_an_inspection() -> None:
    """Reading a long answer asks for more than reading a short one, and for each column more."""
    job = asking(decided())
    talks = job.questions[0].conversations
    one = dict([*talks.items()][:1])
    seconds = [
        gpu.seconds(replace(job, questions=(), inspection=Inspection(talk, answer, gpu.MERGED)))
        for talk, answer in ((talks, "65"), (one, "6" * 16_000), (talks, "6" * 16_000))
    ]
    assert seconds[0] <= 10
    assert [n - seconds[0] for n in seconds] == [0, 8, 24]


def test_seconds_count_each_merge(tmp_path: Path) -> None:
    """A second merge of the same gigabytes adds what the first took; one that stands twice not."""
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.truncate(5 * 10**9)
    place = gpu.Place("a", str(tmp_path), "s")
    one, two = (gpu.Merging("", name, (place,)) for name in ("one", "two"))
    jobs = [gpu.Job((place,), merges) for merges in ({}, {"m": one}, {"m": one, "p": one})]
    jobs.append(gpu.Job((place,), {"m": one, "p": two}))
    assert [gpu.seconds(job) for job in jobs] == [20, 20, 20, 35]
