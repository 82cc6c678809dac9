"""What a browser may send to the console that no page of it sends: files, numbers, nesting."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_service import configure, headline, make_home, make_service
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pfi.errors import ConfigError
from pfi.profile.home import Home
from pfi.serve.app import create_app
from pfi.serve.console.router import PAGES
from pfi.serve.console.view import ROOT, console_of

BASE = "http://127.0.0.1"
FROM_HERE = {"Origin": BASE, "Sec-Fetch-Site": "same-origin", "HX-Request": "true"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "homes", "anna", [headline(n) for n in range(30)])


@pytest.fixture
def app(home: Home) -> FastAPI:
    return create_app(make_service([home], seconds=0.01))


@pytest.fixture
def browser(app: FastAPI) -> TestClient:
    client = TestClient(app, base_url=BASE, headers=FROM_HERE, raise_server_exceptions=False)
    code = console_of(app).sessions.new_code("anna")
    assert client.post(f"{ROOT}/signin", data={"code": code}).status_code == 200
    return client


# Repositories -----------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A repository of this machine that is not uploaded."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "f.txt").write_text("secret line\n")
    for words in (
        ["init", "-q"],
        ["add", "f.txt"],
        ["-c", "user.name=X", "-c", "user.email=x@y.z", "commit", "-qm", "Rotate the password"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)
    return folder


def upload(client: TestClient, files: dict[str, bytes], kind: str = "git") -> Any:
    parts = [("files", (name, data, "application/octet-stream")) for name, data in files.items()]
    data = {"kind": kind, "option-author": "x@y.z"}
    return client.post(f"{ROOT}/data/import", data=data, files=parts)


def whole(folder: Path, at: str, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """A folder's files as a browser uploads them."""
    return {
        f"{at}/{path.relative_to(folder)}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(word in str(path.relative_to(folder)) for word in without)
    }


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("commondir", "{git}\n"),
        ("CommonDir", "{git}\n"),
        ("gitdir", "{git}\n"),
        ("objects/info/alternates", "{git}/objects\n"),
        ("objects/info/http-alternates", "{git}/objects\n"),
    ],
)
def test_a_repository_that_leads_to_another_is_refused(
    home: Home, browser: TestClient, elsewhere: Path, bare: bool, name: str, content: str
) -> None:
    inside = "r" if bare else "r/.git"
    files = whole(elsewhere / ".git", inside, without=("objects/",))
    files[f"{inside}/{name}"] = content.format(git=elsewhere / ".git").encode()
    reply = upload(browser, files)
    assert reply.status_code == 400 and "pointer to another repository" in reply.text
    assert "Rotate the password" not in browser.get(f"{ROOT}/data/records").text


@pytest.mark.parametrize("name", ["r/.git", ".git", "r/.GIT", "a/b/.git"])
def test_a_git_file_is_refused(home: Home, browser: TestClient, elsewhere: Path, name: str) -> None:
    reply = upload(browser, {name: f"gitdir: {elsewhere}/.git\n".encode(), "r/x": b""})
    assert reply.status_code == 400 and "pointer to another repository" in reply.text


def test_a_repository_with_submodules_and_work_trees_is_taken_without_them(
    home: Home, browser: TestClient, elsewhere: Path
) -> None:
    files = whole(elsewhere, "r")
    files["r/sub/.git"] = b"gitdir: /etc\n"
    files["r/.git/worktrees/x/gitdir"] = b"/etc\n"
    files["r/.git/config"] += b"[core]\n\tfsmonitor = /bin/false\n"
    reply = upload(browser, files)
    assert reply.status_code == 200, reply.text
    assert "Rotate the password" in browser.get(f"{ROOT}/data/records").text


@pytest.mark.parametrize("inside", ["r", "r/.git"])
def test_what_names_programs_is_left_behind(
    browser: TestClient, elsewhere: Path, tmp_path: Path, inside: str
) -> None:
    trap = tmp_path / "trap"
    files = whole(elsewhere / ".git", inside)
    programs = f"[core]\n\tfsmonitor = touch {trap}\n\tpager = touch {trap}\n"
    files[f"{inside}/config"] += programs.encode()
    files[f"{inside}/hooks/post-checkout"] = f"#!/bin/sh\ntouch {trap}\n".encode()
    upload(browser, files)
    assert not trap.exists()


@pytest.mark.parametrize(
    "names",
    [["a", "a/b"], ["/etc/passwd"], ["../x"], ["a/../../x"], ["C:\\x"], ["a" * 300], ["a\0b"],
     ["x/" * 3000 + "y"], ["same", "same"], ["."], ["..\\x"]],
)  # fmt: skip
def test_odd_names_are_refused_in_a_line(browser: TestClient, names: list[str]) -> None:
    parts = [("files", (name, b"x", "text/plain")) for name in names]
    reply = browser.post(f"{ROOT}/data/import", data={"kind": "markdown"}, files=parts)
    assert reply.status_code == 400 and "\n" not in reply.text


# Numbers and nesting ----------------------------------------------------------------

BAD = [
    "99999999999999999999", "-99999999999999999999", "9" * 5000, "nan", "",
    "[" * 20_000, "\ud800".encode("utf-8", "surrogatepass"), "\0", "'\"<>&%",
    "../../etc/passwd", "[[1]]", '{"a": 1}',
]  # fmt: skip


def _refuse(*_: Any, **__: Any) -> None:
    raise ConfigError("not in this test")


def _routes() -> Iterator[tuple[str, str, list[str]]]:
    for pages in PAGES:
        for route in pages.router.routes:
            dependant = route.dependant  # type: ignore[attr-defined]
            names = [one.name for one in (*dependant.query_params, *dependant.body_params)]
            for method in route.methods:  # type: ignore[attr-defined]
                yield method, f"{ROOT}{route.path}", names  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "path", "names"), [*_routes()])
def test_no_value_is_a_server_error(
    app: FastAPI,
    browser: TestClient,
    method: str,
    path: str,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console_of(app).limits._config = app.state.config.model_copy(
        update={"running_per_token": 10**6}
    )
    console_of(app).limits.count = lambda token: None  # type: ignore[method-assign]
    monkeypatch.setattr(console_of(app).jobs, "start", lambda *args: None)
    monkeypatch.setattr("pfi.profile.learn.augmenting.Augmentation.plan", _refuse)
    valid = {"task": "LaMP_4", "field-text": "x", "input": '{"text": "x"}', "kind": "gate"}
    valid |= {"version": "0001", "name": "", "id": "h-1"}
    for name in [*names, "n"] if "{n}" in path else names:
        for bad in BAD:
            values = {key: value for key, value in valid.items() if key in (*names, "field-text")}
            values |= {name: bad[:3000] if method == "GET" else bad}
            there = path.replace("{n}", "9" * 30)
            sent: dict[str, Any] = {"params": values} if method == "GET" else {"data": values}
            reply = browser.request(method, there, follow_redirects=False, **sent)
            assert reply.status_code < 500, (method, path, name, bad[:40], reply.text)


# Limits -----------------------------------------------------------------------------


def test_forms_are_small_and_only_uploads_are_large(app: FastAPI, browser: TestClient) -> None:
    big = "x" * (app.state.config.body_bytes + 1)
    nobody = TestClient(app, base_url=BASE, headers=FROM_HERE)
    assert nobody.post(f"{ROOT}/signin", data={"token": big}).status_code == 413
    assert browser.post(f"{ROOT}/chat/feedback", data={"input": big}).status_code == 413
    assert upload(browser, {"notes.md": b"# a\n" + big.encode()}, "markdown").status_code != 413


def test_questions_have_a_limit_of_their_own(app: FastAPI, browser: TestClient) -> None:
    console = console_of(app)
    asked = {"task": "LaMP_4", "field-text": "Ice"}
    with console.limits.running("anna"):
        assert browser.post(f"{ROOT}/chat/ask", data=asked).status_code == 200
    held = [console.limits.running("anna") for _ in range(app.state.config.running_per_token)]
    for one in held:
        one.__enter__()
    full = browser.post(f"{ROOT}/chat/ask", data=asked)
    assert full.status_code == 429 and full.headers["retry-after"]
    for one in held:
        one.__exit__(None, None, None)
    assert browser.post(f"{ROOT}/chat/ask", data=asked).status_code == 200
    assert not app.state.limits._running.total()  # the API's are others


def test_requests_at_once_leave_threads_for_the_api(app: FastAPI, browser: TestClient) -> None:
    console = console_of(app)
    with console.place("anna"):
        assert browser.get(f"{ROOT}/chat").status_code == 200
        console.busy["anna"] += 7
        assert browser.get(f"{ROOT}/chat").status_code == 503
        console.busy["anna"] -= 7
        console.busy["others"] += 23
        assert browser.get(f"{ROOT}/chat").status_code == 503
        assert browser.get(f"{ROOT}/static/console.css").status_code == 200
        console.busy["others"] -= 23
    assert browser.get(f"{ROOT}/chat").status_code == 200
    assert not +console.busy


def test_answers_have_threads_of_their_own(app: FastAPI, browser: TestClient) -> None:
    names = set()
    runtime = app.state.service.runtime("anna")
    prepare = runtime.prepare

    def noted(*args: Any, **options: Any) -> Any:
        names.add(threading.current_thread().name.rsplit("_", 1)[0])
        return prepare(*args, **options)

    runtime.prepare = noted
    browser.post(f"{ROOT}/chat/ask", data={"task": "LaMP_4", "field-text": "Ice"})
    assert names == {"pfi-console"}


# Sessions ---------------------------------------------------------------------------


def test_each_port_has_a_cookie_of_its_own(home: Home) -> None:
    names = set()
    for port in (8484, 8485):
        base = f"http://127.0.0.1:{port}"
        app = create_app(make_service([home]))
        client = TestClient(app, base_url=base, headers={**FROM_HERE, "Origin": base})
        code = console_of(app).sessions.new_code("anna")
        client.post(f"{ROOT}/signin", data={"code": code})
        names |= {*client.cookies.keys()}
    assert names == {"pfi_console_8484", "pfi_console_8485"}


def test_signing_in_again_ends_the_session_before(app: FastAPI, browser: TestClient) -> None:
    (before,) = browser.cookies.values()
    browser.post(f"{ROOT}/signin", data={"code": console_of(app).sessions.new_code("anna")})
    (after,) = browser.cookies.values()
    assert before != after and console_of(app).sessions.find(before) is None


# Teachers ---------------------------------------------------------------------------


def test_the_console_changes_no_address_and_no_key(home: Home, browser: TestClient) -> None:
    evil = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "policy": "none"}
    reply = browser.post(f"{ROOT}/settings/teacher", data=evil)
    assert reply.status_code == 400 and "config.yaml" in reply.text
    configure(home, base_url="https://teacher.example/v1", model="m", api_key_env="KEY")
    for change in ({"base_url": evil["base_url"]}, {"model": "/etc"}, {"kind": "local"}):
        data = {"kind": "openai", "policy": "redact", **change}
        assert browser.post(f"{ROOT}/settings/teacher", data=data).status_code == 400
    more = {"api_key_env": "AWS_SECRET", "kind": "openai"}
    assert browser.post(f"{ROOT}/settings/teacher", data=more).status_code == 204
    teacher = home.config.augment["teacher"]
    assert teacher["base_url"] == "https://teacher.example/v1" and teacher["api_key_env"] == "KEY"
    assert "at https://teacher.example/v1" in browser.get(f"{ROOT}/settings").text


def test_the_configured_teacher_can_be_left_and_chosen_again(
    home: Home, browser: TestClient
) -> None:
    configure(home, model="gpt", api_key_env="KEY")  # at the usual address
    before = dict(home.config.augment["teacher"])
    for kind in ("embedded", "openai"):
        reply = browser.post(f"{ROOT}/settings/teacher", data={"kind": kind, "policy": "none"})
        assert reply.status_code == 204
        assert home.config.augment["teacher"]["kind"] == kind
    assert home.config.augment["teacher"].items() >= before.items()


def test_this_machine_too_is_asked_about_before_text_is_sent(
    home: Home, browser: TestClient
) -> None:
    configure(home, model="m", base_url="http://127.0.0.1:9/v1")
    data = {"task": "LaMP_4", "agreed": ""}
    refused = browser.post(f"{ROOT}/progress/augment", data=data)
    assert refused.status_code == 400 and "127.0.0.1:9" in refused.text
