"""The chat formats that a recipe may name in `chat_template`, as Jinja; it knows text alone."""

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
"""By the names that mergekit gives them. `eos_token` and `bos_token` are the tokenizer's."""
