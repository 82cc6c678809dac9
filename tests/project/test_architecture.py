"""The architecture as docs/architecture.md states it: imports go down its list of rooms only.

Every import counts, those within functions and under ``TYPE_CHECKING`` too.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another one."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def rooms_of(page: str) -> list[str]:
    """The rooms that a page lists, from the top one down: the first column of its first table."""
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", page, re.MULTILINE)
    assert len(rows) == len(set(rows)) and rows, "the table of rooms is missing or names one twice"
    return rows


def modules_of(source: Path) -> dict[str, Path]:
    """Every module below a folder, by its dotted name."""
    modules = {}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(modules: dict[str, Path], package: str) -> Iterator[Import]:
    """Every import within the package, lazy and type-only ones included."""
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} has a relative import"
                base = node.module or ""
                targets = [f"{base}.{alias.name}" for alias in node.names]
                targets = [target if target in modules else base for target in targets]
            for target in targets:
                if target.split(".")[0] == package and target != name:
                    yield Import(name, target, node.lineno)


def room_of(module: str) -> str:
    """The room of a module; ``""`` for the package itself, whose public names lie above all."""
    _, _, rest = module.partition(".")
    return rest.split(".")[0]


def upward(imports: list[Import], rooms: list[str]) -> list[str]:
    """The imports that go up, or to or from what the page does not list."""
    place = {"": -1, **{room: number for number, room in enumerate(rooms)}}
    wrong = []
    for entry in imports:
        ends = room_of(entry.importer), room_of(entry.imported)
        if not all(room in place for room in ends) or place[ends[0]] > place[ends[1]]:
            wrong.append(str(entry))
    return wrong


def circles(imports: list[Import]) -> list[list[str]]:
    """The sets of modules that import each other, directly or through others (Tarjan 1972)."""
    graph: dict[str, set[str]] = {}
    for entry in imports:
        graph.setdefault(entry.importer, set()).add(entry.imported)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in graph.get(module, ()):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def private(imports: list[Import]) -> list[str]:
    """The imports of a room's private modules from outside the room."""
    wrong = []
    for entry in imports:
        parts = entry.imported.split(".")
        for depth, part in enumerate(parts):
            if part.startswith("_") and entry.importer.split(".")[:depth] != parts[:depth]:
                wrong.append(str(entry))
    return wrong


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return list(imports_of(modules_of(ROOT / "src"), "pfi"))


def test_rooms_import_downwards_only(imports: list[Import]) -> None:
    rooms = rooms_of((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert not upward(imports, rooms)


def test_every_room_is_on_the_page_and_the_other_way_round() -> None:
    rooms = rooms_of((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    names = {room_of(module) for module in modules_of(ROOT / "src")} - {""}
    assert set(rooms) == names


def test_no_two_files_import_each_other(imports: list[Import]) -> None:
    assert not circles(imports)


def test_private_modules_stay_in_their_room(imports: list[Import]) -> None:
    assert not private(imports)


def test_no_two_test_files_share_a_name() -> None:
    # pytest imports them by name: the second of two is not collected.
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_nothing_outside_tests_imports_from_tests() -> None:
    names = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"tests"}
    for folder in ("src", "benchmarks", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert '"tests"' not in text or folder != "benchmarks", f"{path} reaches into tests/"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and not node.level:
                    assert (node.module or "").split(".")[0] not in names, path
                elif isinstance(node, ast.Import):
                    assert not {alias.name.split(".")[0] for alias in node.names} & names, path


# The checks themselves ------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small package: `high` above `low`, nothing wrong yet."""
    for name in ("", "high/", "low/"):
        (tmp_path / "pkg" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pkg" / name / "__init__.py").write_text("")
    (tmp_path / "pkg/high/a.py").write_text("from pkg.low import b\n")
    (tmp_path / "pkg/low/b.py").write_text("import pkg.low._c\n")
    (tmp_path / "pkg/low/_c.py").write_text("")
    return tmp_path


ROOMS = ["high", "low"]
LAZY = "def f() -> None:\n    from pkg.high.a import x\n"
TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.high import a\n"


def test_a_sound_tree_passes(tree: Path) -> None:
    known = list(imports_of(modules_of(tree), "pkg"))
    assert len(known) == 2
    assert not upward(known, ROOMS) and not circles(known) and not private(known)


@pytest.mark.parametrize("text", ["import pkg.high.a\n", LAZY, TYPED])
def test_an_upward_import_is_seen(tree: Path, text: str) -> None:
    (tree / "pkg/low/_c.py").write_text(text)
    known = list(imports_of(modules_of(tree), "pkg"))
    assert [line.split(" imports ")[0] for line in upward(known, ROOMS)] == [
        f"pkg.low._c:{text.count(chr(10))}"
    ]
    # It is a circle as well, through two others.
    assert circles(known) == [["pkg.high.a", "pkg.low._c", "pkg.low.b"]]


def test_a_room_that_is_not_listed_is_seen(tree: Path) -> None:
    assert upward(list(imports_of(modules_of(tree), "pkg")), ["low"])


def test_a_private_module_imported_from_outside_is_seen(tree: Path) -> None:
    (tree / "pkg/high/a.py").write_text("from pkg.low import _c\n")
    assert private(list(imports_of(modules_of(tree), "pkg"))) == ["pkg.high.a:1 imports pkg.low._c"]


def test_the_page_is_read_from_the_top(tmp_path: Path) -> None:
    page = "| room | what |\n|---|---|\n| `high/` | x |\n| `low/` | y |\n| `errors.py` | z |\n"
    assert rooms_of(page) == ["high", "low", "errors"]
