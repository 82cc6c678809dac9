"""Clients that others wrote, each in an environment of its own, against a real server.

What users of each do is in ``clients/``: answers and streams, with and without waiting, several
at once and given up, functions, structured output, vectors, errors.  The first line of a script
names its packages.  Needs the network (the package registries); skipped with a reason without.
``PFI_CLIENT_ENVIRONMENTS`` names a folder where the environments are kept between runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_world import WordEmbedder, World, make_homes, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CLIENTS = Path(__file__).parent / "clients"
PYTHON = sorted(CLIENTS.glob("client_*.py"))
NODE = sorted(CLIENTS.glob("client_*.mjs"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server over the embedded model: it writes nonsense, held to whatever is asked for."""
    homes = make_homes(tmp_path_factory.mktemp("homes"), ["ann"])
    with serving(homes, None) as world:
        world.service._embedder = WordEmbedder()  # type: ignore[assignment]
        yield world


@pytest.mark.parametrize("script", PYTHON, ids=lambda path: path.stem.removeprefix("client_"))
def test_a_python_client(world: World, tmp_path: Path, script: Path) -> None:
    folder = _environment(tmp_path, script)
    python = folder / "bin" / "python"
    if not (folder / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    _install(str(python), "-m", "pip", "install", "-q", *_packages(script), folder=tmp_path)
    # Away from the others, which Python would look for modules among.
    client = shutil.copy(script, tmp_path / "client.py")
    _run(tmp_path, world, str(python), str(client))


@pytest.mark.parametrize("script", NODE, ids=lambda path: path.stem.removeprefix("client_"))
def test_a_javascript_client(world: World, tmp_path: Path, script: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("node and npm are not installed")
    folder = _environment(tmp_path, script)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')
    quiet = ("--silent", "--no-audit", "--no-fund")
    _install(npm, "install", *quiet, *_packages(script), folder=folder)
    shutil.copy(script, folder / "client.mjs")
    _run(folder, world, node, "client.mjs")


def _environment(tmp_path: Path, script: Path) -> Path:
    kept = os.environ.get("PFI_CLIENT_ENVIRONMENTS")
    # Packages of Node are found beside the script.
    name = script.stem.removeprefix("client_") + ("-node" if script.suffix == ".mjs" else "")
    return Path(kept).resolve() / name if kept else tmp_path / "environment"


def _packages(script: Path) -> list[str]:
    match = re.search(r"packages: (.*?)(?:\"\"\")?\n", script.read_text())
    assert match is not None, f"{script.name} names no packages"
    return match[1].split()


def _install(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
    if done.returncode:
        last = (done.stderr.strip() or "no reason").splitlines()[-1]
        pytest.skip(f"the client cannot be installed: {last[:200]}")


def _run(folder: Path, world: World, *command: str) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"BASE": world.url, "ROOT": world.root, "KEY": world.tokens["ann"]}
    environment |= {"LLM_USER_PATH": str(folder / "llm"), "OPENAI_API_KEY": world.tokens["ann"]}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
