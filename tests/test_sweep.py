"""A sweep: each point is what the merge by itself would score, the lines are the parents' own, and
nothing of it is left behind."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging import Recipe, gpu, merge, plan, sweep
from merging.blocks import returned
from merging.chat import Question, answer
from merging.conversation import prompt
from merging.errors import MergeError
from merging.exam import Exam, Result, Texts, exam, measures, parents, sit
from merging.knobs import Knob, along
from merging.library import Library
from merging.loading import Loaded, load_parent
from merging.merge import Progress
from merging.opening import open_source
from merging.scoring import right
from merging.sinks import Live
from merging.sources import Local
from merging.sweep import Scored, best
from tests.ui.models import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")

A, B = "assets/demo/a", "assets/demo/b"
SUMS = (("What is 38 + 27?", "65"), ("What is 46 + 18?", "64"))
FRENCH = (
    ("How do you say the white door in French?", "la porte blanche"),
    ("Say my green shirt in French.", "ma chemise verte"),
)
ASKED = (*SUMS, *FRENCH)
ROOMY = 10**9
RECIPE = Recipe.from_yaml(f"""
merge_method: task_arithmetic
base_model: assets/demo/base
models: [{{model: {A}}}, {{model: {B}}}]
""")
LAMBDA = along(RECIPE, Knob("lambda"), 0, 3, 4)
TIES = replace(RECIPE, merge_method="ties", parameters={"density": 0.5})
SLERP = replace(RECIPE, merge_method="slerp", base_model=A, parameters={"t": 0.5})
SWEEPS = {
    "lambda": LAMBDA,
    "lambda of TIES": along(TIES, Knob("lambda"), 0.5, 1.5, 3),
    "density": along(TIES, Knob("density"), 0.1, 1, 4),
    "density of one": along(TIES, Knob("density", B), 0, 1, 3),
    "t": along(SLERP, Knob("t"), 0, 1, 4),
}
"""By the number that moves: of density other numbers are measured, of the others none anew."""


def sources() -> dict[str, Local]:
    found = {f"assets/demo/{name}": open_source(f"assets/demo/{name}") for name in NAMES}
    return {name: source for name, source in found.items() if isinstance(source, Local)}


def swept(
    given: Exam, library: Library, recipes: Mapping[float, Recipe] = LAMBDA
) -> Iterator[Scored]:
    for event in sweep.sweep(recipes, sources(), given, library):
        if isinstance(event, Scored):
            yield event


def alone(recipe: Recipe) -> Loaded:
    """The merge by itself, in no library."""
    live = Live()
    for _ in merge(plan(recipe), live):
        pass
    return Loaded.of(live.model, live.tokenizer)


def asked(loaded: Loaded, sheet: Sequence[tuple[str, str]] = ASKED) -> tuple[bool, ...]:
    """Which answers are right, each question asked by itself."""
    found = []
    for question, expected in sheet:
        put = Question({"one": ({"role": "user", "content": question},)}, 8)
        *_, last = answer(put, {"one": loaded})
        found.append(bool(right(expected, last.text)))
    return tuple(found)


@pytest.fixture(scope="module")
def events() -> list[Scored]:
    return [*swept(exam(ASKED, max_new_tokens=8), Library("cpu", ROOMY))]


def test_the_parents_come_first_and_once(events: list[Scored]) -> None:
    """Each as it is by itself."""
    assert [e.who for e in events] == [A, B, *["merged"] * 4]
    assert [e.value for e in events[2:]] == [0.0, 1.0, 2.0, 3.0]
    for event, name in zip(events, (A, B), strict=False):
        assert event.result.marks == asked(load_parent(sources()[name], "cpu"))


@pytest.mark.parametrize("recipes", SWEEPS.values(), ids=SWEEPS)
def test_points_are_those_of_the_merges_alone(
    recipes: Mapping[float, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit and by their answers, whatever memory and numbers are used again."""
    seen: list[dict[str, Tensor]] = []

    def spy(given: Exam, loaded: Loaded, texts: Texts, library: Library) -> Any:
        seen.append({name: w.clone() for name, w in loaded.model.state_dict().items()})
        return (yield from sit(given, loaded, texts, library))

    monkeypatch.setattr(sweep, "sit", spy)
    given = exam(ASKED[1:3], max_new_tokens=8)
    points = [e for e in swept(given, Library("cpu", ROOMY), recipes) if e.value is not None]
    for point, weights, (value, recipe) in zip(points, seen, recipes.items(), strict=True):
        own = alone(recipe)
        assert point.value == value and weights.keys() == own.model.state_dict().keys()
        for name, weight in own.model.state_dict().items():
            assert torch.equal(weights[name], weight), (value, name)
        assert point.result.marks == asked(own, ASKED[1:3])
    assert len({float(w["lm_head.weight"].double().sum()) for w in seen}) == len(recipes)


def test_the_inverted_u(events: list[Scored]) -> None:
    """The demo trio's merge is better in the middle than at both ends, and than both parents."""
    parents = {e.who: e.result for e in events if e.value is None}
    points = {e.value: e.result for e in events if e.value is not None}
    told = measures(parents, {A: "A", B: "B"})
    assert [m.label for m in told] == [
        "all 4 questions", "the 2 only A has right", "the 2 only B has right",
    ]  # fmt: skip
    shares = {value: [m.of(result) for m in told] for value, result in points.items()}
    assert shares[1.0] == [100, 100, 100] and best(points) == 1.0
    assert shares[0.0][0] == 0 and shares[3.0][0] == 0
    assert [[m.of(result) for m in told] for result in parents.values()] == [
        [50, 100, 0], [50, 0, 100],
    ]  # fmt: skip


def loss(loaded: Loaded, talks: list[tuple[str, str]]) -> float:
    """Perplexity a byte of answers by transformers' own loss."""
    nats, size = 0.0, 0
    for question, said in talks:
        ids, _ = prompt("x", loaded, [{"role": "user", "content": question}])
        own = loaded.tokenizer(said, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([[*ids, *own]])
        labels = torch.tensor([[*[-100] * len(ids), *own]])
        with torch.inference_mode():
            nats += float(loaded.model(input_ids=tokens, labels=labels).loss) * len(own)
        size += len(said.encode())
    return exp(nats / size)


def test_perplexity_is_that_of_transformers() -> None:
    """Of what each parent says, read by each parent and by a merge."""
    library, given = Library("cpu", ROOMY), exam(ASKED, texts=True, max_new_tokens=16)
    own = [sources()[name] for name in (A, B)]
    results, texts = returned(parents(given, own, library))
    assert texts[A][:2] == ["65", "64"] and texts[B][2] == "la porte blanche"
    merged = alone(LAMBDA[1.0])
    results["merged"] = returned(sit(given, merged, texts, library))
    models = {name: load_parent(sources()[name], "cpu") for name in (A, B)} | {"merged": merged}
    told = measures({name: results[name] for name in (A, B)}, {A: "A", B: "B"})
    for name, loaded in models.items():
        for measure, whose in zip(told, (A, B), strict=True):
            talks = [(q, said) for (q, _), said in zip(ASKED, texts[whose], strict=True)]
            assert measure.of(results[name]) == pytest.approx(loss(loaded, talks), rel=1e-3)
    assert (results[A].nats[A] or 9) < (results[B].nats[A] or 0)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[int]]]:
    """Each merge that is scored: a weak reference to it, and where its weights lie."""
    seen: list[tuple[Any, list[int]]] = []

    def spy(given: Exam, loaded: Loaded, texts: Texts, library: Library) -> Any:
        places = [p.data_ptr() for p in loaded.model.parameters()]
        seen.append((weakref.ref(loaded.model), places))
        return (yield from sit(given, loaded, texts, library))

    monkeypatch.setattr(sweep, "sit", spy)
    return seen


def test_stopped_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody merges or answers any longer, the memory is free, and the library serves on."""
    seen, library = spied(monkeypatch), Library("cpu", ROOMY)
    steps = sweep.sweep(LAMBDA, sources(), exam(ASKED, max_new_tokens=16), library)
    points = 0
    for event in steps:
        points += isinstance(event, Scored) and event.value is not None
        if points and isinstance(event, Progress) and event.stage == "score":
            break
    assert library.aside.total() > 0 and len(seen) == 2
    steps.close()
    assert [ref() for ref, _ in seen] == [None, None]
    assert not library.aside.total() and not library.merging.waiting and not library.turns.askers
    assert set(library.shelf) == {
        f"{s.name} {s.stamp}" for n, s in sources().items() if n in (A, B)
    }
    assert len([*swept(exam(SUMS, max_new_tokens=4), library)]) == 6


def test_one_memory_for_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    assert len([*swept(exam(SUMS, max_new_tokens=4), Library("cpu", ROOMY))]) == 6
    assert len({tuple(places) for _, places in seen}) == 1


def test_merges_of_others_stay() -> None:
    """A sweep needs the room of one merge, whatever its points; and what is lent never leaves."""
    loaded = alone(LAMBDA[1.0])
    library = Library("cpu", 4 * loaded.size + loaded.size // 2)  # it, two parents, and one more
    library.publish("somebody's", loaded)
    with library.borrow("somebody's", 0, lambda: loaded):
        assert len([*swept(exam(SUMS, max_new_tokens=4), library)]) == 6
        assert library.has("somebody's")
        library.budget = loaded.size // 2
        with pytest.raises(MergeError, match="more memory"):
            [*swept(exam(SUMS, max_new_tokens=4), library)]
    assert not library.aside.total()


def test_by_a_job() -> None:
    """The same through the seam to the device, whose jobs and events can be sent elsewhere."""
    gpu._library.cache_clear()
    decided = plan(RECIPE)
    texts = {value: recipe.to_yaml() for value, recipe in LAMBDA.items()}
    given = exam(SUMS, max_new_tokens=4)
    places = gpu.merge_job(decided).parents
    job = pickle.loads(pickle.dumps(gpu.Job(sweep=gpu.Sweeping(texts, places, given))))
    got = [pickle.loads(pickle.dumps(e)) for e in gpu.run(job) if isinstance(e, Scored)]
    assert got == [*swept(given, Library("cpu", ROOMY))]
    assert not any(key in gpu._library().shelf for key in (decided.identity, "merged"))
    more = gpu.Job(sweep=gpu.Sweeping(texts, places, exam(ASKED, max_new_tokens=256)))
    assert 5 <= gpu.seconds(job) < gpu.seconds(more) <= gpu.LONGEST
    gpu._library.cache_clear()


def test_an_exam_needs_something_to_score() -> None:
    with pytest.raises(MergeError, match="what is expected"):
        exam([("Who are you?", "")])
    mixed = exam([("Who are you?", ""), *SUMS], system="Be brief.")
    assert len(mixed.questions) == 2 and mixed.questions[0][0]["role"] == "system"
    assert len(exam([("Who are you?", ""), *SUMS], texts=True).questions) == 3


def test_the_best_of_equals_is_the_middle_one() -> None:
    points = {v: Result(marks=(v in (1, 2, 3, 4, 5),)) for v in map(float, range(7))}
    assert best(points) == 3.0
    nats = {0.0: Result(nats={A: 1.0, B: 0.1}), 1.0: Result(nats={A: 0.2, B: 0.3})}
    assert best(nats | {2.0: Result(nats={A: None, B: 0.0})}) == 1.0


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
