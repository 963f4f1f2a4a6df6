"""The command line as people and programs use it: what it prints, writes, refuses and leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline

from merging.__main__ import main
from tests.conftest import INDEX, WEIGHTS, changed, loaded, written
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

ROOT = Path(__file__).parents[1]
Pico = dict[str, Path]


def test_check_reads_no_weights(ties: Path, tmp_path: Path, capsys: Any) -> None:
    """`check` names method, models, notes and identity, and writes nothing."""
    before = sorted(tmp_path.iterdir())
    assert main(["check", str(ties)]) == 0
    out, err = capsys.readouterr()
    assert "TIES of" in out and "Same vocabulary · 64 rows" in out and "identity" in out
    assert "21 tensors" in out and err == ""
    assert sorted(tmp_path.iterdir()) == before


def test_a_merge_loads_and_generates(ties: Path, tmp_path: Path) -> None:
    """OUT_DIR loads with from_pretrained, nothing missing or unexpected, and with pipeline."""
    out = tmp_path / "merged"
    assert main(["run", str(ties), str(out), "--device", "cpu"]) == 0
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.bfloat16
    ask = pipeline("text-generation", model=str(out), device="cpu")
    [told] = ask("w1 w2 w3", max_new_tokens=5, max_length=None, do_sample=False)
    assert told["generated_text"].startswith("w1 w2 w3w")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged", "ties.yaml"]


def test_what_stands_beside_the_weights(ties: Path, tmp_path: Path) -> None:
    """The folder holds config, tokenizer, the recipe itself and a card that names the parents."""
    out = tmp_path / "merged"
    assert main(["run", str(ties), str(out)]) == 0
    names = {p.name for p in out.iterdir()}
    assert names >= {WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"}
    recipe = yaml.safe_load((out / "mergekit_config.yml").read_text())
    assert recipe == yaml.safe_load(ties.read_text())
    assert recipe["base_model"] in (out / "README.md").read_text()


def test_an_error_ends_the_program_with_2(ties: Path, tmp_path: Path) -> None:
    """`python -m merging run` over a bad recipe: exit code 2, one line on stderr, no traceback."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    ties.write_text(ties.read_text().replace("density", "densty"))
    command = [sys.executable, "-m", "merging", "run", ties, "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == "", done
    assert len(done.stderr.splitlines()) == 1 and "did you mean `density`?" in done.stderr
    assert not (tmp_path / "out").exists()


def test_methods_lists_every_parameter(capsys: Any) -> None:
    """`methods` prints each method with its parameters, defaults and slider ends."""
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "slerp: " in out and "Takes 2 models, base first." in out
    assert all(f"ties (variant {name}): " in out for name in ("mergekit", "paper", "peft"))
    assert "density (a model): part of the changes that is kept; default 1, slider 0 to 1" in out
    assert "normalize (in all)" in out and "default true" in out


def test_inspect_agrees_with_float64(ties: Path, pico: Pico, capsys: Any) -> None:
    """Norms and cosines over all elements equal those taken with numpy-like float64 at once."""
    assert main(["inspect", str(ties), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    base, *models = (load_file(pico[name] / WEIGHTS) for name in ("base", "a", "c"))
    deltas = [{k: (m[k].float() - base[k].float()).double() for k in base} for m in models]
    names = [str(pico["a"]), str(pico["c"])]

    def expect(told: Any, a: torch.Tensor, b: torch.Tensor) -> None:
        norms = [a.norm().item(), b.norm().item()]
        assert [told["norm"][n] for n in names] == pytest.approx(norms, rel=1e-12)
        [pair] = told["cosine"]
        assert pair["models"] == names
        cosine = ((a @ b) / (norms[0] * norms[1])).item()
        assert pair["value"] == pytest.approx(cosine, rel=1e-9, abs=1e-12)

    assert found["tensors"].keys() == base.keys()
    for key, told in found["tensors"].items():
        expect(told, *(d[key].flatten() for d in deltas))
    expect(found["whole"], *(torch.cat([d[k].flatten() for k in base]) for d in deltas))


def test_inspect_takes_no_angle_to_nothing(tmp_path: Path, pico: Pico, capsys: Any) -> None:
    """A model equal to its base has norm 0 and no cosine, and the JSON stays valid."""
    path = tmp_path / "same.yaml"
    same = changed(pico["base"], tmp_path / "same")
    path.write_text(written("task_arithmetic", [pico["a"], same], base_model=pico["base"]))
    assert main(["inspect", str(path), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["whole"]
    assert whole["norm"][str(same)] == 0 and whole["cosine"][0]["value"] is None


def test_seed_stands_for_the_recipes_own(ties: Path, tmp_path: Path) -> None:
    """--seed 7 gives the folder that `random_seed: 7` gives, recipe included."""
    assert main(["run", str(ties), str(tmp_path / "flag"), "--seed", "7"]) == 0
    ties.write_text(ties.read_text() + "random_seed: 7\n")
    assert main(["run", str(ties), str(tmp_path / "key")]) == 0
    for name in (WEIGHTS, "mergekit_config.yml", "config.json"):
        assert (tmp_path / "flag" / name).read_bytes() == (tmp_path / "key" / name).read_bytes()
    assert "random_seed: 7" in (tmp_path / "flag" / "mergekit_config.yml").read_text()


def demo(tmp_path: Path, **values: float) -> Path:
    """A TIES recipe over the embedded models."""
    entries = ["assets/demo/a", "assets/demo/b"]
    path = tmp_path / "demo.yaml"
    path.write_text(written("ties", entries, base_model="assets/demo/base", parameters=values))
    return path


@pytest.mark.usefixtures("one_thread")
def test_sanity_is_said_at_the_end(tmp_path: Path, capsys: Any) -> None:
    """A green line or a red one with cause and remedy; the files are there either way."""
    path = demo(tmp_path, density=0.5)
    assert main(["run", str(path), str(tmp_path / "good"), "--sanity"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("green: It works") and err == ""
    path = demo(tmp_path, **{"lambda": 8})
    assert main(["run", str(path), str(tmp_path / "bad"), "--sanity"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("red: ") and "step is too long" in last and "`lambda`" in last
    assert (tmp_path / "bad" / WEIGHTS).is_file()


def test_without_sanity_nothing_of_it_is_imported(ties: Path, tmp_path: Path) -> None:
    """Nor are model classes: a merge into a folder needs none."""
    code = (
        "import sys; from merging.__main__ import main; main(sys.argv[1:]); "
        "print(sorted({'merging.sanity', 'merging.chat'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, "run", str(ties), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_small_shards_load_alike(ties: Path, tmp_path: Path) -> None:
    """--max-shard-size cuts into several files with an index, which load as the single one does."""
    assert main(["run", str(ties), str(tmp_path / "one")]) == 0
    assert main(["run", str(ties), str(tmp_path / "many"), "--max-shard-size", "16KB"]) == 0
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    one, many = loaded(tmp_path / "one"), loaded(tmp_path / "many")
    assert len(shards) > 2 and sorted(set(index["weight_map"].values())) == [s.name for s in shards]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in one.values())
    assert all(s.stat().st_size < 20_000 for s in shards)
    assert one.keys() == many.keys() and all(torch.equal(one[k], many[k]) for k in one)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "many", output_loading_info=True)
    assert not any(report.values()), report


def test_an_existing_folder_needs_replace(ties: Path, tmp_path: Path, capsys: Any) -> None:
    """Without --replace OUT_DIR is left as it is; with it, it is the merge and nothing else."""
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert main(["run", str(ties), str(out)]) == 2
    assert "--replace" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert main(["run", str(ties), str(out), "--replace"]) == 0
    assert (out / WEIGHTS).is_file() and not (out / "mine.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged", "ties.yaml"]


def test_what_has_no_effect_is_told(tmp_path: Path, pico: Pico, capsys: Any) -> None:
    """A key that mergekit knows and the method does not use is a note, not an error."""
    path = tmp_path / "note.yaml"
    path.write_text(written("linear", [pico["a"], pico["c"]], parameters={"density": [0.1, 0.9]}))
    assert main(["run", str(path), str(tmp_path / "out")]) == 0
    assert "note: Linear does not use `density`" in capsys.readouterr().out


# What is refused

Bad = Callable[[Path, Pico], str]


def over(model: Callable[[Path, Pico], Path]) -> Bad:
    """A linear merge of `a` with a model made for the purpose."""

    def text(tmp: Path, pico: Pico) -> str:
        return written("linear", [pico["a"], model(tmp, pico)])

    return text


def keyed(method: str, number: int = 2, base: bool = True, **keys: Any) -> Bad:
    """A recipe over the first `number` fine-tunes, with these keys."""

    def text(_tmp: Path, pico: Pico) -> str:
        named = {"base_model": pico["base"]} if base else {}
        return written(method, [pico["a"], pico["c"], pico["b"]][:number], **named, **keys)

    return text


def truncated(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "cut")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-1000])
    return folder


def stub(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "stub")
    (folder / WEIGHTS).write_bytes(b"abc")
    return folder


def page(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "page")
    (folder / WEIGHTS).write_bytes(b"<!DOCTYPE html>" * 100)
    return folder


def nested_header(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "nested")
    head = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (folder / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head)
    return folder


def pickles(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "pickles")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    return folder


def shard_missing(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "gap")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "model-2.safetensors"}}))
    return folder


def shard_elsewhere(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "escape")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "../a/model.safetensors"}}))
    return folder


def not_a_number(tmp: Path, pico: Pico) -> Path:
    norm = torch.full((32,), float("nan"), dtype=torch.bfloat16)
    return changed(pico["c"], tmp / "nan", tensors={"model.norm.weight": norm})


def lacking(tmp: Path, pico: Pico) -> Path:
    return changed(pico["c"], tmp / "gap", tensors={"model.layers.1.mlp.up_proj.weight": None})


def wider(tmp: Path, pico: Pico) -> Path:
    up = torch.zeros(65, 32, dtype=torch.bfloat16)
    return changed(pico["c"], tmp / "wide", tensors={"model.layers.1.mlp.up_proj.weight": up})


def quantised(tmp: Path, pico: Pico) -> Path:
    return changed(pico["c"], tmp / "q", config={"quantization_config": {"bits": 4}})


def other_family(tmp: Path, pico: Pico) -> Path:
    return changed(pico["c"], tmp / "m", config={"architectures": ["MistralForCausalLM"]})


def no_json(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "j")
    (folder / "config.json").write_text("{")
    return folder


def bad_tokenizer(tmp: Path, pico: Pico) -> Path:
    folder = changed(pico["c"], tmp / "tok")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def beside(_tmp: Path, pico: Pico) -> str:
    return f"merge_method: linear\nmodels: [{{model: {pico['a']}, weight: 1}}, {pico['c']}]"


def aliases(_tmp: Path, _pico: Pico) -> str:
    return "x: &a 1\nparameters: {weight: [" + "*a," * 10_000 + "]}\n"


def deep(_tmp: Path, _pico: Pico) -> str:
    return "merge_method: linear\nmodels: " + "[" * 5_000 + "]" * 5_000


def twice(_tmp: Path, pico: Pico) -> str:
    return f"merge_method: linear\nmerge_method: ties\nmodels: [{pico['a']}, {pico['c']}]"


BAD: dict[str, tuple[Bad, tuple[str, ...]]] = {
    "no such folder": (over(lambda t, _: t / "nowhere"), ("nowhere", "no such folder", "check")),
    "name too long": (over(lambda t, _: t / ("n" * 300)), ("no such folder",)),
    "nobody's home": (over(lambda _t, _: Path("~no-such-user/m")), ("~no-such-user/m", "check")),
    "an empty folder": (over(lambda t, _: t), ("no config.json", "choose a folder")),
    "truncated": (over(truncated), ("cut", WEIGHTS, "truncated", "Fetch it again")),
    "too short": (over(stub), ("stub", "3 bytes", "fetch it again")),
    "a web page": (over(page), ("page", "not a whole safetensors file", "fetch it again")),
    "nested header": (over(nested_header), ("nested", "broken header", "fetch it again")),
    "only pickles": (over(pickles), ("pytorch_model.bin", "pickled", "choose a model with safe")),
    "missing shard": (over(shard_missing), ("model-2.safetensors is missing", "fetch")),
    "index leads elsewhere": (over(shard_elsewhere), ("../a/model.safetensors", "plain name")),
    "NaN": (over(not_a_number), ("nan", "`model.norm.weight`", "not finite", "choose another")),
    "missing tensor": (over(lacking), ("`model.layers.1.mlp.up_proj.weight`", "gap", "choose")),
    "other shape": (over(wider), ("64 × 32", "65 × 32", "wide", "same size")),
    "quantised": (over(quantised), ("quantised", "bf16 or fp16")),
    "other architecture": (
        over(other_family), ("LlamaForCausalLM", "MistralForCausalLM", "one family"),
    ),
    "config is no JSON": (over(no_json), ("config.json is not valid JSON", "fetch")),
    "tokenizer is none": (over(bad_tokenizer), ("tokenizer.json cannot be read",)),
    "no adapter": (over(lambda _t, p: Path(f"{p['c']}+{p['base']}")), ("no adapter", "name it")),
    "lam": (keyed("ties", parameters={"lam": 1}), ("`lam`", "`lambda`")),
    "merge_ratio": (keyed("slerp", base=False, parameters={"merge_ratio": 0.5}), ("`t`",)),
    "density 1.5": (keyed("ties", parameters={"density": 1.5}), ("density: 1.5", "0 to 1")),
    "t 2": (keyed("slerp", base=False, parameters={"t": 2}), ("t: 2", "0 to 1")),
    "t in a gradient": (keyed("slerp", base=False, parameters={"t": [0, -1]}), ("t: -1", "0 to")),
    "out of range under one filter": (
        keyed("slerp", base=False, parameters={"t": [{"filter": "mlp", "value": 3}, {"value": 0}]}),
        ("t: 3", "0 to 1"),
    ),
    "no number": (keyed("ties", parameters={"density": "half"}), ("density: half", "a number")),
    "not finite": (keyed("ties", parameters={"lambda": float("inf")}), ("lambda: inf", "number")),
    "digits without end": (keyed("ties", parameters={"lambda": 10**400}), ("lambda", "number")),
    "no switch": (keyed("ties", parameters={"normalize": 3}), ("normalize: 3", "true or false")),
    "lambda under a model": (
        lambda _t, p: written("ties", [(p["a"], {"lambda": 1}), p["c"]], base_model=p["base"]),
        ("`lambda`", "no effect", "recipe's own"),
    ),
    "slerp of three": (keyed("slerp", 3, base=False), ("SLERP takes 2 models", "has 3", "remove")),
    "ties without base": (keyed("ties", base=False), ("base_model", "add")),
    "weights cancel": (
        lambda _t, p: written("linear", [(p["a"], {"weight": 1}), (p["c"], {"weight": -1})]),
        ("add up to 0", "change one"),
    ),
    "listed twice": (
        lambda _t, p: written("ties", [p["a"], p["a"]], base_model=p["base"]),
        ("listed twice", "choose another"),
    ),
    "no such method": (keyed("tie"), ("`tie`", "`ties`")),
    "misspelt key": (keyed("ties", base_modle="x"), ("`base_modle`", "`base_model`")),
    "slices": (keyed("ties", slices=[]), ("`slices`", "models")),
    "wrong dtype": (keyed("ties", dtype="int7"), ("dtype: int7", "bfloat16")),
    "no template": (keyed("ties", chat_template="nice"), ("chat_template: nice", "chatml")),
    "no such tokenizer": (keyed("ties", tokenizer_source="x/y"), ("tokenizer_source: x/y",)),
    "weight beside model": (beside, ("`weight`", "beside", "parameters")),
    "aliases": (aliases, ("aliases", "write values out")),
    "deep": (deep, ("nested", "deep")),
    "twice": (twice, ("`merge_method`", "twice", "keep one")),
    "month 13": (lambda _t, _: "name: 2020-13-01", ("YAML", "month")),
    "not YAML": (lambda _t, _: "a: b: c: [", ("not valid YAML", "line 1")),
    "a list": (lambda _t, _: "- a", ("key: value",)),
    "empty": (lambda _t, _: "", ("key: value",)),
    "too large": (lambda _t, _: "# " + "x" * 70_000, ("larger than 64 KB",)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line(
    text: Bad, says: tuple[str, ...], tmp_path: Path, pico: Pico, capsys: Any
) -> None:
    """Exit code 2, one line on stderr with culprit and remedy, and neither OUT_DIR nor partial."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text(tmp_path, pico))
    before = sorted(tmp_path.iterdir())
    assert main(["run", str(path), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert "tensors" not in out and err.count("\n") == 1 and err.endswith("\n"), err
    assert all(part in err for part in says), err
    assert len(err) < 600, err
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_the_hub_lacks(hub: LocalHub, tmp_path: Path, capsys: Any) -> None:
    """A name that is neither folder nor repo is named in one line, with exit code 2."""
    path = tmp_path / "recipe.yaml"
    path.write_text(written("linear", ["nobody/nothing", "nobody/else"]))
    assert main(["run", str(path), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "nobody/nothing" in err
    assert hub.requests("nobody/nothing") and not (tmp_path / "out").exists()


def test_the_machines_login_serves_gated_models(
    hub: LocalHub, pico: Pico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated parent is refused without a login, and merged with the machine's own."""
    hub.add("org/gated", pico["a"], gated=True)
    hub.user("hf_machine", reads=["org/gated"])
    path = tmp_path / "recipe.yaml"
    path.write_text(written("linear", ["org/gated", str(pico["base"])]))
    assert main(["run", str(path), str(tmp_path / "out")]) == 2
    monkeypatch.setenv("HF_TOKEN", "hf_machine")
    assert main(["run", str(path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00 binary", b"x" * 100_000])
def test_a_recipe_that_is_none(content: bytes | None, tmp_path: Path, capsys: Any) -> None:
    """A file that is missing, binary or too large is named in one line."""
    path = tmp_path / "recipe.yaml"
    if content:
        path.write_bytes(content)
    assert main(["check", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(path) in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there(ties: Path, tmp_path: Path, capsys: Any) -> None:
    """--device cuda without a GPU says what to choose and leaves nothing."""
    assert main(["run", str(ties), str(tmp_path / "out"), "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no CUDA GPU" in err and "--device cpu" in err
    assert [p.name for p in tmp_path.iterdir()] == ["ties.yaml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["merge"], "merge"),
        (["run", "x.yaml"], "OUT_DIR"),
        (["run", "x.yaml", "out", "--max-shard-size", "big"], "5GB"),
        (["run", "x.yaml", "out", "--device", "tpu"], "tpu"),
        (["run", "x.yaml", "out", "--seed", "one"], "one"),
        (["run", "x.yaml", "--push-to", "name", "--sanity"], "OUT_DIR"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], says: str, capsys: Any) -> None:
    """Wrong usage is told like any other error: one line, exit code 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err


def test_a_negative_seed_is_refused(ties: Path, tmp_path: Path, capsys: Any) -> None:
    """--seed is checked as the recipe's own key is."""
    assert main(["run", str(ties), str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert "random_seed: -1" in capsys.readouterr().err


def test_inspect_says_what_its_figures_are_of(tmp_path: Path, pico: Pico, capsys: Any) -> None:
    """A method without base has no deltas: the figures are of weights, under the same names."""
    path = tmp_path / "linear.yaml"
    path.write_text(written("linear", [pico["a"], pico["c"]]))
    assert main(["inspect", str(path), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["whole"]
    a = torch.cat([v.flatten().double() for v in load_file(pico["a"] / WEIGHTS).values()])
    assert whole["of"] == "weights" and whole["angle"][0]["models"] == [*whole["norm"]]
    assert whole["norm"][str(pico["a"])] == pytest.approx(float(a.norm()), rel=1e-9)


def test_inspect_refuses_damage(tmp_path: Path, pico: Pico, capsys: Any) -> None:
    """Figures over NaN would be no JSON: the damaged model is named instead."""
    path = tmp_path / "nan.yaml"
    broken = not_a_number(tmp_path, pico)
    path.write_text(written("task_arithmetic", [pico["a"], broken], base_model=pico["base"]))
    assert main(["inspect", str(path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and str(broken) in err and "`model.norm.weight`" in err


TRIED = """merge_method: task_arithmetic
base_model: assets/demo/base
models: [{model: assets/demo/a}, {model: assets/demo/b}]
"""


def tried(tmp_path: Path) -> list[str]:
    """A recipe over the demo trio, and two questions."""
    (tmp_path / "trio.yaml").write_text(TRIED)
    (tmp_path / "two.tsv").write_text("What is 38 + 27?\t65\nSay my green shirt in French.\tma\n")
    return [str(tmp_path / "trio.yaml"), "--sheet", str(tmp_path / "two.tsv")]


def test_sweep(tmp_path: Path, capsys: Any) -> None:
    """A row a value, under those of the parents, and the same numbers for programs."""
    given = ["sweep", *tried(tmp_path), "--parameter", "lambda", "--from", "0", "--to", "2"]
    assert main([*given, "--steps", "3"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| lambda | all 2 questions, % | the 1 only a has right, % |"
    assert [row.split(" |")[0] for row in rows] == ["| a", "| b", "| 0", "| 1 (best)", "| 2"]
    assert rows[3] == "| 1 (best) | 100 | 100 |"
    assert main([*given, "--steps", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [value["value"] for value in found["values"]] == [0, 1, 2] and found["best"] == 1
    assert set(found["parents"]) == {"assets/demo/a", "assets/demo/b"}
    assert found["values"][1]["scores"] == [100, 100]


def test_compare(tmp_path: Path, capsys: Any) -> None:
    """All methods by name, the placebos last."""
    assert main(["compare", *tried(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| Task arithmetic | 1.71 |" in out and "| SLERP | 0.8" in out
    assert out.splitlines()[-1].startswith("| the last alone, shuffled | ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parameter", "t", "--from", "0", "--to", "1"], "`t` is no number of Task arithmetic"),
        (["--parameter", "lambda", "--from", "1", "--to", "0"], "no range"),
        (["--parameter", "lambda", "--from", "x", "--to", "0"], "invalid float value"),
        (["--parameter", "lambda", "--from", "0"], "--to"),
        (["--parameter", "weight", "--model", "x", "--from", "0", "--to", "1"], "for x"),
    ],
)
def test_sweeps_refused(arguments: list[str], words: str, tmp_path: Path, capsys: Any) -> None:
    recipe = tried(tmp_path)[0]
    assert main(["sweep", recipe, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1
    assert main(["compare", recipe, "--sheet", str(tmp_path / "none.tsv")]) == 2
