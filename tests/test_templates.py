"""Chat templates: rendered as transformers renders them, and stopped where they do harm."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from jinja2 import TemplateError

from merging import formats, rendering, templates
from merging.errors import MergeError
from tests.conftest import tokenizer

LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n\\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.tool_calls|length != 1 %}
        {{- raise_exception("One tool call at a time!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
        (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}{{- tool_call.name | tojson }}{%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/...') }}
{%- endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ message['content'] + eos_token }}{% endif %}
{% endfor %}"""
SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PECULIAR = (
    "  {% set ns = namespace(n=0) %}\n  {% for m in messages %}{% if m.role == 'tool' %}"
    "{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}\n{{ m | tojson }}{{ dict(a=ns.n) }}"
    "{{ unk_token }}{{ pad_token }}{{ nothing }}{% generation %}g{% endgeneration %}{% endfor %}"
)
"""What transformers adds to Jinja, and how it cuts whitespace."""
MANNERS = {**formats.FORMATS, "llama": LLAMA, "qwen": QWEN, "mistral own": MISTRAL, "smol": SMOL}
MANNERS["peculiar"] = PECULIAR

SYSTEM = {"role": "system", "content": " Be brief.\n"}
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello\n"}
ODD = {"role": "user", "content": " <b>é</b> 漢字 🙂 {{ 1 }} \\n \ud800 </s> "}
TALKS = {
    "one": [HI], "turns": [HI, HELLO, ODD], "system": [SYSTEM, HI, HELLO, ODD], "twice": [HI, HI],
    "tool": [HI, {"role": "tool", "content": "4"}, HI], "late": [HI, HELLO, SYSTEM, HI],
}  # fmt: skip
CHATML = formats.FORMATS["chatml"]
ANSWERED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def render(template: str, messages: Sequence[dict[str, str]] = (HI,)) -> str:
    return templates.render(template, messages, tokens={"eos_token": "</s>"}, name="M")


def child() -> subprocess.Popen[bytes]:
    """The process that renders now."""
    running = templates._renderer(os.getpid()).child
    assert running is not None
    return running.process


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process of the test's own, which ends with it."""
    templates._renderer.cache_clear()
    yield
    templates._renderer.cache_clear()


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("manner", MANNERS)
def test_it_is_what_transformers_renders(manner: str, talk: str) -> None:
    """Letter for letter, in all manners of templates; their own errors, with their own words."""
    fast = tokenizer()
    told = {"chat_template": MANNERS[manner], "tokenize": False, "add_generation_prompt": True}
    tokens = fast.special_tokens_map
    try:
        expected = fast.apply_chat_template(TALKS[talk], **told)
    except TemplateError as error:
        with pytest.raises(templates.RefusedError) as caught:
            templates.render(MANNERS[manner], TALKS[talk], tokens=tokens)
        assert str(caught.value) == str(error)
    else:
        assert templates.render(MANNERS[manner], TALKS[talk], tokens=tokens) == expected


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HARM = {
    "one endless call": ("{{ 9 ** (9 ** 9) }}", "works for over 2 seconds"),
    "doubling": (
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
        "{% endfor %}{{ n.s }}",
        "takes over 256 MB",
    ),
    "repeating": ("{{ 'a' * 10 ** 10 }}", "takes over 256 MB"),
    "width": ("{{ '{:>10000000000}'.format('x') }}", "takes over 256 MB"),
    "indent": ("{{ [1] | tojson(indent=10 ** 10) }}", "takes over 256 MB"),
    "output": ("{% for i in range(300) %}{{ 'a' * 1000 }}{% endfor %}", "adds 299,998 characters"),
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_ends_in_a_sentence(harm: str) -> None:
    """It says whose template it is, what it does and what to do; the next render is right."""
    template, what = HARM[harm]
    since = time.monotonic()
    with pytest.raises(MergeError, match=f"^The chat template of M {what}.*: choose `chat_templ"):
        render(template)
    assert time.monotonic() - since < 30
    assert render(CHATML) == ANSWERED


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "recursion"),
        ("{% if x %}" * 3000 + "{% endif %}" * 3000, "recursion"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "str"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('') }}", "TemplateError"),
        ("{{ raise_exception('no\n' ~ 'a' * 10 ** 6) }}", "no"),
    ],
)
def test_errors_of_a_template(template: str, why: str) -> None:
    """Whatever a template raises is its own refusal, in one short line."""
    with pytest.raises(templates.RefusedError, match=why) as caught:
        render(template)
    assert len(str(caught.value)) <= 200
    assert "\n" not in str(caught.value)


def test_a_long_conversation_is_no_harm() -> None:
    """What was said does not count as what the template adds."""
    long = {"role": "user", "content": "é" * 16_000}
    assert len(render(CHATML, [long] * 60)) > 60 * 16_000


@pytest.mark.usefixtures("fresh")
def test_a_killed_process_is_replaced() -> None:
    """Nobody who asks notices that it was killed, ready or still starting."""
    templates.start()
    child().kill()
    assert render(CHATML) == ANSWERED
    os.kill(child().pid, signal.SIGKILL)
    assert render(CHATML) == ANSWERED


@pytest.mark.usefixtures("fresh")
def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no template's fault, and is not said to be one."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="did not start"):
        render(CHATML)


@pytest.mark.usefixtures("fresh")
def test_a_process_that_does_not_work_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stands still uses no processor time, and is given up nevertheless."""
    assert render(CHATML) == ANSWERED
    monkeypatch.setattr(templates, "WALL", 0.5)
    os.kill(child().pid, signal.SIGSTOP)
    with pytest.raises(MergeError, match="is not done after"):
        render(CHATML)
    monkeypatch.undo()
    assert render(CHATML) == ANSWERED


@pytest.mark.usefixtures("fresh")
def test_memory_does_not_pile_up() -> None:
    """After a template whose compiled form is large the process makes room for a new one."""
    assert render("{% set x = 'a' * 36000000 %}ok") == "ok"
    before = child().pid
    assert render(CHATML) == ANSWERED
    assert child().pid != before


def test_many_at_once_with_a_bad_one_among_them() -> None:
    """Seven get their right answers within seconds while an eighth loops."""
    render(CHATML)
    together = threading.Barrier(8)

    def ask(number: int) -> str:
        together.wait()
        if number == 3:
            with pytest.raises(MergeError, match="over 2 seconds"):
                render(LOOPS)
            return "ended"
        said = [{"role": "user", "content": f"{number} {turn}"} for turn in range(20)]
        return "".join(render("{{ messages[0].content }},", [message]) for message in said)

    since = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert time.monotonic() - since < 40
    assert answers.pop(3) == "ended"
    for number, answer in zip((0, 1, 2, 4, 5, 6, 7), answers, strict=True):
        assert answer == "".join(f"{number} {turn}," for turn in range(20))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("fresh")
def test_it_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process's environment it has the path and the language, and so no token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("ANY_OTHER", "secret")
    assert render("{{ HF_TOKEN }}{{ environ }}{{ os }}") == ""
    held = Path(f"/proc/{child().pid}/environ").read_bytes().decode()
    names = {entry.partition("=")[0] for entry in held.split("\0") if entry}
    assert names <= {"PATH", "LANG", "PYTHONPATH", "HF_HUB_OFFLINE", "OPENBLAS_NUM_THREADS"}
    assert "secret" not in held


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("fresh")
def test_it_is_small_and_loads_no_torch() -> None:
    """It needs transformers' renderer alone: under 120 MB, and none of torch's libraries."""
    assert render(CHATML) == ANSWERED
    about = Path(f"/proc/{child().pid}")
    resident = int((about / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident < 120e6
    assert "libtorch" not in (about / "maps").read_text()


@pytest.mark.usefixtures("fresh")
def test_start_does_not_wait() -> None:
    """Starting takes no time, once or twice; what is rendered then comes from that process."""
    since = time.monotonic()
    templates.start()
    first = child()
    templates.start()
    assert time.monotonic() - since < 0.5
    assert render(CHATML) == ANSWERED
    assert child() is first


def test_warm_renders_are_fast() -> None:
    """A millisecond or less each on a quiet machine; here with much room for a busy one."""
    took = []
    for _ in range(50):
        since = time.monotonic()
        render(LLAMA)
        took.append(time.monotonic() - since)
    assert min(took) < 0.02


def test_it_ends_when_its_input_is_closed() -> None:
    """So it does when the process that started it ends, however that ends."""
    process = templates._popen()
    with process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"{}\n"
        process.stdin.close()
        assert process.wait(5) == 0


PARENT = f"""
import os, signal, threading
from merging import templates
templates.render("ok", [], tokens={{}})
threading.Thread(target=templates.render, args=({LOOPS!r}, []), kwargs={{"tokens": {{}}}}).start()
while not templates._renderer(os.getpid()).lock.locked():
    pass
print(templates._renderer(os.getpid()).child.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_loop_does_not_outlive_a_killed_parent() -> None:
    """Nobody is left to kill a process that loops; its own clock does."""
    ran = subprocess.run([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, check=False)
    orphan = Path(f"/proc/{int(ran.stdout)}/cmdline")
    until = time.monotonic() + 15 * rendering.SECONDS
    while time.monotonic() < until and orphan.exists() and orphan.read_bytes():  # none in a zombie
        time.sleep(0.1)
    assert not (orphan.exists() and orphan.read_bytes())


def _in_a_worker(answers: Connection) -> None:
    answers.send((render(CHATML), child().pid))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_worker_has_its_own() -> None:
    """As on ZeroGPU: a daemon, which may have no children of multiprocessing's."""
    assert render(CHATML) == ANSWERED
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=_in_a_worker, args=(there,), daemon=True)
    worker.start()
    assert here.poll(20)
    answer, number = here.recv()
    worker.join()
    here.close()
    there.close()
    assert answer == ANSWERED
    assert number != child().pid
    assert render(CHATML) == ANSWERED
