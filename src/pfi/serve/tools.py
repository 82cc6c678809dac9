"""Functions that a model may call: what is taken of them, grammars of calls, calls in answers."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pfi.models.tool_calls import CallFormat
from pfi.serve.errors import ApiError, unsupported
from pfi.serve.structured import json_rule

MOST_TOOLS = 128
#: Calls in one answer; a small model may not come to an end by itself.
MOST_CALLS = 16
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True)
class ToolCall:
    """A call in an answer.

    Attributes:
        id: names it when its result comes.
        name: of the function.
        arguments: an object, as JSON.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Toolset:
    """The functions of a request that may be called.

    Attributes:
        tools: as the OpenAI API describes them.
        rules: the schemas of their arguments as grammar, in the same order.
        choice: whether the model may answer in text (``auto``) or must call.
        parallel: whether it may call more than once.
    """

    tools: tuple[Mapping[str, Any], ...]
    rules: tuple[str, ...]
    choice: Literal["auto", "required"]
    parallel: bool = True


def toolset(
    tools: Sequence[Mapping[str, Any]] | None,
    choice: str | Mapping[str, Any] | None,
    parallel: bool | None,
) -> Toolset | None:
    """The functions that an answer may call; None where it may call none.

    Args:
        tools: ``{"type": "function", "function": {...}}``, or flat as ``/v1/responses`` has them.
        choice: ``none``, ``auto``, ``required``, or one of them by name.
        parallel: whether several may be called at once; yes when None.

    Raises:
        ApiError: 400, it names the field.
    """
    if choice == "none" or not tools:
        if choice == "required" or isinstance(choice, dict):
            what = "tool_choice: there are no tools to choose from"
            raise ApiError(400, what, param="tool_choice", code="invalid_value")
        return None
    if len(tools) > MOST_TOOLS:
        what = f"tools: at most {MOST_TOOLS} functions are taken"
        raise ApiError(400, what, param="tools", code="array_above_max_length")
    known = [_checked(tool, f"tools[{at}]") for at, tool in enumerate(tools)]
    must = choice == "required"
    if isinstance(choice, dict):
        known, must = _chosen(known, choice)
    elif choice not in (None, "auto", "required"):
        what = "tool_choice: use none, auto, required, or name a function"
        raise ApiError(400, what, param="tool_choice", code="invalid_value")
    # All functions together are one grammar, so that a request's schemas have one bound.
    rules = [
        json_rule(tool["function"].get("parameters") or {"type": "object"}, "tools")
        for tool in known
    ]
    if sum(map(len, rules)) > 2 * (1 << 16):
        what = "tools: the schemas are too long together"
        raise ApiError(400, what, param="tools", code="invalid_value")
    chosen: Literal["auto", "required"] = "required" if must else "auto"
    single = isinstance(choice, dict) and choice.get("type") != "allowed_tools"
    return Toolset(tuple(known), tuple(rules), chosen, parallel is not False and not single)


def _checked(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A tool in the form of chat completions."""
    kind = tool.get("type", "function")
    if kind != "function":
        what = f"{where}: only tools of type function are supported, not {str(kind)[:50]!r}"
        raise unsupported(f"{where}.type", what)
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = (
            f"{where}.function.name: a name is 1 to 64 letters, digits, underscores, dots or dashes"
        )
        raise ApiError(400, what, param=f"{where}.function.name", code="invalid_value")
    parameters = inner.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        what = f"{where}.function.parameters: a JSON schema is an object"
        raise ApiError(400, what, param=f"{where}.function.parameters", code="invalid_type")
    if parameters and parameters.get("type", "object") != "object":
        what = f"{where}.function.parameters: the schema of arguments has the type object"
        raise ApiError(400, what, param=f"{where}.function.parameters", code="invalid_value")
    made: dict[str, Any] = {"name": name, "description": str(inner.get("description") or "")}
    made["parameters"] = {"type": "object", "properties": {}, **(parameters or {})}
    return {"type": "function", "function": made}


def _chosen(
    tools: list[dict[str, Any]], choice: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], bool]:
    """The tools that a choice leaves, and whether one of them must be called."""
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        listed = inner.get("tools") or []
        names = {one.get("function", one).get("name") for one in listed if isinstance(one, dict)}
        left = [tool for tool in tools if tool["function"]["name"] in names]
        if left:
            return left, inner.get("mode") == "required"
    named = choice.get("function", choice)
    name = named.get("name") if isinstance(named, dict) else None
    left = [tool for tool in tools if tool["function"]["name"] == name]
    if not left:
        what = "tool_choice: it names a function that is not among the tools"
        raise ApiError(400, what, param="tool_choice", code="invalid_value")
    return left, True


# Grammars -----------------------------------------------------------------------------------


def grammar_of(
    tools: Toolset | None, form: CallFormat, answer: str | None, *, one_token: bool = False
) -> str | None:
    """The grammar of an answer; None where anything goes.

    Args:
        tools: what may be called; None for nothing.
        form: how the model writes calls.
        answer: the rule of an answer that is no call; None for any text.
        one_token: whether what tells a call from text is a token of its own.
    """
    if tools is None:
        return None if answer is None else f"%llguidance {{}}\nstart: {answer}\n"
    lines = ["%llguidance {}"]
    trigger = form.trigger if one_token else json.dumps(form.trigger)
    rest = form.begin[len(form.trigger) :]
    names = []
    for at, (tool, rule) in enumerate(zip(tools.tools, tools.rules, strict=True)):
        name = tool["function"]["name"]
        lines.append(f"args_{at}: {rule}")
        lines.append(f"named_{at}: {json.dumps(rest + name + form.middle)} args_{at}")
        names.append(f"named_{at}")
    lines.append(
        f"after: ({' | '.join(names)}) {json.dumps(form.end)}"
        if form.end
        else f"after: {' | '.join(names)}"
    )
    lines.append(f"call: {trigger} after")
    more = ""
    if tools.parallel and form.between is not None:
        between = json.dumps(form.between) if form.between else ""
        more = f" ({between} call){{0,{MOST_CALLS - 1}}}"
    if tools.choice == "required":
        lines.append(f"start: call{more}")
    elif answer is not None:
        lines += [f"start: call{more} | answer", f"answer: {answer}"]
    elif one_token:
        lines += [f"start: TEXT | TEXT call{more}", r"TEXT: /(.|\n)*/"]
    else:
        # Text up to the trigger, which ends it, or text to the end.
        lines += [
            f"start: text | begun after{more} | call{more}",
            "text: TEXT",
            f"begun[lazy]: TEXT {trigger}",
            r"TEXT: /(.|\n)*/",
        ]
    return "\n".join(lines) + "\n"


# Answers ------------------------------------------------------------------------------------


@dataclass
class CallReader:
    """Tells text from calls in an answer as it comes; a call is given when it is whole.

    Attributes:
        form: how the model writes calls.
        names: of the functions that may be called; others are no calls.
        calls: so far.
    """

    form: CallFormat
    names: frozenset[str]
    calls: list[ToolCall] = field(default_factory=list)
    _held: str = ""
    _calling: bool = False

    def add(self, text: str) -> tuple[str, list[ToolCall]]:
        """More of an answer: what of it is text, and the calls that are whole now."""
        self._held += text
        shown = ""
        if not self._calling:
            at = self._held.find(self.form.trigger)
            if at < 0:
                keep = _overlap(self._held, self.form.trigger)
                cut = len(self._held) - keep
                shown, self._held = self._held[:cut], self._held[cut:]
                return shown, []
            shown, self._held, self._calling = self._held[:at].rstrip(), self._held[at:], True
        new: list[ToolCall] = []
        while (found := self._whole()) is not None:
            new.append(found)
        self.calls += new
        return shown, new

    def end(self) -> str:
        """No more comes; what was held back and is text. Of a call that was cut nothing."""
        held, self._held = self._held, ""
        return "" if self._calling else held

    def _whole(self) -> ToolCall | None:
        """The call at the head of what is held, taken off, if it is whole."""
        form = self.form
        begin = self._held.find(form.begin)
        if begin < 0:
            return None
        name, found, rest = self._held[begin + len(form.begin) :].partition(form.middle)
        if not found or name not in self.names:
            return None
        try:
            arguments, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            return None
        if not isinstance(arguments, dict) or not rest[end:].startswith(form.end):
            return None
        self._held = rest[end + len(form.end) :]
        return ToolCall(f"call_{secrets.token_hex(12)}", name, rest[:end])


def _overlap(text: str, mark: str) -> int:
    """The longest end of ``text`` that ``mark`` begins with, but is not."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
