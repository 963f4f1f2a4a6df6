"""What a Space reads of this repository, and how the page is launched there."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version

import pytest
from huggingface_hub import SpaceCard, SpaceHardware
from huggingface_hub.cli.hf import app as hf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from merging.ui import LAUNCH
from tests.ui.running import ROOT

ZEROGPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
"""As its documentation lists them."""
README = (ROOT / "README.md").read_text(encoding="utf-8")


def required() -> dict[str, SpecifierSet]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement.specifier for requirement in found}


def test_front_matter() -> None:
    """A Gradio Space of this app, with the gradio that the tests ran with and Python 3.12."""
    card = SpaceCard.load(ROOT / "README.md").data
    assert (card.sdk, card.app_file, card.python_version) == ("gradio", "app.py", "3.12")
    assert (ROOT / card.app_file).is_file()
    assert card.sdk_version in required()["gradio"]
    assert card.sdk_version == version("gradio")
    assert card.hf_oauth is True
    assert len(card.short_description) <= 60


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


def test_deploying_commands_are_hfs() -> None:
    """The installed `hf` takes README's commands, and knows the hardware that is named."""
    section = README.partition("## On a Space")[2].partition("\n## ")[0]
    commands = [line for line in section.splitlines() if line.startswith("hf ")]
    assert len(commands) == 2
    for line in commands:
        command, words = hf, shlex.split(line)[1:]
        while hasattr(command, "commands"):
            context = command.make_context("hf", words[:1])
            _, command, words = command.resolve_command(context, words)
        command.make_context("hf", words)  # parses, and runs nothing
    named = re.findall(r"`((?:cpu|zero|t4|l4)[a-z0-9-]+)`", section)
    assert {"cpu-basic", "zero-a10g", "t4-small", "l4x1"} <= set(named)
    assert set(named) <= {hardware.value for hardware in SpaceHardware}
