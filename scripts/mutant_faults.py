"""Plausible faults of a Python file, one at a time: what ``mutants.py`` plants.

A fault replaces one piece of the text and leaves all the rest, comments and line numbers too, as it
is.  What no test can be asked to notice is left alone: docstrings, annotations, assertions, the
words of error messages, f-strings (whose parts have no positions in Python 3.11).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

#: The boundary moved, then the comparison turned round.
_COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">"), ast.LtE: ("<", ">"), ast.Gt: (">=", "<"), ast.GtE: (">", "<"),
    ast.Eq: ("!=",), ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",),
    ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "//",
    ast.BitAnd: "|", ast.BitOr: "&", ast.Pow: "*",
}  # fmt: skip
_OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
#: Calls whose arguments are for people to read.
_WORDS = {
    "ConfigError",
    "DataError",
    "StorageError",
    "Field",
    "TypeVar",
    "debug",
    "info",
    "warning",
}
#: Keywords that only say what holds anyway, as an assertion does: of ``zip``.
_ASSERTIONS = ("strict",)
_BOUNDS = re.compile(r"\{(\d+)?(,)?(\d+)?\}")
_GUARD = re.compile(r"\(\?<?!|\\b")


@dataclass(frozen=True, order=True)
class Fault:
    """One piece of a file's text, and what is planted in its place.

    Attributes:
        start, end: offsets in the UTF-8 text.
        line: where it starts, from 1.
        where: the function or class that it is in.
        kind: of fault, as ``comparison``.
        before, after: the piece, and what replaces it.
    """

    start: int
    end: int
    line: int
    where: str
    kind: str
    before: str
    after: str

    @property
    def once(self) -> bool:
        """Whether it is outside functions, where it runs as the module is imported."""
        return self.where == "(module)" or self.where.rpartition(".")[2][:1].isupper()

    def planted(self, source: bytes) -> bytes:
        """The text of the file with the fault in it."""
        return source[: self.start] + self.after.encode() + source[self.end :]

    def key(self, path: str, nth: int = 0) -> str:
        """Names the fault, 10 hex digits; the same wherever its function moves to in the file."""
        parts = path, self.where, self.kind, self.before, self.after, str(nth)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]


def faults(path: str, source: bytes) -> dict[str, Fault]:
    """All faults of a file by their keys, in the order of the text.

    Raises:
        SyntaxError: the file is no Python.
    """
    keyed: dict[str, Fault] = {}
    for fault in sorted(set(_Planter(source).of_module())):
        if fault.before != fault.after and _compiles(fault.planted(source)):
            nth = next(n for n in range(len(keyed) + 1) if fault.key(path, n) not in keyed)
            keyed[fault.key(path, nth)] = fault
    return keyed


def sample(keyed: dict[str, Fault], count: int, seed: int) -> list[str]:
    """Keys of some faults: of as many different lines as there are, before a second of any.

    The choice is by hash, so that a change of the file elsewhere leaves it as it was.
    """
    lines: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for key, fault in keyed.items():
        lines[fault.line].append((hashlib.sha256(f"{seed} {key}".encode()).hexdigest(), key))
    ranked = [(rank, *one) for line in lines.values() for rank, one in enumerate(sorted(line))]
    return [key for *_, key in sorted(ranked)[:count]]


def _compiles(text: bytes) -> bool:
    try:
        compile(text, "planted", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


class _Planter:
    """Walks a file's syntax tree and yields its faults."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.where: tuple[str, ...] = ()
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def of_module(self) -> Iterator[Fault]:
        yield from self._body(ast.parse(self.source).body)

    # Text

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _fault(self, node: ast.expr | ast.stmt, kind: str, after: str) -> Fault:
        where = ".".join(self.where) or "(module)"
        return Fault(*self._span(node), node.lineno, where, kind, self._text(node), after)

    def _between(self, left: ast.expr, right: ast.expr, kind: str, after: str) -> Fault:
        """A fault in place of the operator between two operands, whatever brackets are there."""
        start, end = self._span(left)[1], self._span(right)[0]
        gap = self.source[start:end].decode()
        words = re.sub(r"#[^\n]*|[()\s]+", lambda match: " " * len(match[0]), gap)
        operator = words.strip()
        at = start + len(words[: len(words) - len(words.lstrip())].encode())
        where = ".".join(self.where) or "(module)"
        # A word needs its space: `not in` starts where `in` stood.
        return Fault(at, at + len(operator.encode()), left.lineno, where, kind, operator, after)

    # Statements

    def _body(self, body: Sequence[ast.stmt]) -> Iterator[Fault]:
        for number, node in enumerate(body):
            if number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # a docstring
            yield from self._statement(node)

    def _statement(self, node: ast.stmt) -> Iterator[Fault]:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                outer, self.where = self.where, (*self.where, node.name)
                if not isinstance(node, ast.ClassDef):
                    for default in (*node.args.defaults, *node.args.kw_defaults):
                        yield from self._expressions([default] if default else [])
                yield from self._body(node.body)
                self.where = outer
                return
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Pass():
                return
            case ast.Raise():
                yield self._fault(node, "raise deleted", "pass")
                return
            case ast.Assert():
                return
            case ast.Break() | ast.Continue():
                yield self._fault(node, "jump deleted", "pass")
                return
            case ast.Expr(value=ast.Call() | ast.Await()):
                yield self._fault(node, "call deleted", "pass")
            case ast.AugAssign(op=ast.Add() | ast.Sub()):
                yield self._fault(node, "update deleted", "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield self._fault(node, "assignment deleted", "pass")
            case ast.Return(value=ast.expr() as value):
                # A caller takes None as it takes False; what is false is turned round elsewhere.
                if not (isinstance(value, ast.Constant) and value.value in (None, False)):
                    yield self._fault(value, "nothing returned", "None")
            case ast.If(test=test) | ast.While(test=test):
                if isinstance(node, ast.If) and "TYPE_CHECKING" in self._text(test):
                    return
                yield from self._negated(test)
        yield from self._parts(node)

    def _parts(self, node: ast.AST) -> Iterator[Fault]:
        """Faults of what a statement consists of, annotations left out."""
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "decorator_list", "returns", "type_comment"}:
                continue
            children = value if isinstance(value, list) else [value]
            if name in {"body", "orelse", "finalbody"} and isinstance(value, list):
                yield from self._body(value)
            else:
                yield from self._expressions(c for c in children if isinstance(c, ast.expr))
                for child in children:
                    if isinstance(child, ast.excepthandler | ast.match_case | ast.withitem):
                        yield from self._parts(child)

    def _negated(self, test: ast.expr) -> Iterator[Fault]:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield self._fault(test, "condition negated", self._text(test.operand))
        elif not isinstance(test, ast.Compare):
            yield self._fault(test, "condition negated", f"not ({self._text(test)})")

    # Expressions

    def _expressions(self, nodes: Iterable[ast.expr]) -> Iterator[Fault]:
        for node in nodes:
            yield from self._expression(node)

    def _expression(self, node: ast.expr) -> Iterator[Fault]:
        match node:
            case ast.JoinedStr():
                return
            case ast.Compare():
                yield from self._comparison(node)
            case ast.BoolOp():
                yield from self._condition(node)
            case ast.BinOp():
                yield from self._arithmetic(node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                yield self._fault(node, "sign dropped", self._text(operand))
                return  # its constant too would be the same fault twice
            case ast.IfExp(test=test):
                yield from self._negated(test)
            case ast.Constant():
                yield from self._constant(node)
            case ast.Call():
                if _name(node.func) in _WORDS:
                    return
                yield from self._call(node)
            case ast.GeneratorExp() | ast.ListComp() | ast.SetComp() | ast.DictComp():
                for part in node.generators:
                    for test in part.ifs:
                        yield self._fault(test, "filter dropped", "True")
                        yield from self._negated(test)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from self._expression(child)
            elif isinstance(child, ast.comprehension):
                yield from self._expressions([child.target, child.iter, *child.ifs])
            elif isinstance(child, ast.keyword) and child.arg not in _ASSERTIONS:
                yield from self._expression(child.value)

    def _comparison(self, node: ast.Compare) -> Iterator[Fault]:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            for after in _COMPARISONS[type(operator)]:
                yield self._between(left, right, "comparison", after)

    def _condition(self, node: ast.BoolOp) -> Iterator[Fault]:
        for left, right in zip(node.values, node.values[1:], strict=False):
            other = "or" if isinstance(node.op, ast.And) else "and"
            yield self._between(left, right, "and/or", other)
        for value in node.values:
            if isinstance(value, ast.Constant | ast.Dict | ast.List | ast.Tuple):
                continue  # a default, as in `given or {}`
            without = "True" if isinstance(node.op, ast.And) else "False"
            yield self._fault(value, "condition dropped", without)

    def _arithmetic(self, node: ast.BinOp) -> Iterator[Fault]:
        strings = ast.JoinedStr, ast.List, ast.Tuple
        for side in (node.left, node.right):
            if isinstance(side, strings) or _is_text(side):
                return
        if (after := _ARITHMETIC.get(type(node.op))) is not None:
            yield self._between(node.left, node.right, "arithmetic", after)

    def _constant(self, node: ast.Constant) -> Iterator[Fault]:
        value = node.value
        if isinstance(value, bool):
            yield self._fault(node, "constant", str(not value))
        elif isinstance(value, int):
            yield self._fault(node, "constant", str(value + 1))
            if value > 1:
                yield self._fault(node, "constant", str(value - 1))
        elif isinstance(value, float):
            yield self._fault(node, "constant", repr(value * 2 if value else 1.0))
        elif isinstance(value, str) and "\n" not in self._text(node):
            yield from self._pattern(node)

    def _pattern(self, node: ast.Constant) -> Iterator[Fault]:
        """Faults of a regular expression: repeats at the boundary, guards that always let pass."""
        text = self._text(node)
        for match in _BOUNDS.finditer(text):
            for group in (1, 3):
                if match[group]:
                    for number in {int(match[group]) + 1, max(int(match[group]) - 1, 0)}:
                        after = text[: match.start(group)] + str(number) + text[match.end(group) :]
                        yield self._fault(node, "pattern", after)
        if any(sign in text for sign in ("(?", "[", "\\d", "\\w")):
            for match in _GUARD.finditer(text):
                end = match.end() if match[0] == r"\b" else _closing(text, match.start()) + 1
                yield self._fault(node, "pattern", text[: match.start()] + text[end:])

    def _call(self, node: ast.Call) -> Iterator[Fault]:
        name, positional = _name(node.func), node.args
        if isinstance(node.func, ast.Name) and name in _OPPOSITES:
            yield self._fault(node.func, "opposite", _OPPOSITES[name])
        if len(positional) >= 2 and not any(isinstance(a, ast.Starred) for a in positional[:2]):
            first, second = positional[:2]
            if self._text(first) != self._text(second) and not isinstance(second, ast.JoinedStr):
                start, middle = self._span(first)[0], self._span(first)[1]
                between = self.source[middle : self._span(second)[0]].decode()
                end = self._span(second)[1]
                where = ".".join(self.where) or "(module)"
                before = self.source[start:end].decode()
                after = self._text(second) + between + self._text(first)
                yield Fault(start, end, first.lineno, where, "arguments swapped", before, after)
        for keyword in node.keywords:
            if keyword.arg not in (None, *_ASSERTIONS) and name not in {"replace", "dict"}:
                yield self._without(node, keyword)

    def _without(self, node: ast.Call, keyword: ast.keyword) -> Fault:
        """A call without one of its keywords."""
        start, end = self._span(keyword)  # type: ignore[arg-type]  # a keyword has a position too
        after = re.match(rb"\s*,", self.source[end:])
        before = re.search(rb",\s*$", self.source[:start])
        if after:
            end += after.end()
        elif before:
            start = before.start()
        where, text = ".".join(self.where) or "(module)", self.source[start:end].decode()
        return Fault(start, end, keyword.lineno, where, "keyword dropped", text, "")


def _closing(text: str, opening: int) -> int:
    """Where the bracket of a regular expression closes that opens at an offset."""
    depth, at, in_class = 0, opening, False
    while at < len(text):
        sign = text[at]
        if sign == "\\":
            at += 1
        elif in_class:
            in_class = sign != "]"
        elif sign == "[":
            in_class = True
        elif sign in "()":
            depth += 1 if sign == "(" else -1
            if depth == 0:
                return at
        at += 1
    return len(text) - 1


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
