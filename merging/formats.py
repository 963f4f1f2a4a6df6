"""Chat templates: those that a recipe may name, and a model's own, wherever its files keep it.

It finds templates as text, and never runs them.
"""

import json
from pathlib import Path

from merging.errors import MergeError

TEMPLATE_CAP = 65_536
"""Characters of a chat template."""

_ASK = "{% if add_generation_prompt %}"

FORMATS = {
    "alpaca": "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}" + _ASK + "{{ '### Response:\\n' }}{% endif %}",
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}" + _ASK + "{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "exaone": "{% for m in messages %}{{ '[|' + m['role'] + '|]' + m['content'] }}"
    "{{ '\\n' if m['role'] == 'user' else '[|endofturn|]\\n' }}{% endfor %}"
    + _ASK + "{{ '[|assistant|]' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] "
    "+ '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    + _ASK + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% elif m['role'] == 'system' %}"
    "{{ '[INST] ' + m['content'] + '\\n\\n' }}{% else %}"
    "{{ ('' if loop.previtem is defined and loop.previtem['role'] == 'system' else '[INST] ') "
    "+ m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
}  # fmt: skip
"""Chat templates by mergekit's names. `eos_token` and `bos_token` are the tokenizer's."""


def template(folder: Path, name: str) -> str | None:
    """A model's own chat template, wherever its tokenizer keeps it. Raises MergeError if broken."""
    separate = folder / "chat_template.jinja"
    if separate.is_file() and separate.stat().st_size <= TEMPLATE_CAP:
        return separate.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(
            f"{name}: its tokenizer_config.json is broken ({error}): "
            "fetch the model again, or choose another."
        ) from error
    return found if isinstance(found, str) and len(found) <= TEMPLATE_CAP else None
