"""LoRA adapters as parents: what PEFT's own `merge_and_unload` gives, to the bit, or a refusal."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from merging import MergeError, Recipe, gpu, merge, plan
from merging import merge as merging
from merging.adapters import quantised
from merging.companions import write_companions
from merging.inputs import part
from merging.loading import load_parent
from merging.merge import bring, fetched
from merging.opening import open_source
from merging.sinks import Folder, Live
from merging.sources import Adapter, Checkpoint, Remote
from tests.conftest import WEIGHTS, WORDS, config, loaded, recipe, tokenizer
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

pytestmark = pytest.mark.usefixtures("one_thread")
Bases = Mapping[str, Path]
FILE, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
ATTENTION = ["q_proj", "v_proj"]


@contextmanager
def quietly() -> Iterator[None]:
    """PEFT and transformers warn of what these tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama(tied: bool, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    settings = config(len(WORDS))
    settings.tie_word_embeddings, settings.attention_bias = tied, True
    settings.intermediate_size = 100
    return LlamaForCausalLM(settings).to(dtype)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Bases by kind: head tied or not, float32 or bfloat16, Linear or Conv1D, with a tokenizer."""
    torch.manual_seed(0)
    gpt2 = GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    models = {
        "untied": llama(False), "tied": llama(True), "gpt2": GPT2LMHeadModel(gpt2),
        "half": llama(False, torch.bfloat16), "tied half": llama(True, torch.bfloat16),
        "gpt2 half": GPT2LMHeadModel(gpt2).to(torch.bfloat16),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("bases")
    for name, model in models.items():
        for parameter in model.parameters():  # biases begin as zeros
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    return {name: root / name for name in models}


def based(folder: Path, rows: int = 0) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def trained(base: Path, to: Path, rows: int = 0, seed: int = 1, **settings: Any) -> Path:
    """An adapter as PEFT saves it, every trained value away from where it began."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
    with quietly(), torch.no_grad():
        model = get_peft_model(based(base, rows), LoraConfig(**{**options, **settings}))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(to)
    return to


def unloaded(base: Path, adapter: Path, to: Path, rows: int = 0) -> Path:
    """What PEFT makes of the two, as a folder of a whole model."""
    with quietly():
        model = PeftModel.from_pretrained(based(base, rows), adapter).merge_and_unload()
        model.save_pretrained(to)
    tokenizer().save_pretrained(to)
    return to


@dataclass(frozen=True)
class Case:
    """An adapter of a kind: its base, what LoraConfig takes, and how many rows it has."""

    base: str
    settings: Mapping[str, Any]
    rows: int = 0


def case(base: str, *targets: str, rows: int = 0, **settings: Any) -> Case:
    return Case(base, {"target_modules": list(targets), **settings} if targets else settings, rows)


CONV = ("c_attn", "c_proj", "c_fc")
CASES = {
    "plain": case("untied", "q_proj", "up_proj", "down_proj"),
    "bf16": case("half", "q_proj", "up_proj", "down_proj"),
    "patterns": case(
        "untied", "q_proj", "k_proj", "o_proj",
        rank_pattern={"q_proj": 2, "layers.1.self_attn.k_proj": 3, "model.layers.0.self_attn": 5},
        alpha_pattern={r"^model\.layers\.[01]\.self_attn\.o_proj": 9, "k_proj|q_proj": 3.5},
    ),
    "rslora": case("untied", use_rslora=True, rank_pattern={"q_proj": 3}),
    "all linear": Case("untied", {"target_modules": "all-linear"}),
    "a regex": Case("half", {"target_modules": r".*\.layers\.1\..*(q|v)_proj"}),
    "some layers": case("untied", layers_to_transform=[1]),
    "dora": case("untied", "q_proj", "up_proj", "down_proj", use_dora=True),
    "dora bf16": case("half", "q_proj", "up_proj", "down_proj", use_dora=True),
    "dora conv1d": case("gpt2", *CONV, use_dora=True, fan_in_fan_out=True),
    "dora conv1d bf16": case("gpt2 half", *CONV, use_dora=True, fan_in_fan_out=True),
    "conv1d": case("gpt2", *CONV, fan_in_fan_out=True),
    "conv1d bf16": case("gpt2 half", *CONV, fan_in_fan_out=True),
    "conv1d, square alone": case("gpt2", "attn.c_proj", "lm_head", fan_in_fan_out=True),
    "conv1d, unsaid": case("gpt2", *CONV, fan_in_fan_out=False),
    "conv1d, tied": case("gpt2", "wte", "c_attn", fan_in_fan_out=True),
    "embeddings": case("untied", "q_proj", "embed_tokens"),
    "embeddings bf16": case("half", "q_proj", "embed_tokens"),
    "embeddings dora": case("untied", "embed_tokens", use_dora=True),
    "embeddings dora bf16": case("half", "embed_tokens", use_dora=True),
    "embeddings tied": case("tied", "q_proj", "embed_tokens"),
    "embeddings tied bf16": case("tied half", "embed_tokens"),
    "embeddings tied dora": case("tied", "embed_tokens", use_dora=True),
    "head": case("untied", "lm_head"),
    "head tied": case("tied", "lm_head"),
    "head and embeddings": case("untied", "lm_head", "embed_tokens"),
    "head and embeddings tied": case("tied", "lm_head", "embed_tokens"),
    "head and embeddings tied bf16": case("tied half", "lm_head", "embed_tokens"),
    "head and embeddings tied dora": case("tied", "lm_head", "embed_tokens", use_dora=True),
    "saved": case("untied", modules_to_save=["embed_tokens", "lm_head", "input_layernorm"]),
    "saved bf16": case("half", modules_to_save=["embed_tokens", "lm_head", "mlp"]),
    "saved tied": case("tied", modules_to_save=["embed_tokens", "lm_head"]),
    "saved head tied": case("tied", modules_to_save=["lm_head"]),
    "saved embeddings tied": case("tied", modules_to_save=["embed_tokens"]),
    "saved head, embeddings tied": case("tied", "embed_tokens", modules_to_save=["lm_head"]),
    "saved embeddings, head tied": case("tied", "lm_head", modules_to_save=["embed_tokens"]),
    "bias all": case("untied", bias="all"),
    "bias lora_only": case("untied", bias="lora_only"),
    "bias all conv1d": case("gpt2", *CONV, fan_in_fan_out=True, bias="all"),
    "lora_bias": case("untied", lora_bias=True),
    "lora_bias bf16": case("half", lora_bias=True),
    "lora_bias and bias": case("gpt2 half", "c_attn", lora_bias=True, bias="all",
                               fan_in_fan_out=True),
    "longer": case("untied", rows=70),
    "longer tied": case("tied", rows=70),
    "longer, embeddings": case("tied", "embed_tokens", rows=70),
    "longer, head and embeddings": case("untied", "embed_tokens", "lm_head", rows=70),
    "longer, saved": case("tied", modules_to_save=["embed_tokens", "lm_head"], rows=70),
    "longer, saved untied": case("untied", modules_to_save=["embed_tokens", "lm_head"], rows=70),
    "longer, saved head": case("tied", modules_to_save=["lm_head"], rows=70),
    "longer, saved embeddings": case("tied", modules_to_save=["embed_tokens"], rows=70),
    "gaussian": case("untied", init_lora_weights="gaussian"),
    "orthogonal": case("untied", init_lora_weights="orthogonal"),
    "eva": case("untied", init_lora_weights="eva", eva_config=EvaConfig()),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_as_peft_unloads_it(kind: str, bases: Bases, tmp_path: Path) -> None:
    """Every tensor, to the bit, and the config's size of the vocabulary and tie."""
    this = CASES[kind]
    base = bases[this.base]
    adapter = trained(base, tmp_path / "adapter", this.rows, **this.settings)
    whole = unloaded(base, adapter, tmp_path / "whole", this.rows)
    ours, theirs = open_source(f"{base}+{adapter}"), open_source(str(whole))
    assert isinstance(ours, Adapter) and isinstance(theirs, Checkpoint)
    assert differing(ours, theirs) == {}
    keys = ("vocab_size", "tie_word_embeddings")
    assert [ours.config.get(k) for k in keys] == [theirs.config.get(k) for k in keys]


def differing(ours: Adapter, theirs: Checkpoint) -> dict[str, str]:
    """Tensors that are not the same in both, with what differs."""
    found = dict.fromkeys(ours.tensors.keys() ^ theirs.tensors.keys(), "in one alone")
    for name in ours.tensors.keys() & theirs.tensors.keys():
        one, other = ours.read(name), theirs.read(name)
        info = ours.tensors[name]
        if (one.dtype, tuple(one.shape)) != (info.dtype, info.shape) or one.dtype != other.dtype:
            found[name] = f"{one.dtype} {tuple(one.shape)}, {info}, {other.dtype}"
        elif not one.is_contiguous():
            found[name] = "laid out so that each block would be a copy of it all"
        elif not torch.equal(one, other):
            found[name] = f"max |diff| {float((one - other).abs().max())}"
    return found


def test_a_base_without_the_models_prefix(bases: Bases, tmp_path: Path) -> None:
    """GPT-2's own file on the Hub says `h.0`, where PEFT says `transformer.h.0`."""
    base = bases["gpt2"]
    adapter = trained(base, tmp_path / "adapter", target_modules=["c_attn", "wte"])
    whole = open_source(str(unloaded(base, adapter, tmp_path / "whole")))
    bare = edited(base, tmp_path / "bare", lambda n: n.removeprefix("transformer."))
    ours = open_source(f"{bare}+{adapter}")
    assert isinstance(ours, Adapter) and isinstance(whole, Checkpoint)
    changed = {"h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight", "wte.weight"}
    assert ours.changes.keys() == changed
    assert all(torch.equal(ours.read(n), whole.read(f"transformer.{n}")) for n in ours.tensors)


def test_of_two_weights_for_one_tied_tensor_the_heads_counts(bases: Bases, tmp_path: Path) -> None:
    """As PEFT loads them; it saves them equal, and other tools may not."""
    adapter = trained(bases["tied"], tmp_path / "a", target_modules=["lm_head", "embed_tokens"])
    other = {f"base_model.model.{n}.base_layer.weight": torch.randn(len(WORDS), 32)
             for n in ("lm_head", "model.embed_tokens")}  # fmt: skip
    apart = edited(adapter, tmp_path / "apart", tensors=other)
    ours = open_source(f"{bases['tied']}+{apart}")
    theirs = open_source(str(unloaded(bases["tied"], apart, tmp_path / "whole")))
    assert isinstance(ours, Adapter) and isinstance(theirs, Checkpoint)
    assert differing(ours, theirs) == {}


def test_an_adapter_in_bfloat16(bases: Bases, tmp_path: Path) -> None:
    """Its own type is only how it is stored: PEFT computes in float32 as well."""
    base, adapter = bases["untied"], trained(bases["untied"], tmp_path / "adapter")
    values = {k: v.bfloat16() for k, v in load_file(adapter / FILE).items()}
    save_file(values, adapter / FILE, metadata={"format": "pt"})
    ours, whole = open_source(f"{base}+{adapter}"), unloaded(base, adapter, tmp_path / "whole")
    theirs = open_source(str(whole))
    assert isinstance(ours, Adapter) and isinstance(theirs, Checkpoint)
    assert differing(ours, theirs) == {}


def test_any_number_of_threads_gives_the_same(tmp_path: Path) -> None:
    """A resumed merge on another machine must not differ: nor by the width of a product."""
    torch.manual_seed(0)
    low = {"a": torch.randn(16, 1500), "b": torch.randn(1100, 16)}
    base = {"x.layers.0.q.weight": torch.randn(1100, 1500)}
    keys = {"a": "base_model.model.x.layers.0.q.lora_A.weight",
            "b": "base_model.model.x.layers.0.q.lora_B.weight"}  # fmt: skip
    own = {keys[k]: v for k, v in low.items()}
    settings = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q"]}
    ours = standing(tmp_path, base, own, settings)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        ours.last.tensor = None
        results.append(ours.read("x.layers.0.q.weight"))
    torch.set_num_threads(1)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def standing(
    at: Path, base: Mapping[str, Tensor], own: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> Adapter:
    """An adapter on a base, each of these tensors, in folders."""
    for name, tensors, file in (("base", base, WEIGHTS), ("adapter", own, FILE)):
        (at / name).mkdir()
        save_file(dict(tensors), at / name / file)
    (at / "base" / "config.json").write_text("{}")
    (at / "adapter" / SETTINGS).write_text(json.dumps(settings))
    found = open_source(f"{at / 'base'}+{at / 'adapter'}")
    assert isinstance(found, Adapter)
    return found


def edited(
    folder: Path,
    to: Path,
    rename: Callable[[str], str | None] = str,
    tensors: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> Path:
    """A copy with tensors under other names, None for gone, further ones, and settings."""
    shutil.copytree(folder, to)
    file, written = (to / n for n in ((FILE, SETTINGS) if (to / FILE).exists()
                                      else (WEIGHTS, "config.json")))  # fmt: skip
    kept = {new: v for k, v in load_file(file).items() if (new := rename(k)) is not None}
    save_file({**kept, **(tensors or {})}, file, metadata={"format": "pt"})
    written.write_text(json.dumps(json.loads(written.read_text()) | settings))
    return to


SETTINGS_REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "type": ({"peft_type": "IA3"}, "type IA3, not LoRA"),
    "type missing": ({"peft_type": None}, "type None, not LoRA"),
    **{
        f"init {start}": ({"init_lora_weights": start}, f"`init_lora_weights: {start}`")
        for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "mica")
    },
    **{
        key: ({key: value}, f"`{key}`")
        for key, value in {
            "layer_replication": [[0, 2]], "target_parameters": ["experts"], "use_qalora": True,
            "trainable_token_indices": [3], "alora_invocation_tokens": [1], "kasa_config": {"a": 1},
            "monteclora_config": {"a": 1}, "velora_config": {"a": 1}, "use_bdlora": {"a": 1},
            "arrow_config": {"top_k": 1}, "megatron_config": {"a": 1}, "of_tomorrow": True,
        }.items()
    },
    "rank 0": ({"r": 0}, "`r` or `rank_pattern` is no number"),
    "rank of words": ({"r": "four"}, "`r` or `rank_pattern` is no number"),
    "alpha missing": ({"lora_alpha": None}, "`lora_alpha` or `alpha_pattern` is no number"),
    "alphas listed": ({"alpha_pattern": ["q"]}, "`alpha_pattern` is no number"),
    "another rank": ({"r": 3}, "rank 4 in its file and 3 in its adapter_config.json"),
    "a pattern that runs for hours": ({"rank_pattern": {"(a+)+b": 2}}, "repeats"),
    "a broken pattern": ({"rank_pattern": {"[q": 2}}, "holds no pattern"),
    "dora unsaid": ({"use_dora": True}, "lacks lora_magnitude_vector"),
    "bias unsaid": ({"lora_bias": True}, r"lacks lora_B\.bias"),
    "other targets": ({"target_modules": ["k_proj", "v_proj"]}, "none of its `target_modules`"),
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain one on `untied`, which its config names by its folder."""
    return trained(bases["untied"], tmp_path_factory.mktemp("adapters") / "plain")


def refused(name: str, words: str, folders: bool = True) -> None:
    """One sentence, and what to do."""
    with pytest.raises(MergeError, match=words) as caught:
        open_source(name, folders=folders)
    assert ": " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SETTINGS_REFUSED)
def test_settings_that_are_refused_by_name(
    kind: str, bases: Bases, adapter: Path, tmp_path: Path
) -> None:
    """Whatever changes PEFT's result in a way that is not repeated here, or is not known here."""
    settings, words = SETTINGS_REFUSED[kind]
    refused(f"{bases['untied']}+{edited(adapter, tmp_path / 'x', **settings)}", words)


def test_a_number_of_tomorrow_switches_nothing_on(
    bases: Bases, adapter: Path, tmp_path: Path
) -> None:
    """Later versions of PEFT save sizes of what is off, as this one saves `qalora_group_size`."""
    later = edited(adapter, tmp_path / "x", of_tomorrow=16, also=False, more={}, peft_version="9")
    assert open_source(f"{bases['untied']}+{later}").tensors


Q = "base_model.model.model.layers.0.self_attn.q_proj."
TENSORS_REFUSED: dict[str, tuple[Callable[[str], str | None], Mapping[str, Tensor], str]] = {
    "a half": (lambda n: None if n == f"{Q}lora_A.weight" else n, {}, r"q_proj` lacks lora_A"),
    "a magnitude": (str, {f"{Q}lora_magnitude_vector": torch.ones(32)}, "has lora_magnitude"),
    "absent": (lambda n: n.replace("layers.0", "layers.7"), {}, r"which its base lacks"),
    "experts": (lambda n: n.replace("self_attn", "mlp.experts.0"), {}, "`experts`"),
    "unknown": (str, {f"{Q}lora_C.weight": torch.ones(2)}, "is not known in LoRA"),
    "beside": (str, {f"{Q}weight": torch.ones(32, 32)}, "is not known in LoRA"),
    "a base layer alone": (
        str, {f"{Q.replace('q_', 'k_')}base_layer.bias": torch.ones(16)}, "is not known in LoRA",
    ),
    "ranks apart": (str, {f"{Q}lora_B.weight": torch.ones(32, 3)}, "do not fit"),
    "another size": (str, {f"{Q}lora_B.weight": torch.ones(40, 4)}, "40 × 32 .* 32 × 32"),
    "a convolution": (str, {f"{Q}lora_A.weight": torch.ones(4, 32, 3)}, "do not fit"),
    "a norm of another size": (
        str, {"base_model.model.model.norm.weight": torch.ones(8)}, "8 in the adapter and 32",
    ),
    "embeddings alone longer": (
        str, {"base_model.model.model.embed_tokens.weight": torch.ones(70, 32)}, "do not fit each",
    ),
    "wider embeddings": (
        str, {"base_model.model.model.embed_tokens.weight": torch.ones(64, 33)}, "64 × 33",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TENSORS_REFUSED)
def test_tensors_that_do_not_fit(kind: str, bases: Bases, adapter: Path, tmp_path: Path) -> None:
    """What PEFT would leave out or stumble over, told by the tensor's name."""
    rename, tensors, words = TENSORS_REFUSED[kind]
    refused(f"{bases['untied']}+{edited(adapter, tmp_path / 'x', rename, tensors)}", words)


def test_lora_bias_where_the_base_has_none(pico: Bases, adapter: Path, tmp_path: Path) -> None:
    """PEFT cannot merge it either."""
    biases = {f"{Q}lora_B.bias": torch.ones(32)}
    only = edited(
        adapter, tmp_path / "x", lambda n: n if n.startswith(Q) else None, biases, lora_bias=True
    )
    refused(f"{pico['base']}+{only}", r"q_proj\.bias`, which its base lacks")


def test_ties_that_cannot_be_told(bases: Bases, tmp_path: Path) -> None:
    """Tied adapters on tied weights, and a base that ties its head and stores it twice."""
    tied = bases["tied"]
    ensured = trained(tied, tmp_path / "e", target_modules=["embed_tokens"],
                      ensure_weight_tying=True)  # fmt: skip
    refused(f"{tied}+{ensured}", "`ensure_weight_tying`")
    plain = trained(tied, tmp_path / "p", target_modules=["embed_tokens"])
    embeddings = load_file(tied / WEIGHTS)["model.embed_tokens.weight"]
    twice = edited(tied, tmp_path / "twice", tensors={"lm_head.weight": embeddings.clone()})
    refused(f"{twice}+{plain}", "stores it twice")


def test_what_is_no_adapter_and_what_is_no_base(
    bases: Bases, adapter: Path, tmp_path: Path
) -> None:
    """Pickles, missing files, a whole model in the adapter's place, an adapter in the base's."""
    base = bases["untied"]
    refused(f"{base}+{bases['tied']}", "is a whole model and no adapter")
    refused(f"{adapter}+{adapter}", "is an adapter itself")
    refused(f"{edited(adapter, tmp_path / 'a', base_model_name_or_path=str(adapter))}", "adapter")
    pickled = edited(adapter, tmp_path / "pickled")
    (pickled / FILE).rename(pickled / "adapter_model.bin")
    refused(f"{base}+{pickled}", r"only pickled weights \(adapter_model\.bin\)")
    (pickled / "adapter_model.bin").unlink()
    refused(f"{base}+{pickled}", "has no ")
    plain = edited(adapter, tmp_path / "plain")
    (plain / SETTINGS).write_text("{}")
    refused(f"{base}+{plain}", "no `peft_type`")


def test_an_adapter_alone_finds_its_base(bases: Bases, adapter: Path, tmp_path: Path) -> None:
    """A local one by its folder, and the pinned name says both; otherwise it must be written."""
    found = open_source(str(adapter))
    assert found.name == f"{bases['untied']}+{adapter}"
    assert found.stamp == open_source(found.name).stamp
    write = "write `base\\+"
    for base in (None, "", 3):
        refused(str(edited(adapter, tmp_path / f"on-{base}-", base_model_name_or_path=base)), write)
    gone = edited(adapter, tmp_path / "gone", base_model_name_or_path="/nowhere/model")
    refused(str(gone), f"`/nowhere/model`.*no such folder.*{write}")
    packed = edited(bases["untied"], tmp_path / "packed", quantization_config={"bits": 4})
    there = edited(adapter, tmp_path / "there", base_model_name_or_path=str(packed))
    refused(str(there), f"is quantised.*{write}")
    refused(str(adapter), "your own machine", folders=False)


@pytest.mark.parametrize(
    ("base", "settings", "noted"),
    [
        ("org/base-7b", {}, False),
        ("unsloth/llama-3-8b-bnb-4bit", {}, True),
        ("TheBloke/Mistral-7B-GPTQ", {}, True),
        ("org/quint8bits", {}, False),
        ("org/base", {"load_in_4bit": True}, True),
    ],
)
def test_trained_on_a_quantised_base(base: str, settings: Mapping[str, Any], noted: bool) -> None:
    """By the name, or by the config, where somebody has written it."""
    said = quantised({"base_model_name_or_path": base, **settings})
    assert said == (base if noted else None)


def test_the_plan_notes_a_quantised_base(bases: Bases, adapter: Path, tmp_path: Path) -> None:
    """Amber, with both names; and nothing for any other adapter."""
    base = bases["untied"]
    on_packed = edited(adapter, tmp_path / "x", base_model_name_or_path="org/base-bnb-4bit")
    for folder, count in ((on_packed, 1), (adapter, 0)):
        decided = plan(recipe("linear", [f"{base}+{folder}", base], parameters={"weight": 1.0}))
        found = [n for n in decided.notes if "trained on" in n.text]
        assert [n.level for n in found] == ["amber"] * count


@pytest.mark.parametrize("variant", ["mergekit", "paper"])
def test_a_merge_of_it_is_the_merge_of_the_whole(
    variant: str, bases: Bases, tmp_path: Path
) -> None:
    """TIES of base+adapter and another model: each byte as with the folder that PEFT makes."""
    base = bases["half"]
    adapter = trained(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj", "lm_head"])
    other = trained(base, tmp_path / "second", seed=2, target_modules=["v_proj", "embed_tokens"])
    other = unloaded(base, other, tmp_path / "other")
    whole = unloaded(base, adapter, tmp_path / "whole")
    keys = {"base_model": base, "variant": variant, "parameters": {"density": 0.4, "weight": 0.7}}
    results = []
    for n, first in enumerate((f"{base}+{adapter}", whole)):
        decided = plan(recipe("ties", [first, other], **keys))
        for _ in merge(decided, Folder(tmp_path / f"out{n}")):
            pass
        results.append(loaded(tmp_path / f"out{n}"))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(t, results[1][n]) for n, t in results[0].items())
    assert not torch.equal(results[0]["lm_head.weight"], loaded(base)["lm_head.weight"])


def test_a_longer_vocabulary_is_united_by_token(bases: Bases, tmp_path: Path) -> None:
    """The adapter's own tokenizer and template, its rows by their tokens, as of a whole model."""
    base, extra = bases["tied"], ["<|im_start|>", "<|im_end|>"]
    adapter = trained(base, tmp_path / "adapter", len(WORDS) + 2)
    whole = unloaded(base, adapter, tmp_path / "whole", len(WORDS) + 2)
    for folder in (adapter, whole):
        tokenizer(extra).save_pretrained(folder)
        (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    results = []
    for n, first in enumerate((f"{base}+{adapter}", whole)):
        decided = plan(recipe("linear", [first, base], parameters={"weight": 0.5}))
        assert decided.template == "{{ messages[0]['content'] }}!"
        for _ in merge(decided, Folder(tmp_path / f"out{n}")):
            pass
        results.append(loaded(tmp_path / f"out{n}"))
        assert json.loads((tmp_path / f"out{n}" / "config.json").read_text())["vocab_size"] == 66
        kept = (tmp_path / f"out{n}" / "tokenizer.json").read_text()
        assert "<|im_start|>" in kept
    assert all(torch.equal(t, results[1][n]) for n, t in results[0].items())


def test_the_card_names_both_parts(bases: Bases, adapter: Path, tmp_path: Path) -> None:
    """With the licences that their own cards state."""
    own, base = edited(adapter, tmp_path / "own"), edited(bases["untied"], tmp_path / "base")
    (own / "README.md").write_text("---\nlicense: mit\n---\n")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    decided = plan(recipe("linear", [f"{base}+{own}", base], parameters={"weight": 1.0}))
    assert decided.sources[0].license == "apache-2.0 / mit"
    (tmp_path / "out").mkdir()
    write_companions(decided, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`base`" in card and "with the adapter `own`" in card and "apache-2.0 / mit" in card


def test_one_tensor_is_kept_and_computed_once(bases: Bases, adapter: Path) -> None:
    """Threads that read blocks of one tensor share it; the next tensor takes its place."""
    ours = open_source(f"{bases['untied']}+{adapter}")
    assert isinstance(ours, Adapter)
    first, second = list(ours.changes)[:2]
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(ours.read, [first] * 32))
    assert len({tensor.data_ptr() for tensor in seen}) == 1
    gone = weakref.ref(seen[0])
    seen.clear()
    assert ours.last.of(second, lambda: torch.tensor(gone() is None)), "gone before, not after"


def test_readers_hold_no_tensors(bases: Bases, adapter: Path) -> None:
    """The paper's TIES has a reader for every tensor at once: none may hold one already."""
    ours = open_source(f"{bases['untied']}+{adapter}")
    assert isinstance(ours, Adapter)
    decided = plan(recipe("ties", [ours.name], base_model=bases["untied"], variant="paper",
                          parameters={"density": 0.5}), {ours.name: ours})  # fmt: skip
    readers = [part(decided, step, "cpu")[1] for step in decided.steps]
    assert ours.last.tensor is None
    readers[0](0, 8)
    held = [reader(0, 8) for reader in readers]
    assert len(held) == len(decided.steps) and ours.last.tensor is not None


@pytest.mark.parametrize("base", ["untied", "tied", "gpt2"])
def test_chatting_says_what_peft_says(base: str, bases: Bases, tmp_path: Path) -> None:
    """The adapter's own column answers greedily as PEFT's model does.

    Unmerged, save on tied embeddings: there PEFT's head changes only by the merge.
    """
    targets = {"gpt2": ["c_attn", "wte"]}.get(base, ["q_proj", "embed_tokens"])
    adapter = trained(bases[base], tmp_path / "adapter", target_modules=targets)
    source = open_source(f"{bases[base]}+{adapter}")
    assert not isinstance(source, Remote)
    ours = load_parent(source, "cpu")
    with quietly():
        theirs = PeftModel.from_pretrained(based(bases[base]), adapter).eval()
        theirs = theirs if base == "untied" else theirs.merge_and_unload()
    for words in ("w1 w2 w3", "w40", "w7 w7 w7 w9 w11"):
        ids = ours.tokenizer(words, return_tensors="pt").input_ids
        options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
        with quietly():
            said = [m.generate(input_ids=ids, **options) for m in (ours.model, theirs)]
        assert torch.equal(*said)
    plain = load_parent(open_source(str(bases[base])), "cpu")  # type: ignore[arg-type]
    assert not torch.equal(plain.model(ids).logits, ours.model(ids).logits)


def test_a_longer_adapter_chats(bases: Bases, tmp_path: Path) -> None:
    """With its own rows, its own head and its own tokenizer, which the base's config knows not."""
    settings = {"modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = trained(bases["tied"], tmp_path / "adapter", len(WORDS) + 2, **settings)
    tokenizer(["<|im_start|>", "<|im_end|>"]).save_pretrained(adapter)
    source = open_source(f"{bases['tied']}+{adapter}")
    assert not isinstance(source, Remote)
    ours = load_parent(source, "cpu")
    assert ours.model.get_output_embeddings().weight.shape[0] == len(ours.tokenizer) == 66
    assert torch.equal(ours.model.get_output_embeddings().weight, source.read("lm_head.weight"))


def test_it_crosses_into_a_worker(bases: Bases, adapter: Path) -> None:
    """A Place says where both parts lie, is small, and opens as the same model."""
    ours = open_source(f"{bases['untied']}+{adapter}")
    assert isinstance(ours, Adapter)
    place = pickle.loads(pickle.dumps(gpu.place(ours)))
    again = place.open()
    assert isinstance(again, Adapter) and len(pickle.dumps(place)) < 1000
    assert (again.name, again.stamp, again.tensors) == (ours.name, ours.stamp, ours.tensors)
    assert place.name == ours.name and {place.folder, place.adapter} == {*map(str, folders(ours))}


def folders(source: Adapter) -> list[Path]:
    return [part.folder for part in source.parts]


def test_gpu_seconds_count_both_parts(tmp_path: Path) -> None:
    """Sparse files of gigabytes: one beside the base adds what one in the base would add."""
    for name, size in (("base", 2 * 10**9), ("adapter", 3 * 10**9)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / WEIGHTS).open("wb") as file:
            file.truncate(size)
    here = gpu.Place("a", str(tmp_path / "base"), "s")
    both = replace(here, adapter=str(tmp_path / "adapter"))
    seconds = [gpu.seconds(gpu.Job((place,))) for place in (here, both)]
    assert seconds == [11, 20]


def test_a_job_merges_and_asks_it(bases: Bases, adapter: Path) -> None:
    """The page's own way: merged in the worker, and asked in a column beside the merge."""
    ours = open_source(f"{bases['untied']}+{adapter}")
    decided = plan(recipe("linear", [ours.name, bases["untied"]], parameters={"weight": 0.5}))
    job = gpu.merge_job(decided)
    gpu._library.cache_clear()
    assert any(isinstance(event, gpu.Merged) for event in gpu.run(job))
    live = Live(dtype=torch.float32)
    for _ in merging(decided, live):
        pass
    with gpu._library().borrow(decided.identity, 0, lambda: pytest.fail("gone")) as made:
        for name, tensor in live.model.state_dict().items():
            assert torch.equal(made.model.state_dict()[name], tensor)
    gpu._library.cache_clear()


def brought(source: Any, token: Any = False) -> tuple[list[Any], Any]:
    """All signs of progress of a fetch, and what is here afterwards."""
    steps, seen = bring([source], token=token), []
    try:
        while True:
            seen.append(next(steps))
    except StopIteration as end:
        return seen, end.value[0]


def upload(hub: LocalHub, bases: Bases, adapter: Path, to: Path, **settings: Any) -> list[str]:
    """`org/base` and `org/lora`, which names it; returns their commits."""
    named = edited(adapter, to, base_model_name_or_path="org/base", **settings)
    return [hub.add("org/base", bases["untied"]), hub.add("org/lora", named)]


@pytest.mark.parametrize("name", ["org/base+org/lora", "org/lora", "org/base@main+org/lora@main"])
def test_on_the_hub_both_are_pinned_checked_and_fetched(
    name: str, hub: LocalHub, bases: Bases, adapter: Path, tmp_path: Path
) -> None:
    """Headers alone until it is fetched; the pinned name and the progress are of both."""
    base, own = upload(hub, bases, adapter, tmp_path / "lora")
    found = open_source(name, folders=False)
    assert isinstance(found, Adapter)
    assert found.name == f"org/base@{base}+org/lora@{own}" and found.stamp == f"{base}+{own}"
    sizes = [(folder / file).stat().st_size
             for folder, file in ((bases["untied"], WEIGHTS), (adapter, FILE))]  # fmt: skip
    assert found.missing == sum(sizes)
    assert not any(seen.sent >= min(sizes) for seen in hub.requests("GET"))
    with pytest.raises(MergeError, match="fetch it first"):
        found.read("lm_head.weight")
    seen, here = brought(found)
    assert here.missing == 0 and (here.name, here.stamp) == (found.name, found.stamp)
    assert all(a.done <= b.done for a, b in pairwise(seen))
    assert max(s.done for s in seen) >= found.missing and seen[-1].share == 1
    local = open_source(f"{bases['untied']}+{adapter}")
    assert all(torch.equal(here.read(n), local.read(n)) for n in local.tensors)  # type: ignore[union-attr]
    assert open_source(found.name, folders=False).missing == 0


def test_a_merge_on_the_hub_writes_both_into_the_recipe(
    hub: LocalHub, bases: Bases, adapter: Path, tmp_path: Path
) -> None:
    """The plan over headers, then fetched and merged: names, identity and card are of both."""
    base, own = upload(hub, bases, adapter, tmp_path / "lora")
    text = "merge_method: linear\nmodels: [org/lora, org/base]\nparameters: {weight: 0.5}\n"
    decided = plan(Recipe.from_yaml(text))
    assert decided.missing == decided.sources[0].missing > decided.sources[1].missing > 0
    assert decided.recipe.names() == (f"org/base@{base}+org/lora@{own}", f"org/base@{base}")
    steps = fetched(decided)
    try:
        while True:
            assert next(steps).share <= 1
    except StopIteration as end:
        here = end.value
    for _ in merge(here, Folder(tmp_path / "out")):
        pass
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- org/base\n- org/lora\n" in card
    assert plan(decided.recipe).identity == decided.identity


def test_a_gated_base_gates_the_adapter(
    hub: LocalHub, bases: Bases, adapter: Path, tmp_path: Path
) -> None:
    """Refused without access, also by the adapter alone and with a warm cache; told otherwise."""
    named = edited(adapter, tmp_path / "lora", base_model_name_or_path="org/closed")
    hub.add("org/closed", bases["untied"], gated=True)
    hub.add("org/lora", named)
    hub.user("hf_reader", reads=["org/closed"])
    for name in ("org/lora", "org/closed+org/lora"):
        with pytest.raises(MergeError, match="org/closed is gated"):
            open_source(name)
        _, here = brought(open_source(name, token="hf_reader"), "hf_reader")
        assert here.gated and here.missing == 0
        with pytest.raises(MergeError, match="org/closed is gated"):
            open_source(name)


def test_a_strangers_adapter_leads_into_no_folder(
    hub: LocalHub, bases: Bases, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base of an adapter on the Hub is a Hub id, even where a folder has the same name."""
    hub.add("org/path", edited(adapter, tmp_path / "p", base_model_name_or_path="/etc"))
    hub.add("org/nested", edited(adapter, tmp_path / "n", base_model_name_or_path="a/b+org/path"))
    for name in ("org/path", "org/nested"):
        refused(name, f"write `base\\+{name}@")
    shutil.copytree(bases["untied"], tmp_path / "org" / "base")
    monkeypatch.chdir(tmp_path)
    hub.add("org/lora", edited(adapter, tmp_path / "l", base_model_name_or_path="org/base"))
    refused("org/lora", "org/base is not on the Hub")
    sha = hub.add("org/base", bases["untied"], branch="v2")
    hub.add("org/old", edited(adapter, tmp_path / "o", base_model_name_or_path="org/base",
                              revision="v2"))  # fmt: skip
    assert open_source("org/old").name.startswith(f"org/base@{sha}+org/old@")


def test_a_remote_adapter_of_pickles(
    hub: LocalHub, bases: Bases, adapter: Path, tmp_path: Path
) -> None:
    """Told before a byte of weights moves."""
    upload(hub, bases, adapter, tmp_path / "lora")
    pickled = edited(adapter, tmp_path / "pickled")
    (pickled / FILE).rename(pickled / "adapter_model.bin")
    hub.add("org/pickled", pickled)
    with pytest.raises(MergeError, match=r"pickles \(adapter_model\.bin\)"):
        open_source("org/base+org/pickled")
