"""The check of a merge: broken ones are flagged with their cause, good ones are not, and its
numbers are those of transformers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merging import Recipe, gpu, merge, plan, sanity, trials, working
from merging.blocks import returned
from merging.causes import Signs, signs
from merging.inside import whole
from merging.library import Library
from merging.loading import Loaded, load_parent
from merging.methods import methods, variants
from merging.opening import open_folder
from merging.samples import summed
from merging.sanity import Verdict
from merging.sinks import Live
from merging.sources import Checkpoint
from tests.conftest import WEIGHTS, changed, recipe
from tests.ui.models import DEMO, talkative

pytestmark = pytest.mark.usefixtures("one_thread")

Pico = dict[str, Path]
BASE, A, B = (DEMO / name for name in ("base", "a", "b"))
ROOMY = 10**9
NONE = Signs()


def source(folder: Path) -> Checkpoint:
    return open_folder(folder, str(folder))


def lone(folder: Path) -> Loaded:
    return load_parent(source(folder), "cpu")


def merged(made: Recipe) -> tuple[Loaded, Signs]:
    decided, live = plan(made), Live(dtype=torch.float32)
    samples: dict[str, Any] = {}
    for _ in merge(decided, live, samples=samples):
        pass
    sums = summed(samples)
    found = signs(decided, sums, whole(decided, sums))
    return Loaded.of(live.model, live.tokenizer), found


def judged(loaded: Loaded, *parents: Path, found: Signs = NONE, room: int = ROOMY) -> Verdict:
    library = Library("cpu", room)
    return returned(sanity.check(library, loaded, [source(p) for p in parents], found))


def of(made: Recipe, *parents: Path) -> Verdict:
    loaded, found = merged(made)
    return judged(loaded, *parents, found=found)


def defaults() -> Iterator[tuple[str, dict[str, Any]]]:
    """All methods that merge two models, in all variants, as they are without any value set."""
    for name in methods():
        for variant, method in variants(name).items():
            if method.models[0] <= 2 <= method.models[1]:
                keys: dict[str, Any] = {"variant": variant} if variant else {}
                if method.base != "none":
                    keys["base_model"] = A if method.base == "first" else BASE
                yield name, keys


GOOD = [
    *defaults(),
    ("slerp", {"base_model": A, "parameters": {"t": 0.2}}),
    ("ties", {"base_model": BASE, "parameters": {"density": 0.5, "lambda": 1}}),
    ("ties", {"base_model": BASE, "parameters": {"density": 0.1}}),
    ("task_arithmetic", {"base_model": BASE, "parameters": {"lambda": 0.25}}),
    ("linear", {"parameters": {"weight": 0.5}}),
]


@pytest.mark.parametrize(("method", "keys"), GOOD, ids=lambda part: str(part)[:40])
def test_good_merges_pass(method: str, keys: dict[str, Any]) -> None:
    """What merges the demo's two skills reads as its parents do, ends its answers and repeats
    nothing."""
    verdict = of(recipe(method, [A, B], **keys), A, B)
    assert verdict.ok, verdict.text
    assert verdict.text.startswith("It works") and verdict.text.count(".") < 5
    told = verdict.figures
    assert told["cause"] is None and told["text"] == "lines" and told["without"] == []
    assert told["ended"] == told["asked"] == 3 and told["repeated"] < 0.2
    assert told["perplexity"]["merged"] < 1.2 and told["apart"] < 0.3


def stranger(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same function in other places: what is inside comes in another order."""
    random = torch.Generator().manual_seed(0)
    width, inner = (torch.randperm(n, generator=random) for n in (128, 384))
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("norm.weight") or "o_proj" in name:
            found[name] = tensor[width]
        elif "down_proj" in name:
            found[name] = tensor[width][:, inner]
        elif "gate_proj" in name or "up_proj" in name:
            found[name] = tensor[inner][:, width]
        else:
            found[name] = tensor[:, width]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def shuffled_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    order = torch.randperm(
        len(tensors["lm_head.weight"]), generator=torch.Generator().manual_seed(1)
    )
    rows = ("model.embed_tokens.weight", "lm_head.weight")
    return {name: t[order] if name in rows else t for name, t in tensors.items()}


def other_numbers(folder: Path) -> None:
    """The tokenizer of somebody else: the words stand at other numbers."""
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = written["model"]["vocab"]
    words = [word for word, number in vocabulary.items() if number >= 300]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(2)).tolist()
    numbers = [vocabulary[words[place]] for place in order]
    vocabulary.update(zip(words, numbers, strict=True))
    for added in written["added_tokens"]:
        added["id"] = vocabulary.get(added["content"], added["id"])
    path.write_text(json.dumps(written), encoding="utf-8")


def like_b(change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], to: Path) -> Path:
    return changed(B, to, tensors=change(load_file(B / WEIGHTS)))


METHODS = {
    "ties": {"base_model": BASE, "parameters": {"density": 0.5}},
    "task_arithmetic": {"base_model": BASE},
    "linear": {},
    "slerp": {"base_model": A},
}
EACH = pytest.mark.parametrize(("method", "keys"), METHODS.items(), ids=METHODS)


@EACH
def test_another_ancestor(method: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """A model that says what B says and grew elsewhere is told from one of the family."""
    foreign = like_b(stranger, tmp_path / "foreign")
    kind = "lines"
    turns = Library("cpu", ROOMY).turns
    own, same = returned(trials.read([lone(B), lone(foreign)], kind, turns))
    assert own == pytest.approx(same, abs=1e-4)  # it is no worse a model
    verdict = of(recipe(method, [A, foreign], **keys), A, foreign)
    assert not verdict.ok and verdict.figures["cause"] == "ancestors", verdict
    assert "ancestors" in verdict.text and "one and the same base" in verdict.text


@pytest.mark.parametrize("step", [1, 2, 3])
def test_strangers_in_a_long_step(step: float, tmp_path: Path) -> None:
    """A longer step makes longer weights, which are no measure of how far the models lie apart."""
    foreign = like_b(stranger, tmp_path / "foreign")
    keys = {"base_model": BASE, "parameters": {"lambda": step}}
    verdict = of(recipe("task_arithmetic", [A, foreign], **keys), A, foreign)
    assert not verdict.ok and verdict.figures["cause"] == "ancestors", verdict


def test_a_base_that_is_none_of_theirs(tmp_path: Path) -> None:
    """Two deltas to a stranger add up to long weights: the base is as far away all the same."""
    base = changed(BASE, tmp_path / "base", tensors=stranger(load_file(BASE / WEIGHTS)))
    verdict = of(recipe("task_arithmetic", [A, B], base_model=base), A, B)
    assert not verdict.ok and verdict.figures["cause"] == "ancestors", verdict
    assert verdict.figures["apart"] > 1


def test_weights_that_add_up_to_next_to_nothing() -> None:
    """Short weights make no strangers of siblings."""
    keys = {"parameters": {"weight": 0.05, "normalize": False}}
    verdict = of(recipe("linear", [A, B], **keys), A, B)
    assert not verdict.ok and verdict.figures["cause"] == "step", verdict
    assert verdict.figures["apart"] < 0.3


@EACH
def test_rows_in_another_order(method: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """A model whose rows do not belong to its tokens."""
    mixed = like_b(shuffled_rows, tmp_path / "mixed")
    verdict = of(recipe(method, [A, mixed], **keys), A, mixed)
    assert not verdict.ok and verdict.figures["cause"] == "vocabulary", verdict
    assert "tokenizer files" in verdict.text


@EACH
def test_mixed_vocabularies(method: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """A model with the tokenizer of another."""
    mixed = changed(B, tmp_path / "mixed")
    other_numbers(mixed)
    verdict = of(recipe(method, [A, mixed], **keys), A, mixed)
    assert not verdict.ok and verdict.figures["cause"] == "vocabulary", verdict


def test_a_merge_with_another_tokenizer_than_its_rows(tmp_path: Path) -> None:
    """Where the parents are whole, the merged rows are found to be unlike those of their tokens."""
    mixed = changed(A, tmp_path / "mixed")
    other_numbers(mixed)
    verdict = judged(replace(lone(A), tokenizer=lone(mixed).tokenizer), A, B)
    assert not verdict.ok and verdict.figures["cause"] == "vocabulary", verdict


def test_a_token_without_a_row() -> None:
    """B's two tokens have no rows in A: a text with them would end in an error."""
    verdict = judged(replace(lone(A), tokenizer=lone(B).tokenizer), A, B)
    assert not verdict.ok and verdict.figures["cause"] == "vocabulary"
    assert "`<|fr|>`" in verdict.text and "1,024" in verdict.text


def test_tokens_that_a_recipe_leaves_out_are_no_loss() -> None:
    """`tokenizer_source: base` drops B's own tokens because it was asked to."""
    keys = {"base_model": BASE, "tokenizer_source": "base", "parameters": {"density": 0.5}}
    assert of(recipe("ties", [A, B], **keys), A, B).ok


@pytest.mark.parametrize(
    ("method", "values", "cause", "says"),
    [
        ("task_arithmetic", {"lambda": 8}, "step", "`lambda`"),
        ("ties", {"density": 0.5, "lambda": 8}, "step", "times the longest model's"),
        ("task_arithmetic", {"lambda": 2}, "step", "too long"),
        ("ties", {"density": 0.001}, "density", "raise `density`"),
    ],
)
def test_sliders_too_far(method: str, values: dict[str, Any], cause: str, says: str) -> None:
    """Too long a step babbles; too thin a trim leaves the base, which reads well."""
    verdict = of(recipe(method, [A, B], base_model=BASE, parameters=values), A, B)
    assert not verdict.ok and verdict.figures["cause"] == cause, verdict
    assert says in verdict.text and verdict.text.endswith(".")


def test_weights_that_do_not_add_up() -> None:
    """Without a base, a sum of models is several times as long as any."""
    keys = {"parameters": {"weight": 2, "normalize": False}}
    verdict = of(recipe("linear", [A, B], **keys), A, B)
    assert not verdict.ok and verdict.figures["cause"] == "step", verdict
    assert "add up to 1" in verdict.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    """One of them is enough; nothing else is asked of such a model."""
    broken = lone(A)
    broken.model.model.layers[2].mlp.up_proj.weight[7, 3] = bad
    verdict = judged(broken, A, B)
    assert not verdict.ok and verdict.figures == {"finite": False, "cause": "dtype"}
    assert "layers.2.mlp.up_proj" in verdict.text and "out_dtype: bfloat16" in verdict.text


def test_scores_that_are_not_finite() -> None:
    """Weights that a dtype just holds, and what is computed with them it does not."""
    broken = lone(A)
    broken.model.lm_head.weight.mul_(1e38)
    assert broken.model.lm_head.weight.isfinite().all()
    verdict = judged(broken, A, B)
    assert not verdict.ok and verdict.figures["cause"] == "dtype", verdict
    json.dumps(verdict.figures, allow_nan=False)


def test_answers_that_do_not_end(tmp_path: Path) -> None:
    """A merge that reads well and never stops, where its parents do."""
    endless = lone(talkative(tmp_path)["a"])
    verdict = judged(endless, A, B)
    assert not verdict.ok and verdict.figures["ended"] == 0, verdict
    assert "circles" in verdict.text or "None of its answers ends" in verdict.text
    quiet = judged(endless, *(tmp_path / name for name in ("a", "b")))
    assert quiet.ok  # parents that do so themselves are no measure


@pytest.mark.parametrize("kind", ["prose", "lines"])
def test_perplexity_is_transformers_own(kind: str) -> None:
    """Read in pieces, by byte, it is the loss that transformers has for the same tokens at once."""
    loaded = lone(B)
    text = trials.passage(loaded, kind)
    ids, judged, size = text.ids, text.judged, text.size
    given = torch.tensor([ids])
    wanted = given.masked_fill(~torch.tensor([judged]), -100)
    loss = loaded.model(input_ids=given, labels=wanted).loss
    (nats,) = returned(trials.read([loaded], kind, Library("cpu", ROOMY).turns))
    assert nats == pytest.approx(float(loss) * sum(judged) / size, rel=1e-4)
    words = "".join(trials.LINES.values()) if kind == "lines" else trials.PROSE
    assert size == len(words.encode())
    assert loaded.tokenizer.decode(torch.tensor(ids)[torch.tensor(judged)]) in words


def test_prose_is_a_hundred_and_thirty_words() -> None:
    """Plain enough to be the same text for every tokenizer: a character a byte."""
    assert 120 < len(trials.PROSE.split()) < 160 and trials.PROSE.isascii()


def test_models_that_know_neither_text(pico: Pico) -> None:
    """Of a tokenizer without these words nothing is concluded, but for weights and tokens."""
    made = recipe("ties", [pico["a"], pico["b"]], base_model=pico["base"])
    verdict = of(made, pico["a"], pico["b"])
    assert verdict.ok and verdict.figures["text"] is None, verdict
    assert "says nothing" in verdict.text


def test_without_room_for_the_parents() -> None:
    """Where only one parent fits, it is judged beside that one, and where none fits alone."""
    made = merged(recipe("linear", [A, B]))
    both = judged(made[0], A, B, found=made[1], room=lone(A).size + 10)
    assert both.ok and both.figures["without"] == [str(B)] and str(B) in both.text
    assert both.figures["text"] == "lines"
    alone = judged(made[0], A, B, found=made[1], room=10)
    assert alone.ok and alone.figures["best"] is None
    assert alone.text.startswith("Not compared with its models: perplexity")
    garbage = merged(recipe("ties", [A, B], base_model=BASE, parameters={"lambda": 3}))
    red = judged(garbage[0], A, B, found=garbage[1], room=10)
    assert not red.ok and red.figures["cause"] == "step", red  # though it knows which letters occur
    babble, found = merged(
        recipe("task_arithmetic", [A, B], base_model=BASE, parameters={"lambda": 8})
    )
    assert judged(babble, A, B, found=found, room=10).figures["cause"] == "step"


def test_a_parent_reads_once() -> None:
    """What the parents read is kept: the next merge of them pays for its own reading alone."""
    library, sources = Library("cpu", ROOMY), [source(A), source(B)]
    loaded, found = merged(recipe("linear", [A, B]))
    first = returned(sanity.check(library, loaded, sources, found))
    for parent in library.shelf.values():
        parent.model.lm_head.weight.zero_()  # had they to read again, it would show
    again = returned(sanity.check(library, loaded, sources, found))
    assert first.figures["perplexity"] == again.figures["perplexity"]


@pytest.fixture
def fresh() -> Iterator[None]:
    gpu._library.cache_clear()
    yield
    gpu._library.cache_clear()


def job(parents: Mapping[str, Path]) -> gpu.Job:
    keys = {"base_model": parents["base"], "parameters": {"density": 0.5}}
    return gpu.merge_job(plan(recipe("ties", [parents["a"], parents["b"]], **keys)))


@pytest.mark.usefixtures("fresh")
def test_a_job_ends_with_its_verdict() -> None:
    """It comes after the merge, crosses into other processes, and is the same when asked again."""
    made = replace(job({name: DEMO / name for name in ("base", "a", "b")}), check=True)
    *events, verdict = gpu.run(made)
    assert isinstance(verdict, Verdict) and verdict.ok
    assert [type(e) for e in events].count(gpu.Merged) == 1
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert json.loads(json.dumps(verdict.figures)) == verdict.figures
    assert verdict.figures["apart"] < 0.3 and set(verdict.figures["kept"]) == {str(A), str(B)}
    assert [type(event) for event in gpu.run(made)] == [gpu.Merged, Verdict]
    assert [*gpu.run(made)][-1] == verdict
    assert not any(isinstance(event, Verdict) for event in gpu.run(replace(made, check=False)))
    assert not any(gpu._library().lent.values())


def test_a_merge_in_parts() -> None:
    """Where not all of it is on the device it is judged by what is."""
    made = replace(job({name: DEMO / name for name in ("base", "a", "b")}), check=True)
    library = Library("cpu", int(0.6 * lone(A).size), ROOMY)
    verdict = [*working.work(made, library)][-1]
    (held,) = library.shelf.values()
    assert any(weight.is_meta for weight in held.model.parameters())
    assert isinstance(verdict, Verdict) and verdict.ok, verdict
    assert verdict.figures["apart"] < 0.3 and len(verdict.figures["without"]) == 2


@pytest.mark.usefixtures("fresh")
def test_a_check_that_fails_is_no_failure_of_the_merge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a parent gone in the meantime there is no verdict, a line in the log, and the merge."""
    copies = {name: changed(DEMO / name, tmp_path / name) for name in ("base", "a", "b")}
    made = job(copies)
    assert any(isinstance(event, gpu.Merged) for event in gpu.run(made))
    (copies["a"] / WEIGHTS).unlink()
    assert [type(event) for event in gpu.run(replace(made, check=True))] == [gpu.Merged]
    assert "The check of a merge failed" in caplog.text


@pytest.mark.usefixtures("fresh")
def test_a_check_can_be_stopped() -> None:
    """Closed at any of its events it gives its models back, and is whole the next time."""
    made = replace(job({name: DEMO / name for name in ("base", "a", "b")}), check=True)
    running = gpu.run(made)
    for event in running:
        if getattr(event, "stage", "") == "check":
            break
    running.close()  # type: ignore[attr-defined]  # it is a generator
    assert not any(gpu._library().lent.values())
    assert isinstance([*gpu.run(made)][-1], Verdict)


def test_its_seconds_are_asked_for() -> None:
    """On ZeroGPU a check is paid for like an answer."""
    made = job({name: DEMO / name for name in ("base", "a", "b")})
    assert gpu.seconds(made) < gpu.seconds(replace(made, check=True)) < gpu.seconds(made) + 5
