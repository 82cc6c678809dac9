"""Chat templates: rendered as transformers does, and refused in a line where they never end."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfi.errors import BackboneError
from pfi.models.chat_templates import ChatTemplate, Refused, default_template
from pfi.models.prompter import load_prompter

Folder = Callable[[str], Path]
CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' -}}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- endif %}"
)
#: Idioms of real templates: namespaces, filters, tests, methods, macros, loop controls.
TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' ~ message.content ~ eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(last=-1, seen=[]) -%}\n{%- for m in messages -%}\n"
    "    {%- if m.role == 'user' and m.content is string and not m.content.startswith('<tool') -%}"
    "\n        {%- set ns.last = loop.index0 -%}\n    {%- endif -%}\n{%- endfor -%}\n"
    "{% macro turn(m, last=false) %}<{{ m.role | upper }}{{ '!' if last }}>{{ m.content }}"
    "{% endmacro %}\n{% for m in messages %}\n  {{ turn(m, loop.index0 == ns.last) }}\n"
    "  {%- if loop.last and add_generation_prompt %}{{ '<ASSISTANT>' }}{% break %}{% endif %}\n"
    "{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ {'r': m.role} | tojson }}{{ m.content.split('</think>')[-1] }}"
    "{% endif %}{% endfor %}{{ ['a', 'b'] | join('-') }}{{ '%s|%d' | format('x', 3) }}"
    "{{ 'ab' * 2 }}{{ messages | length + 1 }}",
]
NEVER_ENDING = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
]
HUGE = [
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set a = ['aaaa'] * 999 %}{% set b = [a] * 999 %}{% set c = [b] * 999 %}{{ c }}",
    "{% set a = ['aaaa'] * 999 %}{% set b = [a] * 999 %}{% set c = [b] * 999 %}{{ c | tojson }}",
    "{% set a = 'a' * 99999 %}{{ a.replace('', a) }}",
    "{% set a = 'a' * 99999 %}{{ a | replace('a', a) }}",
    "{% set a = 'a' * 99999 %}{{ ''.join([a] * 9999) }}",
    "{% set a = 'a' * 99999 %}{{ ([a] * 9999) | join }}",
    "{% for i in range(90000) %}{{ 'x' * 100000 }}{% endfor %}",
    "x" * 300_000,
]
BROKEN = ["{% for x in messages %}", "{{ foo(", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"]
FAILING = [
    "{{ 1 / 0 }}",
    "{{ raise_exception('not like that') }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages[0].content + 1 }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("answer", [True, False])
def test_they_are_rendered_as_transformers_does(template: str, answer: bool) -> None:
    tokenizer: Any = load_prompter("embedded").tokenizer
    ours = ChatTemplate(template, tokenizer.special_tokens_map, "x")
    for roles in (["user"], ["user", "assistant"], ["user", "assistant", "user"]):
        parts = ours.parts(roles, answer=answer)
        assert parts is not None and len(parts) == len(roles) + 1
        words = [f"word{at}" for at in range(len(roles))]
        turns = [{"role": r, "content": w} for r, w in zip(roles, words, strict=True)]
        theirs = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=answer
        )
        assert parts[0] + "".join(w + p for w, p in zip(words, parts[1:], strict=True)) == theirs


@pytest.mark.parametrize("template", [*NEVER_ENDING, *HUGE, *BROKEN])
def test_one_that_never_ends_or_fills_the_memory_is_refused_in_a_line(template: str) -> None:
    begin = time.thread_time()
    with pytest.raises(BackboneError, match="chat template") as raised:
        ChatTemplate(template, {}, "my model").parts(["user"])
    assert time.thread_time() - begin < 5
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert "my model" in str(raised.value)


@pytest.mark.parametrize("template", FAILING)
def test_one_that_raises_an_error_takes_no_such_conversation(template: str) -> None:
    with pytest.raises(Refused) as raised:
        ChatTemplate(template, {}, "x").parts(["user"])
    assert str(raised.value) and "\n" not in str(raised.value)


def test_who_traces_a_program_traces_on() -> None:
    def trace(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        ChatTemplate(CHATML, {}, "x").parts(["user"])
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("template", [NEVER_ENDING[0], FAILING[1], "no message", BROKEN[0]])
def test_a_backbone_with_such_a_template_is_not_loaded(
    backbone_folder: Folder, tmp_path: Path, template: str
) -> None:
    folder = shutil.copytree(backbone_folder("llama"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    with pytest.raises(BackboneError, match="chat template") as raised:
        load_prompter(folder)
    assert "\n" not in str(raised.value)


def test_of_several_templates_the_default_one_frames_prompts(
    backbone_folder: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "named"
    tokenizer: Any = load_prompter(backbone_folder("llama")).tokenizer
    shutil.copytree(backbone_folder("llama"), folder)
    tokenizer.chat_template = {"tool_use": "tools", "default": "[user]{{ messages[0].content }}"}
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
    prompter = load_prompter(folder)
    assert prompter.chat_template == "[user]{{ messages[0].content }}"
    assert prompter.text(prompter.prompt_ids("a fox")) == "[user]a fox"

    named = [{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}]
    with pytest.raises(BackboneError, match=r"several chat templates \(rag, tool_use\)") as raised:
        default_template(named, "x")
    assert "\n" not in str(raised.value)
    assert default_template([*named, {"name": "default", "template": "c"}], "x") == "c"
    assert default_template({}, "x") is None is default_template(None, "x")
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    tokenizer.chat_template = {"tool_use": "tools", "rag": "documents"}
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
    with pytest.raises(BackboneError, match="none is called default"):
        load_prompter(folder)
