"""The folders of benchmarks/: each says what it is for, and what its scripts import exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOPICS = sorted({path.parent for path in BENCHMARKS.glob("*/*.py")})
SCRIPTS = sorted(BENCHMARKS.rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every module that a file imports, within functions too, and each name it takes from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def exists(module: str, name: str | None) -> bool:
    """Whether a module of the package has a name, or is a package with such a module."""
    found = importlib.import_module(module)
    if name is None or hasattr(found, name):
        return True
    return hasattr(found, "__path__") and bool(importlib.util.find_spec(f"{module}.{name}"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_of_the_package_exists(path: Path) -> None:
    used = [entry for entry in imports_of(path) if entry[0].split(".")[0] == "pfi"]
    assert not [entry for entry in used if not exists(*entry)]


def test_scripts_import_from_their_own_folder_only() -> None:
    """What the interpreter finds beside a script is all that a script can rely on."""
    folders = {path.stem: path.parent for path in SCRIPTS}
    assert len(folders) == len(SCRIPTS), "two files have one name; tests load them by it"
    for path in SCRIPTS:
        for module, _ in imports_of(path):
            assert folders.get(module, path.parent) == path.parent, (path.name, module)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_topic_says_how_its_scripts_are_run(topic: Path) -> None:
    page = (topic / "README.md").read_text(encoding="utf-8")
    for path in topic.glob("*.py"):
        assert path.name in page, f"{topic.name}/README.md does not name {path.name}"
    assert f"]({topic.name}/README.md)" in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("topic", [BENCHMARKS, *TOPICS], ids=lambda topic: topic.name)
def test_paths_in_the_pages_exist(topic: Path) -> None:
    page = (topic / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/])benchmarks/[\w./-]*\.\w+", page):
        assert (BENCHMARKS.parent / path).exists(), path
    for link in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (topic / link).exists(), link
