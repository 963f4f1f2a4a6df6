"""Any decoder: every family's files pair by name and shape, load again, and answer.

The models are pico models of the families' own classes. What a method computes is tested in
tests/methods; here linear, whose formula fits on a line, stands for the values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging import MergeError, merge, plan
from merging.plan import Plan
from merging.sinks import Folder, Live
from tests.conftest import EXTRA, WEIGHTS, WORDS, changed, loaded, recipe
from tests.decoders import FAMILIES, MIXTURES, TIED, build, save, trio, tuned

pytestmark = pytest.mark.usefixtures("one_thread")

Trio = dict[str, Path]
PROMPT = torch.tensor([[1, 5, 9, 23]])
QUARTER = [("a", 0.25), ("b", 0.75)]
HEADS = {"llama": "lm_head.weight", "gpt2": "lm_head.weight", "gpt_neox": "embed_out.weight"}
EMBEDDINGS = {
    "llama": "model.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each family's models, built when first asked for."""
    known: dict[str, Trio] = {}

    def get(kind: str) -> Trio:
        if kind not in known:
            known[kind] = trio(kind, tmp_path_factory.mktemp(kind))
        return known[kind]

    return get


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, made: Any) -> Trio:
    found: Trio = made(request.param)
    return found


@pytest.fixture
def llama(made: Any) -> Trio:
    found: Trio = made("llama")
    return found


def linear(first: Path, second: Path, **keys: Any) -> Plan:
    """A quarter of the first and three of the second."""
    entries = [(first, {"weight": 0.25}), (second, {"weight": 0.75})]
    return plan(recipe("linear", entries, **keys))


def ties(models: Trio, second: str = "b", **keys: Any) -> Plan:
    keys = {"base_model": models["base"], "parameters": {"density": 0.5}} | keys
    return plan(recipe("ties", [models["a"], models[second]], **keys))


def blend(first: Tensor, second: Tensor) -> Tensor:
    """What `linear` is to give: taken in float32, rounded once."""
    return (0.25 * first.float() + 0.75 * second.float()).to(first.dtype)


def run(decided: Plan, sink: Any) -> Any:
    for _ in merge(decided, sink):
        pass
    return sink


def written(decided: Plan, out: Path) -> dict[str, Tensor]:
    run(decided, Folder(out))
    return loaded(out)


def opened(folder: Path) -> Any:
    """The model as anybody loads it, if nothing is missing, left over or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {what: found for what, found in info.items() if found} == {}
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(PROMPT).logits
    return found


def answers(model: Any) -> None:
    """It generates four tokens, and knows what it says."""
    out = model.generate(PROMPT, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape == (1, PROMPT.shape[1] + 4)
    assert logits(model).isfinite().all()


def chats(decided: Plan, out: Path) -> None:
    """The folder loads as it is and answers; the same merge in memory says the same."""
    run(decided, Folder(out))
    model = opened(out)
    answers(model)
    live = run(decided, Live()).model
    assert live.dtype == model.dtype
    assert torch.equal(logits(live), logits(model))


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def amber(decided: Plan) -> str:
    return "\n".join(note.text for note in decided.notes if note.level == "amber")


def rewritten(folder: Path, to: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """A copy of a model with other tensors in place of all of its own."""
    gone = dict.fromkeys(load_file(folder / WEIGHTS))
    return changed(folder, to, tensors=gone | dict(tensors), config=config)


# Every family


@pytest.mark.parametrize("method", ["ties", "slerp"])
def test_a_merge_loads_and_answers(family: Trio, method: str, tmp_path: Path) -> None:
    """No key is missing, unexpected or mismatched, and the merge in memory is the same model."""
    parents = [family["a"], family["b"]]
    decided = ties(family) if method == "ties" else plan(recipe("slerp", parents))
    chats(decided, tmp_path / "out")
    assert "router" not in amber(decided)


def test_every_tensor_is_merged(family: Trio, tmp_path: Path) -> None:
    """The merged file has the parents' tensors, each with the formula's values."""
    a, b = loaded(family["a"]), loaded(family["b"])
    found = written(linear(family["a"], family["b"]), tmp_path / "out")
    assert found.keys() == a.keys() == b.keys()
    for name, value in found.items():
        assert not torch.equal(a[name], b[name]), name
        assert value.dtype == torch.bfloat16, name
        assert torch.equal(value, blend(a[name], b[name])), name


def test_a_vocabulary_grows(family: Trio, tmp_path: Path) -> None:
    """Two tokens that one parent has come with their rows, in embedding and head; the config and
    the tokenizer follow.
    """
    size, kept = len(WORDS), loaded(family["grown"])
    found = written(linear(family["a"], family["grown"]), tmp_path / "linear")
    by_token = {name for name, value in kept.items() if value.shape[0] == size + 2}
    assert len(by_token) == (1 if settings(family["a"])["model_type"] in TIED else 2)
    a = loaded(family["a"])
    for name in by_token:
        assert torch.equal(found[name], torch.cat(
            [blend(a[name], kept[name][:size]), kept[name][size:]]
        )), name  # fmt: skip
    decided = ties(family, "grown", tokenizer_source="union")
    found = written(decided, tmp_path / "ties")
    for name in by_token:
        assert torch.equal(found[name][size:], kept[name][size:]), name
    model = opened(tmp_path / "ties")
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == size + 2
    assert model.get_output_embeddings().weight.shape[0] == size + 2
    words = AutoTokenizer.from_pretrained(tmp_path / "ties")
    assert words.convert_tokens_to_ids(EXTRA) == [size, size + 1]
    assert torch.equal(logits(run(decided, Live()).model), logits(model))


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_padding_rows_are_kept(kind: str, tmp_path: Path) -> None:
    """Rows that no token uses stay: added tokens take the first of them, nobody cuts the rest."""
    size, padded = len(WORDS), 72
    models = trio(kind, tmp_path / "parents", vocab_size=padded)
    a, b, grown = (loaded(models[n]) for n in ("a", "b", "grown"))
    same = written(linear(models["a"], models["b"]), tmp_path / "same")
    found = written(linear(models["a"], models["grown"]), tmp_path / "out")
    for name in (n for n, value in a.items() if value.shape[0] == padded):
        assert torch.equal(same[name], blend(a[name], b[name])), name
        assert torch.equal(found[name][:size], blend(a[name], grown[name])[:size]), name
        assert torch.equal(found[name][size : size + 2], grown[name][size : size + 2]), name
        assert torch.equal(found[name][size + 2 :], a[name][size + 2 :]), name
    assert settings(tmp_path / "out")["vocab_size"] == padded
    chats(ties(models, "grown"), tmp_path / "ties")


# Heads


def heads(kind: str, root: Path, rows: int | None = None) -> Trio:
    """`base` and `tied` without a head, and `own` with one that is nothing like its embeddings."""
    tied = build(kind, tie_word_embeddings=True)
    own = build(kind, tie_word_embeddings=False)
    extra = EXTRA if rows else ()
    found = {
        "base": save(tied, root / "base"),
        "tied": save(tuned(tied, 1, rows), root / "tied", extra),
        "own": save(tuned(own, 2), root / "own"),
    }
    assert HEADS[kind] in loaded(found["own"]) and HEADS[kind] not in loaded(found["tied"])
    return found


@pytest.mark.parametrize("order", [("tied", "own"), ("own", "tied")])
@pytest.mark.parametrize("kind", list(HEADS))
def test_a_tied_parent_lends_its_embeddings(
    kind: str, order: tuple[str, str], tmp_path: Path
) -> None:
    """Where one parent has a head of its own, so has the merged model, and its config says so."""
    models = heads(kind, tmp_path)
    first, second = (loaded(models[n]) for n in order)
    head, embedding = HEADS[kind], EMBEDDINGS[kind]
    decided = linear(*(models[n] for n in order))
    found = written(decided, tmp_path / "out")
    lent = [own.get(head, own[embedding]) for own in (first, second)]
    assert torch.equal(found[head], blend(*lent))
    assert torch.equal(found[embedding], blend(first[embedding], second[embedding]))
    assert settings(tmp_path / "out")["tie_word_embeddings"] is False
    model = opened(tmp_path / "out")
    assert torch.equal(model.get_output_embeddings().weight, found[head])
    assert torch.equal(model.get_input_embeddings().weight, found[embedding])
    assert torch.equal(logits(run(decided, Live()).model), logits(model))
    assert f"`{head}`" in amber(decided)


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_tied_base_lends_its_embeddings(kind: str, tmp_path: Path) -> None:
    """Deltas of a head are taken to the base's embeddings where the base has no head."""
    models = heads(kind, tmp_path)
    keys = {"base_model": models["base"], "parameters": {"density": 0.5}}
    chats(plan(recipe("ties", [models["own"], models["tied"]], **keys)), tmp_path / "ties")
    keys["parameters"] = {"weight": 0.5, "normalize": False}
    decided = plan(recipe("task_arithmetic", [models["own"], models["tied"]], **keys))
    head = written(decided, tmp_path / "out")[HEADS[kind]]
    base, own, tied = (loaded(models[n]) for n in ("base", "own", "tied"))
    middle = own[HEADS[kind]].float() * 0.5 + tied[EMBEDDINGS[kind]].float() * 0.5
    assert EMBEDDINGS[kind] in base
    torch.testing.assert_close(head.float(), middle, rtol=2**-8, atol=2**-12)


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_lent_head_grows(kind: str, tmp_path: Path) -> None:
    """The tied parent's new tokens have their rows in the merged head too."""
    size = len(WORDS)
    models = heads(kind, tmp_path, rows=size + 2)
    own, tied = loaded(models["own"])[HEADS[kind]], loaded(models["tied"])[EMBEDDINGS[kind]]
    decided = linear(models["own"], models["tied"])
    head = written(decided, tmp_path / "out")[HEADS[kind]]
    assert torch.equal(head, torch.cat([blend(own, tied[:size]), tied[size:]]))
    assert opened(tmp_path / "out").config.vocab_size == size + 2


def test_tied_parents_stay_tied(tmp_path: Path) -> None:
    """Where no parent has a head, the merged model has none; nothing is said about it."""
    models = heads("llama", tmp_path)
    decided = linear(models["base"], models["tied"])
    assert "lm_head.weight" not in written(decided, tmp_path / "out")
    assert settings(tmp_path / "out")["tie_word_embeddings"] is True
    model = opened(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "lm_head" not in amber(decided)


def test_a_tied_head_that_is_kept_all_the_same(tmp_path: Path) -> None:
    """Some files hold the embeddings twice: the merged head is then the merged embeddings."""
    models = heads("llama", tmp_path)
    twice = {HEADS["llama"]: loaded(models["tied"])[EMBEDDINGS["llama"]]}
    models["tied"] = changed(models["tied"], tmp_path / "twice", tensors=twice)
    assert settings(models["tied"])["tie_word_embeddings"] is True
    decided = linear(models["tied"], models["base"])
    found = written(decided, tmp_path / "out")
    assert torch.equal(found[HEADS["llama"]], found[EMBEDDINGS["llama"]])
    assert torch.equal(logits(opened(tmp_path / "out")), logits(run(decided, Live()).model))


def test_a_head_called_output(tmp_path: Path, llama: Trio) -> None:
    """Decoders whose code is not in transformers pair too, with `output` and `tok_embeddings`."""
    words = {
        "model.embed_tokens.": "model.tok_embeddings.", "lm_head.": "output.",
        "self_attn.": "attention.", "mlp.": "feed_forward.",
    }  # fmt: skip

    def renamed(name: str) -> str:
        for one, other in words.items():
            name = name.replace(one, other)
        return name

    parents = {}
    for which in ("a", "b"):
        tensors = {renamed(n): t for n, t in loaded(llama[which]).items()}
        if which == "b":
            del tensors["output.weight"]
        to = tmp_path / which
        parents[which] = rewritten(llama[which], to, tensors, architectures=["OtherForCausalLM"])
    a, b = (loaded(parents[n]) for n in ("a", "b"))
    found = written(linear(parents["a"], parents["b"]), tmp_path / "out")
    assert found.keys() == a.keys()
    wanted = blend(a["output.weight"], b["model.tok_embeddings.weight"])
    assert torch.equal(found["output.weight"], wanted)


# Names without the model's prefix, and what old files carry


def bare(folder: Path, to: Path, prefix: str) -> Path:
    """As GPT-2's own files on the Hub: without the prefix of the class with a head."""
    return rewritten(folder, to, {n.removeprefix(prefix): t for n, t in loaded(folder).items()})


PREFIXES = {"gpt2": "transformer.", "gpt_neox": "gpt_neox.", "llama": "model."}


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("gpt2", ("a",)), ("gpt2", ("b",)), ("gpt2", ("a", "b")), ("gpt2", ("base",)),
        ("gpt_neox", ("a",)), ("llama", ("b",)),
    ],
)  # fmt: skip
def test_a_missing_prefix_is_no_other_model(
    kind: str, without: tuple[str, ...], made: Any, tmp_path: Path
) -> None:
    """`h.0.ln_1.weight` and `transformer.h.0.ln_1.weight` pair; the merged names are the first's,
    and load.
    """
    models = dict(made(kind))
    for which in without:
        models[which] = bare(models[which], tmp_path / which, PREFIXES[kind])
    found = written(linear(models["a"], models["b"]), tmp_path / "out")
    a, b = loaded(made(kind)["a"]), loaded(made(kind)["b"])
    assert found.keys() == loaded(models["a"]).keys()
    for name, tensor in a.items():
        value = found[name if name in found else name.removeprefix(PREFIXES[kind])]
        assert torch.equal(value, blend(tensor, b[name])), name
    opened(tmp_path / "out")
    chats(ties(models), tmp_path / "ties")


def test_a_missing_prefix_and_a_missing_head(tmp_path: Path) -> None:
    """GPT-2 as on the Hub, tied and without prefix, beside a fine-tune with prefix and head."""
    models = heads("gpt2", tmp_path)
    hub = bare(models["tied"], tmp_path / "hub", "transformer.")
    decided = linear(hub, models["own"])
    found = written(decided, tmp_path / "out")
    own = loaded(models["own"])["lm_head.weight"]
    assert torch.equal(found["lm_head.weight"], blend(loaded(hub)["wte.weight"], own))
    model = opened(tmp_path / "out")
    assert torch.equal(logits(run(decided, Live()).model), logits(model))


@pytest.mark.parametrize("which", [("a", "b"), ("a",), ("b",)])
@pytest.mark.parametrize(
    ("kind", "module"),
    [("gpt2", "transformer.h.{}.attn"), ("gpt_neox", "gpt_neox.layers.{}.attention")],
)
def test_masks_of_old_files_are_left_out(
    kind: str, module: str, which: tuple[str, ...], made: Any, tmp_path: Path
) -> None:
    """Causal masks, which old checkpoints carry and newer ones do not, are no weights: even where
    one of them is -inf in float16.
    """
    models = dict(made(kind))
    masks: dict[str, Tensor] = {}
    for number in (0, 1):
        at = module.format(number)
        masks[f"{at}.bias"] = (
            torch.ones(1, 1, 64, 64).tril().to(torch.float32 if kind == "gpt2" else torch.bool)
        )
        masks[f"{at}.masked_bias"] = torch.tensor(-1e9).half()
        masks[f"{at}.rotary_emb.inv_freq"] = torch.rand(4)
    for name in which:
        models[name] = changed(models[name], tmp_path / name, tensors=masks)
    decided = ties(models)
    assert {step.name for step in decided.steps} == loaded(models["base"]).keys()
    chats(decided, tmp_path / "out")


# Types


def cast(folder: Path, to: Path, dtype: torch.dtype) -> Path:
    name = str(dtype).removeprefix("torch.")
    tensors = {n: t.to(dtype) for n, t in loaded(folder).items()}
    return rewritten(folder, to, tensors, dtype=name)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"out_dtype": "float16"}, torch.float16),
        ({"dtype": "float32", "out_dtype": "bfloat16"}, torch.bfloat16),
    ],
)
def test_types_are_promoted_unless_told(
    keys: dict[str, str], expected: torch.dtype, llama: Trio, tmp_path: Path
) -> None:
    """A base in float32 with fine-tunes in float16 and bfloat16: arithmetic is float32 in any
    case, and the result has the type that holds all, or the one that was asked for.
    """
    models = {
        n: cast(llama[n], tmp_path / n, dtype)
        for n, dtype in (("base", torch.float32), ("a", torch.float16), ("b", torch.bfloat16))
    }
    entries = [models["a"], models["b"]]
    parameters = {"weight": 0.5, "lambda": 0.7}
    decided = plan(recipe(
        "task_arithmetic", entries, base_model=models["base"], parameters=parameters, **keys
    ))  # fmt: skip
    base, a, b = ({k: v.float() for k, v in loaded(models[n]).items()} for n in ("base", "a", "b"))
    close = {"rtol": max(2**-22, torch.finfo(expected).eps), "atol": 1e-6}
    for name, value in written(decided, tmp_path / "out").items():
        wanted = base[name] + 0.7 * (0.5 * (a[name] - base[name]) + 0.5 * (b[name] - base[name]))
        assert value.dtype == expected, name
        torch.testing.assert_close(value.float(), wanted, **close)
    assert settings(tmp_path / "out")["dtype"] == str(expected).removeprefix("torch.")
    assert opened(tmp_path / "out").dtype == expected
    assert run(decided, Live()).model.dtype == expected


def test_two_half_types_promote_to_a_whole_one(llama: Trio, tmp_path: Path) -> None:
    """Neither float16 nor bfloat16 holds the other."""
    half = cast(llama["a"], tmp_path / "a", torch.float16)
    found = written(linear(half, llama["b"]), tmp_path / "out")
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_one_file_of_two_types(llama: Trio, tmp_path: Path) -> None:
    """Norms and head in float32 beside matrices in bfloat16, as some trainers leave them: each
    tensor keeps its type in the file, and both ways of loading answer alike.
    """
    models = {}
    for name in ("base", "a", "b"):
        wide = {n: t.float() for n, t in loaded(llama[name]).items() if "norm" in n or "lm_" in n}
        models[name] = changed(llama[name], tmp_path / name, tensors=wide)
    decided = ties(models)
    found = written(decided, tmp_path / "file")
    assert found["lm_head.weight"].dtype == found["model.norm.weight"].dtype == torch.float32
    assert found["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    chats(decided, tmp_path / "out")


# What is no weight


def test_whole_numbers_are_copied_or_named(llama: Trio, tmp_path: Path) -> None:
    """An int64 buffer on which the parents agree is copied, and does not keep the model from
    answering, as it keeps no parent; one on which they differ is named in one sentence.
    """
    name, ids = "model.position_ids", torch.arange(64)
    models = {n: changed(llama[n], tmp_path / n, tensors={name: ids}) for n in ("base", "a", "b")}
    decided = ties(models, dtype="float32")
    found = written(decided, tmp_path / "out")
    assert found[name].dtype == torch.int64 and torch.equal(found[name], ids)
    assert settings(tmp_path / "out")["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(run(decided, Live()).model), logits(model))

    models["b"] = changed(llama["b"], tmp_path / "other", tensors={name: ids + 1})
    with pytest.raises(MergeError) as caught:
        run(ties(models), Folder(tmp_path / "no"))
    text = str(caught.value)
    assert f"`{name}`" in text and text.count(". ") == 0 and "\n" not in text
    assert not list(tmp_path.glob("no*"))


QUANTISED: dict[str, dict[str, Tensor]] = {
    "gptq": {
        "qweight": torch.ones(2, 16, dtype=torch.int32), "scales": torch.ones(1, 16).half(),
        "qzeros": torch.ones(1, 2, dtype=torch.int32), "g_idx": torch.ones(16, dtype=torch.int32),
    },
    "awq": {
        "qweight": torch.ones(16, 2, dtype=torch.int32), "scales": torch.ones(1, 16).half(),
        "qzeros": torch.ones(1, 2, dtype=torch.int32),
    },
    "bnb-4bit": {
        "weight": torch.ones(128, 1, dtype=torch.uint8),
        "weight.absmax": torch.ones(4), "weight.quant_map": torch.ones(16),
        "weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8),
    },
    "bnb-8bit": {"weight": torch.ones(16, 16, dtype=torch.int8), "SCB": torch.ones(16)},
    "compressed-tensors": {
        "weight_packed": torch.ones(16, 2, dtype=torch.int32), "weight_scale": torch.ones(16, 1),
        "weight_shape": torch.tensor([16, 16]),
    },
    "fp8": {
        "weight": torch.ones(16, 16).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1),
    },
    "fp8-alone": {"weight": torch.ones(16, 16).to(torch.float8_e5m2)},
    "plain-int8": {"weight": torch.ones(16, 16, dtype=torch.int8)},
    "mxfp4": {
        "weight_blocks": torch.ones(16, 8, dtype=torch.uint8),
        "weight_scales": torch.ones(16, 1, dtype=torch.uint8),
    },
}  # fmt: skip
"""What each way of quantising leaves of one projection."""


def refused(models: Trio, packed: Path) -> None:
    """The plan says it of whichever model it is, in one sentence, before anything is read."""
    for role in ("a", "b", "base"):
        with pytest.raises(MergeError) as caught:
            ties(models | {role: packed})
        text = str(caught.value)
        assert str(packed) in text and "quantised" in text, text
        assert "bf16" in text and "\n" not in text, text


@pytest.mark.parametrize("way", list(QUANTISED))
def test_quantised_tensors_are_refused(way: str, llama: Trio, tmp_path: Path) -> None:
    """By their names or types, whatever the config leaves out."""
    at = "model.layers.1.self_attn.q_proj"
    tensors = {f"{at}.{n}": t for n, t in QUANTISED[way].items()}
    packed = changed(llama["b"], tmp_path / way, tensors={f"{at}.weight": None} | tensors)
    refused(llama, packed)


def test_a_quantised_config_is_refused(llama: Trio, tmp_path: Path) -> None:
    """Even where the tensors look like any other; an empty entry quantises nothing."""
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    refused(llama, changed(llama["b"], tmp_path / "gptq", config=settings))
    empty = changed(llama["b"], tmp_path / "none", config={"quantization_config": None})
    assert ties(llama | {"b": empty}).steps


# Mixtures of experts


@pytest.mark.parametrize("kind", list(MIXTURES))
def test_a_mixture_of_experts_merges_with_a_word(kind: str, made: Any, tmp_path: Path) -> None:
    """Experts pair by number; that routers are averaged is said, and which they are."""
    models = made(kind)
    decided = ties(models)
    routers = [s.name for s in decided.steps if s.name.endswith(".gate.weight")]
    assert len(routers) == 2
    assert routers[0] in amber(decided) and "router" in amber(decided)
    a, b = loaded(models["a"]), loaded(models["b"])
    found = written(linear(models["a"], models["b"]), tmp_path / "linear")
    assert found.keys() == a.keys()
    assert all(torch.equal(found[n], blend(a[n], b[n])) for n in found)
    chats(decided, tmp_path / "out")
