"""What a Space reads of this repository, and how the page is launched there."""

from __future__ import annotations

import asyncio
import re
import shlex
import unicodedata
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gradio as gr
import pytest
from huggingface_hub import SpaceCard, SpaceHardware
from huggingface_hub.cli.hf import app as hf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from merging.machines import MACHINES
from merging.ui import LAUNCH, build
from merging.ui.turn import ASKING, LOOKING, MERGING
from tests.hub.validation import LICENSES
from tests.ui.running import ROOT

ZEROGPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
"""As its documentation lists them."""
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SCOPES = {
    "gated-repos", "read-repos", "contribute-repos", "write-repos", "manage-repos",
    "inference-api", "jobs",
}  # fmt: skip
"""Beside `openid` and `profile`, which every login has."""
SETTINGS: dict[str, Callable[[Any], bool]] = {
    "title": bool,
    "emoji": lambda text: [unicodedata.category(each) for each in text] == ["So"],
    "colorFrom": COLOURS.__contains__,
    "colorTo": COLOURS.__contains__,
    "sdk": "gradio".__eq__,
    "sdk_version": lambda text: text == version("gradio") and text in required()["gradio"],
    "python_version": "3.12".__eq__,
    "app_file": lambda path: (ROOT / path).is_file(),
    "license": LICENSES.split().__contains__,
    "short_description": lambda text: 0 < len(text) <= 60,
    "suggested_hardware": [machine.name for machine in MACHINES].__contains__,
    "hf_oauth": lambda value: value is True,
    "hf_oauth_scopes": lambda names: set(names) <= SCOPES,
    "tags": lambda names: all(re.fullmatch("[a-z0-9-]+", name) for name in names),
}
"""What the Hub documents of a Space's settings, and what this app needs of them."""
NEEDED = SETTINGS.keys() - {"suggested_hardware", "tags"}


def required() -> dict[str, SpecifierSet]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement.specifier for requirement in found}


def test_front_matter() -> None:
    """A Gradio Space of this app by values that the Hub knows, with the gradio that the tests ran
    with and Python 3.12; the licence is the one that lies here."""
    settings = SpaceCard.load(ROOT / "README.md").data.to_dict()
    assert [name for name, value in settings.items() if not SETTINGS[name](value)] == []
    assert settings.keys() >= NEEDED
    assert settings["license"] == "apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("torch", ZEROGPU_TORCH)
def test_zerogpus_torch_is_allowed(torch: str) -> None:
    assert torch in required()["torch"]


def test_what_the_tests_ran_with_is_allowed() -> None:
    for name, allowed in required().items():
        assert version(name) in allowed, name


def test_launch() -> None:
    """No second server, no history in a shared browser, no address of our own, no monitoring."""
    assert LAUNCH["ssr_mode"] is False
    assert LAUNCH["run_history"] is False
    assert not {"server_name", "server_port", "share"} & set(LAUNCH)
    assert LAUNCH["enable_monitoring"] is False  # which None would not be
    assert LAUNCH["state_session_capacity"] <= 300


def test_queue() -> None:
    """Explicit in all: by default ZeroGPU would have one person wait, and others one at a time."""

    async def built() -> gr.Blocks:
        return build()

    blocks = asyncio.run(built())  # where no loop runs, gradio leaves one open
    queue = blocks._queue
    assert (queue.max_size, queue.default_concurrency_limit) == (128, 8)
    assert not blocks.api_open
    pools = {fn.concurrency_id: fn.concurrency_limit for fn in blocks.fns.values() if fn.queue}
    for pool in (MERGING, ASKING, LOOKING):
        assert pools[pool["concurrency_id"]] == pool["concurrency_limit"]


def test_deploying_commands_are_hfs() -> None:
    """The installed `hf` takes README's commands, and knows the hardware that is named."""
    section = README.partition("## On a Space")[2].partition("\n## ")[0]
    commands = [line for line in section.splitlines() if line.startswith("hf ")]
    assert len(commands) == 2
    assert "--flavor zero-a10g" in commands[0]  # all else takes a paid plan
    for line in commands:
        command, words = hf, shlex.split(line)[1:]
        while hasattr(command, "commands"):
            context = command.make_context("hf", words[:1])
            _, command, words = command.resolve_command(context, words)
        command.make_context("hf", words)  # parses, and runs nothing
    named = re.findall(r"`((?:cpu|zero|t4|l4)[a-z0-9-]+)`", section)
    assert {"cpu-basic", "zero-a10g", "t4-small", "l4x1"} <= set(named)
    assert set(named) <= {hardware.value for hardware in SpaceHardware}
