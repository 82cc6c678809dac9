"""`pfi serve` and `pfi tokens` on the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_world import FakeEngine, make_homes
from typer.testing import CliRunner, Result

from pfi.cli.app import app
from pfi.serve.auth import new_token, tokens_of
from pfi.serve.gatekeeper import Gatekeeper


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFI_HOME", str(tmp_path))
    monkeypatch.delenv("PFI_PROFILE", raising=False)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The applications that would have been served, with their settings."""
    found: list[Any] = []

    class Server:
        def __init__(self, application: Any, config: Any) -> None:
            found.append((application.state.service, config))

        def run(self, sockets: list[socket.socket]) -> None:
            assert sockets[0].getsockname()[1] > 0

    monkeypatch.setattr("pfi.serve.server.make_server", Server)
    monkeypatch.setattr("pfi.profile.answer.engines.make_engine", lambda *_, **__: FakeEngine())
    return found


def pfi(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_tokens_are_made_listed_and_revoked(root: Path) -> None:
    home = make_homes(root, ["default"], records=0)["default"]
    assert "no token" in pfi("tokens", "list").stderr
    text = pfi("tokens", "new", "--label", "editor").stdout.strip()
    assert Gatekeeper({"default": home}).caller(text) is not None
    shown = pfi("tokens", "list").stdout
    (entry,) = json.loads(pfi("tokens", "list", "--json").stdout)
    assert entry["label"] == "editor" and entry["scopes"] == ["answer"]
    assert entry["expires"] is entry["parent"] is None and not {"sha256", "text"} & {*entry}
    assert entry["id"] in shown and "editor" in shown and text not in shown
    assert "nothing" in pfi("tokens", "revoke", entry["id"]).stdout
    assert tokens_of(home) == [] and Gatekeeper({"default": home}).caller(text) is None
    assert "there is no token" in pfi("tokens", "revoke", entry["id"], code=2).stderr
    assert "whole console" in pfi("tokens", "new", "--scope", "admin").stderr
    assert "records" in pfi("tokens", "new", "--scope", "memory", "--days", "3").stderr
    admin, memory = tokens_of(home)
    days = [datetime.fromisoformat(t.expires or "") - datetime.now(UTC) for t in (admin, memory)]
    assert [round(left.total_seconds() / 86400) for left in days] == [90, 3]
    assert "admin" in pfi("tokens", "list").stdout
    assert "no scope" in pfi("tokens", "new", "--scope", "all", code=2).stderr


def test_serve_says_where_and_what_is_missing(root: Path, started: list[Any]) -> None:
    homes = make_homes(root, ["default", "work"], records=0)
    result = pfi("serve", "--port", "0")
    assert "http://127.0.0.1:" in result.stdout and "/v1 answers for default." in result.stdout
    assert "/console/signin#code=" in result.stdout
    assert "pfi tokens new`" in result.stderr and "warning" not in result.stderr
    new_token(homes["work"])
    result = pfi("serve", "--port", "0", "--all", "--set", "requests_per_minute=7")
    service, config = started[-1]
    assert service.profiles == ("default", "work") and config.requests_per_minute == 7
    assert "--profile work" not in result.stderr
    pfi("serve", "--port", "0", "--profile", "work", "--engine", "torch")
    assert started[-1][0].profiles == ("work",) and started[-1][1].engine == "torch"


def test_other_machines_are_let_in_only_when_asked_for(root: Path, started: list[Any]) -> None:
    make_homes(root, ["default"], records=0)
    assert "other machines" in pfi("serve", "--host", "0.0.0.0", "--port", "0").stderr
    assert started[-1][1].host == "0.0.0.0"


def test_what_cannot_be_served_is_said_in_a_line(root: Path, started: list[Any]) -> None:
    assert "pfi init" in pfi("serve", "--all", code=2).stderr
    assert "there is no profile" in pfi("serve", code=2).stderr
    make_homes(root, ["default"], records=0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen" in pfi("serve", "--port", port, code=2).stderr
    assert "nonsense" in pfi("serve", "--set", "nonsense=1", code=2).stderr
    assert "cannot listen" in pfi("serve", "--host", "192.0.2.1", code=2).stderr
    assert not started


def test_what_is_not_installed_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_homes(root, ["default"], records=0)
    monkeypatch.setattr("pfi.cli.serve.find_spec", lambda name: None)
    assert "pip install 'pfi[serve]'" in pfi("serve", code=2).stderr


def test_the_commands_load_no_web_framework(root: Path) -> None:
    code = (
        "import sys, pfi.cli.app, pfi.serve\n"
        "print({'fastapi', 'uvicorn', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_a_real_server_answers_and_ends_at_ctrl_c(root: Path) -> None:
    home = make_homes(root, ["default"])["default"]
    token = new_token(home)[1]
    words = [sys.executable, "-m", "pfi.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        url = child.stdout.readline().split()[0]
        reply = httpx.post(
            f"{url}/chat/completions",
            json={"model": "default", "messages": [{"role": "user", "content": "hello"}]},
            headers={"Authorization": f"Bearer {token}"},
            timeout=120,
        )
        assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] > 0
        begun = time.monotonic()
        child.send_signal(signal.SIGINT)
        child.wait(30)
        assert time.monotonic() - begun < 20
    assert child.returncode in (0, -signal.SIGINT, 130)
