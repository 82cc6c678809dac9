"""How a model is told of functions, and how it writes calls: as its own chat template has it.

A template is shown a conversation with a call in it, and what it writes around the function's
name and its arguments is the format.  Templates that know no functions, or write calls in a form
that is no JSON between plain texts, get the plain rule: the form of Hermes 2 Pro, which many
models were tuned on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfi.errors import BackboneError
from pfi.models.chat_templates import ChatTemplate, Refused
from pfi.models.prompter import THOUGHTS, Prompter

#: A function as the OpenAI API describes it: ``{"type": "function", "function": {...}}``.
Tool = Mapping[str, Any]
_NAME, _NAME2, _ARGUMENT = "probe_one", "probe_two", "probe_argument"
_PROBE: Tool = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {_ARGUMENT: {"type": "string"}},
            "required": [_ARGUMENT],
        },
    },
}
_RULE = """You may call these functions:
{tools}
To call functions, write nothing but a line of this form for each call:
{form}
What they return follows in <tool_response> and </tool_response>."""


@dataclass(frozen=True)
class CallFormat:
    """What stands around a call's name and its arguments, which are JSON.

    Attributes:
        begin: before the name.
        middle: between the name and the arguments.
        end: behind the arguments.
        between: between two calls; None where a model writes one only.
        own: whether it is the model's own form.
        tool_role: whether the template knows the role ``tool``.
    """

    begin: str
    middle: str
    end: str
    between: str | None
    own: bool = False
    tool_role: bool = False

    def text(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, each a name and its arguments as JSON, as the model would write them."""
        written = [f"{self.begin}{name}{self.middle}{given}{self.end}" for name, given in calls]
        return ("\n" if self.between is None else self.between).join(written)

    @property
    def trigger(self) -> str:
        """What of ``begin`` tells a call from an answer."""
        mark = self.begin.partition("{")[0].strip()
        return mark or self.begin


PLAIN = CallFormat('<tool_call>{"name": "', '", "arguments": ', "}</tool_call>", "\n")


def call_format(prompter: Prompter) -> CallFormat:
    """How a model writes calls."""
    template = _template(prompter)
    own = None if template is None else _own_format(template, prompter)
    return PLAIN if own is None else own


def tool_system(prompter: Prompter, form: CallFormat, tools: Sequence[Tool], system: str) -> str:
    """What the system says, with the functions that the model may call.

    Args:
        prompter: the model's.
        form: how it writes calls.
        tools: the functions.
        system: what the system says otherwise; may be empty.
    """
    template = _template(prompter)
    own = _own_system(template, prompter, tools, system) if form.own and template else None
    if own is not None:
        return own
    shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    rule = _RULE.format(tools=shown, form=form.text([("NAME", "{...}")]))
    return f"{system}\n\n{rule}" if system.strip() else rule


def response_turn(form: CallFormat, name: str, text: str) -> tuple[str, str]:
    """What a function returned, as a turn."""
    if form.tool_role:
        return "tool", text
    return "user", f"<tool_response>\n{text}\n</tool_response>"


def _template(prompter: Prompter) -> ChatTemplate | None:
    if prompter.chat_template is None:
        return None
    names = prompter.tokenizer.special_tokens_map
    return ChatTemplate(prompter.chat_template, names, prompter.name)


def _own_format(template: ChatTemplate, prompter: Prompter) -> CallFormat | None:
    """The form in which a template writes calls; None where it is not of the kind we know."""
    if "tools" not in template.source or "tool_calls" not in template.source:
        return None
    user = {"role": "user", "content": "q"}
    try:
        begins = [
            template.text([user], answer=True, tools=[_PROBE], thinking=thinking)
            for thinking in (False, True)
        ]
        one = template.text([user, _called(_NAME)], answer=False, tools=[_PROBE])
    except (Refused, BackboneError):
        return None
    plain = next((begin for begin in begins if one.startswith(begin)), None)
    if plain is None:
        return None
    form = _split(one[len(plain) :], _NAME)
    if form is None:
        return None
    begin, middle, end = form
    behind = _end_of_turn(template, user)
    if behind is None or not end.endswith(behind):
        return None
    end = end[: len(end) - len(behind)] if behind else end
    for _, thought_end in THOUGHTS:
        begin = begin.rpartition(thought_end)[2]
    begin, end = begin.lstrip(), end.rstrip()
    if not begin.strip() or _has_control_token(prompter, begin + middle + end):
        return None
    return CallFormat(
        begin,
        middle,
        end,
        _between(template, user, (begin, middle, end)),
        own=True,
        tool_role=_knows_tool_role(template),
    )


def _called(*names: str) -> dict[str, Any]:
    calls = [
        {
            "id": f"call0000{at}",
            "type": "function",
            "function": {"name": name, "arguments": {_ARGUMENT: "v"}},
        }
        for at, name in enumerate(names)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _split(text: str, name: str) -> tuple[str, str, str] | None:
    """What stands before a call's name, between it and the arguments, and behind these."""
    begin, found, rest = text.partition(name)
    at = rest.find("{")
    if not found or at < 0:
        return None
    try:
        given, end = json.JSONDecoder().raw_decode(rest, at)
    except ValueError:
        return None
    if given != {_ARGUMENT: "v"} or name in rest[end:] or "call0000" in text:
        return None
    return begin, rest[:at], rest[end:]


def _end_of_turn(template: ChatTemplate, user: Mapping[str, Any]) -> str | None:
    """What a template writes behind an assistant's text."""
    try:
        said = template.text(
            [user, {"role": "assistant", "content": _ARGUMENT}], answer=False, tools=[_PROBE]
        )
    except (Refused, BackboneError):
        return None
    return said.rpartition(_ARGUMENT)[2] if _ARGUMENT in said else None


def _between(
    template: ChatTemplate, user: Mapping[str, Any], form: tuple[str, str, str]
) -> str | None:
    """What stands between two calls; None where the template writes no two."""
    begin, middle, end = form
    try:
        text = template.text([user, _called(_NAME, _NAME2)], answer=False, tools=[_PROBE])
    except (Refused, BackboneError):
        return None
    at = text.find(f"{begin}{_NAME}{middle}")
    last = text.find(f"{begin}{_NAME2}{middle}", at)
    first_end = text.find(end, at + len(begin)) if end else -1
    if at < 0 or last < 0 or not at < first_end < last:
        return None
    between = text[first_end + len(end) : last]
    return between if not between.strip(", \n") else None


def _knows_tool_role(template: ChatTemplate) -> bool:
    """Whether a function's result can be a turn of its own."""
    try:
        return template.parts(["user", "assistant", "tool"]) is not None
    except (Refused, BackboneError):
        return False


def _own_system(
    template: ChatTemplate, prompter: Prompter, tools: Sequence[Tool], system: str
) -> str | None:
    """The system's text with functions as the template writes them into it.

    None where it writes them elsewhere, or with control tokens: these count in the frame only.
    """
    roles = ["system", "user"]
    try:
        plain, told = template.parts(roles), template.parts(roles, tools=tools)
    except (Refused, BackboneError):
        return None
    if plain is None or told is None or told[2:] != plain[2:]:
        return None
    if not (told[0].startswith(plain[0]) and told[1].endswith(plain[1])):
        return None
    before = told[0][len(plain[0]) :]
    behind = told[1][: len(told[1]) - len(plain[1])]
    if not before + behind or _has_control_token(prompter, before + behind):
        return None
    return f"{before}{system}{behind}".strip()


def _has_control_token(prompter: Prompter, text: str) -> bool:
    added = prompter.tokenizer.added_tokens_decoder.values()
    return any(token.special and str(token) in text for token in added)
