"""Folder and Live: the same weights on disk and in memory, in the official writer's bytes."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging import merge, plan
from merging.errors import MergeError
from merging.plan import Plan
from merging.sinks import Folder, Live
from tests.conftest import EXTRA, WEIGHTS, changed, loaded, recipe

Pico = dict[str, Path]


def run(decided: Plan, sink: Any) -> Any:
    for _ in merge(decided, sink):
        pass
    return sink


@pytest.fixture
def decided(pico: Pico) -> Plan:
    return plan(recipe("ties", [pico["a"], pico["c"]], base_model=pico["base"]))


def answer(model: Any, tokenizer: Any) -> list[int]:
    ids = tokenizer("w1 w2 w3", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=ids != -1)
    return list(out[0].tolist())


def test_the_bytes_of_the_official_writer(decided: Plan, tmp_path: Path) -> None:
    """model.safetensors equals what save_file writes for the same tensors, byte for byte."""
    run(decided, Folder(tmp_path / "out"))
    save_file(loaded(tmp_path / "out"), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_mixed_and_empty_tensors_too(pico: Pico, tmp_path: Path) -> None:
    """The same holds with integers, scalars, empty tensors and several float types in a file."""
    more: dict[str, Tensor] = {
        "model.ids": torch.arange(5), "model.mask": torch.tensor([True, False, True]),
        "model.scale": torch.tensor(1.5), "model.none": torch.zeros(0, 4),
        "model.half": torch.ones(3, dtype=torch.float16), "model.bytes": torch.ones(7).byte(),
        "model.double": torch.ones(3, dtype=torch.float64),
        "model.int": torch.ones(3, dtype=torch.int32),
    }  # fmt: skip
    parents = [changed(pico[n], tmp_path / n, tensors=more) for n in ("a", "c")]
    run(plan(recipe("linear", parents)), Folder(tmp_path / "out"))
    save_file(loaded(tmp_path / "out"), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("source", ["base", "union"])
def test_live_and_folder_agree(source: str, pico: Pico, tmp_path: Path) -> None:
    """The model in memory has the folder's weights and says the same, with and without new rows."""
    chosen = recipe(
        "ties", [pico["a"], pico["b"]], base_model=pico["base"], tokenizer_source=source
    )
    live = run(plan(chosen), Live())
    run(plan(chosen), Folder(tmp_path / "out"))
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs, ours = stored.state_dict(), live.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    said = answer(stored, AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert answer(live.model, live.tokenizer) == said and len(said) > 4
    assert not live.model.training and not any(p.requires_grad for p in live.model.parameters())


def test_new_tokens_come_with_their_rows(pico: Pico) -> None:
    """Union: b's two tokens have b's rows, the config counts them, the tokenizer knows them."""
    chosen = recipe(
        "ties", [pico["a"], pico["b"]], base_model=pico["base"], tokenizer_source="union"
    )
    live = run(plan(chosen), Live())
    b = load_file(pico["b"] / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(live.model.state_dict()[name][64:], b[name][64:])
    assert live.model.config.vocab_size == 66
    ids = live.tokenizer.encode(f"w5 {EXTRA[0]} w7 {EXTRA[1]}", add_special_tokens=False)
    assert ids == [8, 64, 10, 65]
    assert live.tokenizer.convert_ids_to_tokens(ids[1::2]) == EXTRA
    assert live.tokenizer.decode(ids, skip_special_tokens=True).split() == ["w5", "w7"]


def test_live_in_float32_is_the_stored_one_before_rounding(decided: Plan, tmp_path: Path) -> None:
    """A chat in float32 loses nothing: rounded, its weights are the folder's."""
    live = run(decided, Live(dtype=torch.float32))
    run(decided, Folder(tmp_path / "out"))
    stored = loaded(tmp_path / "out")
    for name, value in live.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value.to(torch.bfloat16), stored[name])


def test_tied_parents_stay_tied(pico: Pico, tmp_path: Path) -> None:
    """Parents without a head of their own give a model whose head is its embeddings."""
    parents = [
        changed(pico[n], tmp_path / n, tensors={"lm_head.weight": None},
                config={"tie_word_embeddings": True})
        for n in ("a", "c")
    ]  # fmt: skip
    decided = plan(recipe("linear", parents))
    live = run(decided, Live())
    assert live.model.config.tie_word_embeddings
    assert live.model.lm_head.weight.data_ptr() == live.model.model.embed_tokens.weight.data_ptr()
    run(decided, Folder(tmp_path / "out"))
    assert "lm_head.weight" not in loaded(tmp_path / "out")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert answer(stored, live.tokenizer) == answer(live.model, live.tokenizer)


def test_a_tied_and_an_untied_parent_untie(pico: Pico, tmp_path: Path) -> None:
    """One head and one shared matrix merge into a head of its own, and the config says so."""
    tied = changed(
        pico["c"], tmp_path / "tied", tensors={"lm_head.weight": None},
        config={"tie_word_embeddings": True},
    )  # fmt: skip
    decided = plan(recipe("linear", [tied, pico["a"]], out_dtype="float32"))
    assert any("keeps them apart" in note.text for note in decided.notes)
    run(decided, Folder(tmp_path / "out"))
    a, c = load_file(pico["a"] / WEIGHTS), load_file(tied / WEIGHTS)
    wanted = (a["lm_head.weight"].float() + c["model.embed_tokens.weight"].float()) / 2
    assert torch.allclose(loaded(tmp_path / "out")["lm_head.weight"], wanted)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False and written["dtype"] == "float32"
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())


def test_a_config_that_lies_is_told(pico: Pico, tmp_path: Path) -> None:
    """Biases in the config and none in the files: Live names the class and what it lacks."""
    parents = [changed(pico[n], tmp_path / n, config={"attention_bias": True}) for n in ("a", "c")]
    with pytest.raises(MergeError, match=r"LlamaForCausalLM lacks model\.layers\.0.*bias"):
        run(plan(recipe("linear", parents)), Live())


def test_a_full_disk_is_found_at_once(
    decided: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the merge cannot fit, it says both sizes before anything is written."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10))
    with pytest.raises(MergeError, match=r"needs 0\.00 GB and the disk has 0\.00 GB"):
        run(decided, Folder(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_every_parents_end_of_text_ends(pico: Pico, tmp_path: Path) -> None:
    """A parent that stops at its own added token makes the merge stop there, in its numbers."""
    ends = changed(pico["b"], tmp_path / "ends")
    (ends / "generation_config.json").write_text(json.dumps({"eos_token_id": 65}))
    chosen = recipe("ties", [pico["a"], ends], base_model=pico["base"], tokenizer_source="union")
    run(plan(chosen), Folder(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 65]


@pytest.mark.parametrize("name", ["a[1]", "with space", "ünï"])
def test_odd_folder_names(name: str, decided: Plan, tmp_path: Path) -> None:
    """A partial of another merge is seen whatever the folder is called."""
    (tmp_path / f"{name}.partial-0").mkdir()
    with pytest.raises(MergeError, match="another merge"):
        run(decided, Folder(tmp_path / name))
    (tmp_path / f"{name}.partial-0").rmdir()
    run(decided, Folder(tmp_path / name))
    assert (tmp_path / name / WEIGHTS).is_file()


def test_a_parent_is_never_replaced(decided: Plan, pico: Pico) -> None:
    """`--replace` does not delete the folder that the merge reads."""
    with pytest.raises(MergeError, match="holds one of the parents"):
        run(decided, Folder(pico["a"], replace=True))
    assert (pico["a"] / WEIGHTS).is_file()


def test_files_of_another_shard_size_are_not_published(decided: Plan, tmp_path: Path) -> None:
    """A run that was killed and goes on with other shards leaves none of the old ones behind."""
    folder = Folder(tmp_path / "out", shard=20_000)
    steps = merge(decided, folder)
    while not list(tmp_path.glob("*.partial-*/*.safetensors")):
        next(steps)
    steps.close()
    run(decided, Folder(tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors")] == [WEIGHTS]


def test_other_cuts_under_the_same_names_are_not_continued(decided: Plan, tmp_path: Path) -> None:
    """Another shard size may give as many files, cut elsewhere: continuing would lose tensors."""
    first: dict[int, tuple[int, int]] = {}
    for size in range(9_000, 30_000, 500):
        run(decided, Folder(tmp_path / "tried", shard=size, replace=True))
        files = sorted((tmp_path / "tried").glob("*.safetensors"))
        before, cut = first.setdefault(len(files), (size, files[0].stat().st_size))
        if cut != files[0].stat().st_size:
            break
    steps = merge(decided, Folder(tmp_path / "out", shard=before))
    while not list(tmp_path.glob("out.partial-*/*.safetensors")):
        next(steps)
    steps.close()
    run(decided, Folder(tmp_path / "out", shard=size))
    found, wanted = loaded(tmp_path / "out"), loaded(tmp_path / "tried")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_model_after_another_is_as_a_new_one(pico: Pico) -> None:
    """A second merge of the same parents copies the first one's object, with its own weights."""
    first = run(plan(recipe("linear", [pico["a"], pico["c"]])), Live())
    chosen = plan(recipe("slerp", [pico["a"], pico["c"]], parameters={"t": 0.3}))
    asked: list[str] = []

    def like(mould: str) -> Live | None:
        asked.append(mould)
        return first if mould == first.mould else None

    second, new = run(chosen, Live(like=like)), run(chosen, Live())
    assert asked == [first.mould] == [second.mould]
    assert second.tokenizer is first.tokenizer and second.model is not first.model
    weights, own = new.model.state_dict(), second.model.state_dict()
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], weights[name]) for name in weights)
    shared = {p.data_ptr() for p in first.model.parameters()}
    assert not shared & {p.data_ptr() for p in second.model.parameters()}
    assert not any(p.requires_grad for p in second.model.parameters())
    ids = torch.arange(12).view(1, -1)
    assert torch.equal(second.model(ids).logits, new.model(ids).logits)
    assert not torch.equal(second.model(ids).logits, first.model(ids).logits)


def test_tied_heads_stay_tied_in_a_copy(pico: Pico, tmp_path: Path) -> None:
    """One parameter under two names is one parameter again."""
    tied = [
        changed(pico[n], tmp_path / n, tensors={"lm_head.weight": None},
                config={"tie_word_embeddings": True})
        for n in ("a", "c")
    ]  # fmt: skip
    first = run(plan(recipe("linear", tied)), Live())
    chosen = plan(recipe("slerp", tied, parameters={"t": 0.3}))
    second = run(chosen, Live(like=lambda _: first))
    assert second.tokenizer is first.tokenizer
    head, embedding = (second.model.lm_head.weight, second.model.model.embed_tokens.weight)
    assert head is embedding


@pytest.mark.parametrize("differs", ["template", "dtype", "vocabulary"])
def test_another_mould_is_another_model(differs: str, pico: Pico) -> None:
    """Whatever the tokenizer, the config or the weights' type decide makes another mould."""
    first = run(plan(recipe("linear", [pico["a"], pico["c"]])), Live())
    if differs == "vocabulary":
        other = run(plan(recipe("linear", [pico["a"], pico["b"]])), Live())
    else:
        options = {"template": {"chat_template": "chatml"}, "dtype": {"dtype": "float32"}}[differs]
        other = run(plan(recipe("linear", [pico["a"], pico["c"]], **options)), Live())
    assert other.mould != first.mould


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_replacement_left_goes(there: bool, decided: Plan, tmp_path: Path) -> None:
    """A former result beside OUT_DIR goes with the next merge, whichever that is, and whether
    OUT_DIR had its name already or not; folders that only look alike stay.
    """
    old, own = tmp_path / "out.old-0123456789abcdef", tmp_path / "out.old-of-mine"
    for folder in (old, own, *([tmp_path / "out"] if there else [])):
        folder.mkdir()
        (folder / WEIGHTS).touch()
    run(decided, Folder(tmp_path / "out", replace=True))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out", own]
    assert loaded(tmp_path / "out") and (own / WEIGHTS).is_file()


def test_the_former_result_stays_while_there_is_no_other(decided: Plan, tmp_path: Path) -> None:
    """Killed between two renames, and stopped when run again: the only whole result is kept."""
    old = tmp_path / "out.old-0123456789abcdef"
    old.mkdir()
    steps = merge(decided, Folder(tmp_path / "out"))
    next(steps)
    steps.close()  # type: ignore[attr-defined]  # merge is a generator
    assert list(tmp_path.iterdir()) == [old]


def test_a_folder_that_comes_up_meanwhile_is_not_replaced(decided: Plan, tmp_path: Path) -> None:
    """What another program makes of OUT_DIR's name stays, and the merge is not lost either."""
    out = tmp_path / "out"
    steps = merge(decided, Folder(out))
    next(steps)
    out.mkdir()
    (out / "theirs").touch()
    with pytest.raises(MergeError, match=r"out exists: .*add --replace"):
        list(steps)
    assert [path.name for path in out.iterdir()] == ["theirs"]
    [partial] = tmp_path.glob("out.partial-*")
    written = (partial / WEIGHTS).stat()
    run(decided, Folder(out, replace=True))
    assert (out / WEIGHTS).stat().st_ino == written.st_ino
    assert (out / WEIGHTS).stat().st_mtime_ns == written.st_mtime_ns
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_is_not_replaced(decided: Plan, tmp_path: Path) -> None:
    """`--replace` is for folders: a file of that name may be anything."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(MergeError, match="out is no folder"):
        run(decided, Folder(tmp_path / "out", replace=True))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_leads_to_the_result(there: bool, decided: Plan, tmp_path: Path) -> None:
    """OUT_DIR may be a link to another disk: the merge is made there, and the link stays."""
    (tmp_path / "disk").mkdir()
    if there:
        (tmp_path / "disk" / "merge").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "merge")
    steps = merge(decided, Folder(tmp_path / "out", replace=True))
    next(steps)
    assert list((tmp_path / "disk").glob("merge.partial-*"))
    list(steps)
    assert (tmp_path / "out").is_symlink() and loaded(tmp_path / "disk" / "merge")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["merge"]
