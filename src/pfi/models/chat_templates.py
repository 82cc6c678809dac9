"""Chat templates: rendered in a sandbox, within bounds of time and size.

A template is a program (Jinja) that comes with somebody's model.  Loops are bounded by the CPU
time of the thread, and what a single step may build by its size, so that one that never ends or
fills the memory is refused in a line.  What it can use is what transformers gives it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property, lru_cache, wraps
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes, pass_eval_context
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from pfi.errors import BackboneError

#: Characters of a template; the longest known ones have about 30,000.
_SOURCE = 1 << 18
#: Characters, or members of lists, that a template may hold in one value or write.
_SIZE = 1 << 20
#: Bits of an integer.
_BITS = 4096
#: Seconds of this thread's CPU time for a rendering; a real template takes some milliseconds.
_SECONDS = 2.0
_MARK = "\u241f"
_FILE = "<template>"
_LONG_NUMBER = re.compile(r"\d{7}")
#: What templates call the choice to think before an answer, and its value with thinking off, on.
_THINKING: Mapping[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "reasoning": (False, True),
    "thinking_budget": (0, None),
}


class _TooMuch(Exception):
    """A template takes too long or builds too much."""


class ChatTemplate:
    """A model's chat template.

    Args:
        source: the Jinja text.
        tokens: control tokens by their names (``bos_token``, ...), which templates write.
        name: the backbone's, for errors.

    Raises:
        BackboneError: it is no template, or too long.
    """

    def __init__(self, source: str, tokens: Mapping[str, Any], name: str) -> None:
        self.source, self._tokens, self._name = source, dict(tokens), name
        if len(source) > _SOURCE:
            raise self._error(f"has {len(source)} characters, and {_SOURCE} are read")
        try:
            self._template, self._names = _compiled(source)
        except TemplateSyntaxError as error:
            raise self._error(f"is no template: line {error.lineno}: {error.message}") from error
        except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise self._error(f"is no template: {_line(error)}") from error

    def parts(
        self,
        roles: Sequence[str],
        *,
        answer: bool = True,
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[str] | None:
        """The text before, between and after messages of these roles; None if it drops one.

        Args:
            roles: of the messages.
            answer: whether the beginning of an answer follows them.
            thinking: whether the model is asked to think first, where the template knows that.
            tools: functions that the model may call, as the OpenAI API describes them.

        Raises:
            Refused: it does not take such a conversation.
            BackboneError: it takes too long, or writes too much.
        """
        messages = [{"role": role, "content": f"{_MARK}{i}{_MARK}"} for i, role in enumerate(roles)]
        text = self.text(messages, answer=answer, thinking=thinking, tools=tools)
        parts = re.split(f"{_MARK}([0-9]+){_MARK}", text)
        if parts[1::2] != [str(at) for at in range(len(roles))]:
            return None
        return parts[::2]

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        answer: bool = True,
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Messages as the template writes them; the rest as ``parts``."""
        choice = {name: on if thinking else off for name, (off, on) in _THINKING.items()}
        context = {
            **{name: value for name, value in choice.items() if value is not None},
            **self._tokens,
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            # Llama 3's has them in the user's message unless told otherwise.
            "tools_in_user_message": False,
            "documents": None,
            "add_generation_prompt": answer,
        }
        try:
            with _limited():
                return self._rendered(context)
        except (_TooMuch, MemoryError) as error:
            raise self._error(f"cannot be rendered: {_line(error)}") from error
        except RecursionError as error:
            raise self._error("cannot be rendered: it never ends") from error
        except Exception as error:
            # It is foreign code: whatever it raises, it does not take this conversation.
            raise Refused(_line(error)) from error

    @cached_property
    def knows_thinking(self) -> bool:
        """Whether it can be told not to think."""
        return not self._names.isdisjoint(_THINKING)

    def _rendered(self, context: Mapping[str, Any]) -> str:
        template = self._template
        return _concat(template.root_render_func(template.new_context(dict(context))))

    def _error(self, what: str) -> BackboneError:
        return BackboneError(
            f"the chat template {what}", where=self._name, fix="use another copy of the model"
        )


class Refused(Exception):
    """A template raises an error for a conversation."""


def default_template(
    templates: str | Mapping[str, str] | Sequence[Mapping[str, str]] | None, name: str
) -> str | None:
    """The template that frames a conversation: the only one, or of several the default one.

    Raises:
        BackboneError: there are several, and none is called ``default``.
    """
    if templates is None or isinstance(templates, str):
        return templates or None
    if not isinstance(templates, Mapping):
        templates = {one["name"]: one["template"] for one in templates}
    if not templates:
        return None
    if "default" not in templates:
        known = ", ".join(sorted(templates))
        what = f"the tokenizer has several chat templates ({known}) and none is called default"
        fix = "name one of them default in the model's folder"
        raise BackboneError(what, where=name, fix=fix)
    return templates["default"]


# Bounds ------------------------------------------------------------------------------------


@contextmanager
def _limited() -> Iterator[None]:
    """Within, Python code of templates and what it calls has `_SECONDS` of CPU time."""
    end = time.thread_time() + _SECONDS

    def check(frame: Any, event: str, arg: Any) -> Any:
        if time.thread_time() > end:
            raise _TooMuch("it never ends")
        return check if frame.f_code.co_filename == _FILE else None

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)


def _size(value: Any) -> int:
    """Characters and members of a value, those of members included, counted up to the bound."""
    total, rest = 0, [value]
    while rest and total <= _SIZE:
        one = rest.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            total += len(one)
            rest += [*one.keys(), *one.values()][:_SIZE]
        elif isinstance(one, list | tuple | set | frozenset):
            total += len(one)
            rest += list(one)[:_SIZE]
        elif isinstance(one, int) and one.bit_length() > _BITS:
            total = _SIZE + 1
        else:
            total += 1
    return total


def _checked(value: Any) -> Any:
    if _size(value) > _SIZE:
        raise _TooMuch("it writes too much")
    return value


def _checked_arguments(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > _SIZE:
            raise _TooMuch("it writes too much")
        if isinstance(argument, str | list | tuple | dict):
            _checked(argument)


def _concat(pieces: Iterable[Any]) -> str:
    """The pieces as one text."""
    kept, total = [], 0
    for piece in pieces:
        kept.append(str(_checked(piece)))
        total += len(kept[-1]) + 1
        if total > _SIZE:
            raise _TooMuch("it writes too much")
    return "".join(kept)


def _joined(parts: Iterable[Any], between: str) -> str:
    def pieces() -> Iterator[Any]:
        for at, part in enumerate(parts):
            if at:
                yield between
            yield part

    return _concat(pieces())


def _replaceable(text: str, old: str, new: str) -> None:
    if (text.count(old) + 1) * len(new) > _SIZE:
        raise _TooMuch("it writes too much")


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its arguments and its result checked."""

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _checked_arguments([*args, *kwargs.values()])
        if name == "format":
            _checked_format(str(args[0]))
        texts = [arg for arg in args if isinstance(arg, str)]
        if name == "replace" and len(texts) == 3:
            _replaceable(*texts)
        if name in ("indent", "wordwrap") and args and isinstance(args[0], str):
            width = max([1, *(a for a in [*args, *kwargs.values()] if isinstance(a, int))])
            if (args[0].count("\n") + 1) * width > 8 * _SIZE:
                raise _TooMuch("it writes too much")
        result = function(*args, **kwargs)
        return _checked(result) if isinstance(result, str | list | tuple | dict) else result

    return bounded


@pass_eval_context
def _join_filter(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(eval_ctx.environment, attribute), value)
    return _joined(value, str(d))


def _checked_format(form: str) -> None:
    if _LONG_NUMBER.search(form):
        raise _TooMuch("it writes too much")


# The environment, as transformers has it ----------------------------------------------------


class _Generation(Extension):
    """The tag around what the model wrote, which says nothing here."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 names it so

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Namespace(Namespace):
    """As transformers restricts it: no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        if any(str(name).startswith("_") for name in dict(*rest, **kwargs)):
            raise TemplateError("a namespace has no names that begin with an underscore")
        Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise TemplateError("a namespace has no names that begin with an underscore")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _Code
    concat = staticmethod(_concat)  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,  # nothing is computed while a template is read
            finalize=_checked,
            cache_size=0,
        )
        self.filters = {name: _filter(name, one) for name, one in self.filters.items()}
        self.filters["join"] = _join_filter
        self.filters["tojson"] = _filter("tojson", _to_json)
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.globals["namespace"] = _Namespace

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [one for one in (left, right) if isinstance(one, str | bytes | list | tuple)]
        numbers = [one for one in (left, right) if isinstance(one, int)]
        if operator == "**" and len(numbers) == 2:
            if max(1, left.bit_length()) * max(right, 0) > _BITS:
                raise _TooMuch("it computes with numbers that are too large")
        elif operator == "*" and sized and numbers:
            if len(sized[0]) * max(numbers[0], 0) > _SIZE:
                raise _TooMuch("it writes too much")
        elif operator == "%" and isinstance(left, str):
            _checked_format(left)
            _checked_arguments(right if isinstance(right, tuple) else (right,))
        elif operator in "+*":
            for one in (left, right):
                _checked(one)
        return _checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str | bytes | list | tuple | dict):
            name = getattr(__obj, "__name__", "")
            _checked(owner)
            _checked_arguments([*args, *kwargs.values()])
            if name == "join" and args and isinstance(owner, str):
                return _joined(args[0], owner)
            if name == "replace" and isinstance(owner, str) and len(args) >= 2:
                _replaceable(owner, str(args[0]), str(args[1]))
            if name in ("format", "format_map") and isinstance(owner, str):
                _checked_format(owner)
            if name == "expandtabs" and isinstance(owner, str):
                width = args[0] if args else 8
                if owner.count("\t") * width > _SIZE:
                    raise _TooMuch("it writes too much")
        result = super().call(__context, __obj, *args, **kwargs)
        return _checked(result) if isinstance(result, str | bytes | list | tuple) else result


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes that Jinja's own has for HTML."""
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise TemplateError(str(message))


@lru_cache(8)
def _compiled(source: str) -> tuple[Any, frozenset[str]]:
    """The template, and the names of what it is given."""
    environment = _Environment()
    names = meta.find_undeclared_variables(environment.parse(source))
    return environment.from_string(source), frozenset(names)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    what = lines[0][:200] if lines else ""
    if isinstance(error, _TooMuch | TemplateError):
        return what or type(error).__name__
    return f"{type(error).__name__}: {what}" if what else type(error).__name__
