"""What is found on a Hub by words and by lineage, for whom, and what happens where none answers."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from merging import hub as ours
from merging.errors import MergeError
from merging.hub import Found, Lineage
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

Publish = Callable[..., None]
module = importlib.import_module("merging.hub.search")  # its name in the package is the function


@pytest.fixture
def publish(hub: LocalHub, tmp_path: Path) -> Publish:
    """Adds a model of `size` parameters to the Hub, its card saying `card`."""

    def added(id: str, size: int = 10, card: str = "", config: Any = (), **about: Any) -> None:
        folder = tmp_path / id
        folder.mkdir(parents=True)
        save_file({"w": np.zeros(size, np.float16)}, folder / "model.safetensors")
        kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        (folder / "config.json").write_text(json.dumps(kind | dict(config)))
        (folder / "README.md").write_text(f"---\n{card}\n---\n")
        hub.add(id, folder, **about)

    return added


def wait(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Puts the clock forward."""
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + seconds)


def names(found: tuple[Found, ...]) -> list[str]:
    return [one.id for one in found]


def test_the_most_downloaded_come_first_with_size_and_access(publish: Publish) -> None:
    """All that a picker shows of a model is found by a part of its name, in any case."""
    publish("org/tiny-chat", 500, downloads=7)
    publish("org/tiny-code", 400, downloads=90, gated=True)
    publish("org/other", downloads=1000)
    assert ours.search("TINY") == (
        Found("org/tiny-code", 400, 90, True),
        Found("org/tiny-chat", 500, 7, False),
    )
    assert names(ours.search(" chat  tiny ")) == ["org/tiny-chat"]
    assert names(ours.search("org/t")) == ["org/tiny-code", "org/tiny-chat"]


def test_what_is_too_large_is_not_found(publish: Publish, hub: LocalHub) -> None:
    """The machine's limit holds to the parameter, and goes to the Hub as a range it reads."""
    publish("org/tiny-a", 500)
    publish("org/tiny-b", 501)
    assert names(ours.search("tiny", largest=500)) == ["org/tiny-a"]
    assert "num_parameters=max%3A1B" in hub.log[-1].query
    assert len(ours.search("tiny", largest=501)) == 2


def test_what_cannot_be_merged_is_not_found(publish: Publish) -> None:
    """Other tasks, pickles, quantised models and those with code of their own are left out."""
    publish("org/tiny-fit")
    publish("org/tiny-bert", config={"architectures": ["BertForMaskedLM"]})
    publish("org/tiny-gptq", card="tags: [gptq, 4-bit]")
    publish("org/tiny-code", card="tags: [custom_code]")
    assert names(ours.search("tiny")) == ["org/tiny-fit"]


@pytest.mark.parametrize(
    "text", ["", "ti", " i ", "/home/me", "~/tiny", "./tiny", "assets/demo/tiny", "C:\\tiny",
             "org/tiny@main", "Ada · tiny", "tiny" * 30, "tiny\0"],
)  # fmt: skip
def test_what_is_no_part_of_a_name_is_not_asked_for(hub: LocalHub, text: str) -> None:
    """Short texts, and folders of this machine, never reach the Hub."""
    assert ours.search(text) == ()
    assert not hub.log


def test_answers_are_remembered_for_those_without_a_login_alone(
    publish: Publish, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question a while for all the anonymous; what a login sees is remembered for nobody."""
    publish("me/tiny-secret", private=True)
    publish("org/tiny")
    hub.user("hf_me", reads=["me/tiny-secret"])
    mine = ["me/tiny-secret", "org/tiny"]
    for _ in range(2):
        assert sorted(names(ours.search("tiny", token="hf_me"))) == mine
        assert names(ours.search("tiny")) == ["org/tiny"]
    assert [seen.token for seen in hub.log] == ["hf_me", None, "hf_me"]
    wait(monkeypatch, module.REMEMBERED)
    ours.search("tiny")
    assert hub.log[-1].token is None


def test_an_expired_login_finds_what_is_public(publish: Publish, hub: LocalHub) -> None:
    publish("org/tiny")
    hub.user("hf_old")
    hub.expire("hf_old")
    assert names(ours.search("tiny", token="hf_old")) == ["org/tiny"]


@pytest.mark.parametrize("fault", ["503", "429", "reset", "hang"])
def test_a_hub_that_does_not_answer_is_left_alone_for_a_while(
    publish: Publish, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """One sentence within seconds, and again at once while one types on; later it is tried anew."""
    publish("org/tiny")
    monkeypatch.setattr(module, "SECONDS", 0.3)
    hub.fault("/api/models", fault)
    start = time.monotonic()
    for text in ("tiny", "tiny-", "tin"):
        with pytest.raises(MergeError, match="try again"):
            ours.search(text)
    assert time.monotonic() - start < 2
    assert len(hub.log) == 1
    wait(monkeypatch, module.QUIET)
    assert names(ours.search("tiny")) == ["org/tiny"]


def test_a_network_login_page_is_no_answer(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"{hub.url}/nowhere")
    hub.fault("/nowhere", "200")
    with pytest.raises(MergeError, match="check the network"):
        ours.search("tiny")


def test_offline_nothing_is_asked(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ours.search("tiny") == ()
    assert ours.lineage("org/tiny") == Lineage()
    assert not hub.log


def test_lineage_names_bases_and_siblings(publish: Publish) -> None:
    """The base, the base's base, and the base's other tunes; an adapter's base is its base too."""
    publish("org/root")
    publish("org/base", card="base_model: org/root")
    publish("org/chat", card="base_model: org/base", downloads=1)
    publish("org/code", 20, card="base_model: org/base", downloads=2, gated=True)
    publish("org/quantised", card="base_model: org/base\nbase_model_relation: quantized")
    publish("org/adapter", card="base_model: org/base\nbase_model_relation: adapter")
    code = Found("org/code", 20, 2, True)
    assert ours.lineage("org/chat") == Lineage(("org/base", "org/root"), (code,))
    assert ours.lineage("org/adapter").bases == ("org/base", "org/root")
    assert names(ours.lineage("org/base").siblings) == []
    assert names(ours.lineage("org/root").siblings) == ["org/base"]
    assert ours.lineage("org/root").bases == ()


def test_tags_that_are_no_names_name_no_base(publish: Publish) -> None:
    """A card is written by strangers: paths, itself, and bases that do not exist do no harm."""
    publish("org/path", card="base_model: ../../secret")
    publish("org/self", card="base_model: org/self")
    publish("org/orphan", card="base_model: gone/away")
    assert ours.lineage("org/path") == ours.lineage("org/self") == Lineage()
    assert ours.lineage("org/orphan") == Lineage(("gone/away",), ())


def test_lineage_of_no_model_is_refused(hub: LocalHub) -> None:
    """Folders are not asked for; a name that the Hub does not have gets its sentence."""
    for name in ("assets/demo/a", "/tmp", "tiny"):
        with pytest.raises(MergeError, match="org/name"):
            ours.lineage(name)
    assert not hub.log
    with pytest.raises(MergeError, match="not on the Hub"):
        ours.lineage("org/none")
    assert ours.search("tiny") == ()  # which is no reason to leave the Hub alone
