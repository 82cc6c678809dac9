"""What `scripts/mutants.py` plants: each kind of fault once, and nothing that nobody could see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
try:
    import mutant_faults
    import mutants
finally:
    sys.path.remove(str(SCRIPTS))


def planted(source: str) -> set[tuple[str, str]]:
    """The kind of each fault and the line that it is in afterwards."""
    found = set()
    for fault in mutant_faults.faults("x.py", source.encode()).values():
        text = fault.planted(source.encode()).decode().splitlines()
        found.add((fault.kind, text[fault.line - 1].strip() if fault.line <= len(text) else ""))
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {("comparison", "a <= b"), ("comparison", "a > b")}),
        ("a is  not b", {("comparison", "a is b")}),
        ("a not in b", {("comparison", "a in b")}),
        ("(a) == (b)", {("comparison", "(a) != (b)")}),
        (
            "c = a and b",
            {("and/or", "c = a or b"), ("condition dropped", "c = True and b"),
             ("condition dropped", "c = a and True")},
        ),
        ("c = a or {}", {("and/or", "c = a and {}"), ("condition dropped", "c = False or {}")}),
        ("c = a - b", {("arithmetic", "c = a + b")}),
        ("c = 'a' + b", set()),
        ("c = -a", {("sign dropped", "c = a")}),
        ("c = 0", {("constant", "c = 1")}),
        ("c = 2", {("constant", "c = 3"), ("constant", "c = 1")}),
        ("c = True", {("constant", "c = False")}),
        ("c = 0.5", {("constant", "c = 1.0")}),
        ("c = min(a)", {("opposite", "c = max(a)")}),
        ("c = f(a, b)", {("arguments swapped", "c = f(b, a)")}),
        ("c = f(a, b=d)", {("keyword dropped", "c = f(a)")}),
        ("f(b=d, e=g)", {("keyword dropped", "f( e=g)"), ("keyword dropped", "f(b=d)"),
                         ("call deleted", "pass")}),
        ("f(a)", {("call deleted", "pass")}),
        ("a.b = c", {("assignment deleted", "pass")}),
        ("a += b", {("update deleted", "pass")}),
        ("raise ValueError(1 + 2)", {("raise deleted", "pass")}),
        ("if not a:\n    pass", {("condition negated", "if a:")}),
        ("if a:\n    pass", {("condition negated", "if not (a):")}),
        ("c = [d for d in e if g]", {("filter dropped", "c = [d for d in e if True]"),
                                     ("condition negated", "c = [d for d in e if not (g)]")}),
        ("def f() -> int:\n    return a", {("nothing returned", "return None")}),
        ("def f(a: int = 0) -> None: ...", {("constant", "def f(a: int = 1) -> None: ...")}),
        ("for a in b:\n    continue", {("jump deleted", "pass")}),
        ("p = r'\\d{2,}'", {("pattern", "p = r'\\d{1,}'"), ("pattern", "p = r'\\d{3,}'")}),
        ("p = r'(?<!a[)])b'", {("pattern", "p = r'b'")}),
        ("p = r'\\bx(?!y)'", {("pattern", "p = r'x(?!y)'"), ("pattern", "p = r'\\bx'")}),
    ],
)  # fmt: skip
def test_each_kind_of_fault(source: str, expected: set[tuple[str, str]]) -> None:
    assert planted(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""Words: 1 < 2."""', "a: int", "assert a < 1", "import a", "f'{a < 1}'",
        "def f() -> None:\n    return None", "@d(1)\ndef f() -> None: ...",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    a = 1",
        "c = ConfigError(f'{a}', where='x')", "c = zip(a, strict=True)",
    ],
)  # fmt: skip
def test_what_no_test_could_notice_is_left_alone(source: str) -> None:
    assert planted(source) == set()


def test_a_key_outlives_changes_elsewhere_and_a_sample_spreads_over_lines() -> None:
    source = b"def f(a):\n    x = 1 + 2\n    y = a < 3\n    return y\n"
    keyed = mutant_faults.faults("x.py", source)
    moved = mutant_faults.faults("x.py", b"# more\n\n" + source)
    assert {*keyed} == {*moved} and min(f.line for f in moved.values()) == 4
    assert {*keyed} != {*mutant_faults.faults("y.py", source)}
    assert {keyed[key].line for key in mutant_faults.sample(keyed, 3, 0)} == {2, 3, 4}
    assert len(mutant_faults.sample(keyed, 99, 0)) == len(keyed)
    assert mutant_faults.sample(keyed, 3, 0) == mutant_faults.sample(moved, 3, 0)
    twice = mutant_faults.faults("x.py", b"def f(a):\n    g(a)\n    g(a)\n")
    assert len(twice) == 2  # the same piece twice is two faults


def test_the_trusted_files_and_their_tests_are_there() -> None:
    for pattern in mutants.TRUSTED:
        assert list((mutants.ROOT / "src" / "pfi").glob(pattern)), pattern
    assert all(mutants.trusted().values())
    some = mutants.trusted("gate/fit,serve/auth", "test_scopes")
    assert {*some} == {"src/pfi/gate/fit.py", "src/pfi/serve/auth.py"}
    assert "tests/serve/test_token_guards.py" in some["src/pfi/serve/auth.py"]
    assert not any("test_scopes" in test for test in some["src/pfi/serve/auth.py"])


def test_the_report_counts_what_was_noticed_and_names_the_rest() -> None:
    fault = {
        "file": "src/pfi/gate/fit.py",
        "line": 3,
        "kind": "constant",
        "before": "1",
        "after": "2",
    }
    results = {
        "aa": {**fault, "state": "noticed", "by": "t.py::test_x"},
        "bb": {**fault, "state": "hangs"},
        "cc": {**fault, "state": "missed"}, "dd": {**fault, "state": "unreached"},
        "ee": {**fault, "state": "missed"},
        "ff": {**fault, "state": "noticed", "by": "t.py::test_x", "named": "by hand"},
    }  # fmt: skip
    page = mutants.report(results, {"ee": "it is the same"})
    assert "| `gate/fit.py` | 4 | 2 | 50 | 1 |" in page and "| **all** | 4 | 2 | 50 | 1 |" in page
    assert "- cc `gate/fit.py:3`" in page and "- dd `gate/fit.py:3` (unreached)" in page
    assert "ee" not in page and "- by hand\n  noticed: `test_x`" in page
